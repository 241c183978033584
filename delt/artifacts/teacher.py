"""The teacher: a frozen network with the card that says what it knows, kept as NAME.safetensors beside NAME.json.

A teacher carries the normalisation and the class order of its data; every later stage uses these. Published weights
come in through `load_weights`, which never runs code from a file.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delt import storage
from delt.artifacts.foreign import check_header, read_state
from delt.data.images import DataInfo
from delt.errors import IntegrityError, TeacherError, unknown
from delt.models import zoo

FILES = (".safetensors", ".pth", ".pt", ".pth.tar")


@dataclass(frozen=True)
class TeacherCard:
    """What a teacher is and what it was made from."""

    arch: str
    width: int | None
    classes: tuple[str, ...]  # in the order of the logits
    channels: int
    size: int  # pixels per side
    mean: tuple[float, ...]  # per channel, of pixels in 0 .. 1
    std: tuple[float, ...]
    flip: bool  # whether a mirror image is still of its class
    dataset: str
    accuracy: float  # top-1 in % on the test images, or on those that are held out
    source: str  # "trained", or the file or weight name that was loaded
    fingerprint: str  # of the training data, "" where unknown
    config: dict[str, Any]  # the teacher settings

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TeacherCard:
        """The card in a JSON object, whose lists become tuples; entries that are no fields are passed over.

        Raises:
            TeacherError: a field is missing or of the wrong type.
        """
        if not isinstance(record, Mapping):
            raise TeacherError(f"not a teacher's card but {type(record).__name__}; give the .json that was saved with the weights")
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in record]
        if missing:
            raise TeacherError(f"not a teacher's card: {', '.join(missing)} are missing; give the .json that was saved with the weights")
        values: dict[str, Any] = {name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in names}
        wrong = [f"{name} is {values[name]!r}" for name, kind in typing.get_type_hints(cls).items() if not _is(values[name], kind)]
        if wrong:
            raise TeacherError(f"not a teacher's card: {'; '.join(wrong)}; give the .json that was saved with the weights")
        return cls(**values)


@dataclass(eq=False)
class Teacher:
    """A network in evaluation mode whose weights take no gradient. Images are normalised float [N,C,H,W] by its card.

    Between processes it travels as its weights and its card, and arrives on the CPU.
    """

    model: nn.Module
    card: TeacherCard
    convolutions: dict[str, Tensor] = field(default_factory=dict, repr=False)  # what they saw, where it was measured (squeeze.remember)
    _digest: str = field(default="", init=False, repr=False)  # once it was asked for

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)

    def __reduce__(self) -> tuple[Callable[..., Teacher], tuple[bytes, TeacherCard, dict[str, Tensor]]]:
        return Teacher.from_bytes, (self.to_bytes(), self.card, {name: value.cpu() for name, value in self.convolutions.items()})

    def to(self, device: torch.device | str) -> Teacher:
        """Move to a device, in place."""
        self.model.to(device)
        return self

    def logits(self, images: Tensor) -> Tensor:
        """Logits [N,K]; the gradient flows to the images."""
        out: Tensor = self.model(images)
        return out

    def features(self, images: Tensor) -> Tensor:
        """Pooled output [N,D]; the gradient flows to the images."""
        return zoo.features(self.model, images)

    def to_bytes(self) -> bytes:
        """The weights and statistics as a safetensors file; equal weights, equal bytes."""
        return storage.tensors_to_bytes(self.model.state_dict())

    @classmethod
    def from_bytes(cls, data: bytes, card: TeacherCard, convolutions: Mapping[str, Tensor] | None = None) -> Teacher:
        """The teacher that `to_bytes` wrote, on the CPU.

        Raises:
            TeacherError: the weights do not fit the card.
        """
        model = zoo.build(card.arch, len(card.classes), card.channels, card.size, card.width)
        tensors, _ = storage.bytes_to_tensors(data)
        fill(model, tensors, card.arch, len(card.classes))
        return cls(model, card, dict(convolutions or {}))

    def digest(self) -> str:
        """sha256 over `to_bytes`: equal weights, equal digest. Computed once, since the weights are frozen."""
        self._digest = self._digest or storage.sha256_bytes(self.to_bytes())
        return self._digest

    def save(self, folder: Path | str, name: str = "teacher") -> Path:
        """Write NAME.safetensors and NAME.json (the card and the sha256 of the weights, sealed) into a folder; return the first."""
        path, data = Path(folder) / f"{name}.safetensors", self.to_bytes()
        storage.write_bytes(path, data)
        storage.write_sealed(path.with_name(f"{name}.json"), {**dataclasses.asdict(self.card), "sha256": storage.sha256_bytes(data)})
        return path

    @classmethod
    def load(cls, path: Path | str) -> Teacher:
        """Read a saved teacher from its .safetensors file, from a folder that holds one, or from a run folder.

        Raises:
            TeacherError: nothing there, several and none named teacher, no card beside the weights, or they do not fit.
            IntegrityError: the card was changed, or the weights are not those that were saved with it.
        """
        file = file_of(Path(path).expanduser())
        card = file.with_name(f"{file.name.removesuffix('.safetensors')}.json")
        if not card.is_file():
            raise TeacherError(f"{file} has no card {card.name} beside it; give a teacher that a run saved, or load it as plain weights")
        check_header(file)
        record, data = storage.read_sealed(card), storage.read_bytes(file)
        found, expected = storage.sha256_bytes(data), record.get("sha256")
        if found != expected:
            raise IntegrityError(f"{file} is not what {card.name} says: expected sha256 {expected}, found {found}")
        return cls.from_bytes(data, TeacherCard.from_json(record))


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as the card's fields name them; a bool is no number, and a whole number is a float too."""
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(part, typing.get_args(kind)[0]) for part in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict)
    plain = typing.get_args(kind) or (kind,)
    plain += (int,) if float in plain else ()
    return isinstance(value, plain) and (bool in plain or not isinstance(value, bool))


