"""Triton kernels for a frozen BatchNorm layer whose input's statistics are matched: one pass forward, one pass back.

Written for channels-last images on a GPU, where torch's own operators need seven passes over memory for the same.
`delt.models.statistics` says what they compute, in plain torch, and imports this file where a GPU is; here is how.
Sums are taken in a fixed order: equal inputs, equal bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # pixels that a program reads at once
PARTS = 64  # most partial sums per group and channel


@triton.jit
def _sums(x, centre, out, pixels, rows, channels, groups, rounds, ROWS: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    part, group = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    middle = tl.load(centre + c, mask=inside, other=0.0)
    first = tl.zeros((ROWS, WIDTH), tl.float32)
    second = tl.zeros((ROWS, WIDTH), tl.float32)
    for turn in range(rounds):
        row = (part * rounds + turn) * ROWS + tl.arange(0, ROWS)
        place = ((row // pixels) * groups + group).to(tl.int64) * pixels + row % pixels
        here = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + place[:, None] * channels + c[None, :], mask=here, other=0.0).to(tl.float32)
        value = tl.where(here, value - middle[None, :], 0.0)
        first += value
        second += value * value
    where = (group * PARTS + part) * channels + c
    tl.store(out + where, tl.sum(first, 0), mask=inside)
    tl.store(out + groups * PARTS * channels + where, tl.sum(second, 0), mask=inside)


@triton.jit
def _finish(given, centre, mean, var, count, channels, groups, parts, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(0)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    part = tl.arange(0, PARTS)
    inside = c < channels
    here = (part < parts)[:, None] & inside[None, :]
    where = (group * PARTS + part)[:, None] * channels + c[None, :]
    first = tl.sum(tl.load(given + where, mask=here, other=0.0), 0) / count
    second = tl.sum(tl.load(given + groups * PARTS * channels + where, mask=here, other=0.0), 0) / count
    tl.store(mean + group * channels + c, tl.load(centre + c, mask=inside, other=0.0) + first, mask=inside)
    tl.store(var + group * channels + c, tl.maximum(second - first * first, 0.0), mask=inside)


@triton.jit
def _pull(gradient, x, scale, offset, slope, out, pixels, total, channels, groups, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    here = (row < total)[:, None] & inside[None, :]
    place = row[:, None].to(tl.int64) * channels + c[None, :]
    line = ((row // pixels) % groups)[:, None] * channels + c[None, :]
    pulled = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32) * tl.load(scale + c, mask=inside, other=0.0)[None, :]
    value = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    pulled += tl.load(offset + line, mask=here, other=0.0) + tl.load(slope + line, mask=here, other=0.0) * value
    tl.store(out + place, pulled.to(out.dtype.element_ty), mask=here)


def _width(channels: int) -> int:
    """Channels that a program takes: a power of two up to 64."""
    return min(64, max(16, 1 << (channels - 1).bit_length()))


def moments(x: Tensor, centre: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per group and channel [G,C] of x [N,C,H,W], in 32 bits.

    Args:
        centre: float32 [C], near the mean, which keeps the sum of squares exact.
        groups: image i of group g at i * groups + g.
    """
    count, channels, height, width = x.shape
    pixels, rows = height * width, count // groups * height * width
    wide, rounds = _width(channels), -(-rows // (ROWS * PARTS))
    parts = -(-rows // (ROWS * rounds))
    partial = torch.empty(2, groups, PARTS, channels, dtype=torch.float32, device=x.device)
    mean, var = (torch.empty(groups, channels, dtype=torch.float32, device=x.device) for _ in range(2))
    grid = (parts, groups, -(-channels // wide))
    _sums[grid](x, centre, partial, pixels, rows, channels, groups, rounds, ROWS=ROWS, PARTS=PARTS, WIDTH=wide)
    _finish[(groups, -(-channels // 16))](partial, centre, mean, var, float(rows), channels, groups, parts, PARTS=PARTS, WIDTH=16)
    return mean, var


def pulled(gradient: Tensor, x: Tensor, scale: Tensor, offset: Tensor, slope: Tensor) -> Tensor:
    """gradient * scale + offset + slope * x, for tensors [N,C,H,W], scale [C], and offset and slope [G,C] of interleaved groups."""
    groups, channels = offset.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    total, wide = x.numel() // channels, _width(channels)
    grid = (-(-total // ROWS), -(-channels // wide))
    offset, slope = offset.contiguous(), slope.contiguous()
    _pull[grid](gradient, x, scale, offset, slope, out, x.shape[2] * x.shape[3], total, channels, groups, ROWS=ROWS, WIDTH=wide)
    return out
