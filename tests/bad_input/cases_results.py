"""Command lines of `sample`, `fid`, `compare` and `export` that are refused."""

import torch

from tests.bad_input.case import Case
from tests.bad_input.given import folder_named, images, raw, tensors, text

EXTRACTOR = "--extractor encoder:{mae} --device cpu"
FID = f"fid {{samples}} -r {{pack}} {EXTRACTOR}"
RUN = f"fid {{drift}} -r {{pack}} {EXTRACTOR} -n 16"

SAMPLE = [
    Case("sample-no-run", "sample", 2, ["RUN"]),
    Case("sample-missing-run", "sample outputs/drift", 3, ["outputs/drift", "no such run folder"]),
    Case("sample-run-is-a-samples-file", "sample {samples}", 3, ["samples.safetensors", "got a file"]),
    Case("sample-run-is-another-folder", "sample photos", 3, ["no driftkit run", "manifest.json"], images(count=1)),
    Case("sample-run-is-mae", "sample {mae}", 2, ["mae", "no images"]),
    Case("sample-manifest-empty", "sample run", 3, ["manifest.json"], raw(b"", "run/manifest.json")),
    Case(
        "sample-manifest-a-list",
        "sample run",
        3,
        ["manifest.json", "expected a JSON object"],
        text("[1]", "run/manifest.json"),
    ),
    Case(
        "sample-manifest-of-another",
        "sample run",
        3,
        ["record of kind run"],
        text('{"kind": "pack"}', "run/manifest.json"),
    ),
    Case("sample-none", "sample {drift} -n 0", 2, ["--num-images", "greater than or equal to"]),
    Case("sample-negative", "sample {drift} -n=-4", 2, ["-4"]),
    Case("sample-no-number", "sample {drift} -n many", 2, ["--num-images", "many"]),
    Case("sample-sampler-misspelt", "sample {ddpm} --sampler ddpn", 2, ["ddpn", "did you mean ddpm?"]),
    Case("sample-sampler-of-another-method", "sample {drift} --sampler ddim", 2, ["ddim", "one-step"]),
    Case("sample-nfe-zero", "sample {ddpm} --nfe 0", 2, ["--nfe", "greater than or equal to"]),
    Case("sample-nfe-over-schedule", "sample {ddpm} --nfe 100000", 2, ["nfe", "from 1 to 1000", "got 100000"]),
    Case("sample-nfe-of-one-step", "sample {drift} --nfe 5", 2, ["--nfe 5"]),
    Case("sample-weights-misspelt", "sample {drift} --weights emma", 2, ["--weights", "emma", "ema or raw"]),
    Case("sample-step-not-kept", "sample {drift} --step 1", 3, ["step 1", "2"]),
    Case("sample-step-negative", "sample {drift} --step=-1", 3, ["-1"]),
    Case("sample-batch-zero", "sample {drift} -b 0", 2, ["--batch-size", "greater than or equal to"]),
    Case("sample-set-unknown", "sample {ddpm} --set etta=1.0", 2, ["etta", "did you mean eta?"]),
    Case("sample-set-eta-negative", "sample {ddpm} --set eta=-1.0", 2, ["eta", "-1.0"]),
    Case("sample-set-eta-nan", "sample {ddpm} --set eta=nan", 2, ["eta", "nan"]),
    Case("sample-set-eta-infinite", "sample {ddpm} --set eta=inf", 2, ["eta", "inf"]),
    Case("sample-set-eta-a-word", "sample {ddpm} --set eta=much", 2, ["eta", "much"]),
    Case("sample-set-eta-true", "sample {ddpm} --set eta=true", 2, ["eta", "rue"]),
    Case("sample-set-of-one-step", "sample {drift} --set eta=1.0", 2, ["eta"]),
    Case("sample-device-unknown", "sample {drift} --device gpu", 2, ["gpu", "auto, cpu or cuda"]),
    Case("sample-output-suffix", "sample {drift} -o s.png", 2, ["--output s.png", ".safetensors"]),
    Case(
        "sample-output-a-folder",
        "sample {drift} -o s.safetensors",
        2,
        ["got a folder"],
        folder_named("s.safetensors"),
    ),
    Case(
        "sample-output-in-proc", "sample {drift} -o /proc/x/s.safetensors", 2, ["--output /proc/x", "cannot be written"]
    ),
    Case("sample-output-is-a-pack", "sample {drift} -n 4 -o {pack}", 2, ["--output", "record of a pack"]),
    Case(
        "sample-output-is-a-checkpoint",
        "sample {drift} -n 4 -o {drift}/checkpoints/step-00000002/ema.safetensors",
        2,
        ["--output", "samples"],
    ),
]

