"""Signals: the first is taken note of, the second ends it; blocks share them, and everything is put back."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from delt.errors import Stopped
from delt.signals import Reins, deafen, heeded


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_the_work_between_two_steps(name, code, capsys):
    number, done, told = getattr(signal, name), [], []
    before = signal.getsignal(number)
    with heeded(lambda: told.append(True)) as reins:
        emit = reins.guard(done.append)
        emit({"step": 1})
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match=f"stopped by {name}; the same command goes on") as caught:
            emit({"step": 2})
    assert caught.value.exit_code == reins.exit_code == code and len(done) == 2 and told == [True]
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capsys.readouterr().err


def test_a_second_one_does_not_wait():
    with heeded(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    with heeded(), pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143


def test_blocks_inside_one_another_share_their_reins():
    with heeded() as outer:
        with heeded() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            outer.check()
    with heeded() as later:
        later.check()  # nothing is left of it


def test_another_thread_hears_nothing():
    found: list[Reins] = []

    def block() -> None:
        with heeded() as reins:
            found.append(reins)

    with heeded() as main:
        thread = threading.Thread(target=block)
        thread.start()
        thread.join()
        assert found[0] is not main and not found[0].signal


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with heeded() as reins:
            os.kill(os.getpid(), signal.SIGHUP)
            reins.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_leave_signals_to_their_parent():
    code = "import os, signal, delt.signals as s; s.deafen(); [os.kill(os.getpid(), n) for n in (2, 15, 1)]; print('alive')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "alive\n"
    assert callable(deafen)


def test_stopped_crosses_processes_and_shows_no_traceback():
    stop = pickle.loads(pickle.dumps(Stopped("enough", exit_code=143)))
    assert (str(stop), stop.exit_code, stop.partial) == ("enough", 143, None)
    assert stop._render_traceback_() == ["enough"]
