"""Pipelines: what runs, what is skipped, what is refused before anything runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from driftkit.config.pipeline_file import Pipeline, Stage, load_pipeline
from driftkit.stages import run as stages_run
from driftkit.stages.run import Forecast, StageRecord, is_done
from driftkit.storage.files import read_json, write_json
from driftkit.training import metrics_log
from tests.conftest import driftkit
from tests.image_files import as_tar, png

CHAIN = """
name = "tiny"
output = "out"

[[stage]]
name = "images"
command = "data"
spec = "shapes?image_size=8&count=64"
output = "{output}/shapes.safetensors"

[[stage]]
name = "ddpm"
command = "train"
objective = "ddpm"
data = "{output}/shapes.safetensors"
steps = 2
batch_size = 4
set = { model.base_channels = 8, model.channel_multipliers = [1, 2], model.num_heads = 2, model.num_res_blocks = 1 }
output = "{output}/ddpm"

[[stage]]
name = "sample"
command = "sample"
run = "{output}/ddpm"
num_images = 4
sampler = "dpm-solver"
nfe = 2

[[stage]]
name = "probe"
command = "probe-encoder"
encoder = "pixel"
"""


def write(tmp_path: Path, text: str = CHAIN) -> Path:
    path = tmp_path / "chain.toml"
    path.write_text(text)
    return path


def states(path: Path, *words: str) -> dict[str, str]:
    result = driftkit("run", path, "--json", *words)
    assert result.exit_code == 0, result.output
    return {s["name"]: s["state"] for s in json.loads(result.stdout)["stages"]}


def test_unchanged_stages_are_skipped_and_changed_ones_run_with_what_follows(tmp_path):
    path = write(tmp_path)
    assert set(states(path).values()) == {"done"}
    assert set(states(path).values()) == {"skipped"}
    write(tmp_path, CHAIN.replace("num_images = 4", "num_images = 5"))
    assert states(path) == {"images": "skipped", "ddpm": "skipped", "sample": "done", "probe": "skipped"}
    write(tmp_path, CHAIN.replace("num_images = 4", "num_images = 5").replace("steps = 2", "steps = 3"))
    assert states(path) == {"images": "skipped", "ddpm": "done", "sample": "done", "probe": "skipped"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("count=64", "count=32"),
        ("batch_size = 4", "batch_size = 5"),
        ("steps = 2", "steps = 1"),
        ("model.num_heads = 2", "model.num_heads = 4"),
    ],
)
def test_any_change_of_a_stage_makes_it_run_again(tmp_path, old, new):
    path = write(tmp_path)
    states(path)
    write(tmp_path, CHAIN.replace(old, new))
    after = states(path)
    assert after["ddpm"] == after["sample"] == "done"
    assert set(states(path).values()) == {"skipped"}


def test_a_changed_shard_of_a_range_makes_its_stage_run_again(tmp_path):
    images = {f"s-{i}.tar": {f"{i}.png": png((i, 0, 0))} for i in range(2)}
    for name, files in images.items():
        as_tar(tmp_path / name, files)
    stage = '[[stage]]\nname = "images"\ncommand = "data"\nspec = "s-{0..1}.tar"\noutput = "{output}/x.safetensors"\n'
    path = write(tmp_path, f'name = "tiny"\noutput = "out"\n{stage}')
    assert [states(path)["images"] for _ in range(2)] == ["done", "skipped"]
    as_tar(tmp_path / "s-1.tar", {"1.png": png((9, 0, 0))})
    assert [states(path)["images"] for _ in range(2)] == ["done", "skipped"]


def test_force_trains_anew_and_variables_count(tmp_path, monkeypatch):
    path = write(tmp_path)
    states(path)
    weights = Path("out/ddpm/checkpoints/step-00000002/raw.safetensors")
    before = weights.stat().st_mtime_ns
    states(path, "--force")
    assert weights.stat().st_mtime_ns != before
    assert Path("out/ddpm.old-1/checkpoints/step-00000002/raw.safetensors").stat().st_mtime_ns == before
    monkeypatch.setenv("DRIFTKIT_TRAIN_SEED", "3")
    assert states(path)["ddpm"] == "done"


@pytest.mark.parametrize(("schedule", "kept"), [("constant", True), ("cosine", False)])
def test_more_steps_go_on_unless_the_learning_rate_fell_towards_the_last(tmp_path, schedule, kept):
    states(write(tmp_path, CHAIN.replace("set = {", f'set = {{ trainer.schedule = "{schedule}",')))
    more = CHAIN.replace("set = {", f'set = {{ trainer.schedule = "{schedule}",').replace("steps = 2", "steps = 3")
    assert states(write(tmp_path, more))["ddpm"] == "done"
    assert Path("out/ddpm/checkpoints/step-00000003").is_dir()
    assert Path("out/ddpm.old-1").exists() is not kept


def test_a_new_version_of_driftkit_keeps_the_runs(tmp_path, monkeypatch):
    path = write(tmp_path)
    states(path)
    saved = read_json(Path("out/pipeline.json"))
    saved["stages"]["ddpm"]["fingerprint"] = "that of another version"
    write_json(Path("out/pipeline.json"), saved)
    weights = Path("out/ddpm/checkpoints/step-00000002/raw.safetensors")
    before = weights.stat().st_mtime_ns
    assert states(path)["ddpm"] == "done"
    assert weights.stat().st_mtime_ns == before
    assert not Path("out/ddpm.old-1").exists()


def lines_of(path: Path, *words: str) -> list[str]:
    result = driftkit("run", path, *words)
    assert result.exit_code == 0, result.output
    return [line for line in result.stderr.splitlines() if line.startswith(("stage ", "step 1/2"))]


def test_every_stage_says_which_of_how_many_it_is_and_what_is_left_once_that_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log, "PLAIN_INTERVAL_S", 0.0)
    path = write(tmp_path)
    first = lines_of(path)
    assert any(line.startswith("step 1/2 ") for line in first)
    for line in [line for line in first if line.startswith("step 1/2 ")]:  # of all only the training itself is known
        assert re.search(r" \d+ s left, stage 2 of 4, at least \d+ s left in all$", line)
        first.remove(line)
    assert first[0].startswith("stage 1 of 4, images: runs: driftkit data ")
    assert first[1].startswith("stage 1 of 4, images: done in ")
    assert first[2].startswith("stage 2 of 4, ddpm: runs: driftkit train ")  # nothing is known of its command
    saved = read_json(Path("out/pipeline.json"))
    for name, seconds in (("images", 3.0), ("ddpm", 300.0), ("sample", 60.0), ("probe", 1000.0)):
        saved["stages"][name]["seconds"] = seconds
    write_json(Path("out/pipeline.json"), saved)
    write(tmp_path, CHAIN.replace("batch_size = 4", "batch_size = 5"))
    again = [line.split(": driftkit")[0] for line in lines_of(path) if not line.startswith("step")]
    assert again[0] == "stage 1 of 4, images: skipped"
    assert again[1] == "stage 2 of 4, ddpm: runs (about 6 min left in all)"  # it, and the samples of it
    assert again[3] == "stage 3 of 4, sample: runs (about 60 s left in all)"
    assert again[5] == "stage 4 of 4, probe: skipped"


def stage(name: str, command: str, *arguments: str, inputs: tuple[str, ...] = ()) -> Stage:
    return Stage(name, command, arguments, inputs)


TRAININGS = (
    stage("a", "train", "--output", "out/a"),
    stage("b", "train", "--output", "out/b"),
    stage("report", "compare", "out/a", "out/b", inputs=("out/a", "out/b")),
)


def record(of: Stage, seconds: float) -> StageRecord:
    return StageRecord(
        name=of.name, seconds=seconds, command_line=of.command_line(), fingerprint="", identity="", products=[]
    )


def test_a_forecast_is_of_what_is_known_and_says_where_that_is_not_all():
    pipeline = Pipeline("tiny", Path("out"), TRAININGS)
    first, second, report = TRAININGS
    forecast = Forecast(pipeline, {})
    forecast.begins(first)
    assert forecast.words(first) == ""
    assert forecast.words(first, seconds=90) == "at least 90 s left in all"  # its own, by the training itself
    forecast.took(first, 100.0)
    forecast.begins(second)
    assert forecast.words(second) == "at least 100 s left in all"  # as long as the other training
    forecast.took(second, 200.0)
    forecast.begins(report)
    assert forecast.words(report) == ""


def test_a_forecast_takes_what_is_unchanged_for_done_unless_it_reads_what_is_new():
    pipeline = Pipeline("tiny", Path("out"), TRAININGS)
    first, second, report = TRAININGS
    recorded = {of.name: record(of, seconds) for of, seconds in zip(TRAININGS, (60.0, 600.0, 6.0), strict=True)}
    assert Forecast(pipeline, recorded).words(first) == "about 60 s left in all"
    forecast = Forecast(pipeline, recorded)
    forecast.begins(first)
    assert forecast.words(first) == "about 66 s left in all"  # the report reads it, the other training does not
    assert Forecast(pipeline, recorded, force=True).words(first) == "about 11 min left in all"
    assert Forecast(pipeline, recorded, only=["a"], force=True).words(first) == "about 60 s left in all"
    changed = replace(second, arguments=("--steps", "9", "--output", "out/b"))
    pipeline = Pipeline("tiny", Path("out"), (first, changed, report))
    assert Forecast(pipeline, recorded).words(first) == "about 7 min left in all"  # 60, the mean of both, and 6


def test_a_stage_that_counts_nothing_takes_what_it_took_before_less_what_has_passed(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(stages_run, "time", clock)
    first, second, _ = TRAININGS
    recorded = {of.name: record(of, seconds) for of, seconds in ((first, 60.0), (second, 15.0))}
    forecast = Forecast(Pipeline("tiny", Path("out"), (first, second)), recorded, force=True)
    clock.now = 1000.0
    forecast.begins(first)
    clock.now = 1040.0
    assert forecast.words(first) == "about 35 s left in all"
    clock.now = 1061.0  # longer than it took before
    assert forecast.words(first) == "at least 15 s left in all"


def test_a_run_that_the_pipeline_did_not_make_is_not_removed(tmp_path):
    path = write(tmp_path)
    states(path)
    Path("out/pipeline.json").unlink()
    write(tmp_path, CHAIN.replace("batch_size = 4", "batch_size = 5"))
    result = driftkit("run", path)
    assert result.exit_code == 2
    assert "was begun with 4 images per step" in result.stderr
    assert Path("out/ddpm/manifest.json").exists()


def test_a_stage_whose_product_is_gone_runs_again(tmp_path):
    path = write(tmp_path)
    states(path)
    for file in Path("out/ddpm/samples").glob("*.safetensors"):
        file.unlink()
    assert states(path)["sample"] == "done"
    assert states(path, "--force", "--stage", "probe") == {"probe": "done"}


def test_dry_run_shows_commands_and_touches_nothing(tmp_path):
    path = write(tmp_path)
    document = json.loads(driftkit("run", path, "--dry-run", "--json").stdout)
    assert document["stages"][1]["command"].startswith("driftkit train --objective ddpm")
    assert document["stages"][1]["state"] == "would run"
    assert not Path("out").exists()


SCORED = (
    CHAIN[: CHAIN.index('[[stage]]\nname = "sample"')]
    + """