def check_classes(card: TeacherCard, info: DataInfo) -> None:
    """Refuse a teacher that was made for other classes, another class order, or other images.

    Raises:
        TeacherError: naming the first three classes that differ, or the channels or size.
    """
    fix = "load a teacher of this data set, or leave teacher_weights out to train one"
    _check_fit(card, info.classes, (info.channels, info.size, info.size), "the data set", fix)


def check_set(card: TeacherCard, classes: tuple[str, ...], images: Tensor) -> None:
    """Refuse a synthetic set, uint8 [N,C,H,W], of other classes, in another class order, or of other images than a teacher's.

    Raises:
        TeacherError: as `check_classes`.
    """
    _check_fit(card, classes, tuple(images.shape[1:]), "the synthetic set", "give the teacher that the set was made with")


def _check_fit(card: TeacherCard, classes: tuple[str, ...], shape: tuple[int, ...], what: str, fix: str) -> None:
    if len(card.classes) != len(classes):
        raise TeacherError(f"{_count(len(card.classes), len(classes), what)}; {fix}")
    pairs = enumerate(zip(classes, card.classes, strict=True))
    differ = [f"class {k} is '{data}' in {what} and '{own}' in the teacher" for k, (data, own) in pairs if data != own]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise TeacherError(f"{', '.join(differ[:3])}{more}; {fix}")
    if (card.channels, card.size, card.size) != shape:
        own, data = f"{card.channels} x {card.size} x {card.size}", " x ".join(map(str, shape))
        raise TeacherError(f"the teacher sees images of {own} values, {what} has {data}; {fix}")


def load_weights(source: str, arch: str, width: int | None, info: DataInfo) -> nn.Module:
    """A network for this data set with weights from elsewhere.

    Args:
        source: a .safetensors, .pth or .pt file that holds a state dict, or a torchvision weight name such as
            IMAGENET1K_V1, which is downloaded where it is not in torch's cache.

    Raises:
        TeacherError: no such file or name, no download, a file with code in it, or weights that do not fit.
        ConfigError: the architecture does not exist or cannot take these images.
    """
    model = zoo.build(arch, len(info.classes), info.channels, info.size, width)
    state = read_state(Path(source)) if source.endswith(FILES) else _download(source, arch)
    fill(model, state, arch, len(info.classes))
    return model


