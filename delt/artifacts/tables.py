"""Tables of a run folder: Parquet files that carry their own sha256, and are not opened where they declare more than they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet

from delt import storage
from delt.errors import IntegrityError

TABLE = 2**31  # bytes of a table's columns; 14 million images of ImageNet-21K, ranked, take half of that


def table_bytes(table: pyarrow.Table, facts: Mapping[str, str | bytes], compression: str = "snappy") -> bytes:
    """A table with its metadata as a sealed file: equal content, equal bytes (for one version of pyarrow)."""
    sink = pyarrow.BufferOutputStream()
    sealed = table.replace_schema_metadata({**facts, storage.SEAL: storage.UNSEALED})
    pyarrow.parquet.write_table(sealed, sink, compression=compression)
    return storage.sealed(sink.getvalue().to_pybytes())


def read_table(path: Path) -> pyarrow.Table:
    """A table that `table_bytes` made, with its metadata.

    Raises:
        IntegrityError: it is missing, not byte for byte what was written, no table, or one that declares more than any of ours.
    """
    data = storage.read_bytes(path)
    storage.check_seal(data, path)
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        declared = 8 * file.metadata.num_rows * file.metadata.num_columns  # equal rows take no room in the file
        if declared > TABLE:
            raise IntegrityError(f"{path} is damaged: it declares {declared:,} bytes of columns; allowed are {TABLE:,}")
        return file.read()
    except IntegrityError:
        raise
    except Exception as error:  # pyarrow promises no types, and any of them means the same here
        raise IntegrityError(f"{path} is not a readable table: {error}") from error
