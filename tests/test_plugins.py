"""The house stays open: the examples of driftkit/README.md run through every command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from driftkit.datasets.sources import SOURCES
from driftkit.encoders.feature_sets import FEATURE_SETS
from driftkit.encoders.registry import ENCODERS
from driftkit.methods.registry import METHODS
from driftkit.metrics.registry import METRICS
from driftkit.models.registry import MODELS
from driftkit.storage.files import read_json
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, done, driftkit, train_tiny

GUIDE = Path(__file__).parents[1] / "driftkit" / "README.md"
REGISTRIES = (SOURCES, FEATURE_SETS, ENCODERS, METHODS, METRICS, MODELS)


def examples():
    """Each is a file of its own: nothing is shared but the registries."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


@pytest.fixture
def plug_ins(monkeypatch):
    """Everything that the guide registers, all of which is gone after the test."""
    before = [dict(registry) for registry in REGISTRIES]
    for example in examples():
        exec(compile(example, str(GUIDE), "exec"), {"__name__": "guide"})
    yield
    for registry, rows in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(rows)


@pytest.mark.usefixtures("plug_ins")
def test_a_method_a_network_a_sampler_and_a_source_run_through_every_command(tmp_path):
    mixture, flow = tmp_path / "mixture", tmp_path / "flow"
    train = ["train", "--objective", "mixture", "--data", "stripes?count=64", *TINY_LOOP, "--output", mixture]
    train += ["--set", "model.channels=3"]
    plan = json.loads(done(*train, "--dry-run", "--json").stdout)
    assert plan["config"]["model"] == {"kind": "convnet", "channels": 3}
    assert plan["config"]["objective"] == {"name": "mixture", "strength": 1.0}
    assert plan["budget"]["shapes"]["network_flops"] > 0
    done(*train, "--steps", 2)
    assert "resumed from step 2" in done(*train, "--steps", 3).stderr
    assert (mixture / "samples" / "step-00000003.png").is_file()

    samples = tmp_path / "samples.safetensors"
    done("sample", mixture, "-n", 12, "--nfe", 1, "--set", "gain=0.5", "--output", samples)
    record = read_json(samples.with_suffix(".json"))
    assert (record["method"], record["sampler"], record["nfe"]) == ("mixture", "repetition", 1)
    assert record["sampler_options"] == {"gain": 0.5}
    assert driftkit("sample", mixture, "--set", "gian=0.5").exit_code == 2

    line = ["-r", "stripes?count=64", "--extractor", "pixels", "-n", 48, "--device", "cpu", "--json"]
    score = json.loads(done("fid", mixture, *line, "--allow-collapsed").stdout)
    assert score["metrics"]["mean_distance"] > 0
    assert score["floor"]["metrics"]["mean_distance"] > 0
    assert score["sampling"]["sampler"] == "repetition"

    train_tiny(flow, "flow")
    report = tmp_path / "report"
    done("compare", mixture, flow, "--output", report)
    page = (report / "report.html").read_text()
    for label in ("Mixture", "Rectified flow", "Means"):
        assert label in page
    assert "mean_distance" in (report / "compare.csv").read_text().splitlines()[0]

    export = ["export", mixture, "--format", "torchscript", "--output", tmp_path / "out", "--json"]
    assert json.loads(done(*export).stdout)["graph"] == "predictor"
    assert "Predicts the image." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("plug_ins")
def test_a_network_serves_any_method_that_trains_generators(tmp_path):
    line = ["train", "--objective", "flow", "--preset", "demo", *TINY_DATA, *TINY_LOOP, "--steps", 1]
    done(*line, "--set", "model.kind=convnet", "--output", tmp_path / "run")
    config = read_json(tmp_path / "run" / "manifest.json")["config"]
    assert config["model"] == {"kind": "convnet", "channels": 4}
    done("sample", tmp_path / "run", "-n", 2, "--nfe", 1)
    wrong = driftkit(*line, "--set", "model.kind=mae_resnet", "--output", tmp_path / "other")
    assert (wrong.exit_code, "convnet" in wrong.stderr) == (2, True)


@pytest.mark.usefixtures("plug_ins")
def test_keys_of_other_methods_are_named():
    result = driftkit("train", "--objective", "ddpm", "--set", "objective.strength=2", *TINY_UNET, "--dry-run")
    assert result.exit_code == 2
    assert "a setting of mixture" in result.stderr


@pytest.mark.usefixtures("plug_ins")
def test_an_encoder_and_a_feature_set_train_a_generator(tmp_path):
    train_tiny(tmp_path / "run", "drift", "--encoder", "coarse")
    record = read_json(tmp_path / "run" / "manifest.json")["encoder"]
    assert (record["name"], record["feature_set"]) == ("coarse", "corner")
    table = done("probe-encoder", "--list").stdout
    assert "coarse" in table
    assert "The upper left location of every map." in table


