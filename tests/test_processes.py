"""New processes are copies of a clean server: quick, deaf to signals that go to all, and gone with the process that wanted them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from typing import Any

import pytest

from delt import processes
from tests.test_runtime import only_linux

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def look(found: Any) -> None:
    found.put((sys.modules.get("torch") is not None, os.getpid(), threading.active_count(), signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def wait(ready: Any, listen: bool) -> None:
    if listen:
        processes.hear()
    ready.set()
    threading.Event().wait(60)


def seen() -> tuple[bool, int, int, set[int]]:
    context = processes.context()
    found = context.SimpleQueue()
    process = context.Process(target=look, args=(found,))  # type: ignore[attr-defined]
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return found.get()


@only_linux
def test_a_process_begins_with_torch_and_without_threads_or_this_ones_memory():
    loaded, process, threads, _ = seen()
    assert loaded and process != os.getpid() and threads == 1


@only_linux
def test_what_is_said_to_all_processes_does_not_reach_the_server():
    processes.context()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    for number in SIGNALS:
        os.kill(server, number)
    _, _, _, blocked = seen()
    assert forkserver._forkserver._forkserver_pid == server and set(SIGNALS) <= blocked  # type: ignore[attr-defined]
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process hears as before"


@only_linux
@pytest.mark.parametrize("listen", [True, False])
def test_a_process_ends_by_sigterm_once_it_hears(listen: bool):
    context = processes.context()
    ready = context.Event()
    process = context.Process(target=wait, args=(ready, listen), daemon=True)  # type: ignore[attr-defined]
    process.start()
    assert ready.wait(60)
    process.terminate()
    process.join(60 if listen else 0.5)
    assert process.exitcode == (-signal.SIGTERM if listen else None)
    process.kill()
    process.join(60)


def test_elsewhere_processes_begin_from_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes.context() is multiprocessing.get_context("spawn")
    processes.hear()
