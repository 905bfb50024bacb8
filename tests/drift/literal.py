"""Algorithm 2 and Appendix A.6 of arXiv 2602.04770 as plain float64 loops: what the fast field is measured against."""

import math


def literal_drift(x, y_pos, y_neg, neg_weight, taus, scale_over, floor):
    """v [G][N][C], S [G], lambda [T][G] from nested lists; y_neg holds x first, which is masked against itself."""
    G, N, C = len(x), len(x[0]), len(x[0][0])
    y = [y_neg[g] + y_pos[g] for g in range(G)]
    w = [neg_weight[g] + [1.0] * len(y_pos[g]) for g in range(G)]
    d = [[[math.dist(x[g][i], y[g][k]) for k in range(len(y[g]))] for i in range(N)] for g in range(G)]
    mean = [sum(w[g][k] * d[g][i][k] for i in range(N) for k in range(len(y[g]))) / (N * sum(w[g])) for g in range(G)]
    if scale_over == "map":
        mean = [sum(mean) / G] * G
    S = [m / math.sqrt(C) for m in mean]
    v_tau, lam = [], []
    for tau in taus:
        V = [_field(x[g], y[g], w[g], d[g], len(y_neg[g]), mean[g] * tau, S[g], floor) for g in range(G)]
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
    return v, S, lam


def _field(x, y, w, d, num_neg, width, S, floor):
    N, K, C = len(x), len(y), len(x[0])
    logit = [[-math.inf if k == i else -d[i][k] / width for k in range(K)] for i in range(N)]

    def log_sum(values):
        top = max(values)
        return top if top == -math.inf else top + math.log(sum(math.exp(v - top) for v in values))

    rows = [log_sum(logit[i]) for i in range(N)]
    columns = [log_sum([logit[i][k] for i in range(N)]) for k in range(K)]

    def affinity(i, k):
        log = logit[i][k]
        value = 0.0 if log == -math.inf else math.sqrt(math.exp(log - rows[i]) * math.exp(log - columns[k]))
        return max(value, floor) * w[k]

    V = []
    for i in range(N):
        A = [affinity(i, k) for k in range(K)]
        neg, pos = sum(A[:num_neg]), sum(A[num_neg:])
        V.append(
            [
                sum(A[k] * neg * y[k][c] / S for k in range(num_neg, K))
                - sum(A[k] * pos * y[k][c] / S for k in range(num_neg))
                for c in range(C)
            ]
        )
    return V
