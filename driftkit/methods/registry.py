"""The methods by name. A new method is a folder here whose `method.py` registers it, and one import line."""

# ruff: noqa: F401
# isort: off
import driftkit.methods.drifting.method
import driftkit.methods.ddpm.method
import driftkit.methods.flow.method
import driftkit.methods.mae.method
import driftkit.methods.classifier.method

# isort: on
from typing import TYPE_CHECKING

from driftkit.config.layers import did_you_mean
from driftkit.errors import UsageError
from driftkit.methods.base import METHODS, Curve, Method, MethodConfig, SamplerSpec, generators

if TYPE_CHECKING:
    from driftkit.protocols import Sampler

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "Curve",
    "MethodConfig",
    "build_sampler",
    "find_method",
    "find_sampler",
    "generators",
]

DEFAULT_METHOD = next(iter(METHODS))  # that of the first import above


def find_method(name: str) -> Method:
    """The method of that name. Raises UsageError: there is none."""
    if name not in METHODS:
        raise UsageError(f"`objective` {name}: expected {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    return METHODS[name]


def find_sampler(method: str, name: str | None) -> SamplerSpec:
    """A sampler of a method; None takes its default.

    Raises UsageError where the method is unknown, generates nothing, or has no such sampler.
    """
    if method not in METHODS or not METHODS[method].generates:
        raise UsageError(f"a {method} run generates no images; sample a run of {' or '.join(generators())}")
    samplers = METHODS[method].samplers
    if name is not None and name not in samplers:
        raise UsageError(
            f"`sampler` {name}: a {method} run samples with {', '.join(samplers)}{did_you_mean(name, samplers)}"
        )
    return METHODS[method].default_sampler if name is None else samplers[name]


def build_sampler(config: MethodConfig, name: str | None) -> "tuple[SamplerSpec, Sampler]":
    """A sampler for networks trained with `config`; the name and the errors are those of `find_sampler`."""
    spec = find_sampler(config.name, name)
    return spec, spec.make(config)
