"""A zoo of image files: each is decoded to known pixels or refused by name with the cause."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from delt.data.decode import decode, read
from delt.errors import DataError

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)  # grey 0, 4, .. 252


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)


def grey(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).expand(3, *pixels.shape)


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path):
    Image.fromarray(colours(64, 64)).save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png", 3, 64)
    assert out.dtype == torch.uint8 and out.is_contiguous() and torch.equal(out, chw(colours(64, 64)))


def test_palette(tmp_path):
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    image.putdata([0, 1, 2, 3] * 16)
    image.save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", 3, 8)[:, 0, :4].T.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]]


def test_palette_with_a_transparent_entry_shows_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    out = decode(tmp_path / "p.png", 3, 8)
    assert out[:, 0, 0].tolist() == [255] * 3 and out[:, 0, 1].tolist() == [40, 50, 60]


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[0], alpha[1] = 0, 128
    Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    out = decode(tmp_path / "la.png", 1, 8)[0]
    assert (out[0] == 255).all() and torch.equal(out[2:], torch.from_numpy(RAMP)[2:])
    expected = RAMP[1] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(out[1].numpy() - expected).max() <= 1


def test_hidden_colours_do_not_appear(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "rgba.png")
    assert (decode(tmp_path / "rgba.png", 3, 8) == 255).all()


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert decode(tmp_path / "c.tif", 3, 8)[:, 0, 0].tolist() == [255, 0, 0]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    red = decode(tmp_path / "c.jpg", 3, 8)[:, 0, 0].tolist()
    assert red[0] > 250 and max(red[1:]) < 5


def test_one_bit(tmp_path):
    Image.fromarray(RAMP > 100).save(tmp_path / "b.png")
    assert torch.equal(decode(tmp_path / "b.png", 1, 8)[0], torch.from_numpy((RAMP > 100) * np.uint8(255)))


@pytest.mark.parametrize("name", ["g.png", "g.tif", "g.pgm"])
def test_sixteen_bit_grey_is_scaled(tmp_path, name):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / name)
    assert torch.equal(decode(tmp_path / name, 3, 8), grey(RAMP))


def test_grey_from_colour_and_colour_from_grey(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "l.png")
    assert torch.equal(decode(tmp_path / "l.png", 3, 8), grey(RAMP))
    Image.fromarray(np.stack([RAMP] * 3, -1)).save(tmp_path / "rgb.png")
    assert torch.equal(decode(tmp_path / "rgb.png", 1, 8)[0], torch.from_numpy(RAMP))


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(RAMP).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(decode(tmp_path / "turned.png", 1, 8)[0], torch.from_numpy(np.rot90(RAMP, -1).copy()))


def test_gif_gives_its_first_frame(tmp_path):
    first, second = Image.new("L", (8, 8), 7), Image.new("L", (8, 8), 200)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (decode(tmp_path / "a.gif", 1, 8) == 7).all()


def test_content_counts_and_not_the_extension(tmp_path):
    name = tmp_path / "süße Übung 猫 nr 1.jpg"
    Image.fromarray(RAMP).save(name, format="PNG")
    assert torch.equal(decode(name, 1, 8)[0], torch.from_numpy(RAMP))


@pytest.mark.parametrize(("height", "width"), [(100, 100), (90, 131), (333, 71), (20, 30), (64, 65), (64, 128)])
@pytest.mark.parametrize("size", [64, 96])
def test_scaling_equals_resize_and_centre_crop(tmp_path, height, width, size):
    image = Image.fromarray(colours(height, width))
    image.save(tmp_path / "a.png")
    expected = CenterCrop(size)(Resize(size // 7 * 8, InterpolationMode.BILINEAR)(image))
    assert torch.equal(decode(tmp_path / "a.png", 3, size), chw(np.asarray(expected)))


def test_small_images_are_scaled_whole(tmp_path):
    image = Image.fromarray(colours(64, 64))
    image.save(tmp_path / "a.png")
    assert torch.equal(decode(tmp_path / "a.png", 3, 32), chw(np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))))


def test_a_long_strip_takes_little_memory(tmp_path):
    Image.fromarray(np.full((20_000, 1), 77, np.uint8)).save(tmp_path / "strip.png")  # 16 gigabytes if scaled whole
    assert (decode(tmp_path / "strip.png", 1, 224) == 77).all()


def big_png(path, width: int, height: int) -> None:
    """A PNG that claims a size and has no pixels, so that the test is quick."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def spoil(tmp_path, kind: str):
    path = tmp_path / f"{kind}.jpg"
    Image.fromarray(colours(64, 64)).save(path)
    whole = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "html":
        path.write_text("<!DOCTYPE html><html>404 not found</html>")
    elif kind == "postscript":
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    elif kind == "float":
        Image.fromarray(np.ones((8, 8), np.float32)).save(path, format="TIFF")
    elif kind == "integer":
        Image.fromarray(np.ones((8, 8), np.int32)).save(path, format="TIFF")
    elif kind == "huge":
        big_png(path, 20_000, 5_001)
    elif kind == "bomb":
        big_png(path, 100_000, 100_000)
    elif kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "loop":
        path.unlink()
        path.symlink_to(path)
    return path


CAUSES = {
    "empty": "the file is empty",
    "truncated": "truncated",
    "html": "it is none of JPEG",
    "postscript": "it is none of JPEG",
    "float": "32 bits",
    "integer": "32 bits",
    "huge": "over 100 megapixels",
    "bomb": "over 100 megapixels",
    "missing": "no such file",
    "folder": "is a directory",
    "loop": "symbolic links",
}


@pytest.mark.parametrize("kind", CAUSES)
def test_a_bad_file_is_named_with_its_cause_in_one_line(tmp_path, kind):
    path = spoil(tmp_path, kind)
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("error")
        decode(path, 3, 64)
    message = str(caught.value)
    assert str(path) in message and CAUSES[kind] in message and "\n" not in message
    assert message.count(str(path)) == 1


def test_every_truncation_of_a_jpeg_is_refused_or_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(colours(16, 16)).save(path)
    whole = path.read_bytes()
    refused = 0
    for length in range(0, len(whole) - 2, 7):  # the last two bytes only say that the image ends
        path.write_bytes(whole[:length])
        try:
            read(path, 3)
        except DataError as error:
            assert "a.jpg" in str(error)
            refused += 1
    assert refused >= len(range(0, len(whole) - 2, 7)) - 2
