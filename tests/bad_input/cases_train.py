"""Command lines of `driftkit train` that are refused."""

from tests.bad_input.case import Case
from tests.bad_input.given import image, raw, text

# A drifting run that would start: everything a row does not spoil.
TINY = (
    "train -e pixel -d {pack} --batch-size 4 --steps 2 --device cpu --set model.base_channels=8 "
    "--set model.channel_multipliers=[1,2] --set model.attention_resolutions=[4] --set model.num_heads=2 "
    "--set model.num_res_blocks=1 -o run"
)
DDPM = TINY.replace("-e pixel", "--objective ddpm")
AGAIN = TINY.replace("-o run", "-o {drift}").replace("--steps 2", "--steps 4")


TRAIN = [
    Case("train-objective-misspelt", "train --objective drft", 2, ["--objective drft", "did you mean drift?"]),
    Case("train-option-misspelt", "train --stepz 3", 2, ["--stepz", "--steps"]),
    Case("train-stray-word", "train outputs/x", 2, ["unexpected extra argument", "outputs/x"]),
    Case("train-preset-misspelt", "train --preset cpuu", 2, ["--preset cpuu", "did you mean cpu?"]),
    Case("train-preset-of-another-objective", "train --preset mae-cpu", 2, ["--preset mae-cpu", "not for drift"]),
    Case("train-encoder-misspelt", "train -e mocov3 -d {pack} -o run", 2, ["mocov3", "did you mean mocov2"]),
    Case("train-encoder-empty", f"{TINY} -e ''", 2, ["-e", "empty word"]),
    Case("train-encoder-blank", f"{TINY} -e ' '", 2, ["--encoder", "empty name"]),
    Case("train-encoder-timm-unknown", "train -e timm:vit_nano -d {pack} -o run", 2, ["vit_nano"]),
    Case("train-encoder-is-a-drifting-run", f"{TINY} -e {{drift}}", 2, ["trained no encoder", "mae_resnet"]),
    Case("train-encoder-is-a-samples-file", f"{TINY} -e {{samples}}", 2, ["not exported by a MAE"]),
    Case("train-encoder-is-missing-folder", f"{TINY} -e outputs/mae", 3, ["outputs/mae", "no such folder"]),
    Case("train-encoder-weights-missing", f"{TINY} -e mocov2 --encoder-weights no.pth", 3, ["no.pth"]),
    Case("train-encoder-weights-empty", f"{TINY} -e mocov2 --encoder-weights w.pth", 3, ["w.pth"], raw(b"", "w.pth")),
    Case("train-encoder-weights-a-folder", f"{TINY} -e mocov2 --encoder-weights {{drift}}", 3, ["drift"]),
    Case("train-encoder-weights-of-another", f"{TINY} -e mocov2 --encoder-weights {{samples}}", 3, ["samples"]),
    Case("train-weights-not-in-cache", f"{TINY} -e mocov2", 3, ["mocov2"]),
    Case("train-features-misspelt", f"{TINY} --feature-set multires2", 2, ["multires2", "did you mean"]),
    Case("train-taps-unknown", f"{TINY} -e mocov2 --random-weights --taps layer9", 2, ["layer9"]),
    Case("train-taps-of-pixels", f"{TINY} --taps layer1", 2, ["taps"]),
    Case("train-taps-empty-word", f"{TINY} -e mocov2 --random-weights --taps ,", 2, ["taps"]),
    Case("train-input-size-zero", f"{TINY} --input-size 0", 2, ["--input-size", "8", "'0'"]),
    Case("train-input-size-huge", f"{TINY} --input-size 99999999", 2, ["--input-size", "99999999"]),
    Case("train-input-size-of-vit", f"{TINY} -e dinov2 --random-weights --input-size 225", 2, ["225", "14"]),
    Case("train-image-size-negative", f"{TINY} --image-size=-8", 2, ["--image-size", "8", "'-8'"]),
    Case("train-image-size-no-number", f"{TINY} --image-size big", 2, ["--image-size", "big"]),
    Case("train-image-size-of-a-pack", f"{TINY} --image-size 16", 3, ["8x8", "16x16", "driftkit data"]),
    Case("train-image-size-odd", f"{TINY} -d {{odd}}", 2, ["9", "model.channel_multipliers"]),
    Case("train-images-not-square", f"{TINY} -d {{wide}}", 3, ["16x8"]),
    Case("train-steps-negative", f"{TINY} --steps=-1", 2, ["--steps", "0", "'-1'"]),
    Case("train-steps-no-number", f"{TINY} --steps 1e3", 2, ["--steps", "1e3"]),
    Case(
        "train-steps-infinite", f"{TINY.replace('--steps 2', '')} --set trainer.steps=inf", 2, ["trainer.steps", "inf"]
    ),
    Case("train-batch-zero", f"{TINY} -b 0", 2, ["--batch-size", "'0'"]),
    Case("train-batch-one-for-drifting", f"{TINY} -b 1", 2, ["batch", "at least 2"]),
    Case("train-batch-overflow", f"{TINY} -b 99999999999999999999999", 2, ["batch"]),
    Case("train-micro-batch-zero", f"{TINY} --micro-batch 0", 2, ["--micro-batch", "'0'"]),
    Case("train-learning-rate-nan", f"{TINY} --learning-rate nan", 2, ["--learning-rate", "nan"]),
    Case("train-learning-rate-infinite", f"{TINY} --learning-rate inf", 2, ["--learning-rate", "inf"]),
    Case("train-learning-rate-negative", f"{TINY} --learning-rate=-1e-4", 2, ["--learning-rate", "-0.0001"]),
    Case("train-precision-unknown", f"{TINY} --precision fp8", 2, ["--precision", "fp8"]),
    Case("train-seed-negative", f"{TINY} --seed=-1", 2, ["seed", "'-1'"]),
    Case("train-device-unknown", f"{TINY} --device tpu", 2, ["tpu", "auto, cpu or cuda"]),
    Case("train-device-with-number", f"{TINY} --device cuda:9", 2, ["cuda:9"]),
    Case("train-resume-unknown", f"{TINY} --resume yes", 2, ["--resume yes", "auto or never"]),
    Case("train-checkpoint-every-negative", f"{TINY} --checkpoint-every=-1", 2, ["--checkpoint-every"]),
    Case("train-sample-every-negative", f"{TINY} --sample-every=-1", 2, ["--sample-every"]),
    Case("train-eval-every-negative", f"{TINY} --eval-every=-1", 2, ["--eval-every"]),
    Case("train-eval-of-mae", "train --objective mae -d {pack} -o run --eval-every 2", 2, ["--eval-every", "mae"]),
    Case("train-eval-judge-misspelt", f"{TINY} --eval-every 1 --set evaluation.extractor=incepton", 2, ["incepton"]),
    Case("train-eval-judge-not-there", f"{TINY} --eval-every 1", 3, ["inception"]),
    Case(
        "train-eval-reference-of-another-size",
        f"{TINY} --eval-every 1 --set evaluation.extractor=encoder:{{mae}} --set evaluation.reference={{big}}",
        5,
        ["16 pixels wide", "8"],
    ),
    Case("train-eval-of-nine-images", f"{TINY} --eval-every 1 --set evaluation.num_images=9", 2, ["num_images", "9"]),
    # --set, --config and variables
    Case(
        "train-set-key-misspelt", f"{TINY} --set trainer.batchsize=4", 2, ["trainer.batchsize", "trainer.batch_size?"]
    ),
    Case("train-set-section-unknown", f"{TINY} --set optimiser.lr=1", 2, ["optimiser"]),
    Case("train-set-without-value", f"{TINY} --set trainer.steps", 2, ["--set trainer.steps", "section.key=value"]),
    Case("train-set-empty-key", f"{TINY} --set =3", 2, ["--set =3", "section.key=value"]),
    Case("train-set-a-section", f"{TINY} --set trainer=3", 2, ["trainer"]),
    Case("train-set-list-for-number", f"{TINY} --set trainer.log_every=[1]", 2, ["trainer.log_every", "[1]"]),
    Case("train-set-taus-empty", f"{TINY} --set objective.taus=[]", 2, ["objective.taus"]),
    Case("train-set-tau-zero", f"{TINY} --set objective.taus=[0.0]", 2, ["taus", "0.0"]),
    Case("train-set-tau-nan", f"{TINY} --set objective.taus=[nan]", 2, ["objective.taus"]),
    Case("train-set-betas", f"{TINY} --set trainer.betas=[0.9,1.5]", 2, ["betas", "1.5"]),
    Case("train-schedule-misspelt", f"{TINY} --schedule cosin", 2, ["--schedule", "did you mean cosine?"]),
    Case(
        "train-schedule-decay-of-a-constant-rate",
        f"{TINY} --set trainer.decay_steps=1",
        2,
        ["decay_steps", "--schedule"],
    ),
    Case(
        "train-schedule-longer-than-the-run",
        f"{TINY} --schedule linear --set trainer.decay_steps=3",
        2,
        ["decay_steps 3", "--steps 2"],
    ),
    Case(
        "train-schedule-final-rate-above-one", f"{TINY} --schedule cosine --set trainer.final_rate=2", 2, ["final_rate"]
    ),
    Case("train-schedule-resumed-otherwise", f"{AGAIN} --schedule cosine", 2, ["--schedule", "--init-from"]),
    Case("train-set-ema-one", f"{TINY} --set trainer.ema_decay=1.0", 2, ["trainer.ema_decay", "1"]),
    Case("train-set-ema-none", f"{TINY} --set trainer.ema_decay=[]", 2, ["trainer.ema_decay", "at least 1"]),
    Case("train-set-ema-twice", f"{TINY} --set trainer.ema_decay=[0.9,0.90]", 2, ["ema_decay", "[0.9, 0.9]"]),
    Case("train-set-ema-word", f"{TINY} --set trainer.ema_decay=0.9,often", 2, ["trainer.ema_decay", "often"]),
    Case(
        "train-set-weight-decay-infinite", f"{TINY} --set trainer.weight_decay=inf", 2, ["trainer.weight_decay", "inf"]
    ),
    Case("train-set-clip-nan", f"{TINY} --set trainer.gradient_clip=nan", 2, ["trainer.gradient_clip", "nan"]),
    Case("train-set-normalisation", f"{TINY} --set objective.normalisation=sinkhorn", 2, ["objective.normalisation"]),
    Case("train-set-channels-zero", f"{TINY} --set model.base_channels=0", 2, ["model.base_channels", "0"]),
    Case("train-set-channels-no-multiple", f"{TINY} --set model.base_channels=9", 2, ["model", "9"]),
    Case("train-set-multipliers-empty", f"{TINY} --set model.channel_multipliers=[]", 2, ["model.channel_multipliers"]),
    Case(
        "train-set-too-deep", f"{TINY} --set model.channel_multipliers=[1,1,1,1,1,1]", 2, ["channel_multipliers", "8"]
    ),
    Case("train-set-heads", f"{TINY} --set model.num_heads=3", 2, ["num_heads 3"]),
    Case("train-set-dropout", f"{TINY} --set model.dropout=1.5", 2, ["model.dropout", "1.5"]),
    Case("train-set-holdout-all", f"{TINY} --set data.holdout=64", 2, ["data.holdout", "64"]),
    Case("train-set-limit-zero", f"{TINY} --set data.limit=0", 2, ["data.limit", "0"]),
    Case("train-set-limit-one", f"{DDPM} --set data.limit=0", 2, ["data.limit", "0"]),
    Case("train-set-tracker", f"{TINY} --set trainer.tracker=tensorbord", 2, ["trainer.tracker", "tensorbord"]),
    Case("train-set-other-objective", f"{TINY} --set objective.name=ddpm", 2, ["--objective"]),
    Case("train-set-key-of-another-objective", f"{DDPM} --set objective.taus=[0.1]", 2, ["objective.taus"]),
    Case("train-ddpm-with-encoder", f"{DDPM} -e mocov2", 2, ["objective.encoder"]),
    Case("train-ddpm-no-timesteps", f"{DDPM} --set objective.num_steps=0", 2, ["objective.num_steps"]),
    Case(
        "train-variable-of-wrong-type",
        "train -d {pack} -o run",
        2,
        ["trainer.log_every", "ten"],
        environment=[("DRIFTKIT_TRAIN_SET", "trainer.log_every=ten")],
    ),
    Case(
        "train-variable-no-number",
        TINY.replace("--steps 2", ""),
        2,
        ["many"],
        environment=[("DRIFTKIT_TRAIN_STEPS", "many")],
    ),
    Case("train-config-missing", f"{TINY} --config no.toml", 3, ["no.toml is not there"]),
    Case("train-config-a-folder", f"{TINY} --config {{drift}}", 3, ["got a folder"]),
    Case(
        "train-config-no-toml",
        f"{TINY} --config c.toml",
        2,
        ["c.toml is not valid TOML", "line 2"],
        text("[trainer]\nsteps: 3\n", "c.toml"),
    ),
    Case(
        "train-config-no-text", f"{TINY} --config c.toml", 3, ["c.toml cannot be read"], raw(b"\xff\xfe\x00", "c.toml")
    ),
    Case(
        "train-config-key-misspelt",
        f"{TINY} --config c.toml",
        2,
        ["trainer.stepz", "c.toml", "did you mean trainer.steps?"],
        text("[trainer]\nstepz = 3\n", "c.toml"),
    ),
    Case(
        "train-config-wrong-type",
        f"{TINY} --config c.toml",
        2,
        ["trainer.log_every", "c.toml", "'ten'"],
        text("[trainer]\nlog_every = 'ten'\n", "c.toml"),
    ),
    Case(
        "train-config-section-is-a-list",
        f"{TINY} --config c.toml",
        2,
        ["trainer"],
        text("[[trainer]]\nsteps = 3\n", "c.toml"),
    ),
    Case(
        "train-config-section-is-a-number",
        f"{TINY} --config c.toml",
        2,
        ["objective"],
        text("objective = 3\n", "c.toml"),
    ),
    Case(
        "train-config-a-date",
        f"{TINY} --config c.toml",
        2,
        ["trainer.log_every"],
        text("[trainer]\nlog_every = 2020-01-01\n", "c.toml"),
    ),
    Case(
        "train-config-of-another-objective",
        f"{DDPM} --config c.toml",
        2,
        ["objective"],
        text("[objective]\nname = 'drift'\n", "c.toml"),
    ),
    # the images
    Case("train-data-missing", f"{TINY} -d photos", 3, ["photos", "no such file or folder"]),
    Case("train-data-misspelt", f"{TINY} -d shape", 3, ["shape", "did you mean shapes"]),
    Case("train-data-empty-word", f"{TINY} -d ''", 2, ["empty"]),
    Case("train-data-shapes-key", f"{TINY} -d 'shapes?image_sise=8'", 2, ["size", "did you mean"]),
    Case("train-data-samples-file", f"{TINY} -d {{samples}}", 3, ["of kind pack", "'samples'"]),
    Case("train-data-a-run", f"{TINY} -d {{drift}}", 2, ["is a run", "driftkit sample"]),
    Case("train-data-statistics", f"{TINY} -d {{statistics}}", 3, ["of kind pack"]),
    # the run folder
    Case("train-output-a-file", f"{TINY} -o {{pack}}", 2, ["--output", "a file"]),
    Case("train-output-below-a-file", f"{TINY} -o {{pack}}/run", 2, ["--output", "pack.safetensors"]),
    Case("train-output-another-folder", f"{TINY} -o photos", 2, ["photos"], image("photos/x.png")),
    Case("train-output-empty-word", f"{TINY} -o ''", 2, ["-o", "empty word"]),
    Case("train-output-name-too-long", f"{TINY} -o {'x' * 300}", 2, ["--output", "too long"]),
    Case("train-output-path-too-long", f"{TINY} -o {'/'.join(['x' * 200] * 25)}", 2, ["--output", "too long"]),
    Case("train-output-in-proc", f"{TINY} -o /proc/x/run", 2, ["--output", "/proc", "cannot be written"]),
    # the weights to start from
    Case("train-init-from-missing", f"{DDPM} --init-from outputs/x", 3, ["outputs/x", "no such run folder"]),
    Case("train-init-from-empty-word", f"{DDPM} --init-from ''", 2, ["--init-from", "empty word"]),
    Case(
        "train-init-from-no-run", f"{DDPM} --init-from photos", 3, ["photos is no driftkit run"], image("photos/x.png")
    ),
    Case("train-init-from-samples", f"{DDPM} --init-from {{samples}}", 2, ["--init-from", "driftkit export"]),
    Case("train-init-from-a-picture", f"{DDPM} --init-from x.png", 2, ["x.png", "safetensors"], image("x.png")),
    Case("train-init-from-weights-of-a-file", f"{DDPM} --init-from {{samples}}@raw", 2, ["leave @raw out"]),
    Case("train-init-from-weights-misspelt", f"{DDPM} --init-from {{drift}}@rawr", 3, ["@rawr", "no such run folder"]),
    Case("train-init-from-weights-not-kept", f"{DDPM} --init-from {{drift}}@ema-0.5", 3, ["it has ema, raw"]),
    Case("train-init-from-too-few-checkpoints", f"{DDPM} --init-from {{drift}}@average:2", 3, ["it has 1"]),
    Case("train-init-from-an-encoder", f"{DDPM} --init-from {{mae}}", 2, ["does not hold this network", "lacks"]),
    Case(
        "train-init-from-another-width",
        f"{DDPM} --set model.base_channels=16 --init-from {{drift}}",
        2,
        ["--init-from", "is [", "more; give the model settings"],
    ),
    Case("train-init-from-number", f"{DDPM} --set init_from=3", 2, ["init_from", "string"]),
    Case("train-resume-with-another-beginning", f"{AGAIN} --init-from {{ddpm}}", 2, ["--init-from was None"]),
    Case("train-resume-never", f"{AGAIN} --resume never", 2, ["already holds a run"]),
    Case("train-resume-other-rate", f"{AGAIN} --learning-rate 0.5", 2, ["--learning-rate", "0.5", "--init-from"]),
    Case("train-resume-other-batch", f"{AGAIN} -b 8", 2, ["begun with 4 images per step", "makes 8"]),
    Case("train-resume-other-seed", f"{AGAIN} --seed 7", 2, ["seed"]),
    Case("train-resume-other-network", f"{AGAIN} --set model.base_channels=16", 2, ["model.base_channels"]),
    Case("train-resume-other-objective", f"{AGAIN.replace('-e pixel', '--objective ddpm')}", 2, ["objective"]),
    Case("train-resume-other-images", f"{AGAIN} -d {{big}}", 2, ["trained on other images"]),
    Case("train-resume-fewer-steps", f"{AGAIN} --steps 1", 2, ["is at step 2, past", "steps"]),
]
