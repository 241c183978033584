"""Streamed images equal held ones, in any order, batch and number of workers."""

import numpy as np
import pytest
import torch
from PIL import Image

from delt.data import stream as module
from delt.data.images import TensorImages
from delt.data.stream import CHUNK, StreamImages, over_white, spare_workers
from delt.errors import DataError

CPU = torch.device("cpu")
N = 2 * CHUNK + 7


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def paths(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("files")
    names = [folder / f"{i}.png" for i in range(N)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0))).save(name)
    return [str(name) for name in names]


def make(paths, workers=0):
    return StreamImages(paths, torch.arange(N) % 5, 3, 8, CPU, workers)


def test_fetch_follows_the_index(paths, pixels):
    index = torch.tensor([5, 0, 5, N - 1])
    out = make(paths).fetch(index)
    assert out.dtype == torch.uint8 and torch.equal(out, pixels[index])


def test_nothing_is_the_same_nothing_as_of_held_images(paths, pixels):
    none = torch.empty(0, dtype=torch.int64)
    assert make(paths).fetch(none).shape == (0, 3, 8, 8)
    for images in (make(paths), TensorImages(pixels, torch.arange(N))):
        assert [image.shape for image, _ in images.batches(none, 4)] == [(0, 3, 8, 8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_equal_those_of_held_images(paths, pixels, workers):
    index = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    held = TensorImages(pixels, torch.arange(N) % 5)
    streamed = list(make(paths, workers).batches(index, 32))
    expected = list(held.batches(index, 32))
    assert len(streamed) == len(expected)
    for (images, labels), (wanted, wanted_labels) in zip(streamed, expected, strict=True):
        assert torch.equal(images, wanted) and torch.equal(labels, wanted_labels)


def test_the_global_generator_is_left_alone(paths):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(make(paths).batches(torch.arange(N), 50))
    assert torch.equal(torch.get_rng_state(), before)


def test_held_is_the_same_set(paths, pixels):
    held = make(paths).held()
    assert torch.equal(held.pixels, pixels) and torch.equal(held.labels, torch.arange(N) % 5) and len(held) == N


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_gives_one_line_also_from_a_worker(paths, tmp_path, workers):
    bad = tmp_path / "bad one.jpg"
    bad.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        make([*paths[:100], str(bad), *paths[101:]], workers).fetch(torch.arange(N))
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_are_all_bad_files_with_their_causes(paths, tmp_path, workers):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    mixed = [str(bad), *paths[1:100], str(tmp_path / "gone.png"), *paths[101:]]
    assert make(mixed, workers).faults() == {0: "the file is empty", 100: "no such file or directory"}
    assert make(paths, workers).faults() == {}


@pytest.mark.parametrize(("workers", "headers"), [(0, 4096), (2, 10)])
def test_transparent_images_are_counted_and_a_bad_one_named(paths, tmp_path, workers, headers, monkeypatch):
    monkeypatch.setattr(module, "HEADERS", headers)
    Image.new("LA", (8, 8), (5, 5)).save(tmp_path / "clear.png")
    mixed = [*paths[:30], str(tmp_path / "clear.png"), *paths[30:50], str(tmp_path / "clear.png")]
    assert (over_white(mixed, workers), over_white(paths, workers), over_white([], workers)) == (2, 0, 0)
    with pytest.raises(DataError, match="gone.png: no such file"):
        over_white([*mixed, str(tmp_path / "gone.png")], workers)


def test_spare_workers_leave_a_core_to_the_training():
    from delt.runtime import cores

    assert spare_workers() == min(8, cores() - 1)
