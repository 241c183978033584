import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from delt.data import randaugment
from delt.data.randaugment import FILL, MOVES, OPERATIONS, TONES, Step, apply, draw, rand_augment
from delt.errors import ConfigError


def noise(count: int = 4, channels: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def smooth(count: int = 3, channels: int = 3, size: int = 24) -> torch.Tensor:
    """Waves: what two cubic kernels agree on to a few grey levels."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    waves = [torch.sin(x * 0.2 + k) * torch.cos(y * 0.15 - k) for k in range(count * channels)]
    return (127 + 100 * torch.stack(waves)).to(torch.uint8).view(count, channels, size, size)


def steps(name: str, levels: list[float], sign: float = 1.0, cubic: bool = False) -> Step:
    count = len(levels)
    code = torch.full((count,), OPERATIONS.index(name))
    return Step(code, torch.tensor(levels), torch.full((count,), sign), torch.full((count,), cubic))


def pil(image: torch.Tensor) -> Image.Image:
    array = image.numpy()
    return Image.fromarray(array[0]) if len(array) == 1 else Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))


def tensor(image: Image.Image) -> torch.Tensor:
    array = np.array(image)
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def tone_by_pillow(name: str, image: Image.Image, level: float) -> Image.Image:
    """One tone on one image, in the words of Pillow."""
    share = level / 10
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(share * 1.8 + 0.1)
    if name == "Posterize":
        return ImageOps.posterize(image, int(share * 4)) if int(share * 4) else image.point(lambda _: 0)
    if name == "Solarize":
        return ImageOps.solarize(image, int(share * 256))
    if name == "SolarizeAdd":
        return image.point(lambda v: min(255, v + int(share * 110)) if v < 128 else v)
    return getattr(ImageOps, name.lower())(image)


def move_by_pillow(name: str, image: Image.Image, share: float, mode: Image.Resampling) -> Image.Image:
    """One move on one image, in the words of Pillow."""
    fill = FILL if image.mode == "RGB" else 117
    if name == "Rotate":
        return image.rotate(30 * share, resample=mode, fillcolor=fill)
    width, height = image.size
    data = {
        "ShearX": (1, 0.3 * share, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.3 * share, 1, 0),
        "TranslateXRel": (1, 0, 0.45 * share * width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, 0.45 * share * height),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, data, resample=mode, fillcolor=fill)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TONES)
def test_tones_against_pillow(name: str, channels: int) -> None:
    levels = [0.0, 1.3, 5.0, 6.2, 8.9, 10.0]
    low = noise(len(levels), channels, 20) // 2 + 40  # leaves AutoContrast and Equalize something to do
    for images in (noise(len(levels), channels, 20), low, smooth(len(levels), channels)):
        out = apply(images, steps(name, levels))
        for before, after, level in zip(images, out, levels, strict=True):
            expected = tensor(tone_by_pillow(name, pil(before), level)).int()
            assert (after.int() - expected).abs().max() <= 1  # floating-point rounding at a grey level's edge
            assert (after == expected).float().mean() > 0.99


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", MOVES)
def test_bilinear_moves_against_pillow(name: str, sign: float, channels: int) -> None:
    levels = [0.0, 2.7, 6.1, 10.0]
    images = noise(len(levels), channels, 21)
    out = apply(images, steps(name, levels, sign))
    for before, after, level in zip(images, out, levels, strict=True):
        expected = tensor(move_by_pillow(name, pil(before), sign * level / 10, Image.Resampling.BILINEAR)).int()
        assert (after.int() - expected).abs().max() <= 1


@pytest.mark.parametrize("name", MOVES)
def test_bicubic_moves_are_close_to_pillow(name: str) -> None:
    images = smooth()
    levels = [2.0, 5.5, 9.0]
    out = apply(images, steps(name, levels, cubic=True))
    for before, after, level in zip(images, out, levels, strict=True):
        expected = tensor(move_by_pillow(name, pil(before), level / 10, Image.Resampling.BICUBIC)).int()
        assert (after.int() - expected).abs().max() <= 3
    assert not torch.equal(out, apply(images, steps(name, levels)))


def test_uncovered_pixels_take_the_fill_colour() -> None:
    out = apply(torch.zeros(1, 3, 10, 10, dtype=torch.uint8), steps("TranslateXRel", [10.0]))
    assert out[0, :, 0, -1].tolist() == [124, 116, 104]
    assert out[0, :, :, :5].max() == 0  # 4.5 pixels to the left: the rest comes from the image
    grey = apply(torch.zeros(1, 1, 10, 10, dtype=torch.uint8), steps("TranslateYRel", [10.0], sign=-1.0))
    assert grey[0, 0, 0, 0] == round(0.299 * 124 + 0.587 * 116 + 0.114 * 104)


def test_colour_is_identity_on_one_channel() -> None:
    images = noise(channels=1)
    assert torch.equal(apply(images, steps("Color", [0.0, 3.0, 6.0, 10.0])), images)


def test_a_batch_equals_its_images_one_by_one() -> None:
    drawn = draw(48, torch.Generator().manual_seed(3), 6.0, 1.0)
    step = dataclasses.replace(drawn, op=torch.arange(48) % 16 - 1)  # every operation, and none
    images = noise(48)
    batch = apply(images, step)
    for k in range(48):
        alone = Step(step.op[k : k + 1], step.level[k : k + 1], step.sign[k : k + 1], step.cubic[k : k + 1])
        assert (apply(images[k : k + 1], alone)[0].int() - batch[k].int()).abs().max() <= 1


def test_skipped_images_stay_and_the_input_is_not_touched() -> None:
    images = noise(32)
    before, step = images.clone(), draw(32, torch.Generator().manual_seed(0), 6.0, 1.0)
    out = apply(images, step)
    assert torch.equal(images, before)
    skipped = step.op == -1
    assert torch.equal(out[skipped], images[skipped])
    assert sum(not torch.equal(a, b) for a, b in zip(out[~skipped], images[~skipped], strict=True)) > 0.6 * int((~skipped).sum())


def test_draws_have_the_stated_distribution() -> None:
    count = 60_000
    step = draw(count, torch.Generator().manual_seed(1), 6.0, 1.0)
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 15
    assert float((step.op == -1).float().mean()) == pytest.approx(0.5, abs=0.01)
    shares = torch.bincount(step.op + 1, minlength=16)[1:] / count
    assert shares.numpy() == pytest.approx(np.full(15, 0.5 / 15), abs=0.004)
    assert float(step.level.mean()) == pytest.approx(6, abs=0.02)
    assert float(step.level.std()) == pytest.approx(1, abs=0.02)
    assert float(step.sign.mean()) == pytest.approx(0, abs=0.02)
    assert set(step.sign.tolist()) == {-1.0, 1.0}
    assert float(step.cubic.float().mean()) == pytest.approx(0.5, abs=0.01)
    wide = draw(1000, torch.Generator().manual_seed(1), 6.0, 10.0).level
    assert (float(wide.min()), float(wide.max())) == (0.0, 10.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_keeps_form_and_follows_the_generator(channels: int) -> None:
    images = noise(40, channels, 12)
    out, same, other = (rand_augment(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert out.shape == images.shape and out.dtype == torch.uint8
    assert torch.equal(out, same)
    assert not torch.equal(out, other)


def test_rand_augment_is_its_steps_one_after_the_other() -> None:
    images, generator = noise(20), torch.Generator().manual_seed(9)
    expected = images
    for _ in range(3):
        expected = apply(expected, draw(20, generator, 4.0, 2.0))
    assert torch.equal(rand_augment(images, torch.Generator().manual_seed(9), magnitude=4.0, ops=3, spread=2.0), expected)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    first, after = rand_augment(noise(), torch.Generator().manual_seed(0)), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(rand_augment(noise(), torch.Generator().manual_seed(0)), first)


def test_empty_batch() -> None:
    assert rand_augment(noise(0), torch.Generator()).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3, 8, 8), torch.float32), ((2, 2, 8, 8), torch.uint8), ((3, 8, 8), torch.uint8)])
def test_other_images_are_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="allowed are uint8"):
        rand_augment(torch.zeros(shape, dtype=dtype), torch.Generator())


def test_autocontrast_leaves_a_channel_of_one_value() -> None:
    images = noise(1)
    images[:, 1] = 77
    out = apply(images, steps("AutoContrast", [6.0]))
    assert torch.equal(out[:, 1], images[:, 1])
    assert (int(out[:, 0].min()), int(out[:, 0].max())) == (0, 255)


def test_rotation_matrix_turns_about_the_middle() -> None:
    matrix = randaugment.matrices(steps("Rotate", [10.0]), torch.tensor([0]), 10, 20)[0]
    assert (matrix @ torch.tensor([10.0, 5.0, 1.0])).tolist() == pytest.approx([10.0, 5.0], abs=1e-5)
    assert float(matrix[0, 0]) == pytest.approx(math.cos(math.radians(30)))
