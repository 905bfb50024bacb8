"""What `driftkit fid` prints for people: every score next to what real images would get, and warnings in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from driftkit.metrics.base import Quantity
    from driftkit.scoring.evaluation_record import CurveRecord, EvaluationRecord, RepeatsRecord, ScoredRecord

WIDTH = 100
DIGITS = {"distance": "{:.4g}", "share": "{:.3f}", "ratio": "{:.3f}", "score": "{:.3f}", "nats": "{:.3f}"}
BETTER = {"lower": ", lower", "higher": ", higher", "one": ", towards 1", "none": ""}


def show(records: "Sequence[tuple[str, EvaluationRecord | RepeatsRecord | CurveRecord]]") -> None:
    """Print evaluations, summaries of repeats, or curves with their paths: one of each extractor."""
    from rich.markup import escape

    from driftkit.runtime.terminal import open_console
    from driftkit.scoring.evaluation_record import CurveRecord

    console = open_console(most=WIDTH, highlight=False)
    for path, record in records:
        _head(console, record)
        if isinstance(record, CurveRecord):
            console.print(_curve(record))
            console.print(escape(f"figure: {record.figure}"))
        else:
            console.print(_scores(record))
            for warning in record.warnings:
                console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
        console.print(escape(path), soft_wrap=True)


def _head(console: "Console", record: "ScoredRecord") -> None:
    from rich.markup import escape

    extractor, reference, sampling = record.extractor, record.reference, record.sampling
    setup = f"{sampling.label}, {sampling.nfe} NFE, {sampling.weights} weights" if sampling else "images"
    console.print(f"[bold]{escape(record.run or record.target)}[/bold]  {escape(setup)}")
    count = "an unknown number of" if reference.count is None else f"{reference.count:,}"
    console.print(
        escape(
            f"by {extractor.name} ({extractor.dim} features, weights {extractor.weights_digest[:8]}) "
            f"against {count} images of {reference.spec} ({reference.digest[:8]})"
        )
    )
    kin = record.kinship
    if kin and kin.degree != "independent":
        console.print(f"[bold red]{kin.degree} evaluator[/bold red], ranks nothing: {escape(kin.reason)}")


def _scores(record: "EvaluationRecord | RepeatsRecord") -> "Table":
    from rich.table import Table

    from driftkit.scoring.evaluation_record import RepeatsRecord

    floor = record.floor
    table = Table("score", "value", f"real images get ({floor.num_images:,} each)" if floor else "real images get")
    for row in _rows(record):
        table.add_row(*row)
    if isinstance(record, RepeatsRecord):
        values = ", ".join(f"{v:.4g}" for v in record.spread["fid"].values)
        table.caption = f"mean ± sd over {len(record.seeds)} disjoint sets; {record.name}: {values}"
        table.caption_justify = "left"
    return table


def _rows(record: "EvaluationRecord | RepeatsRecord") -> Iterator[tuple[str, str, str]]:
    """Name, value and value of real images, of every score that exists."""
    from rich.markup import escape

    from driftkit.metrics.registry import quantities
    from driftkit.scoring.evaluation_record import EvaluationRecord

    real = {**record.real_metrics} if isinstance(record, EvaluationRecord) else {}
    real |= record.floor.metrics if record.floor else {}
    for key, quantity in quantities().items():
        if key not in record.metrics:
            continue
        name = (record.name if key == "fid" else quantity.label) + BETTER[quantity.direction]
        if isinstance(record, EvaluationRecord):
            value = _value(record.metrics[key], quantity)
            value += f" ± {record.metrics[quantity.spread]:.2g}" if quantity.spread in record.metrics else ""
        else:
            value = f"{_value(record.spread[key].mean, quantity)} ± {record.spread[key].sd:.2g}"
        yield name, f"[bold]{value}[/bold]" if key == "fid" else value, _value(real.get(key), quantity)
    classes = record.per_class if isinstance(record, EvaluationRecord) else None
    distances = {name: v for name, v in classes.fd.items() if v is not None} if classes else {}
    if classes and distances:
        worst = max(distances, key=lambda name: distances[name])
        mean = sum(distances.values()) / len(distances)
        yield (
            f"FID of classes ({escape(classes.by)}), mean",
            f"{mean:.4g}, worst {distances[worst]:.4g} ({escape(worst)})",
            "",
        )


def _value(value: float | None, quantity: "Quantity") -> str:
    return "" if value is None else DIGITS[quantity.unit].format(value)


def _curve(record: "CurveRecord") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from driftkit.metrics.registry import quantities

    columns = [q for q in quantities().values() if q.column and any(q.key in (p.metrics or {}) for p in record.points)]
    columns = columns[:4]
    names = [record.name if quantity.key == "fid" else quantity.label for quantity in columns]
    table = Table("step", "images seen", *names, "")
    for point in record.points:
        metrics: Mapping[str, Any] = point.metrics or {}
        seen = "–" if point.images_seen is None else f"{point.images_seen:,}"
        cells = [_value(metrics.get(quantity.key), quantity) or "–" for quantity in columns]
        table.add_row(f"{point.step:,}", seen, *cells, escape(point.refused or ""))
    if record.floor:
        count = record.floor.num_images
        table.caption = f"real images, {count:,} against {count:,}: {record.floor.metrics['fid']:.4g}"
        table.caption_justify = "left"
    return table
