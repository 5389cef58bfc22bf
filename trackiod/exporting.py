"""A project as plain files: the rows that an upload holds too (`uploads`), of this host and of all that copied theirs.

Knows pyarrow.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from trackio.imports import FORMULA
from trackio.places import Places
from trackiod import catalog
from trackiod.errors import StoreError, TrackiodError
from trackiod.store import schema
from trackiod.uploads import names, tables
from trackiod.uploads.card import card
from trackiod.uploads.run_files import RunFiles
from trackiod.uploads.source import Source
from trackiod.uploads.target import Target
from trackiod.valid_json import valid

_TARGET = Target("", shows_host=True)
_README = "README.md"
_NUMBER = r"^[+-]?(\d+(\.\d*)?([eE][+-]?\d+)?|Infinity)$"


class File(NamedTuple):
    """Rows of a run, in a file that may be moved away."""

    kind: str
    """`metrics`, `system`, `runs` or `alerts`"""
    run: str
    path: str


class Project:
    """A project, or one run of it, that is read as files. Use as a context manager."""

    def __init__(self, where: Places, project: str, run: str, scratch: str) -> None:
        """`run`: an id or a name, or empty for all. Raises NotFound or StoreError."""
        with catalog.open_project(where.projects, project) as reader:
            self.runs = catalog.find_run(reader, run).run_ids if run else []
        self._connection = schema.open_for_reading(reader.path)
        self.problems: list[str] = []
        with self._around("the list of runs"):
            if not run:
                rows = self._connection.execute("SELECT id FROM runs ORDER BY created_ns, id")
                self.runs = [id_ for (id_,) in rows.fetchall()]
        self._source = Source(where, self._connection, project, _TARGET, "rows", scratch, is_alone=False)

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def files(self, kinds: Collection[str] = tuple(tables.SCHEMAS)) -> Iterator[File]:
        """Everything of these kinds; what is damaged is named in `problems`."""
        for run in self.runs:
            for kind in kinds:
                with self._around(f"{kind} of run {run}"):
                    files = RunFiles(self._source, run)
                    for path in files.everything(kind):
                        yield File(kind, run, path)
                    self.problems += files.problems

    def media(self) -> Iterator[tuple[str, str]]:
        """Files of values: the path in a folder, and where each lies."""
        for run in self.runs:
            with self._around(f"files of run {run}"):
                for _, place, kept in RunFiles(self._source, run).media():
                    if os.path.exists(kept):
                        yield place, kept
                    else:
                        self.problems.append(f"{place} is missing: its file was removed, or is on another host only")

    @contextmanager
    def _around(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if not schema.is_damage(error, self._connection):
                raise StoreError(f"{what} cannot be read now ({error}).") from error
            self.problems.append(f"{what}: what follows is damaged ({error})")
        except StoreError as error:
            self.problems.append(f"{what}: {error}")


class Exported(NamedTuple):
    """What was written."""

    runs: int
    rows: int
    files: int
    problems: list[str]


def export(where: Places, project: str, run: str, folder: str, form: str) -> Exported:
    """Writes a new folder with the rows as Parquet, CSV or JSON lines, media, and a README: whole or not at all. An
    empty folder that is there already stays what it is, and gets them. Raises TrackiodError."""
    with catalog.open_project(where.projects, project) as reader:
        _ = run and catalog.find_run(reader, run)
    folder = os.path.realpath(folder)
    is_there = os.path.isdir(folder)
    if os.path.lexists(folder) and not (is_there and not os.listdir(folder)):
        raise TrackiodError(f"{folder} is there already; name a new folder, or an empty one.")
    parent = folder if is_there else os.path.dirname(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        new = tempfile.mkdtemp(prefix=".trackio-export-", dir=parent)
        try:
            done = _written(where, project, run, new, form)
            if is_there:
                for name in sorted(os.listdir(new), key=lambda name: (name == _README, name)):
                    os.rename(os.path.join(new, name), os.path.join(folder, name))
            else:
                os.chmod(new, 0o777 & ~_umask())
                os.rename(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except (OSError, pa.ArrowException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise TrackiodError(f"{folder} cannot be written: {reason}.") from error
    return done


def _written(where: Places, project: str, run: str, new: str, form: str) -> Exported:
    scratch = os.path.join(new, ".scratch")
    os.mkdir(scratch)
    with Project(where, project, run, scratch) as read:
        rows = files = 0
        for number, file in enumerate(read.files()):
            place = f"{file.kind}/{names.folder_of(project, file.run)}/rows-{number:06d}.{form}"
            rows += pq.read_metadata(file.path).num_rows if file.kind == "metrics" else 0
            files += 1
            _convert(file.path, _made(new, place), form)
        for place, kept in read.media():
            files += 1
            shutil.copyfile(kept, _made(new, place))
    for place, empty in tables.empty_files(scratch, form).items():
        _convert(empty, _made(new, place), form)
    with open(os.path.join(new, _README), "w", encoding="utf-8") as about:
        about.write(card(form))
    shutil.rmtree(scratch)
    return Exported(len(read.runs), rows, files, read.problems)


def _made(new: str, place: str) -> str:
    path = os.path.join(new, place)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _convert(made: str, path: str, form: str) -> None:
    """Moves a Parquet file to its place, as what is wanted."""
    if form == "parquet":
        os.chmod(made, 0o666 & ~_umask())
        os.rename(made, path)
        return
    with closing(pq.ParquetFile(made)) as file:
        if form == "csv":
            with pyarrow.csv.CSVWriter(path, _as_cells(file.schema_arrow.empty_table()).schema) as writer:
                for batch in tables.batches(file):
                    writer.write_table(_as_cells(pa.Table.from_batches([batch])))
        else:
            with open(path, "w", encoding="utf-8") as lines:
                for batch in tables.batches(file):
                    for row in _plain(batch):
                        lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.unlink(made)


def _as_cells(table: pa.Table) -> pa.Table:
    """Times as ISO 8601, and no text that a spreadsheet would take for a formula."""
    for place, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(place, field.name, tables.iso(table.column(place)))
        elif pa.types.is_string(field.type) or pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, _unlike_formulas(table.column(place).cast(pa.string())))
    return table


def _unlike_formulas(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text that begins as a formula does gets a quote before it, as spreadsheets have it (`trackio.imports` takes it
    away again); what is a number stays one."""
    is_odd = pc.and_not(pc.match_substring_regex(texts, FORMULA), pc.match_substring_regex(texts, _NUMBER))
    return pc.if_else(is_odd, pc.binary_join_element_wise("'", texts, ""), texts)


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as JSON has them: times as ISO 8601; NaN and the infinities, which it has not, in `value_text`, since a text
    among numbers makes readers round the others."""
    columns = {
        name: (tables.iso(column) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in rows:
        if isinstance(text := valid(row.get("value")), str):
            row |= {"value": None, "value_text": text}
    return rows