def fill(model: nn.Module, state: Mapping[str, Tensor], arch: str, classes: int) -> None:
    """Copy a state dict into a network, all or nothing.

    Tensor by tensor, since a plain file lacks the version marks that `load_state_dict` asks of some networks. BatchNorm
    counters may be missing: old checkpoints have none.

    Raises:
        TeacherError: keys are missing or unexpected, or shapes differ; the first of each kind is named. Or a value is not
            finite.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    differ = [name for name in own if name in state and state[name].shape != own[name].shape]
    shapes = [f"{name} is {_shape(state[name])} for {_shape(own[name])}" for name in differ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    wrong = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names]
    if wrong:
        raise TeacherError(f"the weights do not fit {arch} for {classes} classes: {_classes_in(state, own, classes)}{'; '.join(wrong)}")
    if spoiled := [name for name in own if name in state and not _is_sound(name, state[name])]:
        raise TeacherError(
            f"{spoiled[0]} holds values that are not finite, or variances below zero, and so do {len(spoiled) - 1} more tensors: "
            "the training of these weights went wrong; take others"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in state:
                tensor.copy_(state[name])


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Whether a network can compute with these values."""
    return bool(torch.isfinite(tensor).all()) and not (name.endswith("running_var") and bool((tensor < 0).any()))


def _classes_in(state: Mapping[str, Tensor], own: Mapping[str, Tensor], classes: int) -> str:
    """The sentence about the number of classes, where the last layer's differs from the data set's."""
    last = list(own)[-1]  # the head's weight or bias: its first axis counts the classes
    given = len(state[last]) if last in state and state[last].ndim else classes
    return "" if given == classes else f"{_count(given, classes)}; "


def _count(teacher: int, data: int, what: str = "the data set") -> str:
    return f"a teacher for {teacher} classes, {what} has {data}"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a scalar"


def file_of(path: Path) -> Path:
    """The weights that a path means: this file, the one of a folder, or a run folder's teacher.

    Raises:
        TeacherError: there are none, or several of which none is named teacher.
    """
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors"))
    for named in (path / "teacher.safetensors", path / "teachers" / "teacher.safetensors"):  # the second: a run folder was given
        if named.is_file():
            return named
    if len(found) == 1:
        return found[0]
    if found:
        raise TeacherError(f"{path} holds several teachers ({', '.join(file.name for file in found)}); name one of these files")
    raise TeacherError(f"no teacher at {path}; looked for this file, or a .safetensors file in this folder")


def _download(name: str, arch: str) -> dict[str, Tensor]:
    """The state dict of a torchvision weight name, from torch's cache or its address."""
    if arch in zoo.CONVNETS:
        raise TeacherError(f"teacher_weights is '{name}', but {arch} has no published weights; give a {', '.join(FILES)} file")
    from torchvision.models import get_model_weights

    weights = get_model_weights(arch)
    if name not in weights.__members__:
        raise unknown(f"weight name for {arch} (files end in {', '.join(FILES)})", name, weights.__members__, TeacherError)
    url = weights[name].url
    place = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    _check_published(place)
    try:
        state = weights[name].get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise TeacherError(f"{arch} {name} could not be fetched from {url} ({error}); put the file at {place}") from error
    return {_today(key): value for key, value in state.items()}


def _check_published(place: Path) -> None:
    """Refuse a file in torch's cache that is not the published one: torchvision checks what it fetches, not what it finds.

    Raises:
        TeacherError: its hash is not that in its name.
    """
    expected = re.search(r"-([0-9a-f]{8,})\.", place.name)
    if expected and place.is_file() and not (found := storage.sha256_file(place)).startswith(expected[1]):
        raise TeacherError(f"{place} is not what was published: its sha256 begins with {found[:8]}; remove it, and it is fetched again")


def _today(key: str) -> str:
    """torchvision's DenseNet files still call `norm1` of a dense layer `norm.1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key)
