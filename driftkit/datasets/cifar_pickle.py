"""The batches of CIFAR's Python editions, which are pickles. The one place that unpickles anything.

`find_class` permits three names of numpy and gives stand-ins for them that only keep what they are given, so nothing in
a file is executed. The unpickler is Python's own: the one in C fills a memo as large as any index in the file.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

from driftkit.errors import ArtifactError

MAX_BYTES = 256 * 2**20  # the largest batch, all training images of CIFAR-100, has 155 million
RECONSTRUCT = ("numpy.core.multiarray", "_reconstruct")


class PickledArray:
    """Stands for a numpy array: keeps the bytes of its numbers."""

    content = b""

    def __setstate__(self, state: Any) -> None:
        content = state[-1]
        # Strings of Python 2 come as latin-1 text.
        self.content = content.encode("latin-1") if isinstance(content, str) else bytes(content)


class _PickledDtype:
    def __setstate__(self, state: Any) -> None:
        pass


class BatchUnpickler(pickle._Unpickler):
    """Reads dicts, lists, numbers, text and arrays; everything else is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in (RECONSTRUCT, ("numpy._core.multiarray", "_reconstruct")):
            return lambda *_: PickledArray()
        if (module, name) == ("numpy", "dtype"):
            return lambda *_: _PickledDtype()
        if (module, name) == ("numpy", "ndarray"):
            return lambda *_: None  # an argument of `_reconstruct`
        raise pickle.UnpicklingError(f"{module}.{name} is not permitted")


def read_pickled_batch(data: bytes, name: str, label_key: str = "labels") -> tuple[bytes, list[int]]:
    """Pixels and labels of one batch file, a pickle by Python 2 or 3, which errors call `name`.

    Raises:
        ArtifactError: larger than 256 MiB, no pickle of a batch, or one that asks for anything but arrays.
    """
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: {len(data):,} bytes, expected at most {MAX_BYTES:,}; get it again")
    try:
        document = BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # pickle raises whatever the broken bytes lead to
        raise ArtifactError(
            f"{name} is no batch of CIFAR: {type(error).__name__}: {error}; nothing in it was run; get it again"
        ) from None
    items = document.items() if isinstance(document, dict) else ()
    entries = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in items}
    pixels, labels = entries.get("data"), entries.get(label_key)
    content = pixels.content if isinstance(pixels, PickledArray) else pixels
    if not isinstance(content, bytes) or not isinstance(labels, list) or not all(type(n) is int for n in labels):
        raise ArtifactError(f"{name} is no batch of CIFAR: it has no data and {label_key}; get it again")
    return content, labels
