"""Rows as Parquet: the columns of each kind of file. Knows pyarrow.

Long form: a row is one value of one metric, logged by one rank. Strings are dictionary-encoded in the files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trackiod import valid_json
from trackiod.uploads.rows import Points
from trackiod.views.column import Values

_TIME = pa.timestamp("ns", tz="UTC")
_TEXT = pa.string()
_EXACT = 1 << 53
"""integers up to here are floats exactly"""
_GROUP_ROWS, _GROUP_BYTES = 1 << 17, 16 << 20
"""in memory at once"""
_OF_RUN = [("project", _TEXT), ("run_id", _TEXT), ("run", _TEXT)]
METRICS = pa.schema([
    *_OF_RUN, ("rank", pa.int32()), ("attempt", _TEXT), ("seq", pa.int64()), ("node", pa.int32()), ("step", pa.int64()),
    ("time", _TIME), ("metric", _TEXT), ("value", pa.float64()), ("value_text", _TEXT),
])  # fmt: skip
SYSTEM = pa.schema([
    *_OF_RUN, ("rank", pa.int32()), ("node", pa.int32()), ("time", _TIME), ("metric", _TEXT), ("value", pa.float64()),
    ("value_text", _TEXT),
])  # fmt: skip
ALERTS = pa.schema([
    *_OF_RUN, ("rank", pa.int32()), ("attempt", _TEXT), ("seq", pa.int64()), ("node", pa.int32()), ("step", pa.int64()),
    ("time", _TIME), ("level", _TEXT), ("title", _TEXT), ("text", _TEXT),
])  # fmt: skip
RUNS = pa.schema([
    *_OF_RUN, ("group", _TEXT), ("node", pa.int32()), ("host", _TEXT), ("state", _TEXT), ("started", _TIME),
    ("ended", _TIME), ("world_size", pa.int32()), ("ranks", pa.int32()), ("points", pa.int64()),
    ("refused_points", pa.int64()), ("config", _TEXT), ("summary", _TEXT), ("tags", _TEXT),
    ("notes", _TEXT), ("job_type", _TEXT),
])  # fmt: skip


SCHEMAS = {"metrics": METRICS, "system": SYSTEM, "alerts": ALERTS, "runs": RUNS}
_LAST = "~"
"""the folder of files without rows: `datasets` 4.8 fails where such a file comes before others"""


class RowFacts(NamedTuple):
    """What all rows of one stream have in common."""

    project: str
    run_id: str
    run: str
    rank: int | None
    attempt: str
    node: int | None


class Writer:
    """A new Parquet file of one kind in a folder, at `path`. Use as a context manager; `rows` says how many there
    are."""

    def __init__(self, folder: str, kind: str) -> None:
        handle, self.path = tempfile.mkstemp(".parquet", dir=folder)
        os.close(handle)
        self._schema = SCHEMAS[kind]
        texts = [field.name for field in self._schema if field.type == _TEXT]
        encodings = {name: "DELTA_BINARY_PACKED" for name in ("seq", "step", "time") if name in self._schema.names}
        self._file = pq.ParquetWriter(
            self.path, self._schema, compression="zstd", use_dictionary=texts, column_encoding=encodings,
            write_statistics=True,
        )  # fmt: skip
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = self.rows = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
            self._file.close()
        else:
            with suppress(OSError, pa.ArrowException):  # it failed to be written, and fails again
                self._file.close()

    def add_points(self, facts: RowFacts, points: Points) -> None:
        """Rows of METRICS or SYSTEM."""
        count = len(points.steps)
        value, text = split(points.values)
        columns = {
            "seq": pa.array(points.offsets, pa.int64()), "step": pa.array(points.steps, pa.int64()),
            "time": pa.array(points.times_ns, pa.int64()).cast(_TIME), "metric": _same(points.metric, count, _TEXT),
            "value": value, "value_text": text,
        }  # fmt: skip
        columns |= {name: _same(fact, count, self._schema.field(name).type)
                    for name, fact in zip(facts._fields, facts, strict=True) if name in self._schema.names}  # fmt: skip
        self._add(pa.record_batch([columns[name] for name in self._schema.names], schema=self._schema))

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of any kind, by column."""
        if rows:
            self._add(pa.RecordBatch.from_pylist(list(rows), schema=self._schema))

    def _add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self._waiting_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._waiting_rows >= _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting), row_group_size=_GROUP_ROWS)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0


def batches(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A file's rows, a bounded number of bytes at once."""
    sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    a_row = max(1, sum(sizes) // max(1, file.metadata.num_rows))
    yield from file.iter_batches(max(1, min(1 << 14, _GROUP_BYTES // a_row)), columns=columns)


def iso(times: pa.Array) -> pa.Array:
    """Times as ISO 8601. (Arrow's own words for a zone need a database of zones, which slim images have not.)"""
    texts = pc.replace_substring(times.cast(pa.timestamp("ns")).cast(_TEXT), " ", "T", max_replacements=1)
    return pc.binary_join_element_wise(texts, "Z", "")


def give_back() -> None:
    """Memory that writing files took and nothing needs any more."""
    pa.default_memory_pool().release_unused()


def empty_files(folder: str, form: str = "parquet") -> dict[str, str]:
    """A file without rows of each kind: by its path at a target that holds `form`, where it lies here."""
    files = {}
    for kind in SCHEMAS:
        with Writer(folder, kind) as writer:
            files[f"{kind}/{_LAST}/none.{form}"] = writer.path
    return files


def _same(value: Any, count: int, type_: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, type_), count)


def split(values: Values) -> tuple[pa.Array, pa.Array]:
    """Values as floats, and as text what a float cannot hold: integers beyond 2^53, true and false (beside 1 and 0),
    texts, and as JSON everything else."""
    if values.dtype == np.float64:
        return pa.array(values, pa.float64()), pa.nulls(len(values), _TEXT)
    if values.dtype != object and not ((values > _EXACT) | (values < -_EXACT)).any():
        return pa.array(values.astype(np.float64), pa.float64()), pa.nulls(len(values), _TEXT)
    pairs = [_split(value) for value in values.tolist()]
    return pa.array([number for number, _ in pairs], pa.float64()), pa.array([text for _, text in pairs], _TEXT)


def _split(value: Any) -> tuple[float | None, str | None]:
    match value:
        case bool():
            return float(value), "true" if value else "false"
        case float():
            return value, None
        case int():
            return float(value), None if abs(value) <= _EXACT else str(value)
        case str():
            return None, value
    return None, valid_json.dumps(value)
