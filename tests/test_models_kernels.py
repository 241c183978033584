"""The Triton kernels in Triton's interpreter against plain torch in float64; on a GPU see test_engine_gpu."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from delt.models import kernels

for count, channels, height, width, groups, dtype in (
    (6, 8, 5, 7, 2, torch.float32),
    (4, 70, 3, 3, 4, torch.float16),
    (12, 64, 16, 16, 3, torch.float16),
    (2, 3, 1, 1, 1, torch.float32),
):
    draws = torch.Generator().manual_seed(0)
    x = (torch.randn(count, channels, height, width, generator=draws) * 2 + 5).to(dtype).contiguous(memory_format=torch.channels_last)
    mean, var = kernels.moments(x, torch.full((channels,), 4.5), groups)
    wide = x.double().unflatten(0, (-1, groups))
    exact_var, exact_mean = torch.var_mean(wide, dim=(0, 3, 4), correction=0)
    assert (mean - exact_mean).abs().max() < 1e-6 and (var - exact_var).abs().max() < 1e-5
    gradient, scale = torch.randn(count, channels, height, width, generator=draws).to(dtype), torch.randn(channels, generator=draws)
    offset, slope = torch.randn(groups, channels, generator=draws), torch.randn(groups, channels, generator=draws)
    found = kernels.pulled(gradient, x, scale, offset, slope)
    line = (offset[:, :, None, None] + slope[:, :, None, None] * wide).flatten(0, 1)
    expected = gradient.double() * scale[:, None, None] + line
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert ((found - expected).abs() / (1 + expected.abs())).max() < (1e-3 if dtype == torch.float16 else 1e-6)
print("equal")
"""


def test_kernels_are_plain_torch() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr
