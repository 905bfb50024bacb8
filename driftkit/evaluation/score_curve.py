"""The picture of a run's score against its training steps."""

import io
from collections.abc import Mapping
from typing import Any

MARGIN = 1.15


def score_curve(document: Mapping[str, Any]) -> bytes:
    """A PNG of score against step, with the real-versus-real floor; refused checkpoints are crosses at the top.

    Args:
        document: of kind "evaluation curve".
    """
    from matplotlib.figure import Figure

    points = document["points"]
    scored = [(p["step"], p["metrics"]["fid"]) for p in points if p["metrics"]]
    refused = [p["step"] for p in points if not p["metrics"]]
    figure = Figure(figsize=(6.4, 3.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*scored, strict=True), marker="o", color="#1f6f8b", label=document["name"])
    floor = document.get("floor")
    if floor:
        count = floor["num_images"]
        axes.axhline(floor["fid"], color="#777777", linestyle="--", label=f"real images, {count:,} against {count:,}")
    values = [value for _, value in scored if value > 0] + ([floor["fid"]] if floor and floor["fid"] > 0 else [])
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
    if refused:
        top = [max(value for _, value in scored) * MARGIN] * len(refused)
        axes.plot(refused, top, linestyle="", marker="x", color="#b03a2e", label="not scorable")
    axes.set_xlabel("training step")
    axes.set_ylabel(document["name"])
    axes.set_title(f"{document['run']}, judged by {document['extractor']['name']}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
