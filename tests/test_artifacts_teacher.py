import argparse
import dataclasses
import json
import pickle
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from delt.artifacts.teacher import Teacher, TeacherCard, check_classes, load_weights
from delt.data.images import DataInfo
from delt.errors import IntegrityError, TeacherError
from delt.models import zoo

CLASSES = ("cat", "dog", "hen", "owl")
CARD = TeacherCard(
    arch="convnet3",
    width=8,
    classes=CLASSES,
    channels=1,
    size=8,
    mean=(0.5,),
    std=(0.25,),
    flip=True,
    dataset="pets",
    accuracy=97.5,
    source="trained",
    fingerprint="abc",
    config={"epochs": 3, "weights": None},
)
INFO = DataInfo("pets", CLASSES, 1, 8, (0.5,), (0.25,), flip=True, floor=50.0)


def teacher(seed: int = 0, arch: str = "convnet3", width: int | None = 8) -> Teacher:
    model = zoo.build(arch, 4, 1, 8, width, generator_seed=seed)
    model(pictures(16))  # moves the BatchNorm statistics away from their start
    return Teacher(model, dataclasses.replace(CARD, arch=arch, width=width))


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_teacher_is_frozen_and_in_evaluation_mode() -> None:
    made = teacher()
    before = made.to_bytes()
    assert not any(module.training for module in made.model.modules())
    assert not any(parameter.requires_grad for parameter in made.model.parameters())
    images = pictures().requires_grad_()
    made.logits(images).square().sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert made.to_bytes() == before  # nor do the statistics move


def test_logits_are_the_head_of_the_features() -> None:
    made = teacher()
    head: Any = made.model.head
    torch.testing.assert_close(head(made.features(pictures())), made.logits(pictures()))
    assert made.to("cpu") is made


@pytest.mark.parametrize(("arch", "width"), [("convnet3", 8), ("resnet18", 4), ("mnasnet0_5", None)])
def test_saved_teacher_comes_back_bit_equal(arch: str, width: int | None, tmp_path: Path) -> None:
    made = teacher(arch=arch, width=width)
    path = made.save(tmp_path / "teachers")
    assert sorted(file.name for file in path.parent.iterdir()) == ["teacher.json", "teacher.safetensors"]
    for source in (path, path.parent, str(path)):
        loaded = Teacher.load(source)
        assert loaded.card == made.card
        assert loaded.digest() == made.digest()
        assert torch.equal(loaded.logits(pictures()), made.logits(pictures()))
    assert json.loads(path.with_suffix(".json").read_text())["classes"] == list(CLASSES)


def test_digest_tells_weights_apart_and_is_the_files() -> None:
    assert teacher(0).digest() == teacher(0).digest()
    assert teacher(0).digest() != teacher(1).digest()


def test_the_digest_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = teacher()
    first = made.digest()
    monkeypatch.setattr(Teacher, "to_bytes", lambda self: pytest.fail("asked again"))
    assert made.digest() == first
    monkeypatch.undo()
    assert dataclasses.replace(made, card=CARD).digest() == pickle.loads(pickle.dumps(made)).digest() == first


@pytest.mark.parametrize("change", [("0.25", "0.26"), ("97.5", "99.5"), ("true", "false"), ('"owl"', '"elk"'), ('"seal"', '"sea"')])
def test_an_edited_card_is_noticed(change: tuple[str, str], tmp_path: Path) -> None:
    path = teacher().save(tmp_path)
    card = path.with_suffix(".json")
    assert card.read_text().count(change[0]) == 1
    card.write_text(card.read_text().replace(*change))
    with pytest.raises(IntegrityError, match=r"teacher\.json is damaged"):
        Teacher.load(path)


