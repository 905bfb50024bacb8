"""From the bytes of an image file to uint8 RGB, and from one size to another."""

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from driftkit.errors import ArtifactError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
     ".avif", ".jp2", ".j2k"}
)  # fmt: skip
# Named, so that a file cannot reach the decoders that start other programs (EPS does).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
OPTIONAL = {".avif": ("avif", "AVIF"), ".jp2": ("jpg_2000", "JPEG 2000"), ".j2k": ("jpg_2000", "JPEG 2000")}
"""Suffix to Pillow's word for a format that it may have been built without, and the format's name."""
HEADS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
MAX_PIXELS = 64 * 2**20
LARGE_PIXELS = 8 * 2**20
_LARGE = threading.Lock()  # large images are decoded one at a time: each takes up to a gigabyte on the way
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
"""Pillow's errors for files that are no images, are cut off or contradict themselves."""

# Of files that are damaged a little, over which an error or nothing is said here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BrokenImageError(ArtifactError):
    """A file that is no image, or only a part of one; exit code 3.

    Attributes:
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}; replace or remove it")
        self.reason = reason


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
        BrokenImageError: it is no image, cut off or damaged.
        ArtifactError: the image is too large, or holds what cannot be shown.
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
    except Image.DecompressionBombError:
        raise ArtifactError(f"{name}: far too large, expected at most {max_pixels:,} pixels; make it smaller") from None
    except BROKEN as error:
        raise BrokenImageError(name, _what_is_wrong(data, error)) from None


def _what_is_wrong(data: bytes, error: Exception) -> str:
    """In a few words, none of which are Pillow's."""
    if not data:
        return "not an image (empty file)"
    if data[4:11] in (b"ftyphei", b"ftyphev"):
        return "a HEIC image, which is not read"
    if isinstance(error, UnidentifiedImageError) and not (data.startswith(HEADS) or data[4:8] == b"ftyp"):
        return "not an image"
    text = str(error)
    if isinstance(error, EOFError) or any(word in text for word in ("truncated", "Truncated", "EOF", "but only got")):
        return "cut off"
    return "damaged or cut off"


def require_decoders(suffixes: Iterable[str]) -> None:
    """Refuse images of formats that the installed Pillow was built without; of lower-case suffixes."""
    for suffix in sorted(set(suffixes) & set(OPTIONAL)):
        feature, name = OPTIONAL[suffix]
        if not features.check(feature):
            raise ArtifactError(f"{suffix}: this Pillow reads no {name}; install one that does, or convert the images")


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
