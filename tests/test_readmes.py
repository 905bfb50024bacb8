"""What the READMEs and the examples of `--help` say works: commands, names, Python, links, tables.

A command runs where that is cheap. Else it runs up to the call of its stage: then its options and settings are checked,
and every encoder, extractor, metric, sampler, image source and run that they name. What a command reads is in `place`.
"""

import itertools
import re
import shlex
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from pydantic import BaseModel
from torch.distributed.run import get_args_parser

from driftkit.cli.app import app, check, invoke
from driftkit.config.layers import config_keys, preset_names
from driftkit.config.weights_name import split_weights
from driftkit.datasets.sources import resolve
from driftkit.encoders.encoder_config import EncoderConfig, EncodersConfig
from driftkit.encoders.feature_sets import FEATURE_SETS
from driftkit.encoders.registry import load_encoder
from driftkit.errors import DriftkitError
from driftkit.methods.registry import METHODS
from driftkit.metrics.registry import METRICS
from driftkit.models.registry import MODELS
from driftkit.scoring.extractor_names import NAMES as EXTRACTOR_NAMES
from driftkit.storage.run_folder import Run
from driftkit.training.train_config import TrainConfig
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_MAE, TINY_UNET, driftkit

ROOT = Path(__file__).parents[1]
READMES = sorted({*ROOT.glob("README.md"), *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("driftkit/**/README.md")})
PROGRAM = typer.main.get_command(app)
HELP = {"": PROGRAM.help, **{name: command.help for name, command in PROGRAM.commands.items()}}
FLAGS = {
    name: {"--help", *(flag for option in command.params for flag in (*option.opts, *option.secondary_opts))}
    for name, command in PROGRAM.commands.items()
}

# What stands for a word of the reader's own; "--option WORD" goes before "WORD".
PLACEHOLDERS = {
    "SAMPLES|RUN": "outputs/ddpm", "RUN": "outputs/ddpm", "SPEC": "shapes", "NAME": "efficientnet-lite0",
    "PATH": "outputs/ddpm", "FILE": "pipelines/toy.toml", "PIPELINE.toml": "pipelines/toy.toml",
    "--preset NAME": "cpu", "--autoencoder PLACE": "outputs/vae", "FOLDER": "outputs/collapsed", "PLACE": "outputs/new",
}  # fmt: skip

# Runs, toys and files that commands read -> what they are: a run of `place`, a folder or a file.
READ = {
    "outputs/mae": "mae", "outputs/classifier": "mae", "outputs/ddpm": "ddpm", "outputs/drift": "ddpm",
    "outputs/drift_mocov2": "ddpm", "outputs/vae": "folder", "outputs/collapsed": "folder",
    "outputs/toy/swiss-roll-middle": "folder", "photos.zip": "images", "samples.zip": "images",
    "moco_v2_800ep_pretrain.pth.tar": "file", ".cache/driftkit": "folder", "data": "folder",
}  # fmt: skip

# Commands that do not run by themselves -> the test that runs them with what they need.
ELSEWHERE = {"driftkit train --set model.kind=convnet": "tests/test_plugins.py"}

OTHER_FLAGS = {
    "--nodes",
    "--nproc-per-node",
    "--max-restarts",
    "--extra",
    "--kills",
    "--seconds",
    "--install-completion",
}
"""Of other programs, and of the libraries that this one is made with."""


# What is written.


