"""Opening real data sets: digits, CIFAR from published files, folders; splits, counts and clear refusals."""

import os
import shutil
import subprocess
import sys
import urllib.error
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from delt.config import DataConfig
from delt.data import load, stream
from delt.data.decode import BadImage
from delt.data.images import Notes, TensorImages
from delt.data.load import class_counts, count_images, data_root, held_out, open_set, require_files, resized, shape_of
from delt.data.specs import spec_of
from delt.data.stream import StreamImages
from delt.errors import ConfigError, DataError

CPU = torch.device("cpu")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real CIFAR-10 files are not beside this repository")


def draw(path: Path, seed: int, size: tuple[int, int] = (16, 16), grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def folder(root: Path, counts: dict[str, int], part: str = "", **style: object) -> Path:
    for kind, count in counts.items():
        for number in range(count):
            draw(root / part / kind / f"{number:03d}.png", hash_of(part, kind, number), **style)
    return root


def hash_of(*key: object) -> int:
    return zlib.crc32(repr(key).encode())


def test_an_unknown_set_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        open_set("digit", DataConfig(), CPU)


# ---------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits():
    return open_set("digits", DataConfig(), CPU)


def test_digits_are_all_there_a_quarter_held_out(digits):
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert digits.info.classes == tuple("0123456789") and not digits.info.flip
    everything = class_counts(digits.train, 10), class_counts(digits.test, 10)
    for train, test in zip(*everything, strict=True):
        assert test == round((train + test) / 4)
    assert digits.train.pixels.shape[1:] == (1, 8, 8) and digits.train.pixels.dtype == torch.uint8


def test_digits_pixels_are_the_scans(digits):
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = [np.floor(image / 16 * 255 + 0.5).astype(np.uint8).tobytes() for image in scans.images]
    ours = torch.cat([digits.train.pixels, digits.test.pixels]).numpy()
    labels = torch.cat([digits.train.labels, digits.test.labels]).tolist()
    expected = Counter(zip(pixels, scans.target.tolist(), strict=True))
    assert Counter(zip((image.tobytes() for image in ours), labels, strict=True)) == expected
    assert {0, 255} <= set(ours.ravel().tolist())


def test_digits_never_change(digits):
    """A stored teacher belongs to this very split: a new value here breaks every one that a user has."""
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert open_set("digits", DataConfig(), CPU).fingerprint == digits.fingerprint
    assert digits.fingerprint == "ee70b241ce5f947d26f0bc3b94db877bcc48921df02f8d66ffd6ba0aa9e7da6c"
    torch.set_rng_state(state)


def test_digits_statistics_in_the_table_are_true(digits):
    values = digits.train.pixels.double() / 255
    assert digits.info.mean == pytest.approx((values.mean().item(),), abs=1e-4)
    assert digits.info.std == pytest.approx((values.std(correction=0).item(),), abs=1e-4)


def test_digits_at_another_size(digits):
    larger = open_set("digits", DataConfig(size=16), CPU)
    assert larger.info.size == 16 and larger.train.pixels.shape == (1347, 1, 16, 16)
    assert larger.fingerprint != digits.fingerprint and torch.equal(larger.train.labels, digits.train.labels)
    assert abs(larger.train.pixels.float().mean() - digits.train.pixels.float().mean()) < 1


def test_resizing_down_averages_and_equal_size_is_untouched():
    pixels = torch.tensor([[[[0, 100], [200, 101]]]], dtype=torch.uint8)
    assert resized(pixels, 2) is pixels
    assert resized(pixels, 1).tolist() == [[[[100]]]]  # 100.25 rounded
    assert resized(torch.full((1500, 1, 4, 4), 255, dtype=torch.uint8), 7).unique().tolist() == [255]


# ---------------------------------------------------------------- CIFAR


def test_cifar_needs_a_root_or_a_download():
    with pytest.raises(DataError, match=r"cifar10 needs --data-root FOLDER that holds cifar-10-batches-py/; get it from http"):
        open_set("cifar10", DataConfig(download=False), CPU)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"files of {name} are missing or damaged in .*first .*{spec_of(name).folders[0]}.*--data-root"):
        open_set(name, DataConfig(root=str(tmp_path), download=False), CPU)


