"""Triton kernels for what synthesis does most on a GPU, each in one pass over memory.

- A frozen BatchNorm layer with the addition and the ReLU that follow it: `normed` where its input's statistics are matched
  and, for the way back, `pulled`; `applied` where a network is only asked. `delt.models.statistics` says what they compute,
  in plain torch.
- Max-pooling, and 2 x 2 pixels as channels (`pooled`, `unshuffled`), which torch's own operators are slow at for
  channels-last images. `delt.models.fused` says what they compute.
- Crops, as the network takes them, and their gradient: `warped`; in plain torch `delt.data.augment.warp` and a cast.
- Adam's step on the images, clamped to valid pixels: `adam`; in plain torch in `delt.engine.step`.

Written for images of 16 or 32 bits, channels-last but for those that are optimised; imported where a GPU is. Sums are
taken in a fixed order: equal inputs, equal bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32  # pixels that a program reads at once
PARTS = 256  # most partial sums per group and channel
TURNS = 8  # that a program takes before it pays to have one more
BLOCK = 1024  # pixels of an image that a program steps
NUMBERS = 256  # of a crop that a program makes
NOTHING, OWN, OUTPUT = 0, 1, 2  # where the way back finds what the ReLU cut: no ReLU, the layer's own output, the sum's


@triton.jit
def _normed(  # type: ignore[no-untyped-def]
    x, other, scale, shift, centre, out, sums, pixels, rows, channels, groups, parts, rounds,
    ADD: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    part, group = tl.program_id(0), tl.program_id(1)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    middle = tl.load(centre + c, mask=inside, other=0.0)
    factor, summand = tl.load(scale + c, mask=inside, other=0.0), tl.load(shift + c, mask=inside, other=0.0)
    first = tl.zeros((ROWS, WIDTH), tl.float32)
    second = tl.zeros((ROWS, WIDTH), tl.float32)
    for turn in range(rounds):
        row = (part * rounds + turn) * ROWS + tl.arange(0, ROWS)
        place = ((row // pixels) * groups + group).to(tl.int64) * pixels + row % pixels
        here = (row < rows)[:, None] & inside[None, :]
        where = place[:, None] * channels + c[None, :]
        value = tl.load(x + where, mask=here, other=0.0).to(tl.float32)
        result = value * factor[None, :] + summand[None, :]
        if ADD:
            result += tl.load(other + where, mask=here, other=0.0).to(tl.float32)
        if RELU:
            result = tl.where(result <= 0, 0.0, result)  # what is not a number stays so, and is seen
        tl.store(out + where, result.to(out.dtype.element_ty), mask=here)
        value = tl.where(here, value - middle[None, :], 0.0)
        first += value
        second += value * value
    line = (group * parts + part) * channels + c
    tl.store(sums + line, tl.sum(first, 0), mask=inside)
    tl.store(sums + groups * parts * channels + line, tl.sum(second, 0), mask=inside)


@triton.jit
def _applied(  # type: ignore[no-untyped-def]
    x, other, scale, shift, out, total, channels, ADD: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    here = (row < total)[:, None] & inside[None, :]
    place = row[:, None].to(tl.int64) * channels + c[None, :]
    factor, summand = tl.load(scale + c, mask=inside, other=0.0), tl.load(shift + c, mask=inside, other=0.0)
    result = tl.load(x + place, mask=here, other=0.0).to(tl.float32) * factor[None, :] + summand[None, :]
    if ADD:
        result += tl.load(other + place, mask=here, other=0.0).to(tl.float32)
    if RELU:
        result = tl.where(result <= 0, 0.0, result)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=here)


@triton.jit
def _finished(sums, centre, table, out, total, PARTS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    group, groups = tl.program_id(0), tl.num_programs(0)
    line = table + tl.program_id(1) * 6
    start, first, channels, column = tl.load(line), tl.load(line + 1), tl.load(line + 2), tl.load(line + 3)
    parts, rows = tl.load(line + 4), tl.load(line + 5).to(tl.float32)
    c = first + tl.arange(0, WIDTH)
    part = tl.arange(0, PARTS)
    inside = c < channels
    here = (part < parts)[:, None] & inside[None, :]
    where = start + (group * parts + part)[:, None] * channels + c[None, :]
    mean = tl.sum(tl.load(sums + where, mask=here, other=0.0), 0) / rows
    square = tl.sum(tl.load(sums + groups * parts * channels + where, mask=here, other=0.0), 0) / rows
    place = group * 2 * total + column + c
    tl.store(out + place, tl.load(centre + column + c, mask=inside, other=0.0) + mean, mask=inside)
    tl.store(out + total + place, tl.maximum(square - mean * mean, 0.0), mask=inside)


@triton.jit
def _pulled(  # type: ignore[no-untyped-def]
    gradient, more, x, output, scale, shift, offset, slope, out, passed, pixels, total, channels, groups, offset_row, slope_row,
    MORE: tl.constexpr, CUT: tl.constexpr, PASS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    here = (row < total)[:, None] & inside[None, :]
    place = row[:, None].to(tl.int64) * channels + c[None, :]
    value = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
    pull = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
    if MORE:
        pull += tl.load(more + place, mask=here, other=0.0).to(tl.float32)
    factor = tl.load(scale + c, mask=inside, other=0.0)
    if CUT == 1:
        summand = tl.load(shift + c, mask=inside, other=0.0)
        pull = tl.where(value * factor[None, :] + summand[None, :] <= 0, 0.0, pull)
    if CUT == 2:
        pull = tl.where(tl.load(output + place, mask=here, other=0.0) <= 0, 0.0, pull)
    if PASS:
        tl.store(passed + place, pull.to(passed.dtype.element_ty), mask=here)
    if EVEN:  # all rows of a program are of one image: its line is read once
        group = ((tl.program_id(0) * ROWS) // pixels) % groups
        start = tl.load(offset + group * offset_row + c, mask=inside, other=0.0)
        bend = start[None, :] + tl.load(slope + group * slope_row + c, mask=inside, other=0.0)[None, :] * value
    else:
        group = ((row // pixels) % groups)[:, None]
        bend = tl.load(offset + group * offset_row + c[None, :], mask=here, other=0.0)
        bend += tl.load(slope + group * slope_row + c[None, :], mask=here, other=0.0) * value
    tl.store(out + place, (pull * factor[None, :] + bend).to(out.dtype.element_ty), mask=here)


@triton.jit
def _pooled(  # type: ignore[no-untyped-def]
    x, out, chosen, height, width, high, wide, total, channels,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # pixel of the output
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    image, top, left = row // (high * wide), (row // wide) % high * STRIDE - PAD, row % wide * STRIDE - PAD
    inside = (row < total)[:, None] & (c < channels)[None, :]
    best = tl.full((ROWS, WIDTH), float("-inf"), tl.float32)
    which = tl.zeros((ROWS, WIDTH), tl.int32)
    for dy in tl.static_range(KERNEL):
        for dx in tl.static_range(KERNEL):
            y, z = top + dy, left + dx
            here = inside & ((y >= 0) & (y < height) & (z >= 0) & (z < width))[:, None]
            place = (image.to(tl.int64) * height + y) * width + z
            value = tl.load(x + place[:, None] * channels + c[None, :], mask=here, other=float("-inf")).to(tl.float32)
            better = (value > best) | (value != value)  # what is not a number goes on
            best = tl.where(better, value, best)
            which = tl.where(better, dy * KERNEL + dx, which)
    place = row[:, None].to(tl.int64) * channels + c[None, :]
    tl.store(out + place, best.to(out.dtype.element_ty), mask=inside)
    tl.store(chosen + place, which.to(tl.uint8), mask=inside)


@triton.jit
def _unpooled(  # type: ignore[no-untyped-def]
    gradient, more, chosen, out, height, width, high, wide, total, channels,
    MORE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, REACH: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # pixel of the input
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    image, y, z = row // (height * width), (row // width) % height + PAD, row % width + PAD
    inside = (row < total)[:, None] & (c < channels)[None, :]
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for back in tl.static_range(REACH):
        for side in tl.static_range(REACH):  # every window that this pixel is in
            i, j = y // STRIDE - back, z // STRIDE - side
            dy, dx = y - i * STRIDE, z - j * STRIDE
            here = inside & ((i >= 0) & (i < high) & (j >= 0) & (j < wide) & (dy < KERNEL) & (dx < KERNEL))[:, None]
            place = ((image.to(tl.int64) * high + i) * wide + j)[:, None] * channels + c[None, :]
            its = tl.load(chosen + place, mask=here, other=255).to(tl.int32) == (dy * KERNEL + dx)[:, None]
            pull = tl.load(gradient + place, mask=here & its, other=0.0).to(tl.float32)
            if MORE:
                pull += tl.load(more + place, mask=here & its, other=0.0).to(tl.float32)
            found += pull
    tl.store(out + row[:, None].to(tl.int64) * channels + c[None, :], found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _unshuffled(x, out, height, width, high, wide, total, channels, PAD: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # pixel of the output
    k = tl.arange(0, WIDTH)[None, :]
    image, i, j = (row // (high * wide))[:, None].to(tl.int64), ((row // wide) % high)[:, None], (row % wide)[:, None]
    y, z = 2 * i + k % 4 // 2 - PAD, 2 * j + k % 2 - PAD
    within = (k < 4 * channels) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
    here = (row < total)[:, None]
    value = tl.load(x + ((image * height + y) * width + z) * channels + k // 4, mask=here & within, other=0.0)
    tl.store(out + row[:, None].to(tl.int64) * WIDTH + k, value, mask=here)


@triton.jit
def _shuffled(gradient, out, height, width, high, wide, total, channels, PAD: tl.constexpr, DEEP: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # pixel of the input
    c = tl.arange(0, DEEP // 4)[None, :]
    y, z = (row // width) % height + PAD, row % width + PAD
    source = (((row // (height * width)).to(tl.int64) * high + y // 2) * wide + z // 2) * DEEP + y % 2 * 2 + z % 2
    here = (row < total)[:, None] & (c < channels)
    value = tl.load(gradient + source[:, None] + c * 4, mask=here, other=0.0)
    tl.store(out + row[:, None].to(tl.int64) * channels + c, value, mask=here)


@triton.jit
def _warped(  # type: ignore[no-untyped-def]
    x, rows, cols, taps, place, out, groups, clock, group_step, tap_clock, tap_group,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, CLOCKS: tl.constexpr, BACK: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    group = image % groups
    clock_of = tl.load(place + image // groups) if CLOCKS else 0
    axis = (clock_of * clock + group * group_step).to(tl.int64)
    lines = taps + clock_of * tap_clock + group * tap_group + (2 * SIZE if BACK else 0)
    at = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)  # as they lie in what comes out
    pixels: tl.constexpr = SIZE * SIZE
    here = at < pixels * CHANNELS
    pixel, channel = (at % pixels, at // pixels) if BACK else (at // CHANNELS, at % CHANNELS)
    i, j = pixel // SIZE, pixel % SIZE
    first, many = tl.load(lines + i, mask=here, other=0).to(tl.int32), tl.load(lines + SIZE + i, mask=here, other=0).to(tl.int32)
    left = tl.load(lines + 4 * SIZE + j, mask=here, other=0).to(tl.int32)
    wide = tl.load(lines + 5 * SIZE + j, mask=here, other=0).to(tl.int32)
    source = x + image.to(tl.int64) * pixels * CHANNELS
    found = tl.zeros((NUMBERS,), tl.float32)
    for down in range(tl.max(many)):
        y = first + down
        y = tl.where(y >= SIZE, y - SIZE, y)
        inside = down < many
        share = tl.load(rows + axis + (y * SIZE + i if BACK else i * SIZE + y), mask=inside, other=0.0)
        for right in range(tl.max(wide)):
            z = left + right
            z = tl.where(z >= SIZE, z - SIZE, z)
            both = inside & (right < wide)
            weight = share * tl.load(cols + axis + (z * SIZE + j if BACK else j * SIZE + z), mask=both, other=0.0)
            its = (y * SIZE + z) * CHANNELS + channel if BACK else channel * pixels + y * SIZE + z
            found += weight * tl.load(source + its, mask=both, other=0.0).to(tl.float32)
    tl.store(out + image.to(tl.int64) * pixels * CHANNELS + at, found.to(out.dtype.element_ty), mask=here)


@triton.jit
def _adam(  # type: ignore[no-untyped-def]
    images, first, second, gradient, rate, widen, low, high, well, keep1, keep2, eps, pixels, channels,
    OWN_RATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(0)  # of an image and a channel
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = at < pixels * tl.load(well).to(tl.int32)
    place = plane.to(tl.int64) * pixels + at
    row = plane // channels if OWN_RATE else 0
    pull = tl.load(gradient + place, mask=here, other=0.0)
    mean, square = tl.load(first + place, mask=here, other=0.0), tl.load(second + place, mask=here, other=0.0)
    mean += (pull - mean) * (1 - keep1)
    square = square * keep2 + pull * pull * (1 - keep2)
    step = tl.div_rn(mean, tl.sqrt_rn(square) * tl.load(widen + row) + eps) * tl.load(rate + row)
    least, most = tl.load(low + plane % channels), tl.load(high + plane % channels)
    moved = tl.load(images + place, mask=here, other=0.0) - step
    moved = tl.where(moved < least, least, tl.where(moved > most, most, moved))
    tl.store(first + place, mean, mask=here)
    tl.store(second + place, square, mask=here)
    tl.store(images + place, moved, mask=here)


def _launch(kernel: Any, grid: tuple[int, ...], *given: Any, **sizes: Any) -> None:
    """Run a kernel; a product and the sum it goes into are rounded once, whatever this Triton does by itself."""
    kernel[grid](*given, enable_fp_fusion=True, **sizes)


def _width(channels: int) -> int:
    """Channels that a program takes: a power of two up to 64."""
    return min(64, max(16, 1 << (channels - 1).bit_length()))


@dataclass(frozen=True)
class Sums:
    """What `normed` added up of a layer's input, for `Finish`: of each value less its channel's centre, and of the squares of that."""

    parts: Tensor  # float32 [2, groups, parts, channels]
    centre: Tensor  # float32 [channels]
    rows: int  # values that were added up per group and channel


class Finish:
    """Makes means and variances of several layers' `Sums`, all in one kernel; for sums of these shapes alone."""

    BLOCK = 16  # channels that a program takes

    def __init__(self, sums: Sequence[Sums]) -> None:
        start, column, table = 0, 0, []
        for one in sums:
            parts, channels = one.parts.shape[2:]
            table += [[start, first, channels, column, parts, one.rows] for first in range(0, channels, self.BLOCK)]
            start, column = start + one.parts.numel(), column + channels
        self.total = column
        self.parts = 1 << max(4, (max(one.parts.shape[2] for one in sums) - 1).bit_length())
        self.table = torch.tensor(table, device=sums[0].parts.device)
        self.centre = torch.cat([one.centre for one in sums])

    @staticmethod
    def of(sums: Sequence[Sums]) -> tuple[tuple[torch.Size, int], ...]:
        """What must be alike."""
        return tuple((one.parts.shape, one.rows) for one in sums)

    def __call__(self, sums: Sequence[Sums]) -> Tensor:
        """All means, then all biased variances, end to end: float32 [groups, 2S]."""
        given = torch.cat([one.parts.view(-1) for one in sums])
        groups = sums[0].parts.shape[1]
        out = torch.empty(groups, 2 * self.total, dtype=torch.float32, device=given.device)
        _launch(_finished, (groups, len(self.table)), given, self.centre, self.table, out, self.total, PARTS=self.parts, WIDTH=self.BLOCK)
        return out


