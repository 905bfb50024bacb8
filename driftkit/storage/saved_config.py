"""What others need to know of the config in a run's manifest before it is validated as a whole."""

from typing import Any, TypeVar

from driftkit.errors import ArtifactError
from driftkit.storage.run_folder import Run

T = TypeVar("T")


def objective_of(run: Run) -> str:
    """The name of the objective a run was trained with.

    Raises:
        ArtifactError: its manifest does not tell.
    """
    return _value(run, "objective", "name", str)


def image_size_of(run: Run) -> int:
    """The side in pixels of the images a run was trained on, at least 1.

    Raises:
        ArtifactError: its manifest does not tell.
    """
    size = _value(run, "data", "image_size", int)
    if size < 1:
        raise ArtifactError(f"{run.manifest_path}: config key data.image_size is {size}, expected at least 1")
    return size


def model_of(run: Run) -> dict[str, Any]:
    """The section of the config that describes the network, not validated yet.

    Raises:
        ArtifactError: its manifest has none.
    """
    return _section(run, "model")


def _section(run: Run, name: str) -> dict[str, Any]:
    config = run.manifest().get("config")
    section = config.get(name) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise ArtifactError(
            f"{run.manifest_path}: its config has no section {name}; the manifest was edited or damaged"
        )
    return section


def _value(run: Run, section: str, key: str, kind: type[T]) -> T:
    value = _section(run, section).get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ArtifactError(
            f"{run.manifest_path}: config key {section}.{key} is {value!r:.80}, expected {kind.__name__}; "
            "the manifest was edited or damaged"
        )
    return value
