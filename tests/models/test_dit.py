"""The transformer: its parts against plain float64 loops, its size against the paper's, and every command with it."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from driftkit.errors import UsageError
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.models.dit import SIZES, DiT, DiTConfig, axis_angles, grid_angles, patchify, rotate, unpatchify
from driftkit.models.registry import build_network
from driftkit.protocols import Condition
from driftkit.storage.files import read_json
from driftkit.training.budget import training_shapes
from driftkit.training.train_config import load_config, resolve_config
from tests.benchmarks.harness import peak_bytes
from tests.conftest import TINY_DATA, TINY_LOOP, done, driftkit, first_is_fast, replace_weights
from tests.training.test_budget import real_step

TINY = {"hidden_size": 16, "depth": 2, "num_heads": 2, "register_tokens": 3}
CONDITIONED = {"num_classes": 3, "guided": True, "style_tokens": 2, "style_codes": 4}
PAPER = {"num_classes": 1000, "guided": True, "style_tokens": 32}


def dit(image_size=8, **settings):
    return DiT(DiTConfig(**{**TINY, **settings}), image_size=image_size)


def random_dit(image_size=8, **settings):
    """A network whose output depends on everything it gets: zero-initialised layers would hide it."""
    network = dit(image_size, **settings).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def given(channels=3, size=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, size, size, generator=generator), torch.tensor([3, 900])


def count(module):
    return sum(p.numel() for p in module.parameters())


# Parts


def test_patches_are_squares_by_rows():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for n in range(2):
        for row in range(2):
            for column in range(3):
                want = images[n, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
                assert torch.equal(patches[n, 3 * row + column], want)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_images_are_put_together_as_they_were_cut(patch):
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(unpatchify(patchify(images, patch), patch, rows=8 // patch), images)


def literal_angles(side, channels):
    """The angle of every pair of channels of every patch: half of the pairs by row, half by column."""
    each = channels // 4
    frequencies = [10_000 ** (-i / each) for i in range(each)]
    return [
        [row * f for f in frequencies] + [column * f for f in frequencies]
        for row in range(side)
        for column in range(side)
    ]


def literal_rotation(vector, angles):
    """A list of numbers, whose channel i and i + C / 2 are one complex number each."""
    half = len(vector) // 2
    turned = [complex(vector[i], vector[i + half]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
    return [z.real for z in turned] + [z.imag for z in turned]


def test_rotation_is_that_of_complex_numbers_by_row_and_column():
    side, channels = 3, 16
    x = torch.randn(side**2, channels, dtype=torch.float64)
    angles = grid_angles(axis_angles(side, channels // 4)).double()
    literal = literal_angles(side, channels)
    assert torch.allclose(angles, torch.tensor(literal, dtype=torch.float64), atol=1e-6)
    want = [literal_rotation(row, a) for row, a in zip(x.tolist(), literal, strict=True)]
    assert torch.allclose(rotate(x, angles.cos(), angles.sin()), torch.tensor(want, dtype=torch.float64), atol=1e-6)


def test_products_of_rotated_vectors_depend_on_the_offset_alone():
    side, channels = 5, 16
    angles = grid_angles(axis_angles(side, channels // 4)).double()
    turned = [rotate(torch.randn(channels).double().expand(side**2, -1), angles.cos(), angles.sin()) for _ in range(2)]
    products = (turned[0] @ turned[1].T).reshape(side, side, side, side)  # row, column of either
    for rows, columns in ((0, 1), (1, 0), (2, 3)):
        offset = [
            float(products[r, c, r + rows, c + columns]) for r in range(side - rows) for c in range(side - columns)
        ]
        assert max(offset) - min(offset) < 1e-5
    assert not torch.allclose(products[0, 0, 0, 1], products[0, 0, 1, 0])  # below is another place than to the right


# The network


def literal_network(network, config, x, t):
    """The unconditional network for one image [C, H, W] in float64, token by token and head by head."""
    w = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def linear(name, v):
        return w[f"{name}.weight"] @ v + w[f"{name}.bias"]

    def silu(v):
        return v / (1 + torch.exp(-v))

    def norm(v):
        return v / math.sqrt(sum(c * c for c in v.tolist()) / len(v) + 1e-6)

    def modulated(v, scale, shift):
        return norm(v) * (1 + scale) + shift

    p, width, heads = config.patch_size, config.hidden_size, config.num_heads
    size, side = width // heads, x.shape[-1] // p
    frequencies = [math.exp(-math.log(10_000) * i / 128) for i in range(128)]
    waves = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
    hidden = silu(linear("time_embedding.mlp.0", torch.tensor(waves, dtype=torch.float64)))
    c = linear("time_embedding.mlp.2", hidden)
    tokens = [register + linear("register_projection", c) for register in w["registers"]]
    places = [[0.0] * (size // 2) for _ in tokens]
    for number, place in enumerate(literal_angles(side, width)):
        row, column = divmod(number, side)
        patch = x[:, row * p : row * p + p, column * p : column * p + p].double().flatten()
        waves = [math.sin(a) for a in place] + [math.cos(a) for a in place]
        tokens.append(linear("input", patch) + torch.tensor(waves, dtype=torch.float64))
    places += literal_angles(side, size)
    c = silu(c)
    for block in range(config.depth):
        name = f"blocks.{block}"
        scale1, shift1, gate1, scale2, shift2, gate2 = linear(f"{name}.modulation", c).split(width)
        qkv = [linear(f"{name}.attention.qkv", modulated(v, scale1, shift1)).reshape(3, heads, size) for v in tokens]
        mixed = [torch.zeros(width, dtype=torch.float64) for _ in tokens]
        for head in range(heads):
            q, k = (
                [
                    torch.tensor(literal_rotation((norm(v[part, head]) * w[f"{name}.attention.{scale}"]).tolist(), a))
                    for v, a in zip(qkv, places, strict=True)
                ]
                for part, scale in enumerate(("query_scale", "key_scale"))
            )
            for i, query in enumerate(q):
                weights = [math.exp(float(query.double() @ key.double()) / math.sqrt(size)) for key in k]
                for weight, v in zip(weights, qkv, strict=True):
                    mixed[i][head * size : head * size + size] += weight / sum(weights) * v[2, head]
        tokens = [v + gate1 * linear(f"{name}.attention.out", m) for v, m in zip(tokens, mixed, strict=True)]
        for i, v in enumerate(tokens):
            gate, value = linear(f"{name}.mlp.gate_and_value", modulated(v, scale2, shift2)).chunk(2)
            tokens[i] = v + gate2 * linear(f"{name}.mlp.out", silu(gate) * value)
    scale, shift = linear("output_modulation", c).split(width)
    image = torch.zeros(x.shape, dtype=torch.float64)
    for number, v in enumerate(tokens[config.register_tokens :]):
        row, column = divmod(number, side)
        patch = linear("output", modulated(v, scale, shift)).reshape(-1, p, p)
        image[:, row * p : row * p + p, column * p : column * p + p] = patch
    return image


def test_the_network_is_that_of_literal_loops():
    network = random_dit(patch_size=4)
    images, t = given()
    config = DiTConfig(**TINY, patch_size=4)
    want = torch.stack([literal_network(network, config, x, int(at)) for x, at in zip(images, t, strict=True)])
    assert float(want.std()) > 1
    assert torch.allclose(network(images, t).double(), want, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"patch_size": 2}, 8),
        ({"patch_size": 1, "register_tokens": 0}, 6),
        ({"patch_size": 3, "num_heads": 1}, 9),
        ({"patch_size": 8, "channels": 4}, 8),
        ({"patch_size": 4, "mlp_ratio": 1.0}, 24),
    ],
)
def test_it_keeps_the_image_size_and_starts_at_zero(settings, size):
    images, t = given(settings.get("channels", 3), size)
    assert torch.equal(dit(size, **settings)(images, t), torch.zeros_like(images))
    out = random_dit(size, **settings)(images, t)
    assert out.shape == images.shape
    assert out.flatten(1).std(dim=1).min() > 0.1


def test_every_image_is_seen_by_itself():
    network = random_dit(**CONDITIONED)
    images, t = given()
    condition = Condition(torch.tensor([2, 0]), torch.tensor([1.0, 3.0]), torch.tensor([[1, 0], [3, 3]]))
    both = network(images, t, condition)
    for n in range(2):
        part = slice(n, n + 1)
        assert torch.allclose(network(images[part], t[part], condition.part(part)), both[part], atol=1e-4)
    assert not torch.allclose(network(images[:1], t[1:], condition.part(slice(1))), both[:1], atol=0.1)  # of its time


@pytest.mark.parametrize("part", ["labels", "guidance", "style"])
@pytest.mark.parametrize("registers", [0, 3])
def test_every_part_of_a_condition_changes_each_image(part, registers):
    network = random_dit(**CONDITIONED, register_tokens=registers)
    values = {"labels": torch.tensor([2, 0]), "guidance": torch.tensor([2.0, 4.0]), "style": torch.ones(2, 2).long()}
    changed = network(*given(), Condition(**{part: values[part]})) - network(*given())
    assert changed.abs().flatten(1).amax(dim=1).min() > 0.01


def test_without_positions_patches_are_a_set():
    network = random_dit(patch_size=2)
    images, t = given()
    order = torch.randperm(16)
    shuffled = unpatchify(patchify(images, 2)[:, order], 2, rows=4)

    @torch.no_grad()
    def difference():
        out = patchify(network(images, t), 2)
        return float((patchify(network(shuffled, t), 2) - out[:, order]).abs().max())

    assert difference() > 0.1
    network.rotation_axis.zero_()
    assert difference() > 0.1
    network.position_axis.zero_()
    assert difference() < 1e-3


def test_registers_are_read_by_patches():
    network = random_dit()
    before = network(*given())
    torch.nn.init.normal_(network.registers)
    assert (network(*given()) - before).abs().max() > 0.01


@pytest.mark.parametrize("settings", [{}, CONDITIONED, {"register_tokens": 0}])
def test_a_few_steps_reach_every_parameter(settings):
    network = dit(**settings)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    condition = Condition()
    if "guided" in settings:
        condition = Condition(torch.tensor([2, 0]), torch.tensor([1.0, 3.0]), torch.tensor([[1, 0], [3, 3]]))
    images, t = given()
    for _ in range(5):  # output, then gates, then branches, then embeddings, then the first layer of guidance
        optimizer.zero_grad()
        (network(images, t, condition) - images.flip(-1)).square().mean().backward()
        optimizer.step()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("settings", [{}, CONDITIONED])
def test_it_is_one_graph(settings):
    torch._dynamo.reset()
    found = torch._dynamo.explain(dit(**settings).train())(*given())
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_under_autocast_blocks_are_bfloat16_and_the_output_float32():
    network = random_dit()
    inputs, products = [], []
    network.output.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    network.blocks[0].mlp.out.register_forward_hook(lambda module, args, out: products.append(out))
    exact = network(*given())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(*given())
    assert (products[1].dtype, inputs[1].dtype, out.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(patchify(out, 2), network.output(inputs[1]))
    assert 0 < (out - exact).abs().max() < 0.1 * exact.abs().max()


# Sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "patch", "side"), [(4, 2, 32), (3, 16, 256)])
def test_named_sizes_generate_in_one_step(size, channels, patch, side):
    config = DiTConfig(size=size, channels=channels, patch_size=patch, **PAPER)
    with torch.device("meta"):
        network = DiT(config, image_size=side)
        images = generate_one_step(network, torch.zeros(3, channels, side, side))
    assert (images.shape, images.dtype) == ((3, channels, side, side), torch.float32)
    assert len(network.blocks) == config.depth


@pytest.mark.parametrize(
    ("size", "channels", "patch", "side", "millions"),
    [("B", 4, 2, 32, 133), ("L", 4, 2, 32, 463), ("B", 3, 16, 256, 134), ("L", 3, 16, 256, 464)],
)
def test_sizes_are_those_of_the_paper(size, channels, patch, side, millions):
    """Tables 5 and 6 of arXiv 2602.04770: 1,000 classes and none, guidance, 32 x 64 style codes and 16 registers.

    A one-step generator needs no time, and norms before a modulation need no scale of their own: the time's embedding
    (0.8 or 1.3 M) is ours alone, and a scale for each of two norms a block and the last one is the paper's alone.
    """
    config = DiTConfig(size=size, channels=channels, patch_size=patch, **PAPER)
    with torch.device("meta"):
        network = DiT(config, image_size=side)
    papers = count(network) - count(network.time_embedding) + (2 * config.depth + 1) * config.hidden_size
    assert round(papers / 1e6) == millions


def test_parameters_are_those_of_the_arithmetic():
    config = DiTConfig(size="L", channels=4, **PAPER)
    width, mlp = 1024, 2752  # 2/3 of 4096 is 2730.7, and the next multiple of 32 is 2752
    assert config.mlp_size == mlp
    block = (6 + 3 + 1) * (width**2 + width) + 2 * 64 + 2 * mlp * (width + 1) + (mlp + 1) * width
    embeddings = 2 * (256 * width + width + width**2 + width) + 1001 * width + 32 * 64 * width
    registers = 16 * width + width**2 + width
    ends = (16 * width + width) + (2 * width**2 + 2 * width) + (16 * width + 16)
    with torch.device("meta"):
        assert count(DiT(config, image_size=32)) == 24 * block + embeddings + registers + ends


def test_the_default_has_the_stated_size():
    with torch.device("meta"):
        assert round(count(DiT(DiTConfig(), image_size=32)) / 1e6, 1) == 32.6


def test_a_size_fills_what_is_not_given():
    config = DiTConfig(size="L", depth=3)
    assert (config.hidden_size, config.depth, config.num_heads) == (1024, 3, 16)
    assert DiTConfig.model_validate(config.model_dump()) == config
    assert DiTConfig() == DiTConfig(size="S") == DiTConfig(size=None)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": "L"}, "L"),
        ({"hidden_size": 768, "num_heads": 12}, "B"),
        ({"size": "S", "hidden_size": 768, "num_heads": 12}, "B"),
        ({"size": "B", "depth": 6}, None),
        ({"size": None, "hidden_size": 64, "depth": 2, "num_heads": 2}, None),
    ],
)
def test_a_config_never_shows_a_size_that_its_numbers_are_not(settings, size):
    config = DiTConfig(**settings)
    assert config.size == size
    assert size is None or SIZES[size].items() <= config.model_dump().items()
    assert DiTConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide hidden_size 384"),
        ({"hidden_size": 30, "num_heads": 2}, "leaves 15 channels"),
        ({"hidden_size": 12, "num_heads": 2}, "multiple of 4"),
        ({"size": "XL"}, "'Ti', 'S', 'B' or 'L'"),
        ({"size": ["S"]}, "'Ti', 'S', 'B' or 'L'"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        DiTConfig(**settings)


def test_patches_that_do_not_fill_the_image_are_refused():
    with pytest.raises(
        UsageError, match=r"`model.patch_size` 4 does not divide the image size 18: use one of 1, 2, 3, 6"
    ):
        build_network(DiTConfig(patch_size=4), image_size=18)


# The budget


def flops(network, images, t):
    with FlopCounterMode(display=False) as counter:
        network(images, t)
    return counter.get_total_flops()


def test_flops_are_those_of_the_matrices_and_the_attention():
    width, mlp, tokens, depth = 16, 64, 16 + 3, 2
    block = tokens * (4 * width**2 + 3 * width * mlp) + 6 * width**2 + 2 * tokens**2 * width
    patches = 16 * 12 * width * 2  # in and out
    time = 256 * width + width**2
    want = 2 * 2 * (depth * block + patches + time + width**2 + 2 * width**2)  # two images, two operations a product
    assert flops(dit(), *given()) == want


def plan(*words, device="cpu"):
    sets = [f"model.{key}={value}" for key, value in TINY.items()]
    config, _ = resolve_config(
        objective="ddpm",
        assignments=["model.kind=dit", *sets, "model.patch_size=2", "data.image_size=16", *words],
    )
    return config, training_shapes(config, device=device)[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_kept_for_the_backward_pass_is_that_of_a_real_step(precision):
    config, shapes = plan(f"trainer.precision={precision}", "model.hidden_size=64", "trainer.batch_size=24")
    on_paper = 24 * shapes.saved_bytes
    peak = peak_bytes(real_step(config, batch=24)) - 4 * shapes.parameters  # their gradients are of the state
    assert 0.95 * on_paper <= peak <= 1.25 * on_paper


def test_a_gpu_that_is_not_here_is_counted():
    counts = {device: plan("trainer.precision=bfloat16", device=device)[1] for device in ("cpu", "cuda")}
    assert counts["cuda"].network_flops == counts["cpu"].network_flops > 0
    assert 0.5 < counts["cuda"].saved_bytes / counts["cpu"].saved_bytes < 2


# Commands


TINY_DIT = [word for key, value in {**TINY, "patch_size": 4}.items() for word in ("--set", f"model.{key}={value}")]
LINE = [
    "train",
    "--preset",
    "demo",
    "--schedule",
    "constant",
    *TINY_DATA,
    *TINY_LOOP,
    "--set",
    "model.kind=dit",
    *TINY_DIT,
]


def objective_words(objective):
    return ["--objective", objective, *(["--encoder", "pixel"] if objective == "drift" else [])]


@pytest.mark.parametrize("objective", ["drift", "ddpm", "flow"])
def test_every_method_trains_resumes_samples_and_exports_it(objective, tmp_path):
    line = [*LINE, *objective_words(objective), "--output", tmp_path / "run"]
    done(*line, "--steps", 2)
    assert "resumed from step 2" in done(*line, "--steps", 3).stderr
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["config"]["model"]["kind"] == "dit"
    assert manifest["config"]["model"]["hidden_size"] == 16
    assert "base_channels" not in manifest["config"]["model"]  # the preset's table is of the U-Net
    network = build_network(load_config(manifest["config"]).model, image_size=8)
    assert manifest["parameters"] == count(network)
    done("sample", tmp_path / "run", "-n", 2, "--nfe", 1)
    card = done("export", tmp_path / "run", "--format", "safetensors", "--output", tmp_path / "out", "--json")
    assert json.loads(card.stdout)["model"]["patch_size"] == 4


def test_it_drifts_by_class_with_guidance_and_style(tmp_path):
    words = ["--class-conditional", "--batch-size", 20, "--unconditional", 2, "--guidance-max", 3]
    line = [*LINE, *objective_words("drift"), *words, "--set", "model.style_tokens=2", "--output", tmp_path / "run"]
    done(*line, "--steps", 2)
    model = read_json(tmp_path / "run" / "manifest.json")["config"]["model"]
    assert (model["num_classes"], model["guided"], model["style_tokens"]) == (10, True, 2)


@pytest.mark.parametrize("format", first_is_fast("torchscript", "onnx"))
@pytest.mark.parametrize("objective", ["drift", "flow"])
def test_its_graphs_give_the_numbers_of_the_network(objective, format, tmp_path):
    done(*LINE, *objective_words(objective), "--steps", 1, "--output", tmp_path / "run")
    replace_weights(tmp_path / "run", "ema", random_dit(patch_size=4).state_dict())  # trained ones are still near zero
    made = done("export", tmp_path / "run", "--format", format, "--output", tmp_path / "out", "--json")
    assert json.loads(made.stdout)["difference"]["largest"] < 1e-3


def test_a_dry_run_shows_the_filled_in_shape_and_the_cost():
    line = ["train", "--objective", "ddpm", "--preset", "demo", "--set", "model.kind=dit", "--set", "model.size=Ti"]
    document = json.loads(done(*line, "--dry-run", "--json").stdout)
    assert document["config"]["model"]["hidden_size"] == 192
    assert document["budget"]["shapes"]["parameters"] == 8_207_244
    assert document["budget"]["shapes"]["network_flops"] > 2 * 256 * 5e6
    tiny = done(*LINE, "--objective", "ddpm", "--dry-run").stdout
    assert f"trained network: {count(dit(patch_size=4)) / 1e6:.3g} M parameters" in tiny


def test_a_preset_of_it_is_kept_unless_another_network_is_asked_for(monkeypatch):
    preset = [("preset x", {"model": {"kind": "dit", "size": "B"}})]
    monkeypatch.setattr("driftkit.training.train_config.load_preset", lambda *names: preset)
    models = [
        resolve_config(objective="ddpm", preset="x", assignments=words)[0].model
        for words in ([], ["model.kind=dit"], ["model.kind=unet"])
    ]
    assert [model.kind for model in models] == ["dit", "dit", "unet"]
    assert [models[0].hidden_size, models[1].hidden_size] == [768, 768]


def test_settings_of_the_unet_are_named():
    result = driftkit(*LINE, "--objective", "ddpm", "--set", "model.base_channels=8", "--dry-run")
    assert result.exit_code == 2
    assert "model.base_channels (from --set) is a setting of unet" in result.stderr
