"""The cost of a training step as a table for people."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

GIB, TERA = 2**30, 1e12


def budget_table(budget: Mapping[str, Any]) -> tuple[Table, str]:
    """A column per number of GPUs, and what the expected times rest on."""
    steps = budget["steps"]
    table = Table(title=f"cost of a step of {budget['images']} images, per rank", title_justify="left")
    table.add_column("")
    for number, step in enumerate(steps):
        count = f"{step['ranks']} GPU{'s' if step['ranks'] > 1 else ''}"
        table.add_column(f"{count} (this run)" if number == 0 else count, justify="right")
    table.add_row("images", *(str(step["images_per_rank"]) for step in steps))
    drifting = bool(budget["shapes"]["calls"])
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
    machine, dtype = budget["machine"], budget["shapes"]["dtype"]
    table.add_row(f"expected on {machine['name']}, ms", *(f"{1000 * step['seconds']:,.3g}" for step in steps))
    peak = machine["network_flops" if dtype == "bfloat16" else "field_flops"]
    assumed = [f"expected: {machine['network_share']:.0%} of {peak / TERA:.0f} TFLOP/s {dtype} in the networks"]
    if drifting:
        assumed += [
            f"{machine['field_share']:.0%} of {machine['field_flops'] / TERA:.0f} TFLOP/s float32 in the field, whose "
            f"matrices lie in memory at {machine['memory_bytes'] / 1e12:.2f} TB/s"
        ]
    assumed += [
        f"{machine['near_bytes'] / 1e9:.0f} GB/s within a machine of {machine['per_machine']} and "
        f"{machine['far_bytes'] / 1e9:.0f} GB/s between machines",
        "the same shares however few images a GPU has, nothing overlapped, nothing waited for; memory is without what "
        "lives for a moment only",
        *budget["assumed"],
    ]
    return table, "; ".join(assumed)