def run_python(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_line_knows_what_a_file_beside_it_registers(tmp_path):
    (tmp_path / "plugin.py").write_text(examples()[0])
    (words,) = re.findall(r'python -c "(.*?)"', GUIDE.read_text())
    line = ["train", "--objective", "ddpm", "--set", "model.kind=convnet", "--dry-run", "--device", "cpu", "--json"]
    result = run_python(tmp_path, "-c", f"import sys; sys.path.insert(0, {str(GUIDE.parents[1])!r}); {words}", *line)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["config"]["model"] == {"kind": "convnet", "channels": 4}


def test_the_examples_work_inside_the_package_as_the_guide_says(tmp_path):
    """Network and method as written; the other files name their row, and the registry imports and lists it."""
    package = shutil.copytree(GUIDE.parent, tmp_path / "driftkit", ignore=shutil.ignore_patterns("__pycache__"))
    network, method, encoder, metric, source = examples()

    def change(name, old, new):
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new, 1))

    (package / "models" / "convnet.py").write_text(network)
    change(
        "models/registry.py",
        "import driftkit.models.unet\n",
        "import driftkit.models.unet\nimport driftkit.models.convnet\n",
    )
    (package / "methods" / "mixture").mkdir()
    (package / "methods" / "mixture" / "__init__.py").write_text("")
    (package / "methods" / "mixture" / "method.py").write_text(method)
    last = "import driftkit.methods.classifier.method\n"
    change("methods/registry.py", last, f"{last}import driftkit.methods.mixture.method\n")

    def place(name, example, row):
        """Write the example as a file that names its row: `TABLE["key"] = ...` becomes `row = ...`."""
        text, found = re.subn(r'^[A-Z_]+\["[a-z-]+"\] = ', f"{row} = ", example, flags=re.MULTILINE)
        assert found == 1
        text = re.sub(r"^from \S+ import (METRICS|ENCODERS|SOURCES)\n", "", text, flags=re.MULTILINE)
        (package / name).write_text(text)

    place("metrics/mean_distance.py", metric, "MEAN_DISTANCE")
    change(
        "metrics/registry.py",
        "from driftkit.metrics.memor",
        "from driftkit.metrics.mean_distance import MEAN_DISTANCE\nfrom driftkit.metrics.memor",
    )
    change("metrics/registry.py", "MEMORIZATION)", "MEMORIZATION, MEAN_DISTANCE)")
    encoder, corner = encoder.split("\n\ndef corner", 1)
    function, row = f"def corner{corner}".split('FEATURE_SETS["corner"] = ')
    change("encoders/feature_sets.py", "\nFEATURE_SETS = {", f"\n{function}FEATURE_SETS = {{")
    change(
        "encoders/feature_sets.py", '        FeatureSet("last",', f'        {row.strip()},\n        FeatureSet("last",'
    )
    place("encoders/coarse.py", encoder.replace("FEATURE_SETS, FeatureGroup, FeatureSet", "FeatureGroup"), "COARSE")
    last = "from driftkit.encoders.encoder_config import"
    change("encoders/registry.py", last, f"from driftkit.encoders.coarse import COARSE\n{last}")
    change("encoders/registry.py", '    "timm": TIMM', '    "coarse": COARSE,\n    "timm": TIMM')
    place("datasets/stripes.py", source, "STRIPES")
    last = "from driftkit.datasets.spec import"
    change("datasets/sources.py", last, f"from driftkit.datasets.stripes import STRIPES\n{last}")
    change("datasets/sources.py", '    "shapes": SHAPES_KIND', '    "stripes": STRIPES,\n    "shapes": SHAPES_KIND')

    begin = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from driftkit.cli.app import main; main()"
    line = ["train", "--encoder", "coarse", "--data", "stripes?count=64", *TINY_LOOP, "--device", "cpu"]
    line += ["--set", "model.kind=convnet", "--steps", 1, "--output", "run"]
    result = run_python(tmp_path, "-c", begin, *map(str, line))
    assert result.returncode == 0, result.stderr
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["encoder"]["feature_set"], manifest["config"]["model"]["kind"]) == ("corner", "convnet")

    check = (
        "from driftkit.methods.registry import METHODS; from driftkit.metrics.registry import METRICS; "
        "print('mixture' in METHODS, 'mean-distance' in METRICS)"
    )
    result = run_python(tmp_path, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {check}")
    assert result.stdout.split() == ["True"] * 2, result.stderr
