"""The public face: what `import delt` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import delt


def test_every_name_is_there():
    for name in delt.__all__:
        assert getattr(delt, name) is not None
    assert set(delt.__all__) == set(delt._HOMES) <= set(dir(delt))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'sqeeze'"):
        _ = delt.sqeeze


def test_importing_is_quick_and_silent():
    code = "import sys, delt\nassert 'torch' not in sys.modules\nassert 'numpy' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""
