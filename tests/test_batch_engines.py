"""Engines by name: one that is not known or lacks its package is refused with what helps."""

from __future__ import annotations

import sys

import pytest

from delt.batch.engines import PACKAGES, open_engine, require
from delt.errors import ConfigError


def test_known_engines_are_there():
    for name in PACKAGES:
        require(name)


def test_an_unknown_engine_names_those_there_are():
    with pytest.raises(ConfigError, match="unknown engine 'slrum': did you mean 'slurm'"):
        require("slrum")


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_missing_package_names_its_command(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ConfigError, match=rf"engine {name} needs the package {PACKAGES[name]}.*: pip install 'delt\[{name}\]'"):
        require(name)


def test_the_engine_of_this_machine_needs_nothing_of_the_sweep(tmp_path):
    engine = open_engine("local", None, 3, tmp_path)
    assert engine.room == 3
    engine.stop()