def normed(
    x: Tensor, scale: Tensor, shift: Tensor, centre: Tensor, groups: int, other: Tensor | None = None, relu: bool = False
) -> tuple[Tensor, Sums]:
    """x * scale + shift (+ other, cut at zero) like x [N,C,H,W], and what its means and variances per group and channel are made of.

    Args:
        centre: float32 [C], near the mean, which keeps the sum of squares exact.
        groups: image i of group g at i * groups + g.
    """
    count, channels, height, width = x.shape
    pixels, rows = height * width, count // groups * height * width
    wide = _width(channels)
    across = -(-channels // wide)
    rounds = -(-rows // (ROWS * min(PARTS, max(1, rows // (ROWS * TURNS)))))
    parts = -(-rows // (ROWS * rounds))
    sums = torch.empty(2, groups, parts, channels, dtype=torch.float32, device=x.device)
    out, other = torch.empty_like(x), None if other is None else other.contiguous(memory_format=torch.channels_last)
    _launch(
        _normed, (parts, groups, across),
        x, x if other is None else other, scale, shift, centre, out, sums, pixels, rows, channels, groups, parts, rounds,
        ADD=other is not None, RELU=relu, ROWS=ROWS, WIDTH=wide,
    )  # fmt: skip
    return out, Sums(sums, centre, rows)


def applied(x: Tensor, scale: Tensor, shift: Tensor, other: Tensor | None = None, relu: bool = False) -> Tensor:
    """`normed` where nobody asks for the statistics."""
    channels = x.shape[1]
    total, wide = x.numel() // channels, _width(channels)
    out, other = torch.empty_like(x), None if other is None else other.contiguous(memory_format=torch.channels_last)
    _launch(
        _applied, (-(-total // ROWS), -(-channels // wide)),
        x, x if other is None else other, scale, shift, out, total, channels, ADD=other is not None, RELU=relu, ROWS=ROWS, WIDTH=wide,
    )  # fmt: skip
    return out


def pulled(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    offset: Tensor,
    slope: Tensor,
    *,
    more: Tensor | None = None,
    relu: bool = False,
    added: bool = False,
    output: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x [N,C,H,W] and of what was added: gradient * scale + offset + slope * x, and the gradient as the ReLU lets it through.

    Args:
        more: a second gradient, where two others took the layer's output.
        scale, shift: [C].
        offset, slope: [G,C], of interleaved groups; each row without gaps.
        relu: whether a ReLU followed.
        added: whether something was added, before the ReLU.
        output: the ReLU's output, where something was added before it; otherwise x says what it cut.
    """
    groups, channels = offset.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    more = None if more is None else more.contiguous(memory_format=torch.channels_last)
    passes = added and (relu or more is not None)
    out, passed = torch.empty_like(x), torch.empty_like(gradient) if passes else gradient
    total, wide, pixels = x.numel() // channels, _width(channels), x.shape[2] * x.shape[3]
    cut = NOTHING if not relu else OUTPUT if added else OWN
    assert cut != OUTPUT or output is not None
    _launch(
        _pulled, (-(-total // ROWS), -(-channels // wide)),
        gradient, x if more is None else more, x, x if output is None else output, scale, shift, offset, slope, out, passed,
        pixels, total, channels, groups, offset.stride(0), slope.stride(0),
        MORE=more is not None, CUT=cut, PASS=passes, EVEN=pixels % ROWS == 0, ROWS=ROWS, WIDTH=wide,
    )  # fmt: skip
    return out, passed if added else None


def pooled(x: Tensor, kernel: int, stride: int, pad: int) -> tuple[Tensor, Tensor]:
    """Maxima of windows of x [N,C,H,W], and which number of its window each is, uint8; of equals the first."""
    count, channels, height, width = x.shape
    high, wide = ((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
    out = torch.empty(count, channels, high, wide, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    chosen, total, across = torch.empty_like(out, dtype=torch.uint8), count * high * wide, _width(channels)
    _launch(
        _pooled, (-(-total // ROWS), -(-channels // across)),
        x, out, chosen, height, width, high, wide, total, channels, KERNEL=kernel, STRIDE=stride, PAD=pad, ROWS=ROWS, WIDTH=across,
    )  # fmt: skip
    return out, chosen


def unpooled(
    gradient: Tensor, chosen: Tensor, height: int, width: int, kernel: int, stride: int, pad: int, *, more: Tensor | None = None
) -> Tensor:
    """Gradient of the input [N,C,height,width] of `pooled` from that of its output, and a second one of it where there are two.

    Windows are added up in a fixed order.
    """
    count, channels, high, wide = gradient.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    more = None if more is None else more.contiguous(memory_format=torch.channels_last)
    out = torch.empty(count, channels, height, width, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
    total, across = count * height * width, _width(channels)
    rows = ROWS if more is None else ROWS // 2  # so that all that is read at once fits into registers
    _launch(
        _unpooled, (-(-total // rows), -(-channels // across)),
        gradient, gradient if more is None else more, chosen, out, height, width, high, wide, total, channels,
        MORE=more is not None, KERNEL=kernel, STRIDE=stride, PAD=pad, REACH=-(-kernel // stride), ROWS=rows, WIDTH=across,
    )  # fmt: skip
    return out


def unshuffled(x: Tensor, pad: int, deep: int) -> Tensor:
    """2 x 2 pixels of x [N,C,H,W], with `pad` zeros around (one more at odd sides), as 4C channels; `deep`, a power of two, with zeros."""
    count, channels, height, width = x.shape
    high, wide = ((side + 2 * pad + 1) // 2 for side in (height, width))
    out = torch.empty(count, deep, high, wide, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    total = count * high * wide
    _launch(_unshuffled, (-(-total // (4 * ROWS)),), x, out, height, width, high, wide, total, channels, PAD=pad, ROWS=4 * ROWS, WIDTH=deep)
    return out


def shuffled(gradient: Tensor, channels: int, height: int, width: int, pad: int) -> Tensor:
    """Gradient of the input [N,channels,height,width] of `unshuffled` from that of its output."""
    count, deep, high, wide = gradient.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    out = torch.empty(count, channels, height, width, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
    total = count * height * width
    blocks = (-(-total // (4 * ROWS)),)
    _launch(_shuffled, blocks, gradient, out, height, width, high, wide, total, channels, PAD=pad, DEEP=deep, ROWS=4 * ROWS)
    return out


def warped(x: Tensor, operators: tuple[Tensor, Tensor, Tensor], place: Tensor | None, dtype: torch.dtype, *, back: bool = False) -> Tensor:
    """Axis operators applied to square images [N,C,H,H], which become channels-last in `dtype`; with `back`, the gradient of them.

    Args:
        x: contiguous; with `back` channels-last, and what comes out is contiguous.
        operators: rows and columns, float32 [K,G,H,H] and alike in strides, and `delt.data.augment.taps` of both [K,G,2,4,H];
            image i is of group i % G.
        place: which of the K image i has, at i // G of int64 [N / G]; None where K is 1.
    """
    (count, channels, size, _), (rows, cols, taps) = x.shape, operators
    x = x.contiguous(memory_format=torch.channels_last if back else torch.contiguous_format)
    form = torch.contiguous_format if back else torch.channels_last
    out = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=form)
    _launch(
        _warped, (count, -(-channels * size * size // NUMBERS)),
        x, rows, cols, taps, rows if place is None else place, out,
        rows.shape[1], rows.stride(0), rows.stride(1), taps.stride(0), taps.stride(1),
        SIZE=size, CHANNELS=channels, CLOCKS=place is not None, BACK=back, NUMBERS=NUMBERS,
    )  # fmt: skip
    return out


def adam(
    images: Tensor,
    moments: tuple[Tensor, Tensor],
    gradient: Tensor,
    factors: tuple[Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
    betas: tuple[float, float],
    eps: float,
    well: Tensor,
) -> None:
    """Adam's step on images [N,C,H,W] in place, clamped to `bounds` [1,C,1,1]; nothing changes where `well` is false.

    Args:
        moments: like the images, changed in place.
        factors: step size, and correction of the root of the second moment: [1,1,1,1] or [N,1,1,1] each.
    """
    count, channels, height, width = images.shape
    pixels, own, alive = height * width, max(map(len, factors)), well.view(torch.uint8)
    rate, widen = (part.expand(own, 1, 1, 1).contiguous() for part in factors)
    _launch(
        _adam, (count * channels, -(-pixels // BLOCK)),
        images, *moments, gradient, rate, widen, *bounds, alive, *betas, eps, pixels, channels, OWN_RATE=own > 1, BLOCK=BLOCK,
    )  # fmt: skip
