"""An image file to uint8 pixels: one rule for every colour mode, one for the size, one clear line for a bad file."""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from delt.errors import DataError

# Closed lists: Pillow also knows formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
MAX_PIXELS = 100_000_000
SMALL = 64  # below this many pixels per side the whole image is kept, without a margin to crop off


def decode(path: str | os.PathLike[str], channels: int, size: int) -> Tensor:
    """Return the image of a file as a uint8 [channels, size, size] tensor.

    An image of exactly this size keeps its pixels. Any other is scaled so that its shorter side is size // 7 * 8
    (bilinear, antialiased; `size` itself for images under 64 pixels), and the centre is cut out.

    Raises:
        DataError: the file is damaged, not an image, of a mode without a known range, or over 100 megapixels.
    """
    pixels = np.array(square(read(path, channels), size))
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1).contiguous()


def read(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """Return the whole image upright, 8 bits per channel, as grey (channels 1) or RGB (3); see `decode` for errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes that are checked here
            with Image.open(path, formats=FORMATS) as image:
                _check(image)
                image.load()
                return plain(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise DataError(f"cannot read the image {path}: {_cause(path, error)}; replace or remove the file") from error


def plain(image: Image.Image, mode: str) -> Image.Image:
    """Convert any accepted colour mode to `mode` ("L" or "RGB"): 16 bits scaled to 8, alpha laid over white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side and cut out the centre, as torchvision's Resize and CenterCrop do."""
    if image.size == (size, size):
        return image
    image = _without_ends(image)
    short = size if size < SMALL else size // 7 * 8
    width, height = (int(short * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _without_ends(image: Image.Image, ratio: int = 8) -> Image.Image:
    """Cut the ends off a long strip: they are cropped anyway, and scaled up they could fill the memory."""
    width, height = (min(side, ratio * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _check(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("pixels of 32 bits have no known range, allowed are 1, 8 and 16 bits")


def _cause(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has over {MAX_PIXELS // 1_000_000} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if os.path.getsize(path) == 0 else f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