def test_a_failed_download_says_so_in_one_line(tmp_path, monkeypatch):
    def fail(self):
        raise urllib.error.URLError("no route to host\nand more")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"the download failed \(.*no route to host.*--data-root FOLDER") as caught:
        open_set("cifar10", DataConfig(root=str(tmp_path)), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_download_leaves_no_folder_that_was_not_there(there, tmp_path, monkeypatch):
    root = tmp_path / "mistyped"
    if there:
        root.mkdir()

    def fail(self):
        Path(self.root).mkdir(exist_ok=True)
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match="no route to host"):
        open_set("cifar10", DataConfig(root=str(root)), CPU)
    assert root.exists() == there


def test_the_download_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root(spec_of("cifar10"), DataConfig()) == tmp_path / "delt" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert data_root(spec_of("cifar100"), DataConfig()) == tmp_path / "me" / ".cache" / "delt" / "data"


def test_the_root_may_be_the_folder_itself(tmp_path):
    config = DataConfig(root=str(tmp_path / "cifar-10-batches-py"))
    assert data_root(spec_of("cifar10"), config) == tmp_path


@pytest.fixture(scope="module")
def cifar_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, "restore_cifar10.py", str(root)], cwd=SHARED, check=True, env={"PYTHONDONTWRITEBYTECODE": "1"})
    return root


@needs_shared
def test_real_cifar10(cifar_root, monkeypatch):
    def forbidden(self):
        raise AssertionError("complete files are not downloaded again")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", forbidden)
    real = open_set("cifar10", DataConfig(root=str(cifar_root)), CPU)
    assert class_counts(real.train, 10) == [5000] * 10 and class_counts(real.test, 10) == [1000] * 10
    for channel in range(3):
        std, mean = torch.std_mean(real.train.pixels[:, channel].float() / 255)
        assert (real.info.mean[channel], real.info.std[channel]) == pytest.approx((mean.item(), std.item()), abs=1e-4)
    image, label = torchvision.datasets.CIFAR10(str(cifar_root), train=False)[17]
    assert torch.equal(real.test.pixels[17], torch.from_numpy(np.array(image)).permute(2, 0, 1)) and real.test.labels[17] == label
    assert torchvision.datasets.CIFAR10(str(cifar_root)).classes == list(real.info.classes)


@needs_shared
def test_a_damaged_cifar_file_is_named(cifar_root, tmp_path):
    shutil.copytree(cifar_root / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(DataError, match="1 files of cifar10 are missing or damaged in .*first .*data_batch_3"):
        open_set("cifar10", DataConfig(root=str(tmp_path), download=False), CPU)


# ---------------------------------------------------------------- folders


def test_a_folder_with_train_and_test(tmp_path):
    folder(tmp_path, {"cat": 3, "dog": 4}, "train")
    folder(tmp_path, {"cat": 2, "dog": 1}, "test")
    real = open_set(f"folder:{tmp_path}", DataConfig(), CPU)
    assert isinstance(real.train, TensorImages) and isinstance(real.test, TensorImages)
    info = real.info
    assert (info.classes, info.channels, info.size, info.flip) == (("cat", "dog"), 3, 16, True)
    assert real.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] and real.test.labels.tolist() == [0, 0, 1]
    expected = np.array(Image.open(tmp_path / "train" / "dog" / "002.png"))
    assert torch.equal(real.train.pixels[5], torch.from_numpy(expected).permute(2, 0, 1))
    values = real.train.pixels.double() / 255
    assert info.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert info.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())


def test_a_folder_without_a_test_part_is_split_by_class(tmp_path):
    folder(tmp_path, {"a": 10, "b": 20, "c": 2})
    real = open_set(f"folder:{tmp_path}", DataConfig(val_fraction=0.3), CPU)
    assert class_counts(real.train, 3) == [7, 14, 1] and class_counts(real.test, 3) == [3, 6, 1]
    seen = [image.numpy().tobytes() for images in (real.train, real.test) for image in images.pixels]
    assert len(set(seen)) == 32
    again = open_set(f"folder:{tmp_path}", DataConfig(val_fraction=0.3), CPU)
    assert again.fingerprint == real.fingerprint


def pixels_of(images):
    return {image.numpy().tobytes() for image in images.fetch(torch.arange(len(images)))}


