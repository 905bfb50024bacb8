"""Command lines of the program itself and of commands with few cases that are refused."""

from tests.bad_input.case import Case
from tests.bad_input.given import raw, text

APP = [
    Case("app-command-misspelt", "trian", 2, ["No such command 'trian'", "train"]),
    Case("app-command-of-another-program", "generate x", 2, ["No such command 'generate'"]),
    Case("app-option-before-command", "--steps 3 train", 2, ["--steps"]),
    Case("app-option-without-value", "train --steps", 2, ["--steps", "requires an argument"]),
    Case("app-flag-with-value", "train --dry-run=yes", 2, ["--dry-run"]),
    Case("app-option-empty-word", "sample {drift} --output=", 2, ["--output", "empty word"]),
    Case("doctor-stray-word", "doctor all", 2, ["unexpected extra argument", "all"]),
    Case("doctor-option-misspelt", "doctor --ofline", 2, ["--ofline", "--offline"]),
    Case("prefetch-nothing", "prefetch", 2, ["nothing to fetch is named", "--all"]),
    Case("prefetch-misspelt", "prefetch mocov3", 2, ["mocov3", "did you mean mocov2?"]),
    Case("prefetch-empty-word", "prefetch ''", 2, ["nothing of that name"]),
    Case("prefetch-names-and-all", "prefetch mocov2 --all", 2, ["--all"]),
    Case("prefetch-evaluator-misspelt", "prefetch evaluator:dinov3", 2, ["evaluator:dino"]),
    Case("prefetch-pixel", "prefetch pixel", 2, ["pixel"]),
]

VERIFY = [
    Case("verify-nothing-named", "verify", 2, ["Missing argument"]),
    Case("verify-option-misspelt", "verify {drift} --jsn", 2, ["--jsn", "--json"]),
    Case("verify-name-too-long", f"verify {'x' * 300}", 2, ["too long"]),
]

PROBE = [
    Case("probe-no-name", "probe-encoder", 2, ["NAME is missing", "--list"]),
    Case("probe-misspelt", "probe-encoder dinov2-multirez --random-weights", 2, ["did you mean dinov2-multires?"]),
    Case("probe-timm-unknown", "probe-encoder timm:vit_nano --random-weights", 2, ["vit_nano"]),
    Case("probe-drifting-run", "probe-encoder {drift}", 2, ["trained no encoder"]),
    Case(
        "probe-weights-and-random",
        "probe-encoder mocov2 --random-weights --encoder-weights w.pth",
        2,
        ["exclude each other"],
    ),
    Case("probe-weights-not-here", "probe-encoder mocov2", 3, ["mocov2"]),
    Case(
        "probe-weights-no-pickle",
        "probe-encoder mocov2 --encoder-weights w.pth",
        3,
        ["w.pth"],
        raw(b"\x80\x04}.", "w.pth"),
    ),
    Case("probe-input-size-zero", "probe-encoder {mae} --input-size 0", 2, ["--input-size", "0"]),
    Case("probe-image-size-huge", "probe-encoder {mae} --image-size 5000", 2, ["--image-size", "5000"]),
    Case("probe-features-misspelt", "probe-encoder {mae} --feature-set papr", 2, ["papr", "did you mean paper?"]),
    Case("probe-taps-unknown", "probe-encoder {mae} --taps layer9", 2, ["layer9"]),
    Case("probe-taps-twice", "probe-encoder mocov2 --random-weights --taps layer1,layer1", 2, ["layer1", "twice"]),
    Case("probe-batch-small", "probe-encoder {mae} -b 7", 2, ["--batch-size", "7"]),
    Case("probe-data-missing", "probe-encoder {mae} -d nothing", 3, ["nothing"]),
    Case(
        "probe-data-of-few",
        "probe-encoder {mae} -d {big} --image-size 8 -n 32 --no-speed --device cpu",
        3,
        ["16x16", "8x8"],
    ),
    Case("probe-num-images-few", "probe-encoder {mae} -d {pack} -n 31", 2, ["--num-images", "31"]),
    Case("probe-taus-words", "probe-encoder {mae} --taus 0.1,much", 2, ["--taus", "much"]),
    Case("probe-taus-nan", "probe-encoder {mae} --taus nan", 2, ["--taus", "nan"]),
    Case("probe-taus-negative", "probe-encoder {mae} --taus=-0.1", 2, ["--taus", "-0.1"]),
    Case("probe-speed-seconds-infinite", "probe-encoder {mae} --speed-seconds inf", 2, ["--speed-seconds", "inf"]),
    Case("probe-device-unknown", "probe-encoder {mae} --device xpu", 2, ["--device", "xpu"]),
    Case("probe-output-a-file", "probe-encoder {mae} -o {pack}", 2, ["expected a folder, got a file"]),
    Case("probe-output-in-proc", "probe-encoder {mae} -o /proc/x", 2, ["--output /proc/x", "cannot be written"]),
]

