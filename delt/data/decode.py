"""An image file to uint8 pixels: one rule for every colour mode, one for the size, one clear line for a bad file."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from delt.errors import DataError

# Closed lists: Pillow also knows formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
OPAQUE = frozenset({".jpg", ".jpeg", ".ppm", ".pgm", ".pbm"})  # names of kinds that have no transparency
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6")  # first bytes of FORMATS
MAX_PIXELS = 100_000_000
MODES = {1: "L", 3: "RGB"}  # Pillow's mode by the number of channels
SMALL = 64  # below this many pixels per side the whole image is kept, without a margin to crop off

# Every mode that these formats are opened with, and what becomes of it before it is made grey or RGB. A mode that is not here
# is refused. Of several frames or pages the first counts; colour profiles are passed over, as everywhere in this field.
VERDICTS = {
    "1": "black is 0, white 255",
    "L": "as it is",
    "RGB": "as it is; of 16 bits the upper 8, of a PPM scaled and rounded",
    "P": "the colours of its palette",
    "LA": "laid over white",
    "PA": "laid over white",
    "RGBA": "laid over white",
    "CMYK": "RGB is (255 - C) * (255 - K) / 255, and so on",
    "YCbCr": "RGB by JPEG's matrix",
    "LAB": "RGB under the D50 white of a print",
    "I;16": "16 bits, divided by 257 and rounded",
    "I;16B": "16 bits, divided by 257 and rounded",
    "I": "of a PGM 16 bits, divided by 257 and rounded; of a TIFF refused, since 32 bits have no known range",
    "F": "refused, since its numbers have no known range",
}
SCALED = {"L;2": 85, "L;4": 17}  # how Pillow calls them, and by what it multiplies them
TURNS = {  # EXIF orientation -> what sets the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112


class BadImage(DataError):
    """A file that is no usable image; `cause` says why in a few words."""

    def __init__(self, path: str | os.PathLike[str], cause: str) -> None:
        super().__init__(f"cannot read the image {path}: {cause}; replace or remove the file")
        self.cause = cause


def decode(path: str | os.PathLike[str], channels: int, size: int) -> Tensor:
    """Return the image of a file as a uint8 [channels, size, size] tensor.

    An image of exactly this size keeps its pixels. Any other is scaled so that its shorter side is size // 7 * 8
    (bilinear, antialiased; `size` itself for images under 64 pixels), and the centre is cut out.

    Raises:
        BadImage (a DataError): the file is damaged, not an image, of a mode that `VERDICTS` refuses, or over 100 megapixels.
    """
    pixels = np.array(square(read(path, channels), size))
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1).contiguous()


def read(path: str | os.PathLike[str], channels: int) -> Image.Image:
    """Return the whole image upright, 8 bits per channel, as grey (channels 1) or RGB (3); see `decode` for errors."""
    with _opened(path) as image:
        image.load()
        return plain(_upright(image), MODES[channels])


def see_through(path: str | os.PathLike[str]) -> bool:
    """Whether an image has transparency, which is laid over white; only the file's header is read. See `decode` for errors."""
    with _opened(path) as image:
        return image.has_transparency_data


def facts_of(path: str | os.PathLike[str]) -> os.stat_result:
    """Size and times of an image file.

    Raises:
        BadImage: it is not there, or not a regular file: a pipe would be waited for without end.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise BadImage(path, _cause(path, error)) from error
    if stat.S_ISDIR(facts.st_mode):
        raise BadImage(path, "it is a directory")
    if not stat.S_ISREG(facts.st_mode):
        raise BadImage(path, "it is a pipe or device, and no regular file")
    return facts


def content_of(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; see `facts_of` for errors."""
    facts_of(path)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(path, _cause(path, error)) from error


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The checked header of an image; whatever goes wrong here or in the block becomes a BadImage."""
    facts_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of sizes that are checked here
            with Image.open(path, formats=FORMATS) as image:
                _check(image)
                _scale_clear(image)
                yield image
    except Exception as error:  # a damaged file makes decoders raise nearly anything
        raise BadImage(path, _cause(path, error)) from error


def plain(image: Image.Image, mode: str) -> Image.Image:
    """Convert any accepted colour mode to `mode` ("L" or "RGB"), as `VERDICTS` says."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)


def _scale_clear(image: ImageFile.ImageFile) -> None:
    """Pillow scales the pixels of a PNG with 2 or 4 bits of grey to 8, but not the value that it calls transparent."""
    if image.mode == "L" and isinstance(clear := image.info.get("transparency"), int) and image.tile:
        image.info["transparency"] = clear * SCALED.get(str(image.tile[0].args), 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits of grey to 8; the one value that a PNG may call transparent is compared before, since many values become one."""
    values = np.asarray(image)
    grey = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if (clear := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", [grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))])


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata, which take nothing from the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


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
    if image.mode not in VERDICTS:
        raise ValueError(f"its mode is {image.mode}, allowed are {', '.join(mode for mode in VERDICTS if mode != 'F')}")


def _cause(path: str | os.PathLike[str], error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has over {MAX_PIXELS // 1_000_000} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return _unknown(path)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]


def _unknown(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    if not start:
        return "the file is empty"
    return "its header is damaged" if start.startswith(STARTS) else f"it is none of {', '.join(FORMATS)}"