def test_a_part_of_the_training_images_is_held_out_and_the_test_images_are_not_touched(tmp_path):
    folder(tmp_path / "own", {"a": 10, "b": 20}, "train")
    folder(tmp_path / "own", {"a": 3, "b": 3}, "val")
    name = f"folder:{tmp_path / 'own'}"
    whole, held = (open_set(name, DataConfig(hold_out=share), CPU) for share in (0.0, 0.3))
    assert class_counts(held.train, 2) == [7, 14] and class_counts(held.test, 2) == [3, 6]
    assert pixels_of(held.train) | pixels_of(held.test) == pixels_of(whole.train) and not pixels_of(held.train) & pixels_of(held.test)
    assert held.fingerprint != whole.fingerprint and held.info.mean != whole.info.mean, "nor does the normalisation see them"
    shutil.rmtree(tmp_path / "own" / "val" / "a")
    draw(tmp_path / "own" / "val" / "a" / "000.png", seed=99)
    assert open_set(name, DataConfig(hold_out=0.3), CPU).fingerprint == held.fingerprint, "whatever the test images are"


def test_held_out_images_of_a_folder_that_has_to_be_split_are_others_than_its_test_images(tmp_path):
    folder(tmp_path, {"a": 20, "b": 20})
    whole, held = (open_set(f"folder:{tmp_path}", DataConfig(val_fraction=0.5, hold_out=share), CPU) for share in (0.0, 0.5))
    assert class_counts(held.train, 2) == class_counts(held.test, 2) == [5, 5]
    assert pixels_of(held.train) | pixels_of(held.test) == pixels_of(whole.train)


def test_digits_that_are_held_out_are_a_class_s_own_whatever_classes_there_are():
    whole, held = (open_set("digits", DataConfig(hold_out=share), CPU) for share in (0.0, 0.2))
    some = open_set("digits", DataConfig(hold_out=0.2, classes=("7", "3")), CPU)
    assert len(held.train) + len(held.test) == len(whole.train)
    for digit, count, left in zip(range(10), class_counts(held.test, 10), class_counts(held.train, 10), strict=True):
        assert count == round(0.2 * (count + left)), digit
    assert torch.equal(some.test.pixels[some.test.labels == 0], held.test.pixels[held.test.labels == 7])


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    folder(tmp_path / "one", {"a": 4, "b": 4})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    prints = [open_set(f"folder:{tmp_path / name}", DataConfig(), CPU).fingerprint for name in ("one", "two")]
    assert prints[0] == prints[1]
    draw(tmp_path / "two" / "a" / "001.png", seed=12345)
    assert open_set(f"folder:{tmp_path / 'two'}", DataConfig(), CPU).fingerprint != prints[0]


def test_a_class_too_small_to_split_is_named(tmp_path):
    folder(tmp_path, {"a": 4, "lonely": 1})
    with pytest.raises(DataError, match="class 'lonely' in .* has 1 image"):
        open_set(f"folder:{tmp_path}", DataConfig(), CPU)


def test_a_grey_folder_has_one_channel_and_the_size_asked_for(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2}, size=(40, 30), grey=True)
    assert open_set(f"folder:{tmp_path}", DataConfig(), CPU).train.pixels.shape == (2, 1, 24, 24)
    assert open_set(f"folder:{tmp_path}", DataConfig(size=12), CPU).train.pixels.shape == (2, 1, 12, 12)


def test_a_bad_image_in_a_folder_is_named(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "001.png").write_text("<html>")
    with pytest.raises(DataError, match="b/001.png"):
        open_set(f"folder:{tmp_path}", DataConfig(), CPU)


def test_a_published_folder_takes_its_facts_from_the_table(tmp_path):
    spec = spec_of("imagenette")
    folder(tmp_path, dict.fromkeys(spec.classes, 2), "imagenette2/train", size=(40, 50))
    folder(tmp_path, dict.fromkeys(spec.classes, 1), "imagenette2/val", size=(40, 50))
    real = open_set("imagenette", DataConfig(root=str(tmp_path), size=32), CPU)
    assert (real.info.mean, real.info.std, real.info.floor, real.info.size) == (spec.mean, spec.std, spec.floor, 32)
    assert real.train.pixels.shape == (20, 3, 32, 32)