FID_CASES = [
    Case("fid-no-target", "fid", 2, ["SAMPLES|RUN"]),
    Case("fid-no-reference", "fid {samples}", 2, ["--reference"]),
    Case("fid-missing-target", f"fid nothing -r {{pack}} {EXTRACTOR}", 3, ["nothing", "found nothing"]),
    Case("fid-missing-reference", f"fid {{samples}} -r nothing {EXTRACTOR}", 3, ["nothing", "no such file or folder"]),
    Case("fid-reference-is-a-run", f"fid {{samples}} -r {{drift}} {EXTRACTOR}", 2, ["is a run"]),
    Case(
        "fid-reference-of-another-size",
        f"fid {{samples}} -r {{big}} {EXTRACTOR}",
        5,
        ["8 pixels", "16", "--image-size 8"],
    ),
    Case("fid-run-of-another-size", f"fid {{drift}} -r {{big}} {EXTRACTOR}", 5, ["8 pixels", "16", "--image-size 8"]),
    Case("fid-target-is-mae", f"fid {{mae}} -r {{pack}} {EXTRACTOR}", 2, ["mae", "no images"]),
    Case(
        "fid-target-empty-file",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR}",
        3,
        ["s.safetensors"],
        raw(b"", "s.safetensors"),
    ),
    Case(
        "fid-target-cut-off",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR}",
        3,
        ["s.safetensors"],
        raw(b"\x40" + b"\0" * 7 + b"{", "s.safetensors"),
    ),
    Case(
        "fid-target-weights",
        f"fid {{drift}}/checkpoints/step-00000002/ema.safetensors -r {{pack}} {EXTRACTOR}",
        3,
        ["images"],
    ),
    Case(
        "fid-target-grey-tensor",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR}",
        3,
        ["[N, 3, H, W]", "[16, 1, 8, 8]"],
        tensors("s.safetensors", images=torch.zeros(16, 1, 8, 8, dtype=torch.uint8)),
    ),
    Case(
        "fid-target-not-finite",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR} --no-cache",
        5,
        ["finite"],
        tensors("s.safetensors", images=torch.full((16, 3, 8, 8), float("nan"))),
    ),
    Case(
        "fid-target-out-of-range",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR} --no-cache",
        5,
        ["[-1, 1]"],
        tensors("s.safetensors", images=torch.full((16, 3, 8, 8), 7.0)),
    ),
    Case(
        "fid-target-one-image-over-and-over",
        f"fid s.safetensors -r {{pack}} {EXTRACTOR} --no-cache",
        5,
        ["identical"],
        tensors("s.safetensors", images=torch.zeros(16, 3, 8, 8, dtype=torch.uint8)),
    ),
    Case(
        "fid-extractor-misspelt",
        "fid {samples} -r {pack} --extractor incepton --device cpu",
        2,
        ["incepton", "did you mean inception?"],
    ),
    Case(
        "fid-extractor-encoder-of-nothing", "fid {samples} -r {pack} --extractor encoder: --device cpu", 2, ["encoder:"]
    ),
    Case(
        "fid-extractor-encoder-missing",
        "fid {samples} -r {pack} --extractor encoder:outputs/mae --device cpu",
        3,
        ["outputs/mae"],
    ),
    Case(
        "fid-extractor-is-a-drifting-run",
        "fid {samples} -r {pack} --extractor encoder:{drift} --device cpu",
        2,
        ["trained no encoder"],
    ),
    Case("fid-extractor-weights-not-here", "fid {samples} -r {pack} --device cpu", 3, ["inception"]),
    Case(
        "fid-extractor-weights-missing",
        "fid {samples} -r {pack} --extractor-weights no.pth --device cpu",
        3,
        ["no.pth"],
    ),
    Case(
        "fid-extractor-weights-of-another",
        "fid {samples} -r {pack} --extractor-weights {samples} --device cpu",
        3,
        ["samples.safetensors"],
    ),
    Case("fid-extractor-weights-of-mae", f"{FID} --extractor-weights {{samples}}", 2, ["--extractor-weights"]),
    Case(
        "fid-statistics-of-another-extractor",
        "fid {samples} -r s.safetensors --extractor encoder:{mae} --device cpu",
        3,
        ["s.safetensors"],
        tensors("s.safetensors", mu=torch.zeros(3), sigma=torch.eye(3)),
    ),
    Case("fid-statistics-npz-empty", f"fid {{samples}} -r s.npz {EXTRACTOR}", 3, ["s.npz"], raw(b"", "s.npz")),
    Case("fid-none", f"{FID} -n 0", 2, ["--num-images", "'0'"]),
    Case("fid-too-few", f"{FID} --no-cache -n 9", 5, ["at least 10"]),
    Case("fid-more-than-there-are", f"{FID} --no-cache -n 17", 2, ["--num-images 17", "holds 16"]),
    Case("fid-batch-negative", f"{FID} -b=-1", 2, ["--batch-size", "-1"]),
    Case("fid-image-size-odd", f"{FID} --image-size 3", 2, ["--image-size", "'3'"]),
    Case("fid-repeats-zero", f"{FID} --repeats 0", 2, ["--repeats", "'0'"]),
    Case("fid-repeats-of-few", f"{FID} --no-cache --repeats 5 -n 10", 2, ["holds 16"]),
    Case(
        "fid-repeats-with-checkpoints", f"{RUN} --repeats 2 --all-checkpoints", 2, ["--all-checkpoints and --repeats"]
    ),
    Case("fid-checkpoints-of-samples", f"{FID} --all-checkpoints", 2, ["--all-checkpoints"]),
    Case("fid-nfe-of-samples", f"{FID} --nfe 3", 2, ["--nfe", "is no run"]),
    Case("fid-sampler-of-another-method", f"{RUN} --sampler ddpm", 2, ["ddpm", "one-step"]),
    Case("fid-step-not-kept", f"{RUN} --step 1", 3, ["step 1"]),
    Case("fid-training-missing", f"{FID} --training nothing", 3, ["nothing"]),
    Case("fid-output-suffix", f"{FID} -o e.txt", 2, ["--output e.txt", ".json"]),
    Case("fid-output-in-proc", f"{FID} -o /proc/x/e.json", 2, ["--output /proc/x/e.json", "cannot be written"]),
    Case("fid-output-a-folder", f"{FID} -o e.json", 2, ["got a folder"], folder_named("e.json")),
    Case("fid-output-is-the-record", f"{FID} -o {{root}}/samples.json", 2, ["--output", "evaluation"]),
    Case("fid-output-is-a-manifest", f"{RUN} -o {{drift}}/manifest.json", 2, ["--output", "evaluation"]),
    Case("fid-statistics-to-a-pack", f"{FID} --write-statistics {{pack}}", 2, ["--write-statistics", "statistics"]),
    Case("fid-statistics-suffix", f"{FID} --write-statistics s.npz", 2, ["--write-statistics s.npz", ".safetensors"]),
    Case(
        "fid-statistics-in-proc",
        f"{FID} --write-statistics /proc/x/s.safetensors",
        2,
        ["--write-statistics", "cannot be written"],
    ),
    Case("fid-metric-misspelt", f"{FID} --metrics fid,kidd", 2, ["--metrics", "kidd"]),
    Case("fid-setting-unknown", f"{FID} --set metricks=fid", 2, ["metricks", "did you mean metrics?"]),
    Case("fid-device-unknown", "fid {samples} -r {pack} --device cuda:0", 2, ["--device cuda:0"]),
]

