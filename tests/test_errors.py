"""Errors: one family, one exit code, and a hint that helps."""

from __future__ import annotations

import pytest

from delt.errors import ConfigError, DataError, DeltError, IntegrityError, RunError, TeacherError, unknown, visible


@pytest.mark.parametrize("kind", [ConfigError, DataError, TeacherError, IntegrityError, RunError])
def test_every_error_is_caught_as_one_and_exits_with_2(kind: type[DeltError]) -> None:
    with pytest.raises(DeltError) as caught:
        raise kind("what is wrong")
    assert caught.value.exit_code == 2 and str(caught.value) == "what is wrong"


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ("cifar1", ["cifar10", "digits"], "unknown thing 'cifar1': did you mean 'cifar10'?"),
        ("resnet81", ["resnet18", "convnet3"], "unknown thing 'resnet81': did you mean 'resnet18'?"),
        ("zzz", ["cifar10", "digits"], "unknown thing 'zzz': known are cifar10, digits"),
        ("", ["a", "b"], "unknown thing '': known are a, b"),
        (7, ["cifar10"], "unknown thing '7': known are cifar10"),
    ],
)
def test_unknown_names_the_nearest_or_all(given: object, names: list[str], message: str) -> None:
    assert str(unknown("thing", given, names)) == message


def test_unknown_reads_any_iterable_once_and_takes_the_kind() -> None:
    error = unknown("thing", "zzz", iter({"one": 1, "two": 2}), DataError)
    assert type(error) is DataError and str(error).endswith("one, two")
    assert type(unknown("thing", "x", [])) is ConfigError


def test_a_terminal_shows_a_name_and_does_not_obey_it():
    assert visible("cat \u4e2d\u6587 é") == "cat \u4e2d\u6587 é"
    assert visible("\x1b[2Jcat\ndog\u202e") == "\\x1b[2Jcat\\ndog\\u202e"
