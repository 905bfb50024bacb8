"""The report: self-contained, escaped, and complete."""

import csv
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from PIL import Image

from driftkit.comparison.report import ComparisonRecord, aligned, embedded_json
from driftkit.comparison.speed import Speed
from driftkit.errors import ArtifactError
from driftkit.methods.registry import METHODS, Curve
from driftkit.metrics.base import Quantity
from driftkit.metrics.registry import METRICS
from driftkit.stages import compare as stage
from driftkit.storage.files import read_json, write_json
from tests.comparison.comparing import compare_runs
from tests.scoring.fakes import KIN, add_frames, add_samples, evaluation, make_run

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Elements and attributes of a page, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._in_script = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts.append(data)


def sentences_of(text):
    """The visible text of a page, cut at the ends of sentences and of elements that start a line."""
    body = text[text.index("<body>") : text.index('<script type="application/json"')]
    blocks = re.split(r"</?(?:p|li|h\d|t[dh]|figcaption|summary|caption|div|label|a)\b[^>]*>", body)
    lines = [unescape(re.sub(r"<[^>]+>", "", block)).strip() for block in blocks]
    return [sentence for line in lines if line for sentence in re.split(r"(?<=[.!?])\s+", line)]


def scored(run, fid, **changes):
    write_json(run.path / "evaluations" / f"{fid}.json", evaluation(fid, **changes))


@pytest.fixture
def runs(tmp_path):
    drift, ddpm = make_run(tmp_path / "drift"), make_run(tmp_path / "ddpm", "ddpm")
    scored(drift, 9.0, nfe=1, sampler="one-step", kinship=KIN)
    scored(ddpm, 7.0, nfe=50)
    scored(ddpm, 12.0, nfe=10)
    for run in (drift, ddpm):
        add_samples(run)
        add_frames(run)
    make_run(tmp_path / "mae", "mae")
    return tmp_path


def test_report_compare_json_and_figures_are_written(runs):
    result = compare_runs([runs / "drift", runs / "ddpm", runs / "mae"], runs / "out")
    assert result.report == runs / "out" / "report.html"
    document = read_json(runs / "out" / "compare.json")
    assert {"report.html", "compare.csv"} < document["files"].keys()
    assert document == result.record.document()
    assert ComparisonRecord.read(runs / "out" / "compare.json") == result.record
    assert [r["label"] for r in document["runs"]] == ["ddpm", "drift"]
    assert [r["label"] for r in document["encoders"]] == ["mae"]
    for path in document["figures"].values():
        opacity = Image.open(runs / "out" / path).convert("RGBA").getextrema()[3]
        assert opacity == (255, 255)
    charts = [path.stem for path in (runs / "out" / "figures").glob("*.svg")]
    drawn = {"drift-norm", "noise-prediction-loss", "normalised-drifting-loss"}
    assert drawn <= set(charts) <= set(document["figures"])
    lines = list(csv.DictReader((runs / "out" / "compare.csv").open()))
    assert [(line["run"], line["nfe"], line["fid"]) for line in lines] == [
        ("ddpm", "50", "7.0"),
        ("ddpm", "10", "12.0"),
        ("drift", "1", "9.0"),
    ]
    names = set(document["figures"])
    assert {*drawn, "samples-1", "samples-2"} <= names
    assert any(name.startswith("nfe-") for name in names)


def test_report_needs_nothing_but_itself(runs):
    text = compare_runs([runs / "drift", runs / "ddpm"], runs / "out").report.read_text()
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "srcset", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, value[:40])
    images = [a for tag, a in page.elements if tag == "img" and "src" in a]
    assert len(images) >= 6
    assert all(a["alt"] for a in images)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [tag for tag, attributes in page.elements if "style" in attributes or "onclick" in attributes]
    assert "kin evaluator" in text


def test_samples_are_captioned_with_method_cost_and_the_best_independent_score(runs):
    text = compare_runs([runs / "drift", runs / "ddpm"], runs / "out").report.read_text()
    assert "<strong>ddpm</strong>: DDPM, 50 NFE, fid@100 7.00 by encoder:tiny</figcaption>" in text
    assert "<strong>drift</strong>: Drifting, 1 NFE, no independent score</figcaption>" in text
    assert text.index("<strong>ddpm</strong>: DDPM") < text.index("<strong>drift</strong>: Drifting")


