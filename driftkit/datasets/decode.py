"""From the bytes of an image file to uint8 RGB, and from one size to another."""

import contextlib
import io
import struct
import threading
import zlib

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from driftkit.errors import ArtifactError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# Named, so that a file cannot reach the decoders that start other programs (EPS does).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO")
MAX_PIXELS = 64 * 2**20
LARGE_PIXELS = 8 * 2**20
_LARGE = threading.Lock()  # large images are decoded one at a time: each takes up to a gigabyte on the way
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""Pillow's errors for files that are no images, are cut off or contradict themselves."""


def decode_image(
    data: bytes, name: str, image_size: int | None, *, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """One image file as uint8 RGB [3, H, W].

    Grey, palette, CMYK and 16-bit images are converted; transparency is laid over white; an image of a turned
    camera is set upright. Of an animation, the first frame.

    Args:
        name: how errors name it.
        image_size: None, or the side in pixels of the square to which `square` brings the image.
        max_pixels: above which an image is refused.

    Raises:
        ArtifactError: the image is broken, of an unknown format, or too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise ArtifactError(
                    f"{name}: {width}x{height} px, expected at most {max_pixels:,} pixels; make it smaller"
                )
            with _LARGE if width * height > LARGE_PIXELS else contextlib.nullcontext():
                opened.load()
                upright = ImageOps.exif_transpose(opened) if "exif" in opened.info else opened
                image = _to_rgb(upright, name)
                if image_size is not None:
                    image = square(image, image_size)
                return np.asarray(image).transpose(2, 0, 1)
    except ArtifactError:
        raise
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise ArtifactError(f"{name} is no readable image: {error}; replace or remove it") from None


def square(image: Image.Image, side: int) -> Image.Image:
    """Shrink or enlarge the largest centred square to `side` pixels; bicubic, averaging over what it shrinks."""
    short = min(image.size)
    if image.size == (side, side):
        return image
    left, top = (image.width - short) / 2, (image.height - short) / 2
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def resize_images(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 [N, 3, H, W] to uint8 [N, 3, side, side] by `square`."""
    if images.shape[-2:] == (side, side):
        return images
    resized = np.empty((len(images), 3, side, side), dtype=np.uint8)
    for i, image in enumerate(images):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        resized[i] = np.asarray(square(Image.fromarray(pixels), side)).transpose(2, 0, 1)
    return torch.from_numpy(resized)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ArtifactError(f"{name}: holds floating-point numbers, expected 8 or 16 bits a channel; convert it")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 255 rather than scale
        deep = np.clip(np.asarray(image), 0, 65535).astype(np.int32)
        grey = ((2 * deep + 257) // 514).astype(np.uint8)  # to the nearest 257th
        return Image.fromarray(grey).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, straight).convert("RGB")
    return image.convert("RGB")