def test_a_large_set_is_streamed_and_holds_the_same_images(tmp_path, monkeypatch):
    folder(tmp_path, {"a": 3, "b": 3}, "train")
    folder(tmp_path, {"a": 1, "b": 1}, "val")
    name = f"folder:{tmp_path}"
    held = open_set(name, DataConfig(), CPU)
    monkeypatch.setattr(load, "HELD_BYTES", 8 * 3 * 16 * 16)  # exactly the size of this set
    large = open_set(name, DataConfig(), CPU)
    assert isinstance(large.train, StreamImages) and isinstance(large.test, StreamImages)
    assert large.info == held.info
    assert torch.equal(large.train.fetch(torch.arange(6)), held.train.pixels)
    assert large.fingerprint == open_set(name, DataConfig(), CPU).fingerprint


# ---------------------------------------------------------------- bad images, and those laid over white


def spoil(place: Path) -> dict[str, str]:
    """Bad files in a class folder, first and last by name, and what is said of each."""
    draw(place / "zz half.png", 0)
    (place / "zz half.png").write_bytes((place / "zz half.png").read_bytes()[:400])
    (place / "00 empty.jpg").write_bytes(b"")
    (place / "zz page.jpg").write_text("<html>")
    (place / "0 loop.png").symlink_to(place / "0 loop.png")
    os.mkfifo(place / "0 pipe.gif")
    return {
        "zz half.png": "image file is truncated",
        "00 empty.jpg": "the file is empty",
        "zz page.jpg": "it is none of JPEG, PNG, BMP, GIF, WEBP, TIFF, PPM",
        "0 loop.png": "too many levels of symbolic links",
        "0 pipe.gif": "it is a pipe or device, and no regular file",
    }


@pytest.fixture(params=["held", "streamed"])
def memory(request, monkeypatch, tmp_path_factory):
    if request.param == "streamed":
        monkeypatch.setattr(load, "HELD_BYTES", 0)
        monkeypatch.setenv("DELT_CACHE", str(tmp_path_factory.mktemp("cache")))
    return StreamImages if request.param == "streamed" else TensorImages


SKIP = DataConfig(on_bad_image="skip")


@pytest.mark.parametrize("parts", [("train", "val"), ("",)])
def test_skipped_images_might_as_well_not_be_there(tmp_path, memory, parts):
    for part in parts:
        folder(tmp_path / "good", {"ant": 7, "bee": 9}, part, size=(24, 20))
    shutil.copytree(tmp_path / "good", tmp_path / "mixed")
    said = spoil(tmp_path / "mixed" / parts[-1] / "bee")
    good = open_set(f"folder:{tmp_path / 'good'}", DataConfig(), CPU)
    mixed = open_set(f"folder:{tmp_path / 'mixed'}", SKIP, CPU)
    assert isinstance(mixed.train, memory) and isinstance(mixed.test, memory)
    assert mixed.fingerprint == good.fingerprint and mixed.info == replace(good.info, name=mixed.info.name)
    for one, other in ((mixed.train, good.train), (mixed.test, good.test)):
        everything = torch.arange(len(other))
        assert torch.equal(one.labels, other.labels) and torch.equal(one.fetch(everything), other.fetch(everything))
    below = f"{parts[-1]}/" if parts[-1] else ""
    assert list(mixed.notes.skipped) == [(f"{below}bee/{name}", said[name]) for name in sorted(said)]
    assert good.notes == Notes() and open_set(f"folder:{tmp_path / 'good'}", SKIP, CPU).notes == Notes()


@pytest.mark.parametrize("name", ["00 empty.jpg", "0 loop.png", "0 pipe.gif"])
def test_without_leave_a_bad_image_is_named(tmp_path, memory, name):
    folder(tmp_path, {"ant": 3, "bee": 3})
    for other in spoil(tmp_path / "bee").keys() - {name}:
        (tmp_path / "bee" / other).unlink()
    with pytest.raises(BadImage, match=f"cannot read the image .*bee/{name}: "):
        real = open_set(f"folder:{tmp_path}", DataConfig(size=8), CPU)
        real.train.fetch(torch.arange(len(real.train)))
        real.test.fetch(torch.arange(len(real.test)))