def test_no_sentence_of_the_page_is_longer_than_30_words(runs):
    page = compare_runs([runs / "drift", runs / "ddpm", runs / "mae"], runs / "out").report.read_text()
    long = [sentence for sentence in sentences_of(page) if len(sentence.split()) > 30]
    assert len(sentences_of(page)) > 60
    assert long == []


def test_points_of_numbers_stand_below_one_another():
    assert aligned(["5.53", "0.4582", "128.1", "12", "2.8e-05"]) == [
        "5.53\u2007\u2007", "0.4582", "128.1\u2007\u2007\u2007", "12\u2008\u2007\u2007\u2007\u2007", "2.8e-05"
    ]  # fmt: skip


def test_embedded_data_is_the_comparison(runs):
    result = compare_runs([runs / "drift", runs / "ddpm"], runs / "out")
    data = json.loads(Page(result.report.read_text()).scripts[0])
    assert data == {**result.record.document(), "files": {}}


def test_hostile_names_are_escaped_everywhere(tmp_path):
    run = make_run(tmp_path / "x" / HOSTILE.replace("/", "_"), encoder={"name": HOSTILE, "weights_digest": "0"})
    scored(run, 3.0, sampler=HOSTILE, weights=HOSTILE, warnings=[HOSTILE, "<!-- <script>"])
    document = evaluation(4.0)
    document["extractor"]["name"] = document["reference"]["spec"] = f'"{HOSTILE}'
    write_json(run.path / "evaluations" / "other.json", document)
    add_samples(run, sampler=HOSTILE)
    text = compare_runs([run.path, tmp_path / HOSTILE], tmp_path / "out").report.read_text()
    assert "<script>alert" not in text
    assert [tag for tag, _ in Page(text).elements].count("script") == 2
    assert "&lt;script&gt;alert(1)" in text


def test_class_names_and_ends_of_scripts_stay_inside_the_data():
    document = {"classes": [HOSTILE, "<!--", "]]>", "\u2028 & 'quoted'"]}
    text = embedded_json(document)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == document


def test_names_with_dollars_and_underscores_are_drawn(tmp_path):
    runs = [make_run(tmp_path / "_hidden"), make_run(tmp_path / "$\\broken{")]
    for run in runs:
        scored(run, 3.0, nfe=1)
        scored(run, 2.0, nfe=5)
        add_samples(run)
    assert compare_runs([r.path for r in runs], tmp_path / "out").report.is_file()


def test_what_is_no_run_is_skipped_with_its_reason(runs):
    (runs / "notes").mkdir()
    result = compare_runs([runs / "drift", runs / "notes", runs / "gone", runs / "drift"], runs / "out")
    reasons = [entry["reason"] for entry in result.record.skipped]
    for words, reason in zip(("no manifest.json", "no such run folder", "given before"), reasons, strict=True):
        assert words in reason
        assert str(runs) not in reason.partition(";")[0]  # the path stands before it
    text = result.report.read_text()
    assert "no such run folder" in text


def test_nothing_to_compare_is_missing(runs):
    with pytest.raises(ArtifactError, match="only encoders"):
        compare_runs([runs / "mae"], runs / "out")
    with pytest.raises(ArtifactError, match="nothing is left"):
        compare_runs([runs / "nowhere"], runs / "out")
    assert not (runs / "out").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = []
    for parent in ("a", "b"):
        run = make_run(tmp_path / parent / "drift")
        add_samples(run)
        paths.append(run.path)
    result = compare_runs(paths, tmp_path / "out")
    assert [r.label for r in result.record.runs] == ["a/drift", "b/drift"]


def test_inequalities_and_missing_scores_are_noted(tmp_path):
    first, second = make_run(tmp_path / "drift"), make_run(tmp_path / "ddpm", "ddpm", parameters=5, steps=20)
    for run in (first, second):
        add_samples(run)
    notes = " ".join(compare_runs([first.path, second.path], tmp_path / "out").record.notes)
    for words in ("sizes of network", "numbers of images seen", "driftkit fid"):
        assert words in notes


