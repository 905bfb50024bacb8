"""What `driftkit fid` prints for people: every score beside what real images would get, and warnings in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100
DIGITS = {"fid": "{:.4g}", "kid": "{:.3g}", "inception_score": "{:.3f}"}
# metric -> how it is called, and which way is better
PLAIN = {
    "precision": "precision, higher",
    "recall": "recall, higher",
    "density": "density, towards 1",
    "coverage": "coverage, higher",
}


def show(documents: Sequence[dict[str, Any]]) -> None:
    """Print evaluations, summaries of repeats, or curves: one of each evaluator."""
    from driftkit.runtime.terminal import open_console

    console = open_console(width=WIDTH, highlight=False)
    for document in documents:
        _show_one(console, document)


def _show_one(console: "Console", document: dict[str, Any]) -> None:
    from rich.markup import escape

    _head(console, document)
    if document["kind"] == "evaluation curve":
        console.print(_curve(document))
        console.print(escape(f"figure: {document['figure']}"))
    else:
        console.print(_scores(document))
    for warning in document.get("warnings", []):
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    console.print(escape(document["evaluation"]), soft_wrap=True)


def _head(console: "Console", document: Mapping[str, Any]) -> None:
    from rich.markup import escape

    extractor, reference = document["extractor"], document["reference"]
    how = f"{document['sampler']}, {document['nfe']} NFE, {document['weights']} weights"
    name = document["run"] or document.get("target")
    console.print(f"[bold]{escape(str(name))}[/bold]  {escape(how if document['sampler'] else 'images')}")
    count = "an unknown number of" if reference["count"] is None else f"{reference['count']:,}"
    console.print(
        escape(
            f"by {extractor['name']} ({extractor['dim']} features, weights {extractor['weights_digest'][:8]}) "
            f"against {count} images of {reference['spec']} ({reference['digest'][:8]})"
        )
    )
    kin = document["kinship"]
    if kin and kin["degree"] != "independent":
        console.print(f"[bold red]{kin['degree']} evaluator[/bold red], ranks nothing: {escape(kin['reason'])}")


def _scores(document: Mapping[str, Any]) -> "Table":
    from rich.table import Table

    floor = document["floor"]
    against = f"real images get ({floor['num_images']:,} each)" if floor else "real images get"
    table = Table("score", "value", against)
    for name, value, real in _rows(document):
        table.add_row(name, value, real)
    if "repeats" in document:
        repeats = document["repeats"]
        values = ", ".join(f"{v:.4g}" for v in repeats["metrics"]["fid"]["values"])
        table.caption = f"mean ± sd over {len(repeats['seeds'])} disjoint sets; {document['name']}: {values}"
        table.caption_justify = "left"
    return table


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and floor of every score that exists."""
    from rich.markup import escape

    floor = document["floor"] or {}
    metrics = document["repeats"]["metrics"] if "repeats" in document else document["metrics"]
    yield (
        f"{document['name']}, lower",
        f"[bold]{_value(metrics['fid'], '{:.4g}')}[/bold]",
        _value(floor.get("fid"), "{:.4g}"),
    )
    if "kid_mean" in metrics:
        spread = metrics["kid_std"]
        sd = "" if isinstance(spread, Mapping) else f" ± {spread:.2g} over subsets"
        yield "kid, lower", _value(metrics["kid_mean"], "{:.3g}") + sd, _value(floor.get("kid_mean"), "{:.2g}")
    for key, name in PLAIN.items():
        if key in metrics:
            yield name, _value(metrics[key], "{:.3f}"), _value(floor.get(key), "{:.3f}")
    if "inception_score_mean" in metrics:
        yield "inception score, higher", _value(metrics["inception_score_mean"], "{:.3f}"), ""
    classes = document.get("classes")
    if classes:
        real = f"{classes['reference_entropy']:.3f}"
        yield (
            f"entropy of classes ({escape(str(classes['by']))}), nats",
            _value(metrics["class_entropy"], "{:.3f}"),
            real,
        )
        distances = [v for v in (classes.get("fd") or {}).values() if v is not None]
        if distances:
            worst = max((v, k) for k, v in classes["fd"].items() if v is not None)
            yield (
                "fid of classes, mean",
                f"{sum(distances) / len(distances):.4g}, worst {worst[0]:.4g} ({escape(str(worst[1]))})",
                "",
            )
    if "nearest_ratio" in metrics:
        yield "distance to nearest training image", _value(metrics["nearest_ratio"], "{:.3f}"), "1 (of theirs)"
        share = metrics["near_share"]
        percent = {k: 100 * v for k, v in share.items() if k != "values"} if isinstance(share, Mapping) else 100 * share
        yield "nearer to one than 99 % of real ones", _value(percent, "{:.2g}") + " %", "1 %"


def _value(value: Any, digits: str) -> str:
    """A number, or mean ± sd; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return f"{digits.format(value['mean'])} ± {value['sd']:.2g}"
    return digits.format(value)


def _curve(document: Mapping[str, Any]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table("step", "images seen", document["name"], "kid", "precision", "recall", "")
    for point in document["points"]:
        metrics = point["metrics"] or {}
        cells = [_value(metrics.get(key), "{:.4g}") for key in ("fid", "kid_mean", "precision", "recall")]
        table.add_row(
            f"{point['step']:,}", f"{point['images_seen']:,}", *cells, escape(str(point.get("refused") or ""))
        )
    floor = document["floor"]
    if floor:
        count = floor["num_images"]
        table.caption = f"real images, {count:,} against {count:,}: {floor['fid']:.4g}"
        table.caption_justify = "left"
    return table
