"""The store: its layout, and what it understands of a batch."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import database
from hypothesis import given
from hypothesis import strategies as st

from trackio import record
from trackio.record import Kind, Origin
from trackiod.errors import StoreDamaged, StoreError, StoreTooNew
from trackiod.store import schema
from trackiod.store.digest import End, Tally, digest, log_records
from trackiod.store.sums import Sums, sums_of

ROOT = Path(__file__).parent.parent
LAYOUT_3 = {
    "alerts": ["stream", "start", "time_ns", "step", "level", "title", "text", "webhook", "sent"],
    "aliases": ["name", "alias", "version"],
    "artifacts": ["stream", "number", "time_ns", "role", "name", "facts", "version"],
    "axes": [
        "id", "stream", "start", "count", "shown", "first_step", "last_step", "first_ns", "last_ns", "data", "blocks",
    ],
    "batches": ["id", "stream", "start", "end", "records", "data"],
    "chunks": [
        "id", "series", "axis", "overlapped", "kind", "nans", "low", "high", "total", "data", "blocks",
    ],
    "clocks": ["stream", "time_ns", "monotonic_ns"],
    "configs": ["stream", "key", "value"],
    "definitions": ["run", "name", "options"],
    "files": ["id", "stream", "at_ns", "facts", "artifact", "state", "digest", "size", "suffix", "cause"],
    "holes": ["stream", "start", "end", "cause", "at_ns"],
    "meta": ["key", "value"],
    "runs": ["id", "name", "name_rank", "run_group", "created_ns", "resumes"],
    "series": [
        "id", "stream", "name", "points", "counted", "first_step", "max_step", "last_step", "last_ns", "last",
        "ascending", "numbers", "nans", "low", "high", "total",
    ],
    "system": ["stream", "start", "time_ns", "metrics"],
    "versions": ["name", "version", "created_ns", "type", "digest", "size", "facts", "manifest"],
    "summaries": ["stream", "key", "value"],
    "streams": [
        "id", "run", "role", "rank", "attempt", "process", "started_ns", "world_size", "meta", "committed", "records",
        "points", "refused_records", "refused_points", "last_ns", "state", "cause", "ended_ns", "explicit",
    ],
}  # fmt: skip


def batch(*payloads: bytes, offset: int = 0) -> bytes:
    data = b""
    for payload in payloads:
        data += record.encode(offset + len(data), payload)
    return data


def log(step: int, metrics: Any, origin: int = Origin.EXPLICIT, time_ns: int = 1) -> bytes:
    return record.pack(Kind.LOG, time_ns, step, int(origin), metrics)


def test_the_layout_is_that_of_version_3(tmp_path: Path) -> None:
    connection = schema.open_for_writing(str(tmp_path / "x.db"), "p", "s")
    tables = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {t: [c[1] for c in connection.execute(f"PRAGMA table_info({t})")] for t in tables}
    facts = [connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("user_version", "page_size", "auto_vacuum")]
    connection.close()
    assert found == LAYOUT_3
    assert facts == [3, 4096, 2]


def test_a_newer_layout_and_a_strange_file_are_named(tmp_path: Path) -> None:
    newer, strange, absent = (str(tmp_path / name) for name in ("n.db", "s.db", "a.db"))
    schema.open_for_writing(newer, "p", "s").close()
    with database(newer) as connection:
        connection.execute("PRAGMA user_version = 9")
    Path(strange).write_bytes(b"not a database, just text " * 100)
    for path, error in ((newer, StoreTooNew), (strange, StoreDamaged), (absent, StoreError)):
        with pytest.raises(error, match=Path(path).name) as caught:
            schema.open_for_reading(path)
        held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert caught and os.path.realpath(path) not in held  # nor does who keeps the error keep the file open


def test_a_database_that_is_opened_again_leaves_this_process_its_locks(tmp_path: Path) -> None:
    """A file that is opened and closed beside SQLite takes every lock of its process along; then a checkpoint
    overwrites what another connection reads."""
    path = tmp_path / "p.db"
    with closing(schema.open_for_writing(str(path), "p", "store")):
        pass

    def locks() -> int:
        inode = path.stat().st_ino
        return sum(f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())

    with closing(schema.open_for_reading(str(path))) as first:
        first.execute("SELECT count(*) FROM runs").fetchone()
        held = locks()
        for _ in range(2):
            with closing(schema.open_for_reading(str(path))):
                pass
        with closing(schema.open_for_writing(str(path), "p", "store")):
            pass
        assert locks() == held > 0


def test_no_statement_binds_a_number_of_its_own() -> None:
    """`?1` with a sequence of values is an error from Python 3.14 on."""
    sources = [path for package in ("trackio", "trackiod", "cli") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    assert not [path for path in sources if re.search(r"[ =(]\?[0-9]", path.read_text())]


def test_every_statement_names_its_columns() -> None:
    """A table may have columns that only another release knows, in any place (decision 15)."""
    for path in (ROOT / "trackiod").rglob("*.py"):
        text = re.sub(r'"\s+f?"', "", path.read_text())  # texts that are continued on the next line
        assert not re.search(r"INSERT [A-Z ]*INTO ['\"\w{}]+ (VALUES|SELECT)", text), path
        if path.name != "card.py":  # SQL for users, over files
            assert not re.search(r"SELECT (\w+\.)?\*", text), path


def test_a_store_is_read_where_it_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    schema.open_for_writing(str(path), "p", "s").close()
    path.chmod(0o400)
    connection = schema.open_for_reading(str(path))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM meta")
    connection.close()


def test_a_digest_counts_and_keeps_the_last_of_each_metric() -> None:
    data = batch(
        log(3, {"a": 1, "b": 2}, time_ns=10),
        log(1, {"a": 5}, Origin.COUNTER, time_ns=11),
        log(2, {"a": 7, "b": 8}, time_ns=12),
        record.pack(Kind.CONFIG, 13, {"lr": 0.1}),
        record.pack(Kind.DEFINE, 14, "a", {"reduce": "sum"}),
    )
    got = digest(data, 0)
    assert (got.records, got.points, got.last_ns, got.is_open, got.end) == (3, 5, 14, True, None)
    assert got.metrics == {
        "a": Tally(3, 1, 1, 3, 2, 12, 7, False, Sums(3, 0, 1, 7, 13)),
        "b": Tally(2, 0, 2, 3, 2, 12, 8, False, Sums(2, 0, 2, 8, 10)),
    }
    assert (got.config, got.definitions, got.damages) == ({"lr": 0.1}, {"a": {"reduce": "sum"}}, [])


def test_an_end_stands_until_something_is_logged_after_it() -> None:
    end = record.pack(Kind.FINISH, 9, "failed", "KeyError", False)
    assert digest(batch(log(0, {"a": 1}), end), 0).end == End("failed", "KeyError", False, 9)
    reopened = digest(batch(end, log(0, {"a": 1})), 0)
    assert reopened.end is None and reopened.is_open


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", b"\x90", log(0, [1]), log(0, {1: 2}), log("x", {}), log(1 << 63, {}), record.pack(Kind.DEFINE, 1),
     record.pack(Kind.CONFIG, 1, 7), record.pack(Kind.FINISH, 1, "x")],
)  # fmt: skip
def test_a_malformed_record_is_set_aside_and_the_stream_goes_on(payload: bytes) -> None:
    data = batch(log(0, {"a": 1}), payload, log(1, {"a": 2}))
    got = digest(data, 0)
    assert got.metrics["a"].points == 2
    ((start, end, why),) = got.damages
    assert (start, end - start) == (record.framed_bytes(len(log(0, {"a": 1}))), record.framed_bytes(len(payload)))
    assert "malformed" in why
    assert [r.metrics["a"] for r in log_records(record.salvage(data, 0))] == [1, 2]


names = st.sampled_from(["a", "b", "c"])
whole = st.integers(-(1 << 60), 1 << 60)
values = st.one_of(whole, st.floats(-1e9, 1e9), st.sampled_from([float("nan"), True, "", "x"]))
rows = st.lists(
    st.tuples(st.integers(-5, 5), st.dictionaries(names, values, max_size=3), st.integers(0, 2)), max_size=40
)


@given(rows)
def test_a_digest_agrees_with_the_points_it_stands_for(rows: list[tuple[int, dict[str, Any], int]]) -> None:
    data = batch(*(log(s, m, o, time_ns=i + 1) for i, (s, m, o) in enumerate(rows)))
    got = digest(data, 0)
    stored = list(log_records(record.salvage(data, 0)))
    assert got.points == sum(len(r.metrics) for r in stored) and got.records == len(rows) == len(stored)
    for name in {n for r in stored for n in r.metrics}:
        mine = [r for r in stored if name in r.metrics]
        *facts, last, ascending, sums = got.metrics[name]
        assert facts == [
            len(mine), sum(r.origin == Origin.COUNTER for r in mine), min(r.step for r in mine),
            max(r.step for r in mine), mine[-1].step, mine[-1].time_ns,
        ]  # fmt: skip
        assert repr(last) == repr(mine[-1].metrics[name])
        really = all(a.step < b.step for a, b in pairwise(mine))
        assert really or not ascending, "what is called ascending is"
        assert repr(sums) == repr(sums_of([r.metrics[name] for r in mine])) or sums.total == pytest.approx(
            sums_of([r.metrics[name] for r in mine]).total
        )


def test_steps_that_only_rise_are_called_ascending_over_several_shapes() -> None:
    data = batch(*(log(s, {"a": 1} if s % 3 else {"a": 1, "b": 2}) for s in range(9)))
    assert all(tally.ascending for tally in digest(data, 0).metrics.values())