[[stage]]
name = "judge"
command = "train"
objective = "mae"
data = "{output}/shapes.safetensors"
steps = 1
batch_size = 4
set = { model.base_channels = 8, objective.finetune_from = -1 }
output = "{output}/judge"

[[stage]]
name = "fid"
command = "fid"
target = "{output}/ddpm"
reference = "{output}/shapes.safetensors"
extractor = "encoder:{output}/judge"
num_images = 20
nfe = 1
batch_size = 5
allow_collapsed = true
nproc = 2

[[stage]]
name = "report"
command = "compare"
runs = ["{output}/ddpm"]
evaluate = true
reference = "{output}/shapes.safetensors"
extractor = "encoder:{output}/judge"
num_images = 10
nfe = "1"
allow_collapsed = true
speed = false
neighbours = false
output = "{output}/report"
"""
)


@pytest.mark.slow
def test_scores_are_shared_by_processes_and_made_once(tmp_path):
    path = write(tmp_path, SCORED)
    result = driftkit("run", path, "--json")
    assert result.exit_code == 0, result.output
    fid = next(s["result"] for s in json.loads(result.stdout)["stages"] if s["name"] == "fid")
    assert (fid["world_size"], fid["num_images"]) == (2, 20)
    evaluation = Path(fid["evaluation"])
    assert set(states(path).values()) == {"skipped"}  # the evaluations that `compare` made itself are no news to it
    evaluation.write_text(evaluation.read_text().replace('"seed": 0', '"seed": 1'))
    assert [name for name, state in states(path).items() if state == "done"] == ["report"]
    evaluation.unlink()
    assert {"fid", "report"} == {name for name, state in states(path).items() if state == "done"}


def test_several_processes_are_started_by_torchrun(tmp_path):
    path = write(tmp_path, CHAIN.replace("steps = 2", "steps = 2\nnproc = 8"))
    (stage,) = [s for s in load_pipeline(path).stages if s.name == "ddpm"]
    assert stage.command_line()[:4] == ["torchrun", "--nproc-per-node=8", "-m", "driftkit"]
    assert not is_done(load_pipeline(path), stage)


@pytest.mark.parametrize("name", ["toy", "demo", "cifar10-jpeg", "cifar10-encoders", "encoder-study"])
def test_every_stage_of_the_pipelines_here_is_a_command_that_parses(name):
    result = driftkit("run", Path(__file__).parents[2] / "pipelines" / f"{name}.toml", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["stages"]) > 5


def test_a_stage_for_each_of_several_rows(tmp_path):
    path = write(
        tmp_path,
        """
        [[stage]]
        each = [{ id = "a", encoder = "{output}/mae" }, { id = "b", steps = 5, encoder = "pixel" }]
        default = { steps = 3 }
        name = "drift-{id}"
        command = "train"
        encoder = "{encoder}"
        steps = "{steps}"
        set = { trainer.log_every = "{steps}" }
        output = "{output}/{id}"

        [[stage]]
        each = ["a", "b"]
        name = "score-{each}"
        command = "fid"
        target = "{output}/{each}"
        """,
    )
    pipeline = load_pipeline(path, output=Path("o"), nproc=2)
    assert [stage.name for stage in pipeline.stages] == ["drift-a", "drift-b", "score-a", "score-b"]
    assert pipeline.stages[0].arguments == (
        "--encoder", "o/mae", "--steps", "3", "--output", "o/a", "--set", "trainer.log_every=3",
    )  # fmt: skip
    assert [stage.nproc for stage in pipeline.stages] == [2, 2, 2, 2]
    assert pipeline.stages[3].arguments == ("o/b",)


def test_a_failing_stage_stops_the_pipeline_with_its_code_and_keeps_what_is_done(tmp_path):
    path = write(tmp_path, CHAIN.replace('{output}/ddpm"\nnum_images', 'elsewhere"\nnum_images'))
    result = driftkit("run", path)
    assert result.exit_code == 3
    assert "elsewhere" in result.stderr
    saved = json.loads(Path("out/pipeline.json").read_text())["stages"]
    assert list(saved) == ["images", "ddpm"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "tiny"', 'nam = "tiny"', "did you mean name"),
        ('command = "sample"', 'command = "sampel"', "did you mean sample"),
        ('name = "sample"', 'name = "ddpm"', "two stages are called ddpm"),
        ("num_images = 4", "num_image = 4", "--num-image"),
        ("nfe = 2", 'nfe = "two"', "two"),
        ("nfe = 2", "nproc = 2", "only train and fid"),
        ('name = "probe"', "", "name: is required"),
        ("set = {", "set = 3 #", "set: expected a valid dictionary"),
        ("[[stage]]", "[[stages]]", "did you mean stage?"),
        ('name = "tiny"', "name = ", "not valid TOML"),
        ('name = "probe"', 'name = "probe"\neach = []', "each: expected texts"),
        ('name = "probe"', 'name = "probe"\neach = ["a", {b = 1}]', "each: expected texts"),
        ('name = "probe"', 'name = "probe"\neach = [{a = 1}, {b = 1}]', "each: expected texts"),
        (
            'name = "probe"',
            'name = "probe"\neach = ["a"]\ndefault = {b = 1}',
            "each: expected tables, whose missing keys default fills in",
        ),
        (
            'name = "probe"',
            'name = "probe"\ndefault = {b = 1}',
            "each: expected tables, whose missing keys default fills in",
        ),
        ('name = "probe"', 'name = "probe"\neach = ["a", "b"]', "two stages are called probe"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, old, new, says):
    result = driftkit("run", write(tmp_path, CHAIN.replace(old, new)))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not Path("out").exists()
