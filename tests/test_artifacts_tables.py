"""Tables: what is read is what was written, and a forged one takes no more memory than any of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from delt import storage
from delt.artifacts import tables
from delt.artifacts.tables import read_table, table_bytes
from delt.errors import IntegrityError


@pytest.mark.parametrize("compression", ["snappy", "zstd"])
def test_a_table_and_its_facts_come_back(tmp_path: Path, compression: str) -> None:
    table = pyarrow.table({"x": np.arange(5), "name": list("abcde")})
    data = table_bytes(table, {"delt": b"{}", "keep": "medium"}, compression)
    assert data == table_bytes(table, {"delt": b"{}", "keep": "medium"}, compression)
    (tmp_path / "x.parquet").write_bytes(data)
    found = read_table(tmp_path / "x.parquet")
    assert found.to_pydict() == table.to_pydict()
    assert found.schema.metadata[b"keep"] == b"medium" and found.schema.metadata[b"delt"] == b"{}"


def test_a_table_cannot_declare_more_than_any_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of equal values takes a few bytes however long it is."""
    path = tmp_path / "x.parquet"
    path.write_bytes(table_bytes(pyarrow.table({"x": np.zeros(100_000), "y": np.zeros(100_000)}), {}, "zstd"))
    assert path.stat().st_size < 10_000
    assert read_table(path).num_rows == 100_000
    monkeypatch.setattr(tables, "TABLE", 1_000_000)
    with pytest.raises(IntegrityError, match=r"x\.parquet is damaged: it declares 1,600,000 bytes of columns; allowed are 1,000,000"):
        read_table(path)


def test_a_forged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(storage.sealed(f"PAR1 {storage.SEAL}={storage.UNSEALED}".encode()))
    with pytest.raises(IntegrityError, match=r"x\.parquet is not a readable table"):
        read_table(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match="its sha256 is not in it"):
        read_table(path)
