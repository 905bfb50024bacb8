"""Forms in which generated images are written: safetensors, a folder of PNGs, an npz or a zip of PNGs.

All hold the same pixels, and equal images give equal bytes. Files in a folder or zip are numbered from 000000.png, all
in one place, as evaluators read them; labels stand in `dataset.json`, as in EDM's data sets.
"""

import io
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from driftkit.errors import UsageError
from driftkit.storage.atomic import atomic_folder, atomic_path, flush
from driftkit.storage.files import write_tensors

LABEL_FILE = "dataset.json"
MIN_DIGITS = 6  # of the numbers of files
WRITERS, WRITTEN_AT_ONCE = 8, 256  # threads, which mostly wait for the disk, and files between two reports
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip can say of a file

Advance = Callable[[int], None]
"""Called with the number of images just written."""
Write = Callable[[Path, torch.Tensor, torch.Tensor | None, Advance], None]
"""(path, uint8 images [N, 3, H, W], int64 labels [N] or None, advance): written whole or not at all."""


@dataclass(frozen=True)
class SampleForm:
    """One form."""

    name: str
    suffix: str  # of its files; empty for a folder
    write: Write

    def next_to(self, path: Path, suffix: str) -> Path:
        """The record or grid of samples in this form."""
        return path.with_suffix(suffix) if self.suffix else path.with_name(path.name + suffix)


def file_names(count: int) -> list[str]:
    """Names of so many images in a folder or zip, which sort by their numbers."""
    digits = max(MIN_DIGITS, len(str(count - 1)))
    return [f"{number:0{digits}d}.png" for number in range(count)]


def holds_samples(folder: Path, count: int, *, labelled: bool) -> bool:
    """Whether a folder holds the files of so many samples, and nothing else, by their names."""
    expected = {*file_names(count), *([LABEL_FILE] if labelled else [])}
    return {path.name for path in folder.iterdir()} == expected


def sample_form(path: Path | None, name: str | None) -> SampleForm:
    """The form by its name, else by the suffix of a path, which a folder has not; safetensors where neither is given.

    Raises UsageError where name and suffix contradict each other, or the suffix is of no form.
    """
    chosen = None if name is None else FORMS[name]
    if path is not None and not path.name:
        raise UsageError(f"`output` {path}: expected a file, or the name of a new folder")
    if path is None or (chosen is not None and not chosen.suffix):
        return chosen or FORMS["safetensors"]
    form = next((form for form in FORMS.values() if form.suffix == path.suffix), None)
    if form is None or (chosen is not None and form != chosen):
        suffixes = ", ".join(form.suffix for form in (FORMS.values() if chosen is None else (chosen,)) if form.suffix)
        folder = ", or none for a folder of PNGs" if chosen is None else f" for `format` {chosen.name}"
        raise UsageError(f"`output` {path}: expected a name that ends in {suffixes}{folder}")
    return form


def _safetensors(path: Path, images: torch.Tensor, labels: torch.Tensor | None, advance: Advance) -> None:
    write_tensors(path, {"images": images, **({} if labels is None else {"labels": labels})})


def _npz(path: Path, images: torch.Tensor, labels: torch.Tensor | None, advance: Advance) -> None:
    """`arr_0` uint8 [N, H, W, 3] and, with labels, `arr_1` int64 [N], as ADM's evaluator reads them."""
    arrays = [images.permute(0, 2, 3, 1).contiguous().numpy(), *([] if labels is None else [labels.numpy()])]
    with atomic_path(path, num_bytes=images.nbytes) as temporary, open(temporary, "wb") as file:
        np.savez(file, *arrays)


def _zip(path: Path, images: torch.Tensor, labels: torch.Tensor | None, advance: Advance) -> None:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(file_names(len(images))):
            archive.writestr(zipfile.ZipInfo(name, EARLIEST), _png(images[number]))
            advance(1)
        if labels is not None:
            archive.writestr(zipfile.ZipInfo(LABEL_FILE, EARLIEST), _label_text(labels))


def _folder(path: Path, images: torch.Tensor, labels: torch.Tensor | None, advance: Advance) -> None:
    names = file_names(len(images))
    with atomic_folder(path) as temporary, ThreadPoolExecutor(WRITERS) as pool:

        def write(number: int) -> None:
            (temporary / names[number]).write_bytes(_png(images[number]))
            flush(temporary / names[number])  # one after the other, they would take longer than the images

        for first in range(0, len(images), WRITTEN_AT_ONCE):
            numbers = range(len(images))[first : first + WRITTEN_AT_ONCE]
            list(pool.map(write, numbers))
            advance(len(numbers))
        if labels is not None:
            (temporary / LABEL_FILE).write_text(_label_text(labels), encoding="utf-8")


def _png(image: torch.Tensor) -> bytes:
    """A uint8 image [3, H, W] as PNG."""
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(content, format="PNG")
    return content.getvalue()


def _label_text(labels: torch.Tensor) -> str:
    return json.dumps({"labels": [list(pair) for pair in zip(file_names(len(labels)), labels.tolist(), strict=True)]})


FORMS = {
    form.name: form
    for form in (
        SampleForm("safetensors", ".safetensors", _safetensors),
        SampleForm("png", "", _folder),
        SampleForm("npz", ".npz", _npz),
        SampleForm("zip", ".zip", _zip),
    )
}