WRONG = [("arch", 3), ("width", "8"), ("width", True), ("classes", "abcd"), ("classes", [1, 2]), ("channels", None), ("size", 8.0)]
WRONG += [("mean", 0.5), ("mean", ["x"]), ("std", None), ("flip", 1), ("dataset", []), ("accuracy", "97"), ("config", [])]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_card_of_wrong_types_is_refused(name: str, value: Any) -> None:
    record = {**dataclasses.asdict(CARD), "mean": [0.5], "std": [1], "width": None, "accuracy": 97}
    assert TeacherCard.from_json(record).accuracy == 97
    with pytest.raises(TeacherError, match=f"not a teacher's card: {name} is "):
        TeacherCard.from_json({**record, name: value})


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{", ""])
def test_a_card_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    path = teacher().save(tmp_path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(IntegrityError):
        Teacher.load(path)
    with pytest.raises(TeacherError, match="not a teacher's card but list"):
        TeacherCard.from_json([])  # type: ignore[arg-type]


def test_teacher_travels_as_a_pickle_without_code_of_its_network() -> None:
    made = teacher()
    data = pickle.dumps(made)
    arrived = pickle.loads(data)
    assert arrived.card == made.card
    assert torch.equal(arrived.logits(pictures()), made.logits(pictures()))
    assert not any(parameter.requires_grad for parameter in arrived.model.parameters())
    assert b"torch.nn" not in data


def test_folder_with_several_teachers(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no teacher at"):
        Teacher.load(tmp_path)
    teacher(0).save(tmp_path, "resnet.a")
    assert Teacher.load(tmp_path).digest() == teacher(0).digest()
    teacher(1).save(tmp_path, "second")
    with pytest.raises(TeacherError, match=r"several teachers \(resnet.a.safetensors, second.safetensors\)"):
        Teacher.load(tmp_path)
    teacher(2).save(tmp_path)
    assert Teacher.load(tmp_path).digest() == teacher(2).digest()
    assert Teacher.load(tmp_path / "second.safetensors").digest() == teacher(1).digest()


def test_incomplete_and_changed_files(tmp_path: Path) -> None:
    path = teacher().save(tmp_path)
    other = teacher(1).to_bytes()
    path.write_bytes(other)
    with pytest.raises(IntegrityError, match="expected sha256"):
        Teacher.load(path)
    card = path.with_suffix(".json")
    record = {name: value for name, value in json.loads(card.read_text()).items() if name != "mean"}
    with pytest.raises(TeacherError, match="not a teacher's card: mean"):
        TeacherCard.from_json(record)
    card.unlink()
    with pytest.raises(TeacherError, match=r"has no card teacher\.json"):
        Teacher.load(path)


def test_card_that_does_not_fit_its_weights() -> None:
    with pytest.raises(TeacherError, match="a teacher for 4 classes, the data set has 3"):
        Teacher.from_bytes(teacher().to_bytes(), dataclasses.replace(CARD, classes=CLASSES[:3]))


def changed(**values: Any) -> DataInfo:
    return dataclasses.replace(INFO, **values)


def test_check_classes() -> None:
    check_classes(CARD, INFO)
    swapped = ("cat", "hen", "dog", "owl")
    with pytest.raises(TeacherError, match="^class 1 is 'hen' in the data set and 'dog' in the teacher, class 2 is 'dog'"):
        check_classes(CARD, changed(classes=swapped))
    with pytest.raises(TeacherError) as caught:
        check_classes(CARD, changed(classes=("a", "b", "c", "d")))
    assert "class 2" in str(caught.value) and "class 3" not in str(caught.value) and "1 more" in str(caught.value)
    with pytest.raises(TeacherError, match="a teacher for 4 classes, the data set has 5"):
        check_classes(CARD, changed(classes=(*CLASSES, "yak")))
    for values in ({"channels": 3}, {"size": 16}):
        with pytest.raises(TeacherError, match="the teacher sees images of 1 x 8 x 8 values"):
            check_classes(CARD, changed(**values))


def wrapped(state: dict[str, torch.Tensor], form: str) -> Any:
    prefixed = {f"module.{name}": value for name, value in state.items()}
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    forms = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"state_dict": prefixed},
        "old": old,
        "half": {k: v.half() for k, v in state.items()},
    }
    return forms[form]


@pytest.mark.parametrize("form", ["plain", "model", "state_dict", "old", "half"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar"])
def test_checkpoints_of_every_form(form: str, suffix: str, tmp_path: Path) -> None:
    path, made = tmp_path / f"weights{suffix}", teacher()
    torch.save(wrapped(made.model.state_dict(), form), path)
    model: Any = load_weights(str(path), "convnet3", 8, INFO).eval()
    torch.testing.assert_close(model(pictures()), made.logits(pictures()), atol=1e-2 if form == "half" else 0, rtol=0)
    assert model.head.weight.dtype == torch.float32


def test_safetensors_state_dict(tmp_path: Path) -> None:
    made = teacher()
    safetensors.torch.save_file(made.model.state_dict(), tmp_path / "x.safetensors")
    model = load_weights(str(tmp_path / "x.safetensors"), "convnet3", 8, INFO).eval()
    assert torch.equal(model(pictures()), made.logits(pictures()))


class Trap:
    """Runs code where a pickle of it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code from a weight file was run')",)


@pytest.mark.parametrize("content", [Trap(), {"model": {}, "args": argparse.Namespace(lr=0.1)}, zoo.build("convnet3", 4, 1, 8, 8)])
def test_code_is_never_run(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save(content, path)
    with pytest.raises(TeacherError, match=r"was not opened: it holds code beside its tensors.*torch\.save"):
        load_weights(str(path), "convnet3", 8, INFO)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(TeacherError, match="cannot be read as a checkpoint|was not opened: .* or is damaged"):
        load_weights(str(tmp_path / "x.pth"), "convnet3", 8, INFO)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match="not a readable safetensors file"):
        load_weights(str(tmp_path / "x.safetensors"), "convnet3", 8, INFO)


@pytest.mark.parametrize(("content", "held"), [({"epoch": 3}, r"keys \['epoch'\]"), ([1, 2], "list"), ({}, r"keys \[\]")])
def test_checkpoint_without_a_state_dict(content: Any, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(TeacherError, match=f"holds no state dict but {held}"):
        load_weights(str(tmp_path / "x.pth"), "convnet3", 8, INFO)


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    state = zoo.build("convnet3", 100, 1, 8, 8).state_dict()
    torch.save(state, path)
    shapes = r"2 of another shape \(first: head.weight is 100 x 8 for 4 x 8\)"
    with pytest.raises(TeacherError, match=f"a teacher for 100 classes, the data set has 4; {shapes}"):
        load_weights(str(path), "convnet3", 8, INFO)
    state = teacher().model.state_dict()
    state["extra"] = state.pop("blocks.1.weight")
    torch.save(state, path)
    with pytest.raises(TeacherError, match=r"1 missing \(first: blocks.1.weight\); 1 unexpected \(first: extra\)"):
        load_weights(str(path), "convnet3", 8, INFO)


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no weights at"):
        load_weights(str(tmp_path / "none.pth"), "convnet3", 8, INFO)
    with pytest.raises(TeacherError, match="convnet3 has no published weights"):
        load_weights("IMAGENET1K_V1", "convnet3", 8, INFO)
    with pytest.raises(TeacherError, match=r"unknown weight name for resnet18 .*'IMAGENET1K_V7': did you mean 'IMAGENET1K_V1'"):
        load_weights("IMAGENET1K_V7", "resnet18", None, INFO)


def published(monkeypatch: pytest.MonkeyPatch, answer: Any) -> dict[str, Any]:
    """Stand in for the download; returns the arguments that it was called with."""
    seen: dict[str, Any] = {}

    def fetch(url: str, **arguments: Any) -> Any:
        seen.update(arguments, url=url)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    return seen


def test_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    info = changed(classes=tuple(map(str, range(1000))), channels=3, size=96)
    source = zoo.build("resnet18", 1000, 3, 96, generator_seed=8).eval()
    seen = published(monkeypatch, source.state_dict())
    model = load_weights("IMAGENET1K_V1", "resnet18", None, info).eval()
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), source(images))
    assert seen["weights_only"] is True and seen["map_location"] == "cpu" and seen["check_hash"] is True
    with pytest.raises(TeacherError, match="a teacher for 1000 classes, the data set has 10"):
        load_weights("IMAGENET1K_V1", "resnet18", None, changed(classes=tuple("abcdefghij"), channels=3, size=96))


def test_old_names_in_published_densenets(monkeypatch: pytest.MonkeyPatch) -> None:
    info = changed(channels=3, size=96)
    state = zoo.build("densenet121", 4, 3, 96, generator_seed=8).state_dict()
    old = {re.sub(r"(denselayer.*)([12])(\.[a-z_]+)$", r"\1.\2\3", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.running_mean" in old
    assert set(old) != set(state)
    published(monkeypatch, old)
    loaded = load_weights("IMAGENET1K_V1", "densenet121", None, info).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_failed_download_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, urllib.error.URLError("no route"))
    with pytest.raises(TeacherError, match="resnet18 IMAGENET1K_V1 could not be fetched from https://.*no route") as caught:
        load_weights("IMAGENET1K_V1", "resnet18", None, changed(channels=3, size=96))
    assert re.search(r"put the file at .*checkpoints.resnet18-f37072fd\.pth$", str(caught.value))


@pytest.mark.parametrize(("name", "value"), [("head.weight", float("nan")), ("head.bias", float("inf")), ("running_var", -1.0)])
def test_weights_that_cannot_compute_are_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    state = teacher().model.state_dict()
    key = next(key for key in state if key.endswith(name))
    state[key] = state[key].clone()
    state[key].view(-1)[0] = value
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(TeacherError, match=f"{re.escape(key)} holds values that are not finite"):
        load_weights(str(tmp_path / "weights.pth"), "convnet3", 8, INFO)
