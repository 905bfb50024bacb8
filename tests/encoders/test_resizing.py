"""Resizing as two products: torch's interpolation, at any precision of the process, compiled and without numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from driftkit.encoders.resizing import RESIZES, axis_matrix, resize
from driftkit.errors import UsageError
from driftkit.runtime.device import ieee_float32

SHAPES = [(32, 32, 224), (32, 32, 64), (224, 224, 32), (33, 33, 47), (31, 31, 13), (24, 40, 56), (24, 40, 32)]


def both_ways(function, images, weights):
    """The result, and the gradient of its product with the weights."""
    images = images.clone().requires_grad_()
    result = function(images)
    (result * weights).sum().backward()
    return result.detach(), images.grad


@pytest.mark.parametrize("mode", RESIZES)
@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_result_and_gradient_are_those_of_torchs_interpolation_in_float64(height, width, size, mode):
    images = torch.rand(2, 3, height, width) * 2 - 1
    weights = torch.randn(2, 3, size, size)
    got = both_ways(lambda x: resize(x, size, mode), images, weights)
    shrinking = size < max(height, width)
    want = both_ways(
        lambda x: F.interpolate(x, size=(size, size), mode=mode, antialias=shrinking), images.double(), weights.double()
    )
    assert got[0].dtype == torch.float32
    assert (got[0] - want[0]).abs().max() < 1e-6
    assert (got[1] - want[1]).abs().max() < 1e-6 * want[1].abs().max()


def test_images_of_that_size_are_returned_as_they_are():
    images = torch.rand(1, 3, 8, 8)
    assert resize(images, 8) is images


def test_other_modes_are_refused():
    with pytest.raises(UsageError, match="resize 'nearest': expected bicubic or bilinear"):
        resize(torch.zeros(1, 3, 8, 8), 16, "nearest")


def test_autocast_and_low_precision_products_change_nothing():
    images, weights = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    want = both_ways(lambda x: resize(x, 64), images, weights)
    backend = torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = both_ways(lambda x: resize(x, 64), images, weights)
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_a_matrix_made_in_inference_mode_serves_training():
    axis_matrix.cache_clear()
    with torch.inference_mode():
        resize(torch.rand(1, 3, 9, 9), 12)
    images = torch.rand(1, 3, 9, 9, requires_grad=True)
    resize(images, 12).sum().backward()
    assert images.grad.sum() == pytest.approx(3 * 12 * 12, rel=1e-5)  # every row of the matrix sums to one
    assert axis_matrix.cache_info().misses == 1


def test_gradients_of_gradients_exist():
    images = torch.rand(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(resize(images, 6).square().sum(), images, create_graph=True)
    gradient.sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_numbers_have_the_shape_and_leave_no_trace(kind):
    axis_matrix.cache_clear()
    if kind == "meta":
        images = torch.zeros(2, 3, 20, 24, device="meta", requires_grad=True)
        result = resize(images, 28)
        result.sum().backward()
    else:
        with FakeTensorMode():
            images = torch.zeros(2, 3, 20, 24, requires_grad=True)
            result = resize(images, 28)
            result.sum().backward()
    assert (result.shape, result.dtype) == ((2, 3, 28, 28), torch.float32)
    assert images.grad.shape == images.shape
    assert axis_matrix.cache_info().currsize == 0


@pytest.mark.parametrize("mode", RESIZES)
def test_it_compiles_as_one_graph_for_changing_batch_sizes(mode):
    compiled = torch.compile(lambda x: resize(x, 12, mode), backend="aot_eager", fullgraph=True)
    for count in (2, 3, 5):
        images, weights = torch.rand(count, 3, 8, 8), torch.randn(count, 3, 12, 12)
        got = both_ways(compiled, images, weights)
        want = both_ways(lambda x: resize(x, 12, mode), images, weights)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_torch_itself_agrees_that_the_operator_is_sound():
    from driftkit.encoders.resizing import _resample

    for transposed in (False, True):
        side = (9, 9) if transposed else (5, 7)
        torch.library.opcheck(_resample, (torch.rand(2, 3, *side, requires_grad=True), 5, 7, 9, "bicubic", transposed))


@pytest.mark.gpu
def test_on_cuda_the_gradient_is_the_same_each_time_and_tf32_changes_nothing():
    images, weights = torch.rand(64, 3, 32, 32, device="cuda"), torch.randn(64, 3, 224, 224, device="cuda")
    with ieee_float32(images.device):
        first = both_ways(lambda x: resize(x, 224), images, weights)
    want = both_ways(
        lambda x: F.interpolate(x, size=(224, 224), mode="bicubic"), images.cpu().double(), weights.cpu().double()
    )
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            again = [both_ways(lambda x: resize(x, 224), images, weights) for _ in range(5)]
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    for result, gradient in again:
        assert torch.equal(result, first[0])
        assert torch.equal(gradient, first[1])
    assert (first[0].cpu() - want[0]).abs().max() < 1e-6
    assert (first[1].cpu() - want[1]).abs().max() < 1e-6 * want[1].abs().max()