def test_run_without_samples_and_checkpoint_has_no_grid_and_no_speed_and_says_so(tmp_path):
    run = make_run(tmp_path / "drift")
    notes = compare_runs([run.path], tmp_path / "out", speed=True, speed_batch=2).record.notes
    assert any("has no grid" in n for n in notes)
    assert any("speed of drift was not measured" in n for n in notes)


def test_measured_speed_is_shown_with_its_settings(runs, monkeypatch):
    speeds = [Speed("drift", "one-step", 1, 1, 200.0, 0.08, 1.0), Speed("ddpm", "ddim", 100, 20, 2.0, 8.0, 1.1)]
    monkeypatch.setattr(stage, "time_runs", lambda *_: speeds)
    text = compare_runs([runs / "drift", runs / "ddpm"], runs / "out", speed=True).report.read_text()
    for words in ("16 images at a time", "not compiled", "float32", "is scaled by their ratio", "<strong>200"):
        assert words in text


def test_figures_of_an_earlier_comparison_leave_and_other_files_stay(runs):
    compare_runs([runs / "drift", runs / "ddpm"], runs / "out")
    (runs / "out" / "figures" / "mine.png").write_text("")
    compare_runs([runs / "ddpm"], runs / "out")
    left = {path.name for path in (runs / "out" / "figures").iterdir()}
    assert not {"drift-norm.png", "drift-norm.svg", "samples-2.png", "evolution-2.webp"} & left
    assert {"mine.png", "noise-prediction-loss.png", "noise-prediction-loss.svg"} <= left


def test_differing_configs_are_shown_and_escaped(runs):
    run = make_run(runs / "other")
    config = run.manifest().config
    run.update(config={**config, "trainer": {**config["trainer"], "note": HOSTILE}})
    text = compare_runs([runs / "drift", run.path], runs / "out").report.read_text()
    assert "trainer.note" in text
    assert "<script>alert" not in text


def test_steps_that_were_scored_give_curves_over_steps_and_time(runs):
    run = make_run(runs / "kept")
    for step, fid in ((10, 9.0), (20, 6.0), (30, 4.0)):
        scored(run, fid, step=step, nfe=1, sampler="one-step")
    record = compare_runs([run.path, runs / "ddpm"], runs / "out").record
    key = record.score_tables[0].key
    assert {f"step-{key}", f"seconds-{key}"} <= set(record.figures)
    budget = next(b for b in record.budgets[key] if b.cost == "step")
    assert budget.amount == 30
    assert budget.cells["kept"].score == 4.0


def test_a_new_method_and_a_new_metric_show_by_themselves(tmp_path, monkeypatch):
    curve = Curve("loss", "toy loss", "What the toy minimises.")
    toy = replace(METHODS["ddpm"], name="toy", label="Toy method", curves=(curve,), curves_note="Toys learn fast.")
    monkeypatch.setitem(METHODS, "toy", toy)
    quantity = Quantity("toy_score", "Toy score", "higher", "share", "How toy-like samples are.")
    monkeypatch.setitem(METRICS, "toy", replace(METRICS["kid"], name="toy", quantities=(quantity,)))
    for name, method, values in (("a", "toy", (3.0, 0.125)), ("b", "ddpm", (5.0, 0.875))):
        run = make_run(tmp_path / name, method)
        scored(run, values[0], metrics={"fid": values[0], "toy_score": values[1]})
        add_samples(run)
    result = compare_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    page = result.report.read_text()
    for words in ("Toy method, 50 NFE", "Toy score</button>", "0.125", "How toy-like samples are.", "Toys learn fast.",
                  "What the toy minimises."):  # fmt: skip
        assert words in page
    assert "toy-loss" in result.record.figures
    assert any("Toy score of encoder:tiny orders" in caution for caution in result.record.cautions)
    lines = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    assert [(line["method"], line["toy_score"]) for line in lines] == [("toy", "0.125"), ("ddpm", "0.875")]
