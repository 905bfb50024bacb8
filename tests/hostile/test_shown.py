"""What others wrote is shown and never obeyed: by terminals, by rich's markup, by spreadsheets."""

import csv
import io
import json

import pytest

from driftkit.runtime.terminal import open_console, printable
from driftkit.storage.files import write_json
from driftkit.storage.json_text import to_json
from tests.conftest import driftkit
from tests.scoring.fakes import add_samples, evaluation, make_pack, make_run, random_images

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08‮"
MARKUP = "[red]danger[/red][link=file:///etc/passwd]x[/link]"
CONTROL = [chr(c) for c in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0xDCFF)]


@pytest.mark.parametrize("text", ["name", "漂移 🌀 ünï", "a\tb\nc", "[red]", "\\x1b"])
def test_plain_text_stays_as_it_is(text):
    assert printable(text) == text


def test_control_characters_are_shown():
    assert printable(ESCAPES).isprintable()
    assert printable("\x1b[2J") == "\\x1b[2J"
    assert all(printable(c).isprintable() for c in CONTROL)
    stream = io.StringIO()
    console = open_console(file=stream, force_terminal=False, width=80)
    console.print(ESCAPES)
    assert not set(CONTROL) & set(stream.getvalue())


def test_json_on_a_terminal_holds_no_control_character_and_comes_back():
    document = {"name": ESCAPES, "bytes": "\udcff", "text": "ünï"}
    text = to_json(document)
    assert json.loads(text) == document
    assert not set(CONTROL) & set(text)
    assert "ünï" in text
    text.encode()


@pytest.fixture
def runs(tmp_path):
    """Two runs whose names, settings and scores mean ill."""
    made = []
    for number, name in enumerate((f"{ESCAPES}{MARKUP.replace('/', '|')}", "=cmd|'calc'!A1")):
        run = make_run(tmp_path / name, "ddpm")
        config = run.manifest().config
        run.update(config={**config, "seed": number, "data": {**config["data"], "spec": ESCAPES + MARKUP}})
        hostile = {"spec": ESCAPES + MARKUP, "digest": "cd", "count": 500, "image_size": 8}
        document = evaluation(3.0 + number, sampler=f"-1+1 {MARKUP}", warnings=[ESCAPES + MARKUP], reference=hostile)
        write_json(run.path / "evaluations" / "1.json", document)
        add_samples(run)
        made.append(run.path)
    (tmp_path / f"{MARKUP.replace('/', '|')}{ESCAPES}").mkdir()
    return [*made, tmp_path / f"{MARKUP.replace('/', '|')}{ESCAPES}"]


def test_tables_of_a_comparison(runs, tmp_path):
    result = driftkit("compare", *runs, "--no-speed", "--no-neighbours", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert not set(CONTROL) & set(result.output)
    flat = "".join(result.output.split())
    assert MARKUP.replace(" ", "") in flat  # as it is written, in a warning
    assert "\\x1b[2J" in flat
    cells = [cell for row in csv.reader((tmp_path / "out" / "compare.csv").open()) for cell in row]
    assert any("=cmd" in cell for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


def test_classes_of_a_pack_and_errors(tmp_path):
    import torch

    make_pack(tmp_path / "p.safetensors", random_images(2), torch.tensor([0, 1]), (MARKUP, ESCAPES))
    result = driftkit("data", tmp_path / "p.safetensors")
    assert result.exit_code == 0, result.output
    assert MARKUP in result.output
    assert not set(CONTROL) & set(result.output)
    lines = (
        ("data", ESCAPES + MARKUP),
        ("sample", tmp_path / (ESCAPES + "x")),
        ("train", "--data", ESCAPES),
        ("train", "--set", f"{ESCAPES}=1"),
        (ESCAPES,),
        ("run", tmp_path / (MARKUP.replace("/", "|") + ESCAPES)),
    )
    for words in lines:
        refused = driftkit(*words)
        assert refused.exit_code in (2, 3), refused.output
        assert not set(CONTROL) & set(refused.output), words


def test_settings_of_a_dry_run(tmp_path):
    words = [
        "train",
        "--dry-run",
        "--objective",
        "ddpm",
        "--data",
        "shapes",
        "--set",
        f"evaluation.reference={MARKUP}{ESCAPES}",
    ]
    result = driftkit(*words, "--output", tmp_path / "[red]run[")
    assert result.exit_code == 0, result.output
    assert "[red]run[" in result.output
    assert "[red]danger" in result.output
    assert not set(CONTROL) & set(result.output)


def test_progress_titles_are_no_markup(monkeypatch):
    from driftkit.runtime import progress as module

    stream = io.StringIO()
    monkeypatch.setattr(module, "open_console", lambda **_: open_console(file=stream, force_terminal=True, width=120))
    with module.progress(f"importing {MARKUP}\x1b[5m", 2) as advance:
        advance(2)
    assert "[red]danger[/red]" in stream.getvalue()
    assert "\x1b[5m" not in stream.getvalue()