def test_the_size_is_that_of_the_images_that_are_left(tmp_path, memory):
    folder(tmp_path, {"ant": 3, "bee": 3}, size=(40, 40), grey=True)
    for number in range(6):
        (tmp_path / "ant" / f"0{number}.jpg").write_bytes(b"")
    assert shape_of(f"folder:{tmp_path}", SKIP) == (2, 1, 40)
    info = open_set(f"folder:{tmp_path}", SKIP, CPU).info
    assert (info.channels, info.size) == (1, 40)


def test_a_class_that_loses_all_its_images_is_named(tmp_path, memory):
    folder(tmp_path, {"ant": 3, "bee": 2, "cat": 2})
    for path in [*(tmp_path / "bee").iterdir(), *(tmp_path / "cat").iterdir()]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"all 2 images of class 'bee' \(and of 1 more classes\) in .* are bad, first bee/000.png"):
        open_set(f"folder:{tmp_path}", SKIP, CPU)
    chosen = replace(SKIP, classes=("ant", "cat"))
    with pytest.raises(DataError, match=r"all 2 images of class 'cat' in .* are bad, first cat/000.png: the file is empty; add good ones"):
        open_set(f"folder:{tmp_path}", chosen, CPU)
    draw(tmp_path / "cat" / "new.png", 1)
    with pytest.raises(DataError, match="class 'cat' in .* has 1 image to train on; a part to test on needs 2"):
        open_set(f"folder:{tmp_path}", chosen, CPU)


def test_a_part_that_is_not_wanted_may_be_bad(tmp_path):
    folder(tmp_path, {"ant": 3, "bee": 3, "cat": 3})
    spoil(tmp_path / "cat")
    assert open_set(f"folder:{tmp_path}", replace(SKIP, classes=("ant", "bee")), CPU).notes == Notes()


def test_images_laid_over_white_are_counted(tmp_path, memory, monkeypatch):
    folder(tmp_path, {"ant": 3, "bee": 3})
    for name in ("ant/a.png", "bee/b.webp", "bee/c.tif"):
        Image.new("RGBA", (16, 16), (9, 9, 9, 128)).save(tmp_path / name)
    Image.new("RGB", (16, 16)).save(tmp_path / "bee" / "d.jpg")
    looked, see = [], stream.see_through
    monkeypatch.setattr(stream, "see_through", lambda path: looked.append(Path(path).name) or see(path))
    assert open_set(f"folder:{tmp_path}", DataConfig(), CPU).notes == Notes(over_white=3)
    assert len(looked) == (10 if memory is TensorImages else 9) and ("d.jpg" in looked) == (memory is TensorImages)


# ---------------------------------------------------------------- splits and counts


def test_held_out_takes_the_share_of_each_class():
    labels = [0] * 100 + [1] * 10 + [2] * 2
    marked = held_out(list(range(112)), labels, 0.25)
    assert Counter(label for label, mark in zip(labels, marked, strict=True) if mark) == {0: 25, 1: 2, 2: 1}
    assert sum(held_out(list(range(4)), [0] * 4, 0.9)) == 3  # one is left to train on


def test_held_out_depends_on_the_keys_alone():
    keys, labels = [f"a/{i}.png" for i in range(40)], [0] * 40
    chosen = {key for key, mark in zip(keys, held_out(keys, labels, 0.25), strict=True) if mark}
    turned = held_out(keys[::-1], labels, 0.25)
    assert {key for key, mark in zip(keys[::-1], turned, strict=True) if mark} == chosen
    more = [*keys, "a/new.png"]
    with_more = {key for key, mark in zip(more, held_out(more, [0] * 41, 0.25), strict=True) if mark}
    assert len(with_more ^ chosen) <= 2
    assert chosen not in (set(keys[:10]), set(keys[-10:]))


def test_class_counts_count_absent_classes():
    assert class_counts(TensorImages(torch.zeros(3, 1, 1, 1), torch.tensor([0, 2, 2])), 4) == [1, 0, 2, 0]


# ---------------------------------------------------------------- without opening it


def test_the_shape_of_a_set_is_known_or_looked_for(tmp_path):
    assert shape_of("digits", DataConfig()) == (10, 1, 8) and shape_of("cifar10", DataConfig(size=16)) == (10, 3, 16)
    folder(tmp_path, {"cat": 3, "dog": 4}, "train", size=(20, 20))
    folder(tmp_path, {"cat": 1, "dog": 1}, "val", size=(20, 20))
    name = f"folder:{tmp_path}"
    real = open_set(name, DataConfig(), CPU)
    assert shape_of(name, DataConfig()) == (len(real.info.classes), real.info.channels, real.info.size)
    assert shape_of(name, DataConfig(size=8))[2] == 8
    with pytest.raises(DataError, match="is not a folder"):
        shape_of(f"folder:{tmp_path / 'nowhere'}", DataConfig())


