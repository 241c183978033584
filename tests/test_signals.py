"""Signals: the first is taken note of, the second ends it; blocks share them, and everything is put back."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
from jupyter_client.manager import KernelManager

import delt
from delt.batch.kernels import QUIET
from delt.errors import Stopped
from delt.signals import Reins, deafen, heeded, unheard


def test_a_listener_that_said_stop_is_not_asked_again():
    heard = []

    def listener(event):
        heard.append(event)
        raise Stopped("enough")

    with heeded() as reins:
        emit, other = reins.guard(listener), reins.guard(heard.append)
        for step in range(3):
            with pytest.raises(Stopped, match="enough"):
                emit({"step": step})
        other({"step": "of another"})
    assert heard == [{"step": 0}, {"step": "of another"}]


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


@pytest.mark.parametrize(("name", "left"), [("SIGTERM", -signal.SIGTERM), ("SIGHUP", -signal.SIGHUP), ("SIGINT", 0)])
def test_what_asks_a_process_to_end_is_passed_on_where_it_says_so(name, left):
    code = f"""
import os, signal
from delt.signals import heeded
with heeded(passed_on=True):
    with heeded(passed_on=True):
        os.kill(os.getpid(), signal.{name})
    print("finished", flush=True)
print("went on", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == left and done.stdout.split("\n")[:-1] == ["finished"] + ["went on"] * (left == 0), done.stderr


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


def test_a_kernels_stop_button_leaves_a_part_to_be_shown_and_the_same_cell_goes_on(tmp_path):
    """A real kernel, interrupted as JupyterLab does it."""
    given = {"preset": "smoke", "workers": 1, "ipc": 2, "iterations": 400, "evaluate_seeds": 1, "evaluate_controls": []}
    cell = f"run = delt.run(delt.configure('digits', **{given!r}), {str(tmp_path / 'run')!r}, listener=lambda event: None)"
    look = f"part = delt.load({str(tmp_path / 'run')!r}).synthetic\nprint(part.complete, 0 < int(part.iterations.max()) < 400)\npart"
    kernel = KernelManager(config=QUIET)
    kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        assert client.execute_interactive("import delt", timeout=60)["content"]["status"] == "ok"
        asked = client.execute(cell, stop_on_error=False)  # else the kernel may abort what is asked next, too
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run").glob(".work/recover/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        kernel.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == asked and reply["content"]["ename"] == "Stopped"
        assert reply["content"]["traceback"] == ["stopped; the same command goes on where it was"]
        heard = []
        assert client.execute_interactive(look, timeout=60, output_hook=heard.append)["content"]["status"] == "ok"
        assert [message["content"]["text"] for message in heard if message["msg_type"] == "stream"] == ["False True\n"]
        assert [message for message in heard if message["msg_type"] == "execute_result"]
        assert client.execute_interactive(cell, timeout=60, output_hook=heard.append)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    whole = delt.run(delt.configure("digits", **given), tmp_path / "whole", listener=lambda event: None)
    assert delt.load(tmp_path / "run").synthetic.complete and delt.verify(tmp_path / "run") == []
    for name in ("scores.json", "synthetic.parquet", "snapshots.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_process_from_an_unheard_block_is_not_told_and_this_one_is_told_later():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGHUP); print('here')"
    with heeded() as reins:
        with unheard():
            signal.raise_signal(signal.SIGINT)  # to this thread: pytest may have others
            assert not reins.signal
            assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "here\n"
        assert reins.signal == signal.SIGINT
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == ""
