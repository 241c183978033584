"""Augmentation against torchvision's crop, its distribution of boxes, and loops over single pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from delt.data import augment, randaugment
from delt.data.augment import (
    RATIOS,
    Mix,
    axis_operator,
    draw_boxes,
    draw_cutmix,
    draw_mixup,
    enlarger,
    mixed,
    pad_crop,
    random_resized_crop,
    shuffle_patches,
    taps,
    warp,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(image: Tensor, box: list[int], flip: bool, shift: list[int], antialias: bool) -> Tensor:
    """torchvision: crop and resize, mirror, roll; [C,S,S]."""
    size = image.shape[-1]
    out = tv.resized_crop(image[None], *box, [size, size], antialias=antialias)[0]
    out = out.flip(-1) if flip else out
    return torch.roll(out, shift, (1, 2))


@pytest.mark.parametrize(
    ("size", "dtype", "close"),
    [(8, torch.float64, 1e-6), (7, torch.float32, 1e-6), (32, torch.float32, 2e-6), (224, torch.float32, 3e-5)],
)
def test_warp_is_torchvisions_crop_mirror_and_roll(size: int, dtype: torch.dtype, close: float) -> None:
    count = 40 if size < 100 else 4
    draws = generator(1)
    images = torch.rand(count, 3, size, size, dtype=dtype, generator=draws)
    boxes = draw_boxes(count, size, 0.01, draws)
    flips = torch.rand(count, generator=draws) < 0.5
    shifts = torch.randint(0, size, (count, 2), generator=draws)
    top, left, height, width = boxes.unbind(1)
    ours = warp(images, axis_operator(top, height, size, shift=shifts[:, 0]), axis_operator(left, width, size, flips, shifts[:, 1]))
    assert ours.dtype == dtype
    for n in range(count):
        for antialias in (False, True):  # one and the same, since a crop is never made smaller
            expected = reference(images[n], boxes[n].tolist(), bool(flips[n]), shifts[n].tolist(), antialias)
            assert (ours[n] - expected).abs().max() < close


def test_operators_of_the_whole_image_are_exact() -> None:
    size, whole, zero = 9, torch.tensor([9]), torch.tensor([0])
    image = torch.randn(1, 2, size, size, generator=generator())
    eye = axis_operator(zero, whole, size)
    assert torch.equal(eye[0], torch.eye(size))
    assert torch.equal(warp(image, eye, axis_operator(zero, whole, size, torch.tensor([True]))), image.flip(-1))
    assert torch.equal(warp(image, axis_operator(zero, whole, size, shift=torch.tensor([4])), eye), image.roll(4, -2))
    assert torch.equal(warp(image, axis_operator(zero, whole, size, shift=torch.tensor([4 + size])), eye), image.roll(4, -2))


def test_every_output_pixel_is_a_blend_of_pixels_inside_the_box() -> None:
    for start, length, size in itertools.product((0, 2, 5), (1, 2, 3), (8,)):
        operator = axis_operator(torch.tensor([start]), torch.tensor([length]), size)[0]
        assert torch.allclose(operator.sum(1), torch.ones(size)) and operator.min() >= 0
        outside = [p for p in range(size) if not start <= p < start + length]
        assert (operator[:, outside] == 0).all()


def test_warp_passes_the_gradient_and_broadcasts_over_leading_axes() -> None:
    images = torch.rand(5, 3, 1, 6, 6, dtype=torch.float64, generator=generator(), requires_grad=True)
    top, left, height, width = draw_boxes(3, 6, 0.1, generator(3)).unbind(1)
    rows, cols = axis_operator(top, height, 6), axis_operator(left, width, 6)
    ours = warp(images, rows, cols)
    for n, g in itertools.product(range(5), range(3)):
        assert torch.equal(ours[n, g], warp(images[n, g], rows[g], cols[g]))
    weight = torch.rand(ours.shape, dtype=torch.float64, generator=generator(4))
    (gradient,) = torch.autograd.grad((ours * weight).sum(), images)
    plain = images.detach().requires_grad_()
    expected = torch.stack([torch.stack([rows[g].double() @ plain[n, g] @ cols[g].double().T for g in range(3)]) for n in range(5)])
    (wanted,) = torch.autograd.grad((expected * weight).sum(), plain)
    assert torch.allclose(gradient, wanted, atol=1e-12)


@pytest.mark.parametrize(("size", "smallest", "ratios"), [(32, 0.08, RATIOS), (8, 0.3, RATIOS), (64, 0.9, RATIOS), (32, 0.08, (1.0, 1.0))])
def test_boxes_are_distributed_as_torchvisions(size: int, smallest: float, ratios: tuple[float, float]) -> None:
    count = 3000
    ours = draw_boxes(count, size, smallest, generator(5), ratios).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        image = torch.empty(1, size, size)
        theirs = torch.tensor([RandomResizedCrop.get_params(image, [smallest, 1.0], list(ratios)) for _ in range(count)]).double()

    def measures(boxes: Tensor) -> dict[str, Tensor]:
        top, left, height, width = boxes.unbind(1)
        area, whole = height * width / size**2, ((height == size) & (width == size)).double()
        slack = {"top of slack": top / (size - height).clamp_min(1), "left of slack": left / (size - width).clamp_min(1)}
        return {"height": height, "width": width, "area": area, "ratio": (width / height).log().abs(), "whole": whole, **slack}

    for name, own in measures(ours).items():
        other = measures(theirs)[name]
        spread = ((own.var() + other.var()) / count).sqrt()
        assert (own.mean() - other.mean()).abs() < 4 * spread + 1e-9, name
        assert own.std() == pytest.approx(other.std().item(), rel=0.15), name
        for q in (0.1, 0.5, 0.9):
            assert (own <= other.quantile(q)).double().mean() == pytest.approx(
                (other <= other.quantile(q)).double().mean().item(), abs=0.05
            ), name


@pytest.mark.parametrize(("smallest", "whole"), [(1.0, 1.0), (0.965, 0.45), (0.865, 0.05)])
def test_share_of_whole_images_at_224_is_the_published_one(smallest: float, whole: float) -> None:
    boxes = draw_boxes(20000, 224, smallest, generator(7))
    assert (boxes[:, 2:] == 224).all(1).double().mean() == pytest.approx(whole, abs=0.01)


def test_boxes_lie_inside_and_reach_every_edge() -> None:
    for size, smallest in itertools.product((1, 2, 8, 33), (0.01, 0.5, 1.0)):
        boxes = draw_boxes(2000, size, smallest, generator(8))
        assert boxes.dtype == torch.int64 and boxes.shape == (2000, 4)
        top, left, height, width = boxes.unbind(1)
        assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) >= 1
        assert max((top + height).max(), (left + width).max()) == size
    assert torch.equal(draw_boxes(5, 8, 0.1, generator(1)), draw_boxes(5, 8, 0.1, generator(1)))


def test_random_resized_crop_gives_each_image_a_box_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def recorded(*args: object) -> Tensor:
        drawn.append(draw_boxes(*args))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(augment, "draw_boxes", recorded)
    images = torch.rand(30, 3, 8, 8, generator=generator())
    plain = random_resized_crop(images, 0.2, False, generator(2))
    mirrored = random_resized_crop(images, 0.2, True, generator(2))
    assert len(drawn[0].unique(dim=0)) > 20 and torch.equal(*drawn)
    flips = 0
    for n, box in enumerate(drawn[0].tolist()):
        expected = reference(images[n], box, False, [0, 0], True)
        assert torch.allclose(plain[n], expected, atol=1e-6)
        flips += not torch.allclose(mirrored[n], expected, atol=1e-6)
        assert torch.allclose(mirrored[n], expected, atol=1e-6) or torch.allclose(mirrored[n], expected.flip(-1), atol=1e-6)
    assert 5 < flips < 25


def shifted(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    """Pixel by pixel: the image moved over zeros, then mirrored."""
    out = torch.zeros_like(image)
    size = image.shape[-1]
    for y, x in itertools.product(range(size), repeat=2):
        if 0 <= y + down < size and 0 <= x + right < size:
            out[:, y, size - 1 - x if flip else x] = image[:, y + down, x + right]
    return out


@pytest.mark.parametrize("flip", [True, False])
def test_pad_crop_is_a_shift_and_a_mirror_found_by_a_loop(flip: bool) -> None:
    image, pad = torch.rand(2, 5, 5, generator=generator()), 1
    moves = list(itertools.product((-1, 0, 1), (-1, 0, 1), (False, True)))
    table = {move: shifted(image, *move) for move in moves}
    out = pad_crop(image.expand(300, -1, -1, -1), pad, flip, generator(1))
    seen = [[move for move in moves if torch.equal(table[move], made)] for made in out]
    assert all(len(found) == 1 for found in seen)
    counts = {move: sum(found == [move] for found in seen) for move in moves}
    expected = 300 / 18 if flip else 300 / 9
    assert all(count == 0 or expected / 3 < count < expected * 3 for count in counts.values())
    assert sum(count > 0 for count in counts.values()) == (18 if flip else 9)


def test_pad_crop_by_nothing_is_the_image() -> None:
    images = torch.rand(4, 3, 6, 6, generator=generator())
    assert torch.equal(pad_crop(images, 0, False, generator()), images)


def strips_moved(image: Tensor, parts: int, cols: tuple[int, ...], rows: tuple[int, ...]) -> Tensor:
    """Strip by strip: columns, then rows, in the given orders."""
    edges = [math.ceil(part * image.shape[-1] / parts) for part in range(parts + 1)]
    image = torch.cat([image[:, :, edges[part] : edges[part + 1]] for part in cols], 2)
    return torch.cat([image[:, edges[part] : edges[part + 1]] for part in rows], 1)


@pytest.mark.parametrize(
    ("size", "parts", "dtype"), [(6, 2, torch.uint8), (6, 3, torch.float32), (7, 2, torch.uint8), (8, 3, torch.double)]
)
def test_shuffled_patches_are_strips_that_changed_places(size: int, parts: int, dtype: torch.dtype) -> None:
    image = torch.arange(2 * size * size).view(2, size, size).to(dtype)
    orders = list(itertools.permutations(range(parts)))
    table = {(cols, rows): strips_moved(image, parts, cols, rows) for cols in orders for rows in orders}
    count = 40 * len(table)
    out = shuffle_patches(image.expand(count, -1, -1, -1), parts, generator(1))
    assert out.dtype == dtype
    seen = [[order for order, moved in table.items() if torch.equal(moved, made)] for made in out]
    assert all(len(found) == 1 for found in seen)  # each image is one of the orders ..
    counts = {order: sum(found == [order] for found in seen) for order in table}
    assert all(15 < number < 80 for number in counts.values())  # .. and each order is as likely


@pytest.mark.parametrize("offset", [(0, 0), (3, -2), (-4, 4), (8, 0)])
def test_what_lies_outside_the_image_is_zero(offset: tuple[int, int]) -> None:
    image = torch.rand(2, 8, 8, generator=generator())
    starts, whole = torch.tensor(offset), torch.tensor([8])
    found = warp(image, axis_operator(starts[:1], whole, 8)[0], axis_operator(starts[1:], whole, 8)[0])
    padded = torch.nn.functional.pad(image, [8] * 4)
    assert torch.equal(found, padded[:, 8 + offset[0] : 16 + offset[0], 8 + offset[1] : 16 + offset[1]])


@pytest.mark.parametrize(("size", "side"), [(1, 4), (5, 8), (7, 16), (8, 8), (3, 4)])
def test_enlarging_is_bilinear(size: int, side: int) -> None:
    image = torch.rand(1, 2, size, size, generator=generator())
    expected = torch.nn.functional.interpolate(image, (side, side), mode="bilinear", align_corners=False)
    assert torch.allclose(warp(image, enlarger(size, side), enlarger(size, side)), expected, atol=1e-6)
    kept = enlarger(size, side, image.device, torch.float16)
    assert kept.dtype == torch.float16 and kept is enlarger(size, side, image.device, torch.float16), "nothing is copied anew"


def test_one_patch_is_the_image() -> None:
    images = torch.rand(4, 3, 6, 6, generator=generator())
    assert torch.equal(shuffle_patches(images, 1, generator()), images)


def test_cutmix_target_is_the_area_really_pasted() -> None:
    size, shares = 8, []
    ids = torch.arange(12.0).view(12, 1, 1, 1)
    places = torch.arange(float(size * size)).view(1, 1, size, size)
    images = (100 * ids + places).expand(12, 2, size, size)  # each pixel says whose it is and where it was
    for seed in range(200):
        before = images.clone()
        mix = draw_cutmix(12, size, 1.0, generator(seed))
        found, partner = mixed(images, [mix])
        assert torch.equal(partner, mix.partner)
        assert torch.equal(images, before)  # not in place
        assert torch.equal(found % 100, images % 100)  # nothing moved
        owner = (found // 100).long()
        assert sorted(mix.partner.tolist()) == list(range(12))
        foreign = owner != torch.arange(12).view(12, 1, 1, 1)
        own_partner = mix.partner == torch.arange(12)
        box = foreign[~own_partner][0, 0]
        for n in range(12):
            expected = torch.where(box, mix.partner[n], torch.tensor(n)).expand(2, size, size)
            assert torch.equal(owner[n], expected)  # one box for the whole batch
        rows, cols = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        assert int(box.sum()) == len(rows) * len(cols)  # a rectangle ..
        assert rows.diff().eq(1).all() and cols.diff().eq(1).all()  # .. without gaps
        assert mix.share == pytest.approx(1 - box.sum().item() / size**2, abs=1e-12)
        shares.append(mix.share)
    assert len(set(shares)) > 10


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.75, 0.99, 1.0])
def test_cutmix_box_has_the_published_size_and_a_uniform_centre(lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "beta", lambda alpha, draws: lam)
    size = 10
    side = int(size * np.sqrt(1 - lam))
    boxes = set()
    for y, x in itertools.product(range(size), repeat=2):
        clip = [(max(c - side // 2, 0), min(c + side // 2, size)) for c in (y, x)]
        boxes.add(round(1 - (clip[0][1] - clip[0][0]) * (clip[1][1] - clip[1][0]) / size**2, 9))
    assert {round(draw_cutmix(2, size, 1.0, generator(seed)).share, 9) for seed in range(400)} == boxes


def test_mixup_blends_with_the_partner() -> None:
    images = torch.rand(9, 3, 4, 4, generator=generator())
    shares = []
    for seed in range(20):
        mix = draw_mixup(9, 4, 0.8, generator(seed))
        found, partner = mixed(images, [mix])
        assert isinstance(mix, Mix) and sorted(mix.partner.tolist()) == list(range(9)) and torch.equal(partner, mix.partner)
        for n, p in enumerate(mix.partner.tolist()):
            assert torch.allclose(found[n], mix.share * images[n] + (1 - mix.share) * images[p], atol=1e-6)
        shares.append(mix.share)
    assert len(set(shares)) == 20 and min(shares) >= 0 and max(shares) <= 1


@pytest.mark.parametrize("draw", [draw_cutmix, draw_mixup])
def test_batches_that_lie_end_to_end_are_mixed_as_each_alone(draw: Callable[..., Mix]) -> None:
    images, counts = torch.rand(14, 3, 6, 6, generator=generator()), [5, 2, 7]
    mixes = [draw(count, 6, 1.0, generator(count)) for count in counts]
    found, partner = mixed(images, mixes)
    split = (tensor.split(counts) for tensor in (images, found, partner))
    for given, own, its, mix, start in zip(*split, mixes, [0, 5, 7], strict=True):
        assert torch.equal(own, mixed(given, [mix])[0]) and torch.equal(its, mix.partner + start)


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "crop": lambda images, streams: random_resized_crop(images, 0.2, True, streams),
    "shift": lambda images, streams: pad_crop(images, 2, True, streams),
    "patches": lambda images, streams: shuffle_patches(images, 2, streams),
    "randaugment": lambda images, streams: randaugment.rand_augment((255 * images).to(torch.uint8), streams),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_several_streams_draw_what_each_draws_alone(name: str) -> None:
    """Each for its rows; two calls in a row, since every stream goes on from where it was."""
    images, apply = torch.rand(20, 3, 8, 8, generator=generator()), AUGMENTATIONS[name]
    streams = [generator(seed) for seed in range(4)]
    found = [apply(images, streams) for _ in range(2)]
    assert not torch.equal(*found)
    for seed in range(4):
        own, alone = images[5 * seed : 5 * seed + 5], generator(seed)
        for both in found:
            assert torch.equal(both[5 * seed : 5 * seed + 5], apply(own, alone))


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_beta_has_the_moments_of_beta(alpha: float) -> None:
    draws = generator(3)
    values = np.array([augment.beta(alpha, draws) for _ in range(2000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(variance / 2000)
    assert values.var() == pytest.approx(variance, rel=0.1)
    assert len(np.unique(values)) == 2000


def test_taps_are_where_operators_are_not_zero() -> None:
    draws, size, count = torch.Generator().manual_seed(0), 11, 200
    length = torch.randint(1, size + 1, (count,), generator=draws)
    start = torch.randint(-3, size, (count,), generator=draws)  # over the border on either side, too
    flips = torch.rand(count, generator=draws) < 0.5
    operators = axis_operator(start, length, size, flips, torch.randint(size, (count,), generator=draws))
    found = taps(operators)
    assert found.shape == (count, 4, size) and found.dtype == torch.int32
    for matrix, (first, many, top, high) in zip(operators, found.tolist(), strict=True):
        for k in range(size):
            for line, begin, number in ((matrix[k], first[k], many[k]), (matrix[:, k], top[k], high[k])):
                assert {(begin + step) % size for step in range(number)} == set(line.nonzero().flatten().tolist())
