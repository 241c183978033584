"""Many small images in one picture, which a browser decodes once and cuts tiles from."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

TILE = 112  # pixels per side of a tile at most: it is drawn about as large
LOSSLESS = 64  # up to this size a tile is kept exactly
LARGEST = 16_000  # pixels per side of a picture that browsers can draw
QUALITY = 90


def sheet(images: Tensor) -> tuple[bytes, tuple[int, int]]:
    """An encoded picture of uint8 images [R,S,C,H,W], R rows and S columns, and a tile's width and height.

    Tiles up to 64 px are exact (PNG); larger ones are reduced to at most 112 px, or to what fits, and compressed (JPEG).
    """
    rows, columns, channels, height, width = images.shape
    most = min(TILE, LARGEST // max(1, rows), LARGEST // max(1, columns))
    scale = min(1.0, most / max(height, width))
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = F.interpolate(images.flatten(0, 1).float(), size, mode="bilinear", antialias=True)
        images = small.round().clamp(0, 255).to(torch.uint8).unflatten(0, (rows, columns))
        height, width = size
    pixels = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).numpy()
    return _encoded(pixels, max(height, width) <= LOSSLESS), (width, height)


def grid(images: Tensor, columns: int = 40) -> tuple[bytes, tuple[int, int], int]:
    """An encoded picture of uint8 images [N,C,H,W], row by row, with a tile's size and the number of columns."""
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    padded = torch.zeros(rows * columns, *images.shape[1:], dtype=torch.uint8)
    padded[: len(images)] = images.cpu()
    picture, tile = sheet(padded.unflatten(0, (rows, columns)))
    return picture, tile, columns


def _encoded(pixels: np.ndarray, exact: bool) -> bytes:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    sink = io.BytesIO()
    if exact:
        image.save(sink, "PNG", compress_level=1)  # quick: it is made several times per second
    else:  # colours in full, as optimised images are full of coloured noise; WebP refuses some large pictures
        image.save(sink, "JPEG", quality=QUALITY, subsampling=0)
    return sink.getvalue()