@dataclass(frozen=True)
class Written:
    """One command line and where it stands."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


LONGEST = 30
"""Words of a sentence."""

LONG_SENTENCES: set[str] = set()
"""READMEs in which some are still longer."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(readme: Path) -> str:
    return str(readme.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    return [body for word, body in FENCE.findall(text) if word == language]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """Inline code, in one line each, as it is shown."""
    return [" ".join(code.split()).replace("\\|", "|") for code in re.findall(r"`([^`]+)`", prose(text))]


def long_sentences(text: str) -> list[str]:
    """Sentences of more than LONGEST words. Inline code and a link are a word each, an item of a list a paragraph."""
    text = re.sub(r"!?\[[^\]]*\]\([^)]*\)", "link", re.sub(r"`[^`]+`", "code", text))
    text = re.sub(r"^\s*([-*]|\d+\.) ", "\n\n", re.sub(r"^[#|].*$", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    sentences = [each for part in re.split(r"\n\s*\n", text) for each in re.split(r"[.!?][*)\"]*\s+", part)]
    return [" ".join(each.split()) for each in sentences if len(each.split()) > LONGEST]


def command_lines(text: str) -> Iterator[tuple[str, ...]]:
    """The command lines of sh blocks, without comments, and those of inline code."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                at = words.index("&&")
                yield tuple(words[:at])
                words = words[at + 1 :]
            if words:
                yield tuple(words)
    for code in spans(text):
        program, _, rest = code.partition(" ")
        if program in PROGRAMS and rest:
            yield tuple(shlex.split(code))


def examples(text: str) -> Iterator[tuple[str, ...]]:
    """The examples of a help text: indented lines, without what is said of them after two spaces."""
    for line in text.splitlines():
        if re.match(r" +\S", line) and line.split()[0] in PROGRAMS:
            yield tuple(shlex.split(re.split(r"\s{2,}", line.strip())[0]))


def written() -> list[Written]:
    """Every command line, once."""
    found: dict[tuple[str, ...], str] = {}
    for readme in READMES:
        for words in command_lines(readme.read_text()):
            found.setdefault(words, name_of(readme))
    for command, text in HELP.items():
        for words in examples(text):
            found.setdefault(words, f"driftkit {command} --help")
    return [Written(where, words) for words, where in found.items()]


# What they read.


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with tiny runs and images under the names that the READMEs give them."""
    folder = tmp_path_factory.mktemp("readmes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DRIFTKIT_DATA_DIR", "data")
        (folder / "pipelines").symlink_to(ROOT / "pipelines")
        (folder / "tests").symlink_to(ROOT / "tests")
        write_photos(folder / "photos.zip")
        for method, words in (
            ("mae", [*TINY_DATA, *TINY_MAE]),
            ("ddpm", ["--data", "photos.zip", "--class-conditional", *TINY_UNET]),
        ):
            made = driftkit("train", "--objective", method, *words, *TINY_LOOP, "--steps", 1, "--output", method)
            assert made.exit_code == 0, made.output
        for name, kind in READ.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir(exist_ok=True)
            elif kind == "file":
                path.touch()
            elif not path.exists():
                path.symlink_to(folder / ("photos.zip" if kind == "images" else kind))
        assert driftkit("data", "photos.zip", "--output", "data/photos.safetensors").exit_code == 0
    return folder


def write_photos(path: Path) -> None:
    """Sixteen photographs of cats and dogs, or at least of 8x8 colours in folders of that name."""
    noise = np.random.default_rng(0).integers(256, size=(16, 8, 8, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for number, pixels in enumerate(noise):
            with archive.open(f"{('cat', 'dog')[number % 2]}/{number}.png", "w") as file:
                Image.fromarray(pixels).save(file, "png")


@pytest.fixture
def here(place, monkeypatch):
    """Commands run in the folder with what they read; what takes long is only reached."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", "data")
    for name in LONG:
        monkeypatch.setattr(name, reached)


class ReachedError(Exception):
    """A command came to its stage, with these arguments."""


def reached(*arguments: Any, **more: Any) -> None:
    raise ReachedError(*arguments)


LONG = (
    "driftkit.cli.toy.toy", "driftkit.cli.toy.gather_toys", "driftkit.cli.probe_encoder.probe_encoder",
    "driftkit.cli.data.import_data", "driftkit.cli.train._budget", "driftkit.cli.fid.fid",
    "driftkit.stages.compare.compare", "driftkit.stages.export.export", "driftkit.stages.prefetch.prefetch",
)  # fmt: skip
FEWER = {
    "train": ["--dry-run"], "run": ["--dry-run"], "sample": ["--num-images", "2", "--nfe", "2", "--device", "cpu"],
    "doctor": ["--offline"],
}  # fmt: skip
"""What is added to a command so that it takes no long time."""


# Programs.


def run(words: list[str]) -> None:
    """Check one command line, as far as that is cheap."""
    program, *rest = words
    assert program in PROGRAMS, f"{program}: no check for this program; add one to PROGRAMS"
    PROGRAMS[program](rest)


def run_driftkit(words: list[str]) -> None:
    command, *rest = words
    assert command in HELP, f"driftkit {command}: there is no such command"
    if not rest and command != "doctor":  # it is only mentioned
        return
    if "--help" in rest:
        invoke([command, *rest])
        return
    rest = [word for part in filled(rest) for word in shell_words(part)]
    check([command, *rest], where="as written")
    try:
        fewer = FEWER.get(command, [])
        if any("pretrained" in word for word in rest):  # it takes one evaluation, and no other number of them
            fewer = ["--num-images", "2", "--device", "cpu"]
        invoke([command, *rest, *fewer])
    except ReachedError as stage:
        require_names(*stage.args)


def run_torchrun(words: list[str]) -> None:
    if "-m" not in words:  # an option is only mentioned
        require_flags(words, {flag for action in get_args_parser()._actions for flag in action.option_strings})
        return
    given = get_args_parser().parse_args(words)
    assert (given.module, given.training_script) == (True, "driftkit")
    run_driftkit(given.training_script_args)


def run_uv(words: list[str]) -> None:
    if words[0] == "run":
        run(words[1:])
        return
    assert words[:2] == ["sync", "--extra"], "add this use of uv"
    assert words[2] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def run_sbatch(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()
    run_driftkit(["train", *words[1:]])


def run_just(words: list[str]) -> None:
    recipes = re.findall(r"^([\w-]+).*:$|^([\w-]+).*: ", (ROOT / "justfile").read_text(), re.MULTILINE)
    assert words[0] in {name for names in recipes for name in names}, f"just {words[0]}: no such recipe"


def run_pytest(words: list[str]) -> None:
    assert all((ROOT / word).exists() for word in words if not word.startswith("-"))


def run_python(words: list[str]) -> None:
    assert words[:2] == ["-m", "driftkit"], "add this use of python"
    run_driftkit(words[2:])


def run_pip(words: list[str]) -> None:
    assert words in (["install", "uv"], ["install", "."]), "add this use of pip"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "driftkit": run_driftkit, "torchrun": run_torchrun, "uv": run_uv, "sbatch": run_sbatch, "just": run_just,
    "pytest": run_pytest, "pip": run_pip, "python": run_python,
}  # fmt: skip


def filled(words: list[str]) -> Iterator[str]:
    """The words with those in capitals replaced by what they stand for."""
    for previous, word in zip(["", *words], words, strict=False):
        bare = word.removesuffix("...")
        if re.fullmatch(r"[A-Z][A-Z|]+(\.toml)?", bare):
            known = PLACEHOLDERS.get(f"{previous} {bare}") or PLACEHOLDERS.get(bare)
            assert known, f"{word}: nothing is known to stand for it; add it to PLACEHOLDERS"
            yield known
        else:
            yield word


def shell_words(word: str) -> list[str]:
    """What a shell makes of a word: a home, and the names that a pattern fits."""
    if "*" in word:
        return sorted(map(str, Path().glob(word)))
    return [str(Path(word).expanduser()) if word.startswith("~") else word]


# Names.


def require_names(first: Any, *others: Any) -> None:
    """Everything that a stage would look for is there: what it reads first, and what its settings name."""
    if isinstance(first, str):
        require_images(first)
    for path in [first] if isinstance(first, Path) else first if isinstance(first, list) else []:
        if isinstance(path, Path):
            require_path(path)
    for settings in (first, *others):
        if isinstance(settings, BaseModel):
            require_settings(settings)


def require_settings(settings: BaseModel) -> None:
    if isinstance(settings, EncodersConfig):
        for one in settings.each():
            require_encoder(one)
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            require_settings(value)
        elif key in NAMED and value is not None:
            for name in value if isinstance(value, tuple) else (value,):
                NAMED[key](name)


@cache
def require_encoder(config: EncoderConfig) -> None:
    if not Path(config.encoder).exists():  # a published one, whose weights need not be here
        config = config.model_copy(update={"random_weights": True, "encoder_weights": None})
    encoder = load_encoder(config, image_size=32, device="meta")
    assert encoder.feature_set in FEATURE_SETS


def require_images(spec: str) -> None:
    resolve(spec, allow_download=False)


def require_extractor(name: str) -> None:
    if name.startswith("encoder:"):
        Run.open(Path(name.removeprefix("encoder:")))
    else:
        assert name in EXTRACTOR_NAMES, f"{name}: no such extractor"


def require_metric(name: str) -> None:
    assert name in METRICS, f"{name}: no such metric"


def require_sampler(name: str) -> None:
    assert any(name in method.samplers for method in METHODS.values()), f"{name}: no such sampler"


def require_path(path: Path) -> None:
    assert path.exists(), f"{path}: no such thing to read; add it to READ, or mend the name"


def require_run(text: str) -> None:
    Run.open(Path(split_weights(text)[0]))


NAMED: dict[str, Callable[[str], None]] = {
    "reference": require_images, "training": require_images, "data": require_images, "spec": require_images,
    "neighbours_in": require_images, "extractor": require_extractor, "metrics": require_metric,
    "sampler": require_sampler, "init_from": require_run,
}  # fmt: skip
"""Fields of settings that name something."""


@cache
def known_keys() -> set[str]:
    """Everything that `--set` of some command takes."""
    keys = {*config_keys(TrainConfig), *(f"model.{key}" for one in MODELS.values() for key in config_keys(one.config))}
    samplers = [spec for method in METHODS.values() for spec in method.samplers.values()]
    return keys | {key for spec in samplers for key in config_keys(spec.options)}


def require_flags(words: Iterable[str], known: Iterable[str]) -> None:
    for word in words:
        flag = word.partition("=")[0]
        assert not flag.startswith("--") or flag in known, f"{word}: no command has this option"


# Tests.


@pytest.mark.parametrize("line", written(), ids=str)
def test_every_command_that_is_written_down_works(line, here):
    if shlex.join(line.words) in ELSEWHERE:
        assert (ROOT / ELSEWHERE[shlex.join(line.words)]).is_file()
    else:
        run(list(line.words))


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_options_keys_and_presets_in_the_text_exist(readme):
    keys = known_keys()
    for code in spans(readme.read_text()):
        words = code.split()
        require_flags(words, FLAGS.get(words[0]) or OTHER_FLAGS.union(*FLAGS.values()))
        for flag, value in itertools.pairwise(words):
            if flag == "--set" and value != "key=value" and code not in ELSEWHERE:
                assert value.partition("=")[0] in keys, f"--set {value}: no such key"
            if flag == "--preset" and value != "NAME":
                assert value in preset_names()
        if re.fullmatch(r"(trainer|objective|data|evaluation|model)\.[a-z_]+", code) and not code.endswith(".py"):
            assert code in keys, f"{code}: no such key"


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_python_in_the_text_runs(readme):
    if readme == ROOT / "driftkit" / "README.md":
        return  # its plug-ins are run by tests/test_plugins.py
    for code in blocks(readme.read_text(), "python"):
        features = {"generated": torch.randn(2, 4, 3, requires_grad=True), "positives": torch.randn(2, 5, 3)}
        exec(compile(code, str(readme), "exec"), features)


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_blocks_are_in_languages_that_are_checked(readme):
    assert {language for language, _ in FENCE.findall(readme.read_text())} <= {"sh", "python", ""}


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_links_and_names_of_files_lead_somewhere(readme):
    text = prose(readme.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            other = readme if not path else readme.parent / path
            assert other.exists(), f"{target}: no such file"
            assert not anchor or anchor in anchors(other), f"{target}: no such heading"
    for code in spans(text):
        if re.fullmatch(r"[\w./-]+\.(py|toml|sbatch)", code):
            assert any(path.name == Path(code).name and str(path).endswith(f"/{code}") for path in files()), (
                f"{code}: no such file"
            )


@cache
def files() -> list[Path]:
    folders = ("driftkit", "tests", "pipelines")
    return [ROOT / "pyproject.toml", *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]


def anchors(readme: Path) -> set[str]:
    """Names under which GitHub has the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(readme.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_rows_of_a_table_have_as_many_cells_as_its_head(readme):
    head = 0
    for line in prose(readme.read_text()).splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert cells in (0, head or cells), f"{line}: {cells - 1} cells, expected {head - 1}"
        head = cells


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_sentences_are_short(readme):
    found = long_sentences(prose(readme.read_text()))
    if found and name_of(readme) in LONG_SENTENCES:
        pytest.xfail(f"{len(found)} of more than {LONGEST} words")
    assert found == []


@pytest.mark.parametrize("command", HELP)
def test_sentences_of_help_are_short(command):
    described = PROGRAM.commands[command] if command else PROGRAM
    texts = [HELP[command], described.epilog, *(each.help for each in described.params)]
    for text in filter(None, texts):
        words = re.sub(r"^ .*$|\[default: .*", "", text, flags=re.MULTILINE)  # neither examples nor notes
        assert long_sentences(words) == []


def test_long_sentences_are_found():
    long = "one " * 31
    assert long_sentences(f"Short. {long}") == [long.strip()]
    assert long_sentences(f"- {'one ' * 20}\n- {'one ' * 20}\n\n| {long} |\n\n`{long}` and [{long}]({long})") == []


@pytest.mark.parametrize(
    "line",
    [
        "driftkit trane --steps 3", "driftkit train --no-such-option", "driftkit train --encoder mocov3",
        "driftkit train --preset nope", "driftkit train --set trainer.stepz=3", "driftkit train --data absent.zip",
        "driftkit run pipelines/absent.toml", "driftkit run pipelines/toy.toml --stage absent",
        "driftkit fid outputs/ddpm -r shapes --extractor incption", "driftkit fid outputs/ddpm -r shapes --metrics fod",
        "driftkit fid outputs/ddpm -r shapes --sampler eular", "driftkit fid outputs/absent -r shapes",
        "driftkit fid outputs/ddpm -r shapes --extractor encoder:outputs/absent", "driftkit sample WHATEVER",
        "driftkit probe-encoder mocov2 --taps stage9", "driftkit train --init-from outputs/absent", "wget photos.zip",
        "torchrun --nproc=8 --what -m driftkit train", "just nothing", "python -m driftkit train --stepz 3",
        "uv sync --extra nothing", "pytest tests/absent",
    ],
)  # fmt: skip
def test_a_command_that_is_wrong_fails(line, here):
    with pytest.raises((AssertionError, DriftkitError, SystemExit)):
        run(shlex.split(line))
