"""The configuration: one flat name per field, checked types, choices and ranges, and a round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from typing import Any

import pytest

from delt.config import (
    FIDELITY,
    PRESETS,
    EvaluateConfig,
    FlatField,
    RecoverConfig,
    RunConfig,
    RuntimeConfig,
    TeacherConfig,
    flat_fields,
    flatten,
    unflatten,
)
from delt.errors import ConfigError

FIELDS = {entry.name: entry for entry in flat_fields()}
SHORT = ("dataset", "method", "ipc", "iterations", "round_iterations", "sub_batches", "fidelity", "preset", "seed", "device", "workers")


def other_value(entry: FlatField) -> Any:
    """A valid value that is not the default."""
    kind = entry.type
    if None in (options := [None if part is type(None) else part for part in typing.get_args(kind)]):
        kind = next(part for part in options if part is not None)
    if entry.choices:
        others = [choice for choice in entry.choices if choice != entry.default and (choice,) != entry.default]
        return [others[-1]] if typing.get_origin(kind) is tuple else others[-1]
    if typing.get_origin(kind) is tuple:
        return [5, 3] if int in typing.get_args(kind) else ["resnet18", "convnet3"]
    if kind is bool:
        return not entry.default
    if kind is str:
        return "other"
    low, high = entry.item.metadata["low"], entry.item.metadata["high"]
    return kind(7) if high is None else kind(low if entry.default == high else high)


def test_flat_names_are_unique_and_every_field_is_explained() -> None:
    names = [entry.name for entry in flat_fields()]
    assert len(names) == len(set(names))
    for entry in flat_fields():
        assert len(entry.help.split()) > 1 and entry.name.isidentifier(), entry.name
    owners = [RunConfig, *(item.type for item in dataclasses.fields(RunConfig) if not item.metadata)]
    hints = typing.get_type_hints(RunConfig)
    count = sum(len(dataclasses.fields(hints[item.name])) for item in dataclasses.fields(RunConfig) if not item.metadata)
    assert len(names) == count + len(dataclasses.fields(RunConfig)) - (len(owners) - 1)  # none was left out


def test_the_flags_everyone_needs_are_short() -> None:
    assert set(SHORT) <= set(FIELDS)
    assert {"data_root", "teacher_epochs", "recover_lr", "evaluate_students", "threads", "precision"} <= set(FIELDS)


def test_defaults_are_valid_and_survive_the_flat_form() -> None:
    config = RunConfig()
    assert unflatten({}) == config == unflatten(flatten(config))
    assert list(flatten(config)) == list(FIELDS)


def test_each_field_travels_alone() -> None:
    for entry in flat_fields():
        value = other_value(entry)
        config = unflatten({entry.name: value})
        flat, plain = flatten(config), flatten(RunConfig())
        assert flat[entry.name] == value != plain[entry.name], entry.name
        assert {name for name in flat if flat[name] != plain[name]} == {entry.name}
        assert unflatten(flat) == config


def test_round_trip_through_json_text() -> None:
    values = {entry.name: other_value(entry) for entry in flat_fields()}
    values["recover_small_side"] = 1.0  # less does not fit the other value of recover_match
    config = unflatten(values)
    text = json.dumps(flatten(config), allow_nan=False)
    assert unflatten(json.loads(text)) == config and json.loads(text) == values


def test_numbers_keep_their_kind() -> None:
    assert type(TeacherConfig(lr=1).lr) is float and type(RecoverConfig(iterations=3).iterations) is int
    assert unflatten({"recover_lr": 1}) == unflatten({"recover_lr": 1.0})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("resnet18, convnet3", ("resnet18", "convnet3")),
        ("teacher", ("teacher",)),
        ("a,,b,", ("a", "b")),
        (["a", "b"], ("a", "b")),
        (("a",), ("a",)),
    ],
)
def test_tuples_come_from_lists_or_comma_text(given: object, expected: tuple[str, ...]) -> None:
    assert unflatten({"evaluate_students": given}).evaluate.students == expected
    assert EvaluateConfig(students=given).students == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("ipc", "ten", ["ipc", "'ten'", "int"]),
        ("ipc", 2.5, ["ipc", "2.5", "int"]),
        ("ipc", True, ["ipc", "True", "int"]),
        ("ipc", None, ["ipc", "None", "int"]),
        ("ipc", 0, ["ipc is 0", "at least 1"]),
        ("teacher_lr", True, ["teacher_lr", "True", "float"]),
        ("teacher_lr", -0.1, ["teacher_lr is -0.1", "at least 0"]),
        ("recover_min_crop", 0, ["recover_min_crop is 0", "between 0.01 and 1"]),
        ("recover_min_crop", 1.5, ["recover_min_crop is 1.5", "between 0.01 and 1"]),
        ("data_download", 1, ["data_download", "1", "bool"]),
        ("data_root", 3, ["data_root", "3", "str"]),
        ("round_iterations", 0, ["round_iterations is 0", "at least 1"]),
        ("precision", "fp61", ["precision", "fp61", "did you mean 'fp16'"]),
        ("recover_curriculum", "zzz", ["recover_curriculum", "zzz", "cosine, linear, step, none"]),
        ("evaluate_labels", "soft,hadr", ["evaluate_labels", "hadr", "did you mean 'hard'"]),
        ("evaluate_students", 5, ["evaluate_students", "5", "commas"]),
        ("evaluate_students", ["a", 5], ["evaluate_students", "5", "commas"]),
        ("itterations", 5, ["setting", "itterations", "did you mean 'iterations'"]),
        ("teacher_epoch", 5, ["setting", "teacher_epoch", "did you mean 'teacher_epochs'"]),
    ],
)
def test_bad_input_names_field_value_and_what_is_allowed(name: str, value: object, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        unflatten({name: value})
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [entry for entry in flat_fields() if "float" in str(entry.type)], ids=lambda entry: entry.name)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(entry: FlatField, value: float) -> None:
    with pytest.raises(ConfigError, match=entry.name):
        unflatten({entry.name: value})


def test_sections_check_themselves() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        TeacherConfig(batch=0)
    with pytest.raises(ConfigError, match="ipc is 'x'"):
        RunConfig(ipc="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision"):
        dataclasses.replace(RuntimeConfig(), precision="fp8")
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().ipc = 3  # type: ignore[misc]


@pytest.mark.parametrize("table", [FIDELITY, PRESETS])
def test_presets_and_fidelities_are_valid_and_choices_of_their_field(table: dict[str, dict[str, Any]]) -> None:
    assert set(table) == set(FIELDS["fidelity" if table is FIDELITY else "preset"].choices)
    for values in table.values():
        unflatten(values)


def test_patches_of_the_full_size_do_not_fit_a_smaller_one() -> None:
    RecoverConfig(match="bn+conv", stages=2)
    with pytest.raises(ConfigError, match="bn.conv knows patches of the full size alone"):
        RecoverConfig(match="bn+conv", stages=2, small_side=0.5)


def test_strict_is_the_published_arithmetic() -> None:
    strict, fixed = unflatten(FIDELITY["strict"]).recover, unflatten(FIDELITY["fixed"]).recover
    assert (strict.adam_steps, strict.group_cut, strict.drop_empty_rounds, strict.save, strict.clock) == (
        "shared",
        "contiguous",
        True,
        "jpeg75",
        "global",
    )
    assert (fixed.adam_steps, fixed.group_cut, fixed.drop_empty_rounds, fixed.save) == ("sub_batch", "whole", False, "png")
    published: dict[str, object] = {
        "lr": 0.25,
        "beta1": 0.5,
        "beta2": 0.9,
        "bn_weight": 0.01,
        "first_bn_multiplier": 10.0,
        "jitter": 0,
        "iterations": 4000,
    }
    published |= {"curriculum": "cosine", "milestone": 1.0, "min_crop": 0.08, "grouping": "class", "group_size": 100}
    for name, value in published.items():
        assert getattr(strict, name) == getattr(fixed, name) == value, name


def test_a_section_is_one():
    for wrong in (None, {"epochs": 3}, RunConfig().rank):
        with pytest.raises(ConfigError, match="teacher is .*; allowed is a TeacherConfig, or delt.configure"):
            RunConfig(teacher=wrong)
