"""Who does the units of a stage: this process, its workers, or several ranks; and units that are found finished."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from delt import storage
from delt.config import RuntimeConfig
from delt.errors import DeltError
from delt.job import Job
from delt.pool import Pool
from tests.test_pool import halve, pool, refuse

__all__ = ["pool"]


def test_job_uses_its_pool(pool: Pool):
    processes = {process for _, process, _ in Job(pool=pool).each(halve, [torch.ones(1), torch.ones(1)])}
    assert os.getpid() not in processes


def test_job_without_a_pool_maps_in_order():
    events: list[dict[str, Any]] = []
    job = Job(seed=3, runtime=RuntimeConfig(device="cpu"), work=Path("unused"), emit=events.append)
    assert [value.item() for value, *_ in job.each(halve, [torch.tensor([2.0]), torch.tensor([8.0])])] == [1.0, 4.0]
    assert [event["done"] for event in events] == [2, 8]
    assert job.device == torch.device("cpu")
    with pytest.raises(DeltError, match="class 'cat'"):
        list(job.each(refuse, [1, 2]))


def test_a_unit_is_made_once_and_again_where_it_is_damaged(tmp_path: Path):
    told: list[str] = []

    def make() -> dict[str, torch.Tensor]:
        told.append("made")
        return {"x": torch.arange(3)}

    def unit(job: Job) -> list[int]:
        return job.unit("part-0", make, lambda: told.append("found"))["x"].tolist()

    assert [unit(Job(work=tmp_path)) for _ in range(2)] == [[0, 1, 2]] * 2 and told == ["made", "found"]
    path = tmp_path / "part-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.warns(UserWarning, match="part-0 is done again: .*damaged"):
        assert unit(Job(work=tmp_path)) == [0, 1, 2]
    assert told == ["made", "found", "made"] and storage.read_tensors(path)[0]["x"].tolist() == [0, 1, 2]
    assert unit(Job()) == [0, 1, 2] and told[3:] == ["made"]
