"""The picture of a run's score against its training steps."""

from collections.abc import Mapping
from typing import Any

from driftkit.runtime.drawing import INK, PALETTES, draw_figure, legend, plain_label, scale_y

MARGIN = 1.15


def score_curve(document: Mapping[str, Any]) -> bytes:
    """A PNG of score against step, with the real-versus-real floor; refused checkpoints are crosses at the top.

    Args:
        document: of kind "evaluation curve".
    """
    points = document["points"]
    scored = [(p["step"], p["metrics"]["fid"]) for p in points if p["metrics"]]
    refused = [p["step"] for p in points if not p["metrics"]]
    floor = document.get("floor")
    values = [value for _, value in scored] + ([floor["fid"]] if floor and floor["fid"] > 0 else [])

    def draw(axes: Any, theme: str) -> None:
        main, _, _, _, _, wrong, *_ = PALETTES[theme]
        axes.plot(*zip(*scored, strict=True), marker="o", color=main, label=document["name"])
        if floor:
            axes.axhline(floor["fid"], color=INK[theme], linewidth=1, linestyle=(0, (1, 2)),
                         label=f"real images, {floor['num_images']:,} against {floor['num_images']:,}")  # fmt: skip
        if refused:
            top = [max(value for _, value in scored) * MARGIN] * len(refused)
            axes.plot(refused, top, linestyle="", marker="x", color=wrong, label="not scorable")
        scale_y(axes, values)
        axes.set_xlim(left=0)
        axes.set_xlabel("training step")
        by = f"{document['name']} by {document['extractor']['name']}"
        axes.set_ylabel(plain_label(by))
        axes.set_title(plain_label(str(document["run"])), fontsize=10, loc="right", color=INK[theme])
        legend(axes, theme)

    figure = draw_figure(draw, name="score-curve", alt="", caption="", height=3.8, entries=1 + bool(floor))
    return figure.png
