"""Algorithm 2 and Appendix A.6 of arXiv 2602.04770 as plain float64 loops: what the fast field is measured against."""

import math

import torch


def literal_drift(
    x, y_pos, y_neg=None, *, taus, weight=None, scale_over="map", floor=0.0, kernel="laplace", normalisation="both"
):
    """v [G, N, C], S [G], lambda [T, G] in float64. Negatives are x itself, then `y_neg` with its weight."""
    G, N, C = x.shape
    y_neg = x if y_neg is None else torch.cat([x.double(), y_neg.double()], dim=1)
    y = torch.cat([y_neg.double(), y_pos.double()], dim=1)
    w = torch.ones(y.shape[:2], dtype=torch.float64)
    if weight is not None:
        w[:, N : y_neg.shape[1]] = weight
    num_neg, x, y, w = y_neg.shape[1], x.tolist(), y.tolist(), w.tolist()
    d = [[[math.dist(x[g][i], y[g][k]) for k in range(len(y[g]))] for i in range(N)] for g in range(G)]
    total = [sum(w[g][k] * d[g][i][k] for i in range(N) for k in range(len(y[g]))) / N for g in range(G)]
    mean = [total[g] / sum(w[g]) for g in range(G)]
    if scale_over == "map":
        mean = [sum(total) / sum(sum(weights) for weights in w)] * G
    S = [m / math.sqrt(C) for m in mean]
    v_tau, lam = [], []
    for tau in taus:
        V = [
            _field(x[g], y[g], w[g], d[g], num_neg, mean[g] * tau, S[g], floor, kernel, normalisation) for g in range(G)
        ]
        power = [sum(c * c for row in V[g] for c in row) / (N * C) for g in range(G)]
        if scale_over == "map":
            power = [sum(power) / G] * G
        v_tau.append(V)
        lam.append([math.sqrt(p) for p in power])
    v = [
        [
            [sum(v_tau[t][g][i][c] / lam[t][g] if lam[t][g] > 0 else 0.0 for t in range(len(taus))) for c in range(C)]
            for i in range(N)
        ]
        for g in range(G)
    ]
    return tuple(torch.tensor(part, dtype=torch.float64) for part in (v, S, lam))


def literal_affinity(d, width, floor, kernel="laplace", normalisation="both"):
    """A [N][K] before weighting, from distances whose first N columns are x itself."""
    N, K = len(d), len(d[0])
    logit = [[-math.inf if k == i else _log_kernel(d[i][k] / width, kernel) for k in range(K)] for i in range(N)]

    def rows(logit):
        return [_log_sum(row) for row in logit]

    def columns(logit):
        return [_log_sum([logit[i][k] for i in range(N)]) for k in range(K)]

    if normalisation.startswith("sinkhorn"):
        for _ in range(int(normalisation[9:-1])):
            over = columns(logit)
            logit = [[_less(logit[i][k], over[k]) + math.log(N / K) for k in range(K)] for i in range(N)]
            over = rows(logit)
            logit = [[_less(logit[i][k], over[i]) for k in range(K)] for i in range(N)]
        log_affinity = logit
    else:
        half_rows, half_columns = {"both": (0.5, 0.5), "rows": (1.0, 0.0), "none": (0.0, 0.0)}[normalisation]
        r, c = rows(logit), columns(logit)
        log_affinity = [
            [-math.inf if k == i else logit[i][k] - half_rows * r[i] - half_columns * c[k] for k in range(K)]
            for i in range(N)
        ]
    return [[max(math.exp(log), floor) for log in row] for row in log_affinity]


def _log_kernel(distance, kernel):
    return -distance if kernel == "laplace" else -(distance**2) / 2


def _less(log, subtracted):
    return -math.inf if log == -math.inf else log - subtracted


def _log_sum(values):
    top = max(values)
    return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))


def _field(x, y, w, d, num_neg, width, S, floor, kernel, normalisation):
    N, K, C = len(x), len(y), len(x[0])
    affinity = literal_affinity(d, width, floor, kernel, normalisation)
    V = []
    for i in range(N):
        A = [affinity[i][k] * w[k] for k in range(K)]
        neg, pos = sum(A[:num_neg]), sum(A[num_neg:])
        V.append(
            [
                sum(A[k] * neg * y[k][c] / S for k in range(num_neg, K))
                - sum(A[k] * pos * y[k][c] / S for k in range(num_neg))
                for c in range(C)
            ]
        )
    return V