def test_missing_files_are_noticed_without_reading_any(tmp_path, monkeypatch):
    require_files("digits", DataConfig())
    require_files("cifar10", DataConfig(root=str(tmp_path), download=True))
    require_files(f"folder:{folder(tmp_path / 'own', {'cat': 1, 'dog': 1})}", DataConfig())
    with pytest.raises(DataError, match=r"cifar10 is not in .*: give --data-root FOLDER that holds cifar-10-batches-py/, or allow"):
        require_files("cifar10", DataConfig(root=str(tmp_path), download=False))
    (tmp_path / "cifar-10-batches-py").mkdir()
    require_files("cifar10", DataConfig(root=str(tmp_path), download=False))
    with pytest.raises(DataError, match="tiny-imagenet is not in"):
        require_files("tiny-imagenet", DataConfig(root=str(tmp_path)))


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def failing(path, md5):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", failing)
    with pytest.raises(DataError, match="cannot read .*cifar-10-batches-py: permission denied"):
        open_set("cifar10", DataConfig(root=str(tmp_path), download=False), CPU)


def test_where_decoded_images_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DELT_CACHE", str(tmp_path / "own"))
    assert load.decoded_folder() == tmp_path / "own" / "decoded"
    monkeypatch.delenv("DELT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load.decoded_folder() == tmp_path / "delt" / "decoded"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert load.decoded_folder() == Path.home() / ".cache" / "delt" / "decoded"


# ---------------------------------------------------------------- some of the classes


def test_some_digits_in_an_order_of_their_own(digits):
    some = open_set("digits", DataConfig(classes=("7", "1", "3")), CPU)
    assert some.info.classes == ("7", "1", "3") and shape_of("digits", DataConfig(classes=("7", "1", "3"))) == (3, 1, 8)
    for part, whole in ((some.train, digits.train), (some.test, digits.test)):
        for label, digit in enumerate((7, 1, 3)):
            assert torch.equal(part.pixels[part.labels == label], whole.pixels[whole.labels == digit])
    turned = open_set("digits", DataConfig(classes=("1", "7", "3")), CPU)
    assert len({digits.fingerprint, some.fingerprint, turned.fingerprint}) == 3
    assert open_set("digits", DataConfig(classes=tuple("0123456789")), CPU).fingerprint == digits.fingerprint


@pytest.mark.parametrize(("count", "floor"), [(2, 90.0), (3, 90.0)])
def test_the_floor_of_few_digits_is_the_tables(count, floor):
    assert open_set("digits", DataConfig(classes=tuple("0123456789")[:count]), CPU).info.floor == floor


def test_the_floor_is_well_above_chance(tmp_path):
    names = [f"n{number}" for number in range(100)]
    folder(tmp_path, dict.fromkeys(names, 1), "imagenet-100/train")
    folder(tmp_path, dict.fromkeys(names, 1), "imagenet-100/val")
    floors = {k: open_set("imagenet-100", DataConfig(root=str(tmp_path), size=8, classes=tuple(names[:k])), CPU).info.floor for k in (2, 3)}
    assert floors == {2: 75.0, 3: 50.0}  # 40 for all
    assert open_set("imagenet-100", DataConfig(root=str(tmp_path), size=8), CPU).info.floor == 40.0


@pytest.mark.parametrize(("counts", "floor"), [((9, 1), 95.0), ((2, 1), 250 / 3), ((3, 3), 75.0), ((2, 1, 1), 75.0), ((5, 5, 5, 5), 37.5)])
def test_a_constant_answer_is_below_the_floor_however_many_images_a_class_has(tmp_path, counts, floor):
    names = [f"n{number}" for number in range(len(counts))]
    folder(tmp_path, dict.fromkeys(names, 2), "train")
    folder(tmp_path, dict(zip(names, counts, strict=True)), "test")
    found = open_set(f"folder:{tmp_path}", DataConfig(), CPU).info.floor
    assert found == pytest.approx(floor) and 100 * max(counts) / sum(counts) < found < 100


@pytest.mark.parametrize("parts", [("train", "val"), ("",)])
def test_some_classes_of_an_own_folder(tmp_path, parts, monkeypatch):
    for part in parts:
        folder(tmp_path, {"ant": 4, "bee": 5, "cat": 6, "dog": 1 if part == "" else 2}, part)
    name, config = f"folder:{tmp_path}", DataConfig(classes=("cat", "ant"))  # dog has too few images to split, and is not wanted
    some = open_set(name, config, CPU)
    assert some.info.classes == ("cat", "ant") and shape_of(name, config) == (2, 3, 16)
    assert class_counts(some.train, 2)[0] + (0 if parts[0] else class_counts(some.test, 2)[0]) == 6
    place = tmp_path / parts[0]
    drawn = {
        (label, np.array(Image.open(path)).tobytes()) for label, kind in enumerate(("cat", "ant")) for path in (place / kind).glob("*.png")
    }
    trained = list(zip(some.train.labels.tolist(), (x.permute(1, 2, 0).numpy().tobytes() for x in some.train.pixels), strict=True))
    assert set(trained) <= drawn and len(trained) == len(drawn) - (0 if parts[0] else len(some.test))
    monkeypatch.setattr(load, "HELD_BYTES", 0)  # streamed, too
    streamed = open_set(name, config, CPU)
    assert torch.equal(streamed.train.fetch(torch.arange(len(some.train))), some.train.pixels)
    assert streamed.fingerprint != open_set(name, DataConfig(classes=("ant", "cat")), CPU).fingerprint


def test_the_split_of_a_class_does_not_depend_on_the_others(tmp_path):
    folder(tmp_path, {"ant": 10, "bee": 10, "cat": 10})
    whole, some = (open_set(f"folder:{tmp_path}", DataConfig(classes=classes), CPU) for classes in ((), ("cat", "bee")))
    assert torch.equal(some.test.pixels[some.test.labels == 0], whole.test.pixels[whole.test.labels == 2])


def test_a_class_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    folder(tmp_path, {"ant": 2, "bee": 2})
    wrong, name = DataConfig(classes=("ant", "beee")), f"folder:{tmp_path}"
    for check in (lambda: open_set(name, wrong, CPU), lambda: require_files(name, wrong), lambda: shape_of(name, wrong)):
        with pytest.raises(ConfigError, match="unknown class of folder:.* 'beee': did you mean 'bee'"):
            check()
    folder(tmp_path / "x", {"ant": 2, "bee": 2, "cat": 2}, "train")
    folder(tmp_path / "x", {"ant": 2}, "val")
    with pytest.raises(DataError, match="test part of .* has no image of bee, cat"):
        open_set(f"folder:{tmp_path / 'x'}", DataConfig(classes=("bee", "cat")), CPU)


@needs_shared
def test_some_classes_of_real_cifar10(cifar_root):
    some = open_set("cifar10", DataConfig(root=str(cifar_root), classes=("truck", "cat")), CPU)
    whole = open_set("cifar10", DataConfig(root=str(cifar_root)), CPU)
    assert some.info.classes == ("truck", "cat") and class_counts(some.test, 2) == [1000, 1000] and some.info.floor == 75.0
    assert torch.equal(some.test.pixels[some.test.labels == 1], whole.test.pixels[whole.test.labels == 3])


def test_images_are_counted_before_a_set_is_opened(tmp_path):
    assert count_images("cifar10", DataConfig()) == (50_000, 10_000)
    assert count_images("cifar10", DataConfig(classes=("cat", "frog"))) == (10_000, 2_000)
    name = f"folder:{folder(tmp_path / 'a', {'cat': 6, 'dog': 6})}"
    assert count_images(name, DataConfig(val_fraction=1 / 3)) == (8, 4)
    folder(tmp_path / "b", {"cat": 3, "dog": 2}, "train")
    folder(tmp_path / "b", {"cat": 1, "dog": 1}, "test")
    assert count_images(f"folder:{tmp_path / 'b'}", DataConfig()) == (5, 2)
    assert count_images("cifar10", DataConfig(hold_out=0.1)) == (45_000, 5_000)
    assert count_images(f"folder:{tmp_path / 'b'}", DataConfig(hold_out=0.5)) == (2, 3)
