"""Kernels: an environment of its own for each, an honest word when one dies, and an end from another thread."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from delt.batch.kernels import Kernels
from delt.batch.notebook import NotebookError, execute


@pytest.fixture
def notebook(tmp_path):
    def make(*cells):
        path = tmp_path / "source.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
        return path

    return make


def outputs(path):
    return [output for cell in json.loads(path.read_text())["cells"] for output in cell["outputs"]]


def text(path):
    return "".join("".join(output.get("text", "")) for output in outputs(path))


def gone(pid):
    """Whether a process has ended, within ten seconds; a zombie has."""
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as facts:
                if facts.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_each_kernel_has_its_environment_and_folder(notebook, tmp_path):
    source = notebook("import os", "print(os.environ['COLOUR'], os.getcwd(), os.getpid())")
    targets = {colour: tmp_path / colour / "a.ipynb" for colour in ("red", "blue")}
    for target in targets.values():
        target.parent.mkdir()
    with ThreadPoolExecutor(2) as pool:  # at once
        for job in [pool.submit(execute, source, target, {}, env={"COLOUR": colour}, bar=False) for colour, target in targets.items()]:
            job.result()
    words = {colour: text(target).split() for colour, target in targets.items()}
    assert all(words[colour][:2] == [colour, str(target.parent)] for colour, target in targets.items())
    assert "COLOUR" not in os.environ and len({word[2] for word in words.values()}) == 2


def test_a_kernel_that_dies_raises_and_its_notebook_says_so(notebook, tmp_path):
    source = notebook("print('before')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('after')")
    with pytest.raises(NotebookError, match=r"the kernel of .*target\.ipynb died; the same command goes on"):
        execute(source, tmp_path / "target.ipynb", {}, bar=False)
    (error,) = [output for output in outputs(tmp_path / "target.ipynb") if output["output_type"] == "error"]
    assert error["evalue"] == "the kernel died"
    assert "before" in text(tmp_path / "target.ipynb") and "after" not in text(tmp_path / "target.ipynb")


@pytest.mark.parametrize("end", ["", "; os.kill(os.getpid(), signal.SIGKILL)"], ids=["at the end", "when it dies"])
def test_nothing_outlives_the_notebook(end, notebook, tmp_path):
    note = tmp_path / "processes"
    child = f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{subprocess.Popen([\"sleep\", \"100\"]).pid}}'){end}"
    with pytest.raises(NotebookError, match="died") if end else contextlib.nullcontext():
        execute(notebook("import os, signal, subprocess", child), tmp_path / "target.ipynb", {}, bar=False)
    written = note.read_text().split()
    assert len(written) == 2 and all(gone(pid) for pid in written)


def test_stop_ends_a_running_kernel_and_those_to_come(notebook, tmp_path):
    mark = tmp_path / "began"
    source = notebook(f"from pathlib import Path; Path({str(mark)!r}).touch(); import time; time.sleep(100)")
    kernels = Kernels()

    def stop():
        while not mark.exists():
            time.sleep(0.05)
        kernels.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    for _ in range(2):  # the second one is stopped from its start
        begun = time.monotonic()
        with pytest.raises(NotebookError, match="died"):
            execute(source, tmp_path / "target.ipynb", {}, bar=False, kernels=kernels)
        assert time.monotonic() - begun < 30
    thread.join()


def test_only_what_was_begun_is_ended():
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    kernels = Kernels()
    kernels.end(other.pid)
    assert other.poll() is None
    kernels.begin(other.pid)
    kernels.stop(grace=0.2)
    assert other.wait(10) == -signal.SIGTERM  # it was asked first
    other.stdin.close()


def test_who_does_not_listen_is_ended_after_a_while():
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert other.stdout.readline() == b"deaf\n"
    kernels = Kernels()
    kernels.begin(other.pid)
    kernels.stop(grace=0.3)
    assert other.wait(10) == -signal.SIGKILL
    other.stdin.close()
    other.stdout.close()


def test_nobody_is_asked_twice(monkeypatch):
    asked, kernels = [], Kernels()
    monkeypatch.setattr(os, "kill", lambda *given: asked.append(given))
    kernels.begin(4)
    kernels.ask()
    kernels.ask()  # which a run would take for an end without a checkpoint
    assert asked == [(4, signal.SIGTERM)] and kernels.stopped
