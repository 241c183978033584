"""One thread, files in memory, a cache of our own, and a smoke run on digits that several tests look at."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)
MEMORY = "/dev/shm"  # where there is room: every file is synced, and waiting for a disk would be half of the tests' time
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL)):
    signal.signal(number, handler)  # nohup and a shell's & have them ignored, here and in the processes that tests start


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """Keep teachers and scores of tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DELT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """A finished smoke run on digits, with every control; not to be changed."""
    import delt

    out = tmp_path_factory.mktemp("smoke") / "run"
    config = delt.configure("digits", preset="smoke", workers=1, evaluate_controls=["random", "start", "one_sub_batch"])
    return delt.run(config, out, listener=lambda event: None)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data beside the repository, where there is one."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside the repository")
    return folder


@pytest.fixture
def own_clock(monkeypatch):
    """What is timed is the time of this process alone, whatever else the machine does."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


@pytest.fixture
def beat_each_step(monkeypatch):
    """Recover reports at every step, not four times per second."""
    from delt.stages.recover import Pulse

    monkeypatch.setattr(Pulse, "every", -1.0)