COMPARE = [
    Case("compare-no-runs", "compare", 2, ["RUN..."]),
    Case("compare-nothing-there", "compare outputs/a outputs/b", 3, ["outputs/a"]),
    Case("compare-samples-only", "compare {samples} --no-speed -o out", 3, ["samples"]),
    Case("compare-evaluate-without-reference", "compare {drift} --evaluate", 2, ["--reference SPEC"]),
    Case("compare-reference-without-evaluate", "compare {drift} -r {pack}", 2, ["--evaluate"]),
    Case("compare-too-few", "compare {drift} -n 9", 2, ["--num-images", "got '9'"]),
    Case("compare-nfe-words", "compare {ddpm} --evaluate -r {pack} --nfe 1,ten", 2, ["--nfe", "'1,ten'"]),
    Case("compare-nfe-zero", "compare {ddpm} --evaluate -r {pack} --nfe 0", 2, ["--nfe", "'0'"]),
    Case("compare-nfe-not-used", "compare {ddpm} --nfe 0", 2, ["--nfe", "'0'"]),
    Case("compare-speed-batch-zero", "compare {drift} --speed-batch 0", 2, ["--speed-batch", "got '0'"]),
    Case("compare-speed-seconds-nan", "compare {drift} --speed-seconds nan", 2, ["--speed-seconds", "got nan"]),
    Case("compare-neighbours-by", "compare {drift} --neighbours-by feature", 2, ["--neighbours-by", "'feature'"]),
    Case("compare-neighbours-in-nothing", "compare {drift} --no-speed --neighbours-in nothing -o out", 3, ["nothing"]),
    Case(
        "compare-extractor-misspelt",
        "compare {drift} --evaluate -r {pack} --extractor incepton --no-speed -o out",
        2,
        ["did you mean inception?"],
    ),
    Case("compare-output-a-file", "compare {drift} -o {pack}", 2, ["expected a folder, got a file"]),
    Case("compare-output-in-proc", "compare {drift} -o /proc/x", 2, ["--output /proc/x", "cannot be written"]),
    Case("compare-device-unknown", "compare {drift} --device mps", 2, ["mps"]),
]

EXPORT = [
    Case("export-no-run", "export", 2, ["RUN"]),
    Case("export-missing-run", "export outputs/drift", 3, ["no such run folder"]),
    Case("export-samples-file", "export {samples}", 3, ["samples.safetensors"]),
    Case("export-mae", "export {mae}", 2, ["mae", "no images"]),
    Case("export-format-misspelt", "export {drift} --format onx", 2, ["onx", "did you mean onnx?"]),
    Case("export-weights-misspelt", "export {drift} --weights best", 2, ["--weights", "best", "ema or raw"]),
    Case("export-step-not-kept", "export {drift} --step 5", 3, ["step 5"]),
    Case(
        "export-output-another-folder", "export {drift} -o photos --force", 2, ["got something else"], images(count=1)
    ),
    Case("export-output-a-file", "export {drift} -o {pack}", 2, ["got a file"]),
    Case("export-output-in-proc", "export {drift} -o /proc/x", 2, ["--output /proc/x", "cannot be written"]),
    Case("export-output-is-the-run", "export {drift} -o {drift} --force", 2, ["got something else"]),
]
