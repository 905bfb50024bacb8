"""What another process writes is waited for or refused, never written by two at once."""

import json
import threading
from pathlib import Path

import pytest

from driftkit.datasets.packs import open_pack
from driftkit.runtime.ranks import Ranks
from driftkit.stages.train import _require_equal_plan
from driftkit.stages.verify import verify
from driftkit.storage.files import read_json, write_json
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import resolve_config
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, train_tiny
from tests.locks import another_process

TRAIN = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP]


def refused_by(child, *words):
    result = driftkit(*words)
    assert result.exit_code == 4, result.output
    (line,) = result.stderr.strip().splitlines()
    assert f"process {child.pid} on " in line
    return line


def test_a_second_training_is_refused_and_changes_nothing():
    train_tiny(Path("run"), "ddpm", steps=1)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with another_process("folder", "run") as child:
        line = refused_by(child, *TRAIN, "--steps", 2, "--output", "run")
    assert line.startswith("error: run is being written by process ")
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    assert "resumed from step 1" in train_tiny(Path("run"), "ddpm", steps=2).stderr


def test_a_training_into_a_folder_that_another_has_just_made_is_refused():
    with another_process("folder", "new") as child:
        refused_by(child, *TRAIN, "--steps", 1, "--output", "new")
    assert not Path("new").exists()


def test_a_killed_training_does_not_hold_its_folder():
    train_tiny(Path("run"), "ddpm", steps=1)
    with another_process("folder", "run") as child:
        child.kill()
        child.wait()
    assert Path("run/.lock").exists()
    train_tiny(Path("run"), "ddpm", steps=2)
    assert verify([Path("run")]).notes == []


def test_a_pipeline_that_runs_is_not_run_twice():
    Path("p.toml").write_text('output = "out"\n[[stage]]\nname = "d"\ncommand = "data"\nspec = "shapes?count=8"\n')
    with another_process("file", "out/pipeline.json") as child:
        refused_by(child, "run", "p.toml")
    assert driftkit("run", "p.toml").exit_code == 0


def test_a_pipeline_does_not_set_aside_a_run_that_is_trained():
    stage = {"name": "t", "command": "train", "objective": "ddpm", "steps": 1, "output": "out/run", "device": "cpu",
             "data": TINY_DATA[1], "batch_size": 4}  # fmt: skip
    tiny = [word for word in TINY_UNET if word != "--set"]

    def write(**changes):
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**stage, **changes}.items()]
        settings = ", ".join(f"{key} = {value}" for key, value in (word.split("=") for word in tiny))
        Path("p.toml").write_text("\n".join(['output = "out"', "[[stage]]", *lines, f"set = {{ {settings} }}"]))

    write()
    assert driftkit("run", "p.toml").exit_code == 0
    write(batch_size=8)
    with another_process("folder", "out/run") as child:
        result = driftkit("run", "p.toml")
    assert result.exit_code == 4, result.output
    assert f"being written by process {child.pid}" in result.stderr
    assert [p.name for p in Path("out").iterdir() if p.is_dir()] == ["run"]


@pytest.mark.parametrize("words", [
    ["data", "shapes?image_size=8&count=32", "--output", "pack.safetensors"],
    ["sample", "run", "-n", "4", "--nfe", "1", "--output", "samples.safetensors"],
])  # fmt: skip
def test_writers_of_one_file_take_turns(words):
    train_tiny(Path("run"), "ddpm", steps=1)
    with another_process("file", words[-1]) as child:
        result = []
        waiting = threading.Thread(target=lambda: result.append(driftkit(*words)))
        waiting.start()
        waiting.join(timeout=0.5)
        assert waiting.is_alive()
        assert not Path(words[-1]).exists()
        child.stdin.write("\n")
        child.stdin.flush()
        waiting.join()
        child.stdin.close()
        child.stdin = None
    assert result[0].exit_code == 0, result[0].output
    assert verify([Path(words[-1])]).problems == []


def test_whoever_waited_for_an_import_takes_it_as_it_is(monkeypatch):
    from driftkit.datasets import sources

    spec = "shapes?image_size=8&count=32"
    assert driftkit("data", spec).exit_code == 0
    (path,) = Path("data").glob("*.safetensors")
    card = read_json(path.with_suffix(".json"))
    path.with_suffix(".json").unlink()
    real = sources.locked_file

    def made_meanwhile(target):
        write_json(path.with_suffix(".json"), card)
        return real(target)

    monkeypatch.setattr(sources, "locked_file", made_meanwhile)
    monkeypatch.setattr(sources, "import_source", lambda *_: pytest.fail("imported twice"))
    assert driftkit("data", spec).exit_code == 0
    assert len(open_pack(path)) == 32


def test_reading_commands_do_not_mind_a_training(tmp_path):
    train_tiny(Path("run"), "ddpm", steps=1)
    with another_process("folder", "run"):
        assert driftkit("sample", "run", "-n", 4, "--nfe", 1).exit_code == 0
        assert driftkit("verify", "run").exit_code == 0
    assert Run.open(Path("run")).checkpoint().step == 1


class _Listening(Ranks):
    """Ranks that note what they would compare."""

    def require_equal(self, values):
        heard.append(values)


heard: list[dict[str, str]] = []


def test_ranks_compare_all_settings_but_where_things_lie():
    base, _ = resolve_config(objective="drift", assignments=["objective.encoder=pixel"])
    for line in ("data.spec=elsewhere", "objective.encoder=/mnt/b/mae", "trainer.learning_rate=1e-3"):
        other, _ = resolve_config(objective="drift", assignments=["objective.encoder=pixel", line])
        heard.clear()
        for config in (base, other):
            _require_equal_plan(None, config, _Listening())
        assert (heard[0] == heard[1]) == ("trainer" not in line), line
