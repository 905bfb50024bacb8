"""The cost of a training step as a table for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

GIB, TERA = 2**30, 1e12


def budget_table(budget: Mapping[str, Any]) -> tuple[Table, str]:
    """A column per number of GPUs or processes, and what the counts leave out."""
    steps, shapes = budget["steps"], budget["shapes"]
    one = "GPU" if shapes["device"] == "cuda" else "process"
    many = "GPUs" if shapes["device"] == "cuda" else "processes"
    table = Table(title=f"cost of a step of {budget['images']} images, per rank", title_justify="left")
    table.add_column("")
    for number, step in enumerate(steps):
        count = f"{step['ranks']} {one if step['ranks'] == 1 else many}"
        table.add_column(f"{count} (this run)" if number == 0 else count, justify="right")
    table.add_row("images", *(str(step["images_per_rank"]) for step in steps))
    drifting = shapes["batch"] is not None
    rows = {
        "features received, MiB": ("gathered_bytes", 2**20, drifting),
        "gradients received, MiB": ("gradient_bytes", 2**20, True),
        "trained network, TFLOP": ("network_flops", TERA, True),
        "encoder, TFLOP": ("encoder_flops", TERA, drifting),
        "field, TFLOP": ("field_flops", TERA, drifting),
        "memory, GiB": ("memory_bytes", GIB, True),
        "  weights and optimizer": ("state_bytes", GIB, True),
        "  kept for backward": ("saved_bytes", GIB, True),
        "  gathered features": ("feature_bytes", GIB, drifting),
        "  field": ("field_bytes", GIB, drifting),
    }
    for label, (key, unit, shown) in rows.items():
        if shown:
            table.add_row(label, *(f"{step[key] / unit:,.3g}" for step in steps))
    where = "a GPU" if shapes["device"] == "cuda" else "a CPU"
    counted = f"memory: {shapes['dtype']} on {where}, without what lives for a moment only"
    return table, "; ".join([counted, *budget["advice"], *budget["assumed"]])
