"""Running out of memory is told from other errors, placed, measured and explained."""

import pytest
import torch

from driftkit.errors import ResourceError
from driftkit.runtime.memory import (
    asked_bytes,
    fitting_batch,
    gib,
    is_out_of_memory,
    largest_fitting,
    phase_of,
    room,
)

CPU = torch.device("cpu")
CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB"
CPU_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes. Error code 12"


@pytest.mark.parametrize(
    ("error", "wanted", "asked"),
    [
        (MemoryError(), True, None),
        (torch.OutOfMemoryError(CUDA_TEXT), True, int(2.5 * 2**30)),
        (RuntimeError(CPU_TEXT), True, 2**20),
        (OSError(12, "Cannot allocate memory"), True, None),
        (RuntimeError("could not create a primitive"), True, None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, None),
        (ValueError(CPU_TEXT), False, 2**20),
    ],
)
def test_errors_that_mean_no_memory_are_known(error, wanted, asked):
    assert is_out_of_memory(error) is wanted
    assert asked_bytes(error) == asked


def test_where_it_happened_is_read_off_the_traceback():
    from driftkit.methods.drifting import aggregated_drift

    x = torch.zeros(1, 2, 3)
    with pytest.raises(Exception) as raised:
        aggregated_drift(x, x, taus=(-1.0,))
    assert phase_of(raised.value) == "the field of drifting"
    weight = torch.ones(2, requires_grad=True)
    weight.register_hook(lambda grad: 1 / 0)
    with pytest.raises(Exception) as raised:
        weight.sum().backward()
    assert phase_of(raised.value) == "the backward pass"


def test_the_room_of_a_machine_is_a_number_of_bytes_within_it():
    import os

    assert 0 < room(CPU) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def needs_less_than(most):
    tried = []

    def attempt(count):
        tried.append(count)
        if count > most:
            raise MemoryError

    return attempt, tried


@pytest.mark.slow
def test_halves_are_tried_until_one_fits():
    attempt, tried = needs_less_than(20)
    assert largest_fitting(attempt, 128, CPU) == 16
    assert tried == [128, 64, 32, 16]
    assert largest_fitting(needs_less_than(0)[0], 128, CPU) == 0


@pytest.mark.parametrize(("most", "says"), [(20, "`batch_size` 8 fits"), (0, "not even one image fits")])
def test_the_explanation_names_what_fits(most, says):
    attempt, _ = needs_less_than(most)
    with pytest.raises(ResourceError, match=says) as raised, fitting_batch("sampling", 64, attempt, device=CPU):
        raise torch.OutOfMemoryError(CUDA_TEXT)
    assert "(2.5 GiB at once)" in str(raised.value)
    assert "sampling takes 64 images at a time" in str(raised.value)


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), fitting_batch("sampling", 64, lambda count: None, device=CPU):
        raise ZeroDivisionError


def test_bytes_in_words():
    assert [gib(10), gib(300 * 2**20), gib(1.5 * 2**30)] == ["1 MiB", "300 MiB", "1.5 GiB"]
