"""What a point may ask a cluster for, and one line for every slip of the pen."""

from __future__ import annotations

import pytest

from delt.batch.engines.settings import RaySettings, SlurmSettings, settings
from delt.errors import ConfigError


def test_fields_become_settings():
    given = {"partition": "gpu", "time": 240, "gpus": 2, "cpus": 8, "memory": 64, "options": {"constraint": "a100"}}
    assert settings(SlurmSettings, given, "a") == SlurmSettings(**given)
    assert settings(RaySettings, {"address": "auto", "gpus": 0.5}, "a") == RaySettings("auto", 0.5, 1)
    assert settings(RaySettings, {"gpus": 1}, "a").gpus == 1 and settings(RaySettings, {}, "a").gpus is None


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SlurmSettings, {"gpu": 1}, "unknown field 'gpu': did you mean 'gpus'?"),
        (SlurmSettings, {"time": 0}, "time is 0; allowed is a whole number of at least 1"),
        (SlurmSettings, {"time": "4h"}, "time is '4h'; allowed is a whole number of at least 1"),
        (SlurmSettings, {"gpus": -1}, "gpus is -1; allowed is a whole number of at least 0"),
        (SlurmSettings, {"gpus": True}, "gpus is True; allowed is a whole number of at least 0"),
        (SlurmSettings, {"gpus": 0.5}, "gpus is 0.5; allowed is a whole number of at least 0"),
        (SlurmSettings, {"partition": 3}, "partition is 3; allowed is a text"),
        (SlurmSettings, {"options": ["a"]}, r"options is \['a'\]; allowed is a mapping of sbatch's options to values"),
        (SlurmSettings, {"cluster": "moon"}, "cluster is 'moon'; allowed is slurm or local"),
        (RaySettings, {"cpus": 0}, "cpus is 0; allowed is a whole number of at least 1"),
        (SlurmSettings, {"options": {1: 2}}, r"options is {1: 2}; allowed is a mapping of sbatch's options to values"),
        (RaySettings, {"gpus": "one"}, "gpus is 'one'; allowed is a whole number, or a part of 1"),
        (RaySettings, {"gpus": 1.5}, "gpus is 1.5; allowed is a whole number, or a part of 1"),
        (RaySettings, {"gpus": float("nan")}, "gpus is nan; allowed is a whole number, or a part of 1"),
        (RaySettings, {"gpus": -0.5}, "gpus is -0.5; allowed is a whole number, or a part of 1"),
        (RaySettings, {1: 2}, "unknown field '1': known are address, gpus, cpus"),
    ],
)
def test_anything_else_is_refused(kind, given, message):
    with pytest.raises(ConfigError, match=f"^a.yaml, here: {message}"):
        settings(kind, given, "a.yaml, here")
