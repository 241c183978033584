"""A zoo of image files: each is decoded to known pixels or refused by name with the cause."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from delt.data.decode import VERDICTS, BadImage, decode, facts_of, read, see_through
from delt.errors import DataError

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)  # grey 0, 4, .. 252
DEEP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1021 + 5  # grey of 16 bits that 8 bits cannot hold
FADE = np.repeat(np.array([0, 1, 64, 127, 128, 200, 254, 255], np.uint8)[:, None], 8, 1)  # alpha, row by row


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)


def flat(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (8, 8, len(colour)))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha.reshape(8, 8, -1) / 255
    return np.round(np.atleast_3d(colour) * alpha + 255 * (1 - alpha)).astype(np.uint8)


# ---------------------------------------------------------------- files, as bytes


def file(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def filled(mode: str, *colour: int) -> Image.Image:
    return Image.new(mode, (8, 8), colour if len(colour) > 1 else colour[0])


def merged(mode: str, *bands: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


def frames(kind: str, **options) -> bytes:
    others = [Image.fromarray(colours(8, 8, seed)) for seed in (1, 2)]
    return file(colours(8, 8), kind, save_all=True, append_images=others, **options)


def palette(transparency: int | bytes | None = None, kind: str = "PNG") -> bytes:
    image = filled("P", 1)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for x in range(8):
        image.putpixel((x, 0), 0)
        image.putpixel((x, 1), 2)
    return file(image, kind, **({} if transparency is None else {"transparency": transparency}))


def looked_up(*rows: tuple[int, int, int]) -> np.ndarray:
    """The picture of `palette`: a row of entry 0, one of entry 2, the rest entry 1."""
    out = flat(40, 50, 60).copy()
    out[0], out[1] = rows
    return out


def chunk(kind: bytes, data: bytes, spoil: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ spoil)


def png(depth: int, colour: int, rows: np.ndarray, *more: bytes, side: tuple[int, int] = (8, 8), spoil: str = "") -> bytes:
    """A PNG made by hand, with any depth, more chunks, a false size or a wrong checksum."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *side, depth, colour, 0, 0, 0), spoil == "IHDR")
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), spoil == "IDAT")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def turned(orientation: int, kind: str = "PNG", pixels: np.ndarray = RAMP, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(pixels, kind, exif=exif, **options)


UPRIGHT = {  # EXIF orientation -> the stored picture as it is to be seen
    1: RAMP,
    2: RAMP[:, ::-1],
    3: RAMP[::-1, ::-1],
    4: RAMP[::-1],
    5: RAMP.T,
    6: np.rot90(RAMP, -1),
    7: RAMP[::-1, ::-1].T,
    8: np.rot90(RAMP),
}
WIDE = np.arange(192).reshape(8, 8, 3) * 341 + 3  # colour of 16 bits
DEEP8 = np.round(DEEP / 257).astype(np.uint8)
HIDDEN = np.full((8, 8, 3), 200, np.uint8)
COLOURS = colours(8, 8)
CLEAR = chunk(b"tRNS", struct.pack(">H", int(DEEP[2, 3])))
HOLE = np.where(np.arange(64).reshape(8, 8) == 2 * 8 + 3, 255, DEEP8)  # where DEEP has the transparent value
RED = flat(254, 0, 0)  # of (255, 0, 0): JPEG's Y, Cb, Cr are 76, 85, 255

# Name of the file -> its bytes, and its exact pixels (a grey picture [8,8] or colours [8,8,3]). Kinds with transparency below.
ACCEPTED = {
    "rgb.png": (file(COLOURS, "PNG"), COLOURS),
    "rgb.bmp": (file(COLOURS, "BMP"), COLOURS),
    "32 bits, the last 8 without a meaning.bmp": (file(np.dstack([COLOURS, FADE]), "BMP"), COLOURS),
    "rgb.ppm": (file(COLOURS, "PPM"), COLOURS),
    "rgb.tif": (file(COLOURS, "TIFF"), COLOURS),
    "rgb.webp": (file(COLOURS, "WEBP", lossless=True), COLOURS),
    "grey.png": (file(RAMP, "PNG"), RAMP),
    "grey of 4 bits.png": (png(4, 0, np.tile(np.uint8([0x01, 0x23, 0x45, 0x67]), (8, 1))), np.tile(np.uint8(range(0, 136, 17)), (8, 1))),
    "black and white.png": (file(RAMP > 100, "PNG"), (RAMP > 100) * np.uint8(255)),
    "black and white.pbm": (file(RAMP > 100, "PPM"), (RAMP > 100) * np.uint8(255)),
    "palette.png": (palette(), looked_up((10, 20, 30), (70, 80, 90))),
    "palette.gif": (palette(kind="GIF"), looked_up((10, 20, 30), (70, 80, 90))),
    "palette.bmp": (palette(kind="BMP"), looked_up((10, 20, 30), (70, 80, 90))),
    "16 bit grey.png": (file(DEEP, "PNG"), DEEP8),
    "16 bit grey.pgm": (file(DEEP, "PPM"), DEEP8),
    "16 bit grey.tif": (file(DEEP, "TIFF"), DEEP8),
    "16 bit grey, big endian.tif": (file(filled("I;16B", 257 * 9), "TIFF"), flat(9)[..., 0]),
    "10 bit grey.pgm": (b"P5 8 8 1023\n" + (RAMP * 4.0).astype(">u2").tobytes(), np.round(RAMP * 4.0 / 1023 * 255).astype(np.uint8)),
    "16 bit colour.ppm": (b"P6 8 8 65535\n" + WIDE.astype(">u2").tobytes(), np.round(WIDE / 257).astype(np.uint8)),
    "16 bit colour.png": (png(16, 2, WIDE.astype(">u2")), (WIDE >> 8).astype(np.uint8)),
    "cmyk.tif": (file(filled("CMYK", 10, 100, 200, 40), "TIFF"), flat(207, 131, 46)),
    "cmyk.jpg": (file(filled("CMYK", 10, 100, 200, 40), "JPEG", quality=100), flat(207, 131, 46)),
    "ycbcr.jpg": (file(flat(255, 0, 0), "JPEG", quality=100, subsampling=0), RED),
    "ycbcr.tif": (file(filled("YCbCr", 76, 85, 255), "TIFF"), RED),
    "lab.tif": (file(filled("LAB", 128, 128, 128), "TIFF"), flat(119, 119, 119)),
    "grey.jpg": (file(np.full((8, 8), 77, np.uint8), "JPEG", quality=100), flat(77)[..., 0]),
    "animated.gif": (file(filled("L", 7), "GIF", save_all=True, append_images=[filled("L", 200)]), flat(7)[..., 0]),
    "animated.webp": (frames("WEBP", lossless=True), COLOURS),
    "animated.png": (frames("PNG"), COLOURS),
    "pages.tif": (frames("TIFF"), COLOURS),
    "two views.jpg": (file(flat(77, 77, 77), "MPO", save_all=True, append_images=[filled("RGB", 9, 9, 9)], quality=100), flat(77, 77, 77)),
    "a png.jpg": (file(COLOURS, "PNG"), COLOURS),
    "süße Übung 猫 nr 1.png": (file(COLOURS, "PNG"), COLOURS),
    "one pixel.png": (file(COLOURS[:1, :1], "PNG"), flat(*COLOURS[0, 0])),
    "strip.png": (file(np.full((20_000, 1), 77, np.uint8), "PNG"), flat(77)[..., 0]),
    "damaged metadata.png": (png(8, 0, RAMP, chunk(b"eXIf", b"garbage")), RAMP),
    "damaged metadata.jpg": (file(flat(77, 77, 77), "JPEG", quality=100, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"), flat(77, 77, 77)),
    "stale checksum, whole pixels.png": (png(8, 0, RAMP, spoil="IDAT"), RAMP),  # zlib's own checksum says that they are whole
    **{f"turned {key}.png": (turned(key), seen) for key, seen in UPRIGHT.items()},
    **{f"turned {key}.tif": (turned(key, "TIFF"), UPRIGHT[key]) for key in (6, 7)},
    "turned 6.webp": (turned(6, "WEBP", COLOURS, lossless=True), np.rot90(COLOURS, -1)),
    "turned 9.png": (turned(9), RAMP),
    "turned 16 bit grey.png": (turned(8, pixels=DEEP), np.rot90(DEEP8)),
}
FEW = {bits: (np.arange(64) % 2**bits).reshape(8, 8).astype(np.uint8) for bits in (2, 4)}  # values of few bits

faint = filled("PA", 0, 51)
faint.putpalette([77, 77, 77])
TRANSPARENT = {
    "grey and alpha.png": (file(merged("LA", RAMP, FADE), "PNG"), over_white(RAMP, FADE)[..., 0]),
    "alpha.png": (file(np.dstack([COLOURS, FADE]), "PNG"), over_white(COLOURS, FADE)),
    "alpha.webp": (file(np.dstack([COLOURS, FADE]), "WEBP", lossless=True, exact=True), over_white(COLOURS, FADE)),
    "alpha.tif": (file(np.dstack([COLOURS, FADE]), "TIFF"), over_white(COLOURS, FADE)),
    "palette and alpha.tif": (file(faint, "TIFF"), flat(219)[..., 0]),
    "hidden colours.png": (file(np.dstack([HIDDEN, np.zeros((8, 8, 1), np.uint8)]), "PNG"), flat(255)[..., 0]),
    "palette, entry 0 clear.png": (palette(0), looked_up((255, 255, 255), (70, 80, 90))),
    "palette, entry 0 clear.gif": (palette(0, "GIF"), looked_up((255, 255, 255), (70, 80, 90))),
    "palette, alpha of each entry.png": (palette(bytes([0, 255, 51])), looked_up((255, 255, 255), (218, 220, 222))),
    "grey, one value clear.png": (file(RAMP, "PNG", transparency=40), np.where(RAMP == 40, 255, RAMP).astype(np.uint8)),
    **{
        f"{bits} bit grey, one value clear.png": (
            png(bits, 0, np.packbits(np.unpackbits(FEW[bits][..., None], 2)[..., -bits:].reshape(8, -1), 1), chunk(b"tRNS", b"\0\2")),
            np.where(FEW[bits] == 2, 255, FEW[bits] * (255 // (2**bits - 1))).astype(np.uint8),
        )
        for bits in (2, 4)
    },
    "16 bit grey, one value clear.png": (png(16, 0, DEEP.astype(">u2"), CLEAR), HOLE.astype(np.uint8)),
    "16 bit grey and alpha.png": (png(16, 4, np.dstack([DEEP, np.full_like(DEEP, 65535)]).astype(">u2")), (DEEP >> 8).astype(np.uint8)),
}
HUGE = png(8, 0, RAMP, side=(20_000, 5_001))  # a false size, so that the test is quick
REFUSED = {
    "empty.jpg": (b"", "the file is empty"),
    "half.jpg": (file(colours(64, 64), "JPEG")[:1500], "truncated"),
    "half.png": (file(colours(64, 64), "PNG")[:6000], "truncated"),
    "half.gif": (file(colours(64, 64), "GIF")[:1500], "truncated"),
    "half.webp": (file(colours(64, 64), "WEBP")[:1500], "decoder"),
    "half.bmp": (file(colours(64, 64), "BMP")[:1500], "truncated"),
    "half.tif": (file(colours(64, 64), "TIFF")[:1500], "truncated"),
    "a start.jpg": (file(colours(64, 64), "JPEG")[:20], "its header is damaged"),
    "html.jpg": (b"<!DOCTYPE html><html>404 not found</html>", "it is none of JPEG"),
    "text.png": (b"Please log in to see this image", "it is none of JPEG"),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', "it is none of JPEG"),
    "pdf.png": (file(COLOURS, "PDF"), "it is none of JPEG"),
    "eps.png": (file(COLOURS, "EPS"), "it is none of JPEG"),
    "jpeg 2000.jpg": (file(COLOURS, "JPEG2000"), "it is none of JPEG"),
    "icon.png": (file(COLOURS, "ICO"), "it is none of JPEG"),
    "float.tif": (file(np.ones((8, 8), np.float32), "TIFF"), "32 bits have no known range, allowed are 1, 8 and 16 bits"),
    "float.ppm": (b"Pf 8 8 -1.0\n" + np.ones(64, "<f4").tobytes(), "32 bits have no known range"),
    "integer.tif": (file(np.ones((8, 8), np.int32), "TIFF"), "32 bits have no known range"),
    "huge.png": (HUGE, "over 100 megapixels"),
    "bomb.png": (png(8, 0, RAMP, side=(100_000, 100_000)), "over 100 megapixels"),
    "bad header checksum.png": (png(8, 0, RAMP, spoil="IHDR"), "its header is damaged"),
    "bad metadata checksum.png": (png(8, 0, RAMP, chunk(b"tEXt", b"a\0b", 1)), "its header is damaged"),
    "changed pixels.png": (file(colours(64, 64), "PNG").replace(b"IDAT", b"IDAT\0", 1), "broken data stream"),
}
NOT_FILES = {
    "missing.jpg": (lambda path: None, "no such file"),
    "directory.jpg": (lambda path: path.mkdir(), "is a directory"),
    "loop.jpg": (lambda path: path.symlink_to(path), "symbolic links"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "pipe.jpg": (os.mkfifo, "a pipe or device"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "a pipe or device"),
}


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path):
    Image.fromarray(colours(64, 64)).save(tmp_path / "a.png")
    out = decode(tmp_path / "a.png", 3, 64)
    assert out.dtype == torch.uint8 and out.is_contiguous() and torch.equal(out, chw(colours(64, 64)))


@pytest.mark.parametrize("name", [*ACCEPTED, *TRANSPARENT])
def test_the_pixels_are_exactly_these(tmp_path, name):
    data, pixels = (ACCEPTED | TRANSPARENT)[name]
    (tmp_path / name).write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = decode(tmp_path / name, 3, 8)
    expected = np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], (8, 8, 3))
    np.testing.assert_array_equal(out.permute(1, 2, 0).numpy(), expected)
    assert see_through(tmp_path / name) == (name in TRANSPARENT)


@pytest.mark.parametrize("name", [*ACCEPTED, *TRANSPARENT])
def test_grey_is_the_weighted_colour(tmp_path, name):
    data, pixels = (ACCEPTED | TRANSPARENT)[name]
    (tmp_path / name).write_bytes(data)
    grey = pixels if pixels.ndim == 2 else (pixels.astype(int) @ [19595, 38470, 7471] + 2**15) >> 16
    np.testing.assert_array_equal(decode(tmp_path / name, 1, 8)[0].numpy(), grey)


@pytest.mark.parametrize("name", [*REFUSED, *NOT_FILES])
def test_a_bad_file_is_named_with_its_cause_in_one_line(tmp_path, name):
    path = tmp_path / name
    make, cause = (NOT_FILES | {key: (lambda path, data=data: path.write_bytes(data), why) for key, (data, why) in REFUSED.items()})[name]
    make(path)
    with warnings.catch_warnings(), pytest.raises(BadImage) as caught:
        warnings.simplefilter("error")
        decode(path, 3, 8)
    message = str(caught.value)
    assert isinstance(caught.value, DataError) and cause in caught.value.cause and caught.value.cause in message
    assert message.count(str(path)) == 1 and "\n" not in message and message.endswith("replace or remove the file")


def test_every_mode_in_the_table_is_in_the_zoo():
    data = [data for data, _ in (ACCEPTED | TRANSPARENT).values()] + [REFUSED["float.tif"][0]]
    modes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the damaged metadata
        for part in data:
            with Image.open(io.BytesIO(part)) as image:
                modes.add(image.mode)
    assert modes == set(VERDICTS)


def test_a_mode_without_a_verdict_is_refused(tmp_path, monkeypatch):
    """As one that a later Pillow may have."""
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    monkeypatch.delitem(VERDICTS, "L")
    with pytest.raises(BadImage, match="its mode is L, allowed are 1, RGB, P, "):
        decode(tmp_path / "x.png", 3, 8)


def test_facts_are_of_what_a_link_leads_to(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert facts_of(tmp_path / "b.jpg").st_size == 5


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
