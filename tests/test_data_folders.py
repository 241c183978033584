"""Layouts of image folders: what is listed, in which order, and what is refused by name."""

from pathlib import Path

import pytest

from delt.data.folders import list_folder
from delt.data.specs import spec_of
from delt.errors import DataError


def touch(root: Path, *names: str) -> None:
    """Files with an image's name; listing opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def own(root: Path):
    return list_folder(spec_of(f"folder:{root}"), root)


def full_set(root: Path, name: str, classes: tuple[str, ...]) -> Path:
    for kind in classes:
        touch(root / name, f"train/{kind}/a.JPEG", f"val/{kind}/b.JPEG")
    return root


def test_train_and_val(tmp_path):
    touch(tmp_path, "train/dog/2.jpg", "train/dog/1.PNG", "train/cat/z.jpeg", "val/dog/x.webp", "val/cat/y.bmp", "test/cow/q.jpg")
    found = own(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.train.paths == ("train/cat/z.jpeg", "train/dog/1.PNG", "train/dog/2.jpg") and found.train.labels == (0, 1, 1)
    assert found.test.paths == ("val/cat/y.bmp", "val/dog/x.webp") and found.test.labels == (0, 1)
    assert all(Path(path).is_file() for path in found.full(found.train.paths))


def test_test_stands_in_for_val(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/b/2.jpg")
    assert own(tmp_path).test.paths == ("test/b/2.jpg",) and own(tmp_path).test.labels == (1,)


@pytest.mark.parametrize("below", ["", "train/"])
def test_without_a_test_part_there_is_none(tmp_path, below):
    touch(tmp_path, f"{below}a/1.jpg", f"{below}b/1.jpg")
    assert own(tmp_path).test is None and own(tmp_path).train.paths == (f"{below}a/1.jpg", f"{below}b/1.jpg")


def test_all_files_are_those_of_both_parts(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg")
    found = own(tmp_path)
    assert found.files.paths == ("train/a/1.jpg", "train/b/1.jpg", "val/b/2.jpg") and found.files.labels == (0, 1, 1)
    touch(tmp_path / "whole", "a/1.jpg", "b/1.jpg")
    assert own(tmp_path / "whole").files == own(tmp_path / "whole").train


def test_files_come_in_the_order_of_their_paths(tmp_path):
    """Folder by folder, as paths sort, and not letter by letter: the order decides what a seed draws."""
    touch(tmp_path, "a/x-1/1.jpg", "a/x/2.jpg", "a/x.jpg", "a/x/1.jpg", "a/10.jpg", "a/9.jpg", "b/1.jpg")
    paths = own(tmp_path).train.paths
    assert list(paths) == [path.as_posix() for path in sorted(map(Path, paths))] != sorted(paths)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "a/.hidden.jpg", "a/notes.txt", "a/Thumbs.db", ".ipynb_checkpoints/1.jpg", "a/.git/2.jpg")
    touch(tmp_path, "stray.jpg", "a/deep er/2 ü.jpg")
    assert own(tmp_path).classes == ("a", "b")
    assert own(tmp_path).train.paths == ("a/1.jpg", "a/deep er/2 ü.jpg", "b/1.jpg")


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert own(tmp_path).train.paths == ("a/1.jpg", "b/1.jpg")


def test_tiny_imagenet_as_published(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    kinds = [f"n{i:08d}" for i in range(200)]
    for kind in kinds:
        touch(root, f"train/{kind}/images/{kind}_0.JPEG", f"train/{kind}/{kind}_boxes.txt")
    rows = [(f"val_{i}.JPEG", kinds[(7 * i) % 200]) for i in range(200)]
    touch(root, "wnids.txt", "words.txt", "test/images/test_0.JPEG", *(f"val/images/{name}" for name, _ in rows))
    (root / "val" / "val_annotations.txt").write_text("".join(f"{name}\t{kind}\t0\t0\t63\t63\n" for name, kind in rows))
    found = list_folder(spec_of("tiny-imagenet"), tmp_path)
    assert found.classes == tuple(kinds) and len(found.train) == 200
    assert {Path(path).name: kinds[label] for path, label in zip(found.test.paths, found.test.labels, strict=True)} == dict(rows)
    assert list_folder(spec_of("tiny-imagenet"), root) == found  # the folder itself may be named too

    (root / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match="line 4: no image 'val_3.JPEG'"):
        list_folder(spec_of("tiny-imagenet"), tmp_path)


def test_a_named_set_is_found_below_the_root_or_at_it(tmp_path):
    classes = spec_of("imagenette").classes
    full_set(tmp_path, "imagenette2-160", classes)
    found = list_folder(spec_of("imagenette"), tmp_path)
    assert found.root == tmp_path / "imagenette2-160" and found.classes == classes
    assert list_folder(spec_of("imagenette"), found.root) == found


def test_a_named_set_must_have_its_classes(tmp_path):
    woof, nette = spec_of("imagewoof"), spec_of("imagenette")
    full_set(tmp_path, "", nette.classes)
    with pytest.raises(DataError, match="does not hold the classes of imagewoof: missing n02086240, .*not of it n01440764"):
        list_folder(woof, tmp_path)
    with pytest.raises(DataError, match="holds 10 classes; imagenet-100 has 100"):
        list_folder(spec_of("imagenet-100"), tmp_path)
    for path in (tmp_path / "val" / nette.classes[4]).iterdir():
        path.unlink()
    (tmp_path / "val" / nette.classes[4]).rmdir()
    with pytest.raises(DataError, match="val lacks the class 'n03028079'"):
        list_folder(nette, tmp_path)


def test_a_missing_set_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"imagenet-1k is not in .*: looked for .*imagenet/train.*--data-root.*image-net\.org"):
        list_folder(spec_of("imagenet-1k"), tmp_path)


def test_a_named_set_is_never_split(tmp_path):
    touch(tmp_path, *(f"train/{kind}/a.jpg" for kind in spec_of("imagewoof").classes))
    with pytest.raises(DataError, match="imagewoof has no val/ in"):
        list_folder(spec_of("imagewoof"), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.jpg", "train/b/readme.txt", "train/c/x.txt", "val/a/1.jpg"], r"no images in .*train/b \(and 1 more\)"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/notes.txt"], "no images in .*val/b"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/zebra/1.jpg"], "a class that .*train lacks: 'zebra'"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/ILSVRC_1.jpg"], "val holds no class folders; sort its images"),
        (["train/a/1.jpg"], "one class folder, 'a'"),
        (["val/a/1.jpg", "val/b/1.jpg"], "has val/ but no train/"),
        (["1.jpg", "2.jpg"], "holds no class folders"),
    ],
)
def test_wrong_folders_are_named(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=message):
        own(tmp_path)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        own(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../../secret.png", "../secret.png", "/etc/hostname", "..", "", "x" * 300, "a\0b"])
def test_an_annotation_cannot_lead_out_of_its_folder(name, tmp_path):
    from delt.data.folders import read_part

    part = tmp_path / "val"
    (part / "images").mkdir(parents=True)
    for place in (tmp_path, part):
        (place / "secret.png").write_bytes(b"x")
    (part / "val_annotations.txt").write_text(f"{name}\tcat\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="line 1: no image"):
        read_part(tmp_path, part)


def test_annotations_that_name_nothing_are_refused(tmp_path):
    from delt.data.folders import read_part

    (tmp_path / "val_annotations.txt").touch()
    with pytest.raises(DataError, match=r"val_annotations\.txt names no image; unpack again"):
        read_part(tmp_path, tmp_path)
