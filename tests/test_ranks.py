"""What torchrun says of a process, and what it is taken for where torchrun did not start it."""

from __future__ import annotations

import socket

import pytest

from delt import ranks


def started(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1", **more}.items():
        monkeypatch.setenv(name, value)


def test_a_process_that_torchrun_did_not_start_is_the_first_of_one():
    assert (ranks.ranks(), ranks.rank(), ranks.local(), ranks.prefix()) == (1, 0, (0, 1), "")


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch):
    started(monkeypatch, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert (ranks.ranks(), ranks.rank(), ranks.local()) == (8, 3, (1, 2))
    assert ranks.prefix() == f"rank 3 on {socket.gethostname()}: "


@pytest.mark.parametrize("missing", ranks.ENVIRONMENT)
def test_half_an_environment_is_none(missing: str, monkeypatch: pytest.MonkeyPatch):
    started(monkeypatch)
    monkeypatch.delenv(missing)
    assert (ranks.ranks(), ranks.rank(), ranks.prefix()) == (1, 0, "")


def test_one_process_of_torchrun_has_no_others(monkeypatch: pytest.MonkeyPatch):
    started(monkeypatch, RANK="0", WORLD_SIZE="1")
    assert (ranks.ranks(), ranks.rank(), ranks.prefix()) == (1, 0, "")
