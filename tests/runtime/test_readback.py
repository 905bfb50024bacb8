"""The host reads what the device had computed one call earlier."""

import torch

from driftkit.runtime.readback import LaggedReading


def test_a_number_is_read_one_call_later_as_it_was_then():
    reading, value = LaggedReading(), torch.tensor(15.0)
    assert reading.exchange(value) == 0
    value.fill_(2)
    assert reading.exchange(value) == 15
    assert reading.exchange(torch.tensor(0.0)) == 2
    assert reading.exchange(torch.tensor(0.0)) == 0
