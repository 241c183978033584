"""One thread, a cache of our own, and a smoke run on digits that several tests look at."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)
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
def beat_each_step(monkeypatch):
    """Recover reports at every step, not four times per second."""
    from delt.stages.recover import Pulse

    monkeypatch.setattr(Pulse, "every", -1.0)