TOY = [
    Case("toy-points-misspelt", "toy --points swiss-rol", 2, ["--points", "swiss-rol", "checkerboard"]),
    Case("toy-start-unknown", "toy --start left", 2, ["--start", "left", "middle, far or collapsed"]),
    Case("toy-attraction-negative", "toy --attraction=-1", 2, ["--attraction", "-1"]),
    Case("toy-repulsion-nan", "toy --repulsion nan", 2, ["--repulsion", "nan"]),
    Case("toy-repulsion-none-at-all", "toy --attraction 0 --repulsion 0", 2, ["--attraction", "nothing would move"]),
    Case("toy-steps-zero", "toy --steps 0", 2, ["--steps", "0"]),
    Case("toy-steps-many", "toy --steps 1000000", 2, ["--steps", "1000000"]),
    Case("toy-batch-of-one", "toy -b 1", 2, ["--batch-size", "1"]),
    Case("toy-taus-negative", "toy --taus=-0.1", 2, ["--taus", "-0.1"]),
    Case("toy-setting-misspelt", "toy --set frame=3", 2, ["frame", "did you mean frames?"]),
    Case("toy-output-a-file", "toy -o {pack}", 2, ["expected a folder, got a file"]),
    Case(
        "toy-output-of-another",
        "toy -o t",
        2,
        ["--output", "toy.json", "another"],
        text('{"kind": "samples"}', "t/toy.json"),
    ),
    Case(
        "toy-points-leave-the-plane",
        "toy --steps 10 --learning-rate 1 --set depth=14 --set width=1024",
        1,
        ["not finite", "nothing was written", "--learning-rate"],
    ),
    Case("toy-one-point", "toy --steps 3 --set depth=64 --set width=1", 2, ["one point of all noise", "depth"]),
    Case("toy-points-as-a-folder", "toy swiss-roll -o t", 2, ["no such folder", "--points swiss-roll"]),
    Case("toy-gather-and-steps", "toy a b -o t --steps 3", 2, ["--steps", "for training"]),
    Case("toy-gather-and-width", "toy a b -o t --set width=3", 2, ["width", "for training"]),
    Case("toy-gather-nothing-there", "toy nowhere -o t", 3, ["nowhere/toy.json is not there"]),
    Case("toy-gather-another-run", "toy {drift} -o t", 3, ["toy.json is not there"]),
    Case("toy-gather-without-output", "toy {drift}", 2, ["--output"]),
    Case(
        "toy-gather-no-record", "toy t -o u", 3, ["expected a record of kind toy"], text('{"kind": "x"}', "t/toy.json")
    ),
]


def _pipeline(*stages: str, head: str = "name = 'p'\noutput = 'out'\n"):
    return text(head + "".join(f"[[stage]]\n{stage}\n" for stage in stages), "p.toml")


GRID = "name = 'a'\ncommand = 'data'\nspec = 'shapes?count=8&image_size=8'"

