"""Weight files from elsewhere: none runs code, none takes more memory than it holds, and good ones are read."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from delt.artifacts import foreign
from delt.artifacts.foreign import check_header, read_state
from delt.artifacts.teacher import _check_published
from delt.errors import IntegrityError, TeacherError

STATE = {"module.weight": torch.arange(6.0).view(2, 3), "module.bias": torch.zeros(2)}


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return Path.touch, (self.canary,)


class Large:
    def __reduce__(self) -> tuple:
        return bytearray, (10**9,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_is_read_in_every_wrapping(zipped: bool, key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({key: STATE, "epoch": 3} if key else STATE, path, _use_new_zipfile_serialization=zipped)
    found = read_state(path)
    assert set(found) == {"weight", "bias"} and torch.equal(found["weight"], STATE["module.weight"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_is_never_run(zipped: bool, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even with the variable set that undoes torch's default."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    torch.save({"state_dict": {**STATE, "more": Evil(canary)}} if nested else Evil(canary), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TeacherError, match=r"weights\.pth was not opened: it holds code beside its tensors"):
        read_state(path)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(TeacherError):
        read_state(bare)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the fixture does nothing"


def test_the_command_line_runs_no_code_either(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Evil(canary), tmp_path / "weights.pth")
    command = [sys.executable, "-m", "delt", "squeeze", "digits", "--preset", "smoke", "--teacher-weights", str(tmp_path / "weights.pth")]
    done = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 2 and "was not opened: it holds code" in done.stderr and not canary.exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path, small = tmp_path / "plain.pth", tmp_path / "small.pth"
    torch.save({"weight": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert small.stat().st_size < 10_000
    with pytest.raises(TeacherError, match="it is compressed, as torch.save writes none"):
        read_state(small)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_memory_is_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": Large()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TeacherError, match=r"it would make a builtins\.bytearray of any size|it would make a __builtin__\.bytearray"):
        read_state(path)


def test_an_archive_with_something_before_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"another archive"
    with pytest.raises(TeacherError, match="something stands before or after its archive"):
        read_state(path)


def test_a_pickle_of_too_many_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "STEPS", 10)
    torch.save(STATE, tmp_path / "weights.pth")
    with pytest.raises(TeacherError, match="its pickle has more than 10 steps"):
        read_state(tmp_path / "weights.pth")


def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    with pytest.raises(IntegrityError, match="its header is to have 1,000,000,000 bytes; allowed are"):
        read_state(path)
    with pytest.raises(IntegrityError, match="cannot read"):
        check_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 100, b"text", b"\x80\x02."])
def test_damaged_files_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(TeacherError, match=r"weights\.pth"):
        read_state(tmp_path / "weights.pth")


def test_a_changed_file_in_torchs_cache_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "resnet18-f37072fd.pth"
    _check_published(place)  # nothing is there yet
    place.write_bytes(b"something else")
    with pytest.raises(TeacherError, match="is not what was published: its sha256 begins with"):
        _check_published(place)


def test_an_archive_that_lists_the_same_bytes_over_and_over_is_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.filelist += 1000 * [max(archive.infolist(), key=lambda entry: entry.file_size)]
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(TeacherError, match=r"x\.pth was not opened: it declares [0-9,]+ bytes and has"):
        read_state(tmp_path / "x.pth")
