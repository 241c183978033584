"""Files from elsewhere: none is opened before what it declares is seen to fit, and no code in one is run.

A few bytes can ask for any amount of memory or time: a compressed archive, one that lists the same bytes many times over, a
pickle that calls `bytearray(10**12)` or names a tuple of tuples of tuples, a header without an
end. What `torch.save`, safetensors and this package write does nothing of the kind.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from delt import storage
from delt.errors import IntegrityError, TeacherError

WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
ZIP = b"PK\x03\x04"  # how torch tells its archives from the pickles of old
PICKLES = 5  # of an old file, before its tensors: a magic number, the version, the system, the content, the tensors' names
STEPS = 500_000  # of a pickle, shared parts counted as often as they are used: 1,000 tensors and their optimizer take a fifth
HEADER = 16 * 1024**2  # bytes of a safetensors header; one tensor takes about 100
ALLOCATING = re.compile(r"\S+ (bytearray|\w*Tensor)")  # names that torch lets a pickle call, with any size
MARK, SLICE = pickletools.markobject, pickletools.stackslice
EFFECTS = {  # of each step of a pickle on its stack: does it take all down to a mark, how many values beside, how many it leaves
    step.name: (MARK in step.stack_before, sum(kind not in (MARK, SLICE) for kind in step.stack_before), len(step.stack_after))
    for step in pickletools.opcodes
}


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth or .pt file, without running code from it.

    Raises:
        TeacherError: no such file, one with code in it, one that declares more than it holds, or one without a state dict.
        IntegrityError: a damaged safetensors file.
    """
    if not path.is_file():
        raise TeacherError(f"no weights at {path}; give an existing .safetensors, .pth or .pt file, or a torchvision weight name")
    if path.suffix == ".safetensors":
        check_header(path)
        return _plain(storage.bytes_to_tensors(storage.read_bytes(path), path)[0], path)
    try:
        _check_declared(path)
        content = torch.load(path, map_location="cpu", weights_only=True)  # said in full: an environment variable can undo the default
    except TeacherError:
        raise
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"{path} was not opened: it holds code beside its tensors, or is damaged; where you trust it, save its state dict alone: "
            f"torch.save(torch.load('{path.name}', weights_only=False).state_dict(), 'plain.pth'), or its ['model'] for a dict"
        ) from error
    except Exception as error:  # a damaged file fails anywhere in the reader, with any exception
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise TeacherError(f"{path} cannot be read as a checkpoint ({reason}); it is damaged or of another kind, fetch it again") from error
    return _plain(content, path)


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header would take longer to read than its tensors.

    Raises:
        IntegrityError: it is larger than any network's, or the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(storage.LENGTH_BYTES), "little")
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror or error}") from error
    if length > HEADER:
        raise IntegrityError(f"{path} is not a readable safetensors file: its header is to have {length:,} bytes; allowed are {HEADER:,}")


def _check_declared(path: Path) -> None:
    """Refuse a checkpoint that asks for more than it holds, before torch believes it.

    Raises:
        TeacherError: what it asks for.
    """
    with open(path, "rb") as file:
        packed = file.read(len(ZIP)) == ZIP
        file.seek(0)
        if packed:
            _check_archive(file, path)
            return
        for _ in range(PICKLES):  # torch itself compares the tensors after them with the file, and takes no memory before
            if file.tell() < path.stat().st_size:
                _check_pickle(file, path)


def _check_archive(file: IO[bytes], path: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        entries, size = archive.infolist(), path.stat().st_size
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
            raise _refused(path, "it is compressed, as torch.save writes none")
        if (declared := sum(entry.file_size for entry in entries)) > size:
            raise _refused(path, f"it declares {declared:,} bytes and has {size:,}")
        if archive.comment or min(entry.header_offset for entry in entries):  # another reader could see another archive in it
            raise _refused(path, "something stands before or after its archive")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                with archive.open(entry) as inside:
                    _check_pickle(inside, path)


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """Read the steps of a pickle, without doing any, and count what each value on its stack is made of."""
    stack: list[int | None] = []  # None: a mark
    memo: dict[Any, int | None] = {}
    for number, (step, argument, _) in enumerate(pickletools.genops(file)):
        name = step.name
        if name == "GLOBAL" and ALLOCATING.fullmatch(str(argument)):
            raise _refused(path, f"it would make a {str(argument).replace(' ', '.')} of any size")
        to_mark, below, left = EFFECTS[name]
        weight = 1
        if to_mark:
            while (part := stack.pop()) is not None:
                weight += part
        for _ in range(below):
            weight += stack.pop() or 0
        if "PUT" in name:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = weight
        elif "GET" in name:
            weight = memo[argument] or 1
        if number > STEPS or weight > STEPS:
            raise _refused(path, f"its pickle has more than {STEPS:,} steps, shared parts counted as often as they are used")
        stack += [None if name == "MARK" else weight] * left


def _refused(path: Path, why: str) -> TeacherError:
    return TeacherError(f"{path} was not opened: {why}; where you trust it, save its state dict anew: torch.save(state_dict, 'plain.pth')")


def _plain(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefix that DataParallel puts on its names."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        held = f"keys {list(content)[:5]}" if isinstance(content, Mapping) else type(content).__name__
        raise TeacherError(f"{path} holds no state dict but {held}; save model.state_dict(), alone or under 'state_dict' or 'model'")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
