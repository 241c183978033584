"""Images in memory, and the one normalisation there and back."""

from __future__ import annotations

import itertools

import pytest
import torch

from delt.data.images import TensorImages, denormalise, normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def images(count: int = 11, channels: int = 3) -> TensorImages:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 4, 5), dtype=torch.uint8, generator=draws)
    return TensorImages(pixels, torch.arange(count) * 10)


def test_fetch_takes_images_in_the_order_of_the_index() -> None:
    held = images()
    assert len(held) == 11
    index = torch.tensor([4, 0, 4, 10])
    assert torch.equal(held.fetch(index), torch.stack([held.pixels[i] for i in (4, 0, 4, 10)]))
    assert held.fetch(index).dtype == torch.uint8
    held.fetch(index).zero_()
    assert held.pixels.any()  # a copy, not a window into the set


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_batches_go_through_the_index_once_in_its_order(batch: int) -> None:
    held, index = images(), torch.randperm(11, generator=torch.Generator().manual_seed(1))[:10]
    parts = list(held.batches(index, batch))
    assert [len(labels) for _, labels in parts] == [batch] * (10 // batch) + ([10 % batch] if 10 % batch else [])
    assert torch.equal(torch.cat([pixels for pixels, _ in parts]), held.pixels[index])
    assert torch.cat([labels for _, labels in parts]).tolist() == [10 * i for i in index.tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise_pixel_by_pixel(dtype: torch.dtype) -> None:
    pixels = images(2).pixels
    out = normalise(pixels, MEAN, STD, dtype)
    assert out.dtype == dtype and out.shape == pixels.shape
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(5)):
        expected = (pixels[n, c, y, x].item() / 255 - MEAN[c]) / STD[c]
        assert out[n, c, y, x].item() == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalise_is_the_exact_inverse_on_every_pixel_value(channels: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, 16, 16)
    back = denormalise(normalise(pixels, MEAN[:channels], STD[:channels]), MEAN[:channels], STD[:channels])
    assert back.dtype == torch.uint8 and torch.equal(back, pixels)


def test_denormalise_rounds_and_clips() -> None:
    values = torch.tensor([-9.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 9.0]).view(1, 1, 1, 7)
    assert denormalise(values, (0.0,), (1.0,)).flatten().tolist() == [0, 0, 0, 1, 255, 255, 255]
    assert denormalise((values - 0.5) / 0.25, (0.5,), (0.25,)).flatten().tolist() == [0, 0, 0, 1, 255, 255, 255]