RUN = [
    Case("run-no-pipeline", "run", 2, ["PIPELINE"]),
    Case("run-missing", "run p.toml", 3, ["p.toml is not there"]),
    Case("run-a-folder", "run {drift}", 3, ["got a folder"]),
    Case("run-empty-file", "run p.toml", 2, ["at least one [[stage]]"], raw(b"", "p.toml")),
    Case("run-no-toml", "run p.toml", 2, ["p.toml is not valid TOML", "line 1"], text("stage: x", "p.toml")),
    Case("run-no-text", "run {pack}", 3, ["cannot be read"]),
    Case(
        "run-key-misspelt",
        "run p.toml",
        2,
        ["stagse", "did you mean stage?"],
        text("[[stagse]]\nname='a'", "p.toml"),
    ),
    Case("run-stage-is-a-word", "run p.toml", 2, ["stage", "valid list"], text("stage = 'x'", "p.toml")),
    Case("run-name-missing", "run p.toml", 2, ["stage 1: name: is required"], _pipeline("command = 'data'")),
    Case(
        "run-name-is-a-number", "run p.toml", 2, ["name", "valid string", "3"], _pipeline("name = 3\ncommand = 'data'")
    ),
    Case("run-names-twice", "run p.toml", 2, ["two stages are called a"], _pipeline(GRID, GRID)),
    Case(
        "run-command-misspelt",
        "run p.toml",
        2,
        ["'trian'", "did you mean train?"],
        _pipeline("name = 'a'\ncommand = 'trian'"),
    ),
    Case(
        "run-command-is-a-list",
        "run p.toml",
        2,
        ["command", "valid string"],
        _pipeline("name = 'a'\ncommand = ['train']"),
    ),
    Case("run-command-run", "run p.toml", 2, ["'run'", "expected one of"], _pipeline("name = 'a'\ncommand = 'run'")),
    Case(
        "run-option-misspelt",
        "run p.toml",
        2,
        ["stage a", "--stepz"],
        _pipeline("name = 'a'\ncommand = 'train'\nstepz = 3"),
    ),
    Case(
        "run-option-of-wrong-type",
        "run p.toml",
        2,
        ["stage a", "--steps", "many"],
        _pipeline("name = 'a'\ncommand = 'train'\nsteps = 'many'"),
    ),
    Case(
        "run-option-is-a-table",
        "run p.toml",
        2,
        ["stage a", "steps"],
        _pipeline("name = 'a'\ncommand = 'train'\nsteps = {b = 1}"),
    ),
    Case("run-set-is-a-word", "run p.toml", 2, ["stage a: set"], _pipeline("name = 'a'\ncommand = 'train'\nset = 'x'")),
    Case(
        "run-set-holds-a-date",
        "run p.toml",
        2,
        ["stage a", "trainer.steps"],
        _pipeline("name = 'a'\ncommand = 'train'\nset = {trainer.steps = 2020-01-01}"),
    ),
    Case("run-nproc-of-data", "run p.toml", 2, ["nproc 2"], _pipeline(GRID + "\nnproc = 2")),
    Case("run-nproc-a-word", "run p.toml", 2, ["nproc", "'two'"], _pipeline(GRID + "\nnproc = 'two'")),
    Case("run-each-empty", "run p.toml", 2, ["stage a: each"], _pipeline(GRID + "\neach = []")),
    Case("run-each-mixed", "run p.toml", 2, ["stage a: each"], _pipeline(GRID + "\neach = ['a', {b = 1}]")),
    Case("run-output-is-a-number", "run p.toml", 2, ["output", "3"], _pipeline(GRID, head="output = 3\n")),
    Case("run-title-is-a-table", "run p.toml", 2, ["name"], _pipeline(GRID, head="name = {a = 1}\n")),
    Case("run-placeholder-unknown", "run p.toml", 2, ["{outptu}"], _pipeline(GRID + "\noutput = '{outptu}/a'")),
    Case("run-stage-misspelt", "run p.toml --stage b", 2, ["--stage b", "p has a"], _pipeline(GRID)),
    Case("run-dry-stage-misspelt", "run p.toml --dry-run --stage b", 2, ["--stage b", "p has a"], _pipeline(GRID)),
    Case("run-nproc-zero", "run p.toml --nproc 0", 2, ["--nproc", "'0'"], _pipeline(GRID)),
    Case("run-output-a-file", "run p.toml -o {pack}", 2, ["expected a folder, got a file"], _pipeline(GRID)),
    Case("run-output-in-proc", "run p.toml -o /proc/x", 2, ["--output /proc/x", "cannot be written"], _pipeline(GRID)),
]
