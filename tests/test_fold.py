"""Folding: whatever was logged reads the same before, between and after, and a codec gives back every bit."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import database, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

from trackio import record
from trackio.record import Kind
from trackiod import catalog, folding
from trackiod.databases import Databases
from trackiod.overview import Overview
from trackiod.store import codec, points
from trackiod.store.batch import read
from trackiod.store.digest import End, digest
from trackiod.store.fold import at_once, fold
from trackiod.store.project import ProjectStore
from trackiod.store.reader import ProjectReader
from trackiod.views.buckets import blocks_of, buckets
from trackiod.views.column import Column, last_per_step, typed

META = {"run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "a", "started_ns": 1, "world_size": 1}
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
ANY_FLOAT = st.floats(width=64, allow_nan=True, allow_infinity=True)
PLAIN = st.one_of(
    INT64, ANY_FLOAT, st.booleans(), st.sampled_from(["", "text", [1, 2.5, None], {"a": [1]}, (1 << 64) - 1])
)


class Stream:
    """A stream of one project's database, as the committer writes it."""

    def __init__(self, folder: Path, name: str = "s") -> None:
        self.store = ProjectStore(str(folder), "p", "store")
        self.name, self.end, self.time_ns = name, 0, 1_700_000_000_000_000_000
        with self.store.transaction():
            self.store.register(name, META)

    def log(self, *rows: tuple[int, dict[str, Any]], origin: int = 0) -> None:
        """One batch of these records."""
        data = b""
        for step, metrics in rows:
            self.time_ns += 1_000_003
            payload = record.pack(Kind.LOG, self.time_ns, step, origin, metrics)
            data += record.encode(self.end + len(data), payload)
        with self.store.transaction():
            self.store.append(self.name, self.end, data, digest(data, self.end))
        self.end += len(data)

    def fold(self) -> int:
        """Folds all raw batches; returns how many there were."""
        raw = self.store.raw(self.name)
        if not raw:
            return 0
        folded = at_once(fold(read(data, start) for start, data in raw))
        with self.store.transaction():
            self.store.replace_raw(self.name, raw[-1][0], folded, batches=len(raw))
        return len(raw)

    def read(self, *metrics: str) -> dict[str, Column]:
        with ProjectReader(self.store.path) as reader:
            columns = points.columns(reader, self.name, frozenset(metrics))
            assert reader.problems == []
        return columns


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    stream = Stream(tmp_path)
    yield stream
    stream.store.close()


def as_text(columns: dict[str, Column]) -> dict[str, list[str]]:
    """Points to compare: values by bits and type, so that NaN equals itself and 3 is not 3.0."""
    return {
        name: [f"{row[:3]} {_bits(row[3])}" for row in zip(*(array.tolist() for array in column), strict=True)]
        for name, column in columns.items()
    }


def _bits(value: Any) -> str:
    return struct.pack("<d", value).hex() if isinstance(value, float) else repr(value)


# -- the codec ---------------------------------------------------------------------------------------------


STRIDES = st.builds(range, st.integers(-99, 99), st.integers(100, 999), st.integers(1, 99)).map(list)


@given(st.one_of(st.lists(INT64), st.lists(st.integers(-3, 300)), STRIDES))
def test_integers_come_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert codec.unpack_ints(memoryview(codec.pack_ints(array)), len(values)).tolist() == values


@given(st.one_of(
    st.lists(ANY_FLOAT, max_size=50),
    st.lists(st.floats(width=32), max_size=50),
    st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 10**4), max_size=50),
    st.lists(st.sampled_from([0.0, -0.0, 0.1, math.nan, math.inf, 5e-324, 1e308]), max_size=20),
    st.lists(INT64, max_size=50),
    st.lists(PLAIN, max_size=30),
))  # fmt: skip
def test_values_come_back_bit_by_bit_and_in_their_type(values: list[Any]) -> None:
    array = typed(values)
    kind, data = codec.pack_values(array)
    back = codec.unpack_values(kind, memoryview(data), len(values)).tolist()
    assert [(_bits(v), type(v)) for v in back] == [(_bits(v), type(v)) for v in values]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0.5, 0.25, math.nan], "float32"),
        ([0.1, 0.25], "e2"),
        ([float(np.float32(0.1)), 3.0], "float32"),
        ([math.pi, math.e], "float"),
        ([1, 2], "int"),
        ([1, 2.0], "any"),
        (["x"], "any"),
        ([True, False], "any"),
    ],
)
def test_values_are_stored_in_the_smallest_form_that_loses_nothing(values: list[Any], kind: str) -> None:
    assert codec.pack_values(typed(values))[0] == kind


@given(st.lists(st.binary(max_size=40), max_size=5), st.data())
def test_a_blob_that_changed_on_disk_is_seen(parts: list[bytes], data: st.DataObject) -> None:
    blob = codec.seal(parts)
    assert [bytes(part) for part in codec.unseal(blob)] == parts
    position = data.draw(st.integers(0, len(blob) - 1))
    changed = bytearray(blob)
    changed[position] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(changed), blob[:position]):
        with pytest.raises((codec.Damaged, struct.error)):
            codec.unseal(broken)


GOLDEN_DEFLATED = "060000000600000006000000060000006360200e00006360200e00003b7080380000b3b7270e0000"
GOLDEN_AXIS = "8eea811504110000001100000011000000110000000000000000000000003000000000000000000500000000000000010000000000000000e8030000000000000a000000000000000000000000000000000000000000000000"  # noqa: E501


def test_the_bytes_of_folded_columns_are_those_of_layout_2(stream: Stream) -> None:
    """What is on disks of users: changed bytes need a new layout and a reader for the old one."""
    ints = [np.array(v, np.int64) for v in ([0, 48, 96], [5, 6, 7], [1000, 1010, 1020], [0, 0, 0])]
    assert codec.seal([codec.pack_ints(v) for v in ints]).hex() == GOLDEN_AXIS
    planes = "02000000" + "02000000" + "0223" + "0001"
    assert codec.pack_ints(np.array([7, 9, 300], np.int64)).hex() == "02" + "0700000000000000" + planes
    assert codec.pack_values(typed([1, "x"]))[1].hex() == "00" + "9201a178"
    assert codec.unpack_values("float32", memoryview(bytes.fromhex(GOLDEN_DEFLATED)), 40).tolist() == [1.5] * 40
    pi = struct.pack("<8I", *[1] * 8) + struct.pack("<d", math.pi)
    assert codec.unpack_values("float", memoryview(pi), 1).tolist() == [math.pi]
    assert codec.unpack_values("e2", memoryview(codec.pack_ints(np.array([10, 25]))), 2).tolist() == [0.1, 0.25]


# -- the store ---------------------------------------------------------------------------------------------

STEPS = st.integers(-5, 40)
RECORDS = st.tuples(STEPS, st.dictionaries(st.sampled_from("abc"), PLAIN, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.lists(RECORDS, min_size=1, max_size=12), st.just("fold")), max_size=12))
def test_what_was_logged_reads_the_same_whenever_it_is_folded(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    folded, raw = (Stream(tmp_path_factory.mktemp(name)) for name in ("folded", "raw"))
    for step in steps:
        if step == "fold":
            folded.fold()
        else:
            folded.log(*step)
            raw.log(*step)
        assert as_text(folded.read("a", "b", "c")) == as_text(raw.read("a", "b", "c"))
    folded.store.close()
    raw.store.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 400), st.sampled_from([1, 1, 1, 0])), min_size=1, max_size=5),
    st.booleans(),
)
def test_blocks_are_those_of_the_points_that_show_or_are_not_given(
    tmp_path_factory: pytest.TempPathFactory, stretches: list[tuple[int, int, int]], has_tail: bool
) -> None:
    """Stretches overlap, repeat steps, go back; a chunk that another one hides in part must not be summed up."""
    stream = Stream(tmp_path_factory.mktemp("blocks"))
    value = 0.0
    for i, (first, count, stride) in enumerate(stretches):
        rows = []
        for n in range(count):
            value += 1.0
            rows.append((first * 100 + n * stride, {"a": value}))
        stream.log(*rows)
        if not (has_tail and i == len(stretches) - 1):
            stream.fold()
    logged = stream.read("a")["a"]
    shown = logged.take(last_per_step(logged.steps))
    with ProjectReader(stream.store.path) as reader:
        found = points.blocks(reader, "s", "a")
    stream.store.close()
    if found is not None:
        assert found.counts.sum() == shown.size
        one, other = buckets(found, 1), blocks_of(shown.steps, shown.times_ns, shown.values, shown.size)
        assert [array.tolist() for array in one] == [array.tolist() for array in other]
    else:
        spans = [(f * 100, f * 100 + (c - 1) * s) for f, c, s in stretches]
        assert any(a[0] <= b[1] and b[0] <= a[1] for i, a in enumerate(spans) for b in spans[:i]), "and only then"


def test_what_many_records_share_is_stored_once(stream: Stream) -> None:
    stream.log(*((s, {"a": s * 0.5, "b": s}) for s in range(1000)), *((s, {"c": 1.5}) for s in range(1000, 1100)))
    stream.fold()
    with database(stream.store.path) as connection:
        axes = connection.execute("SELECT count, shown, first_step, last_step FROM axes ORDER BY start").fetchall()
        chunks = connection.execute("SELECT count(*) FROM chunks").fetchone()
        raw = connection.execute("SELECT count(*) FROM batches").fetchone()
    assert axes == [(1000, 1000, 0, 999), (100, 100, 1000, 1099)] and chunks == (3,) and raw == (0,)


def test_a_reader_sees_either_the_batches_or_the_chunks(stream: Stream) -> None:
    stream.log(*((s, {"a": 1.0}) for s in range(100)))
    with ProjectReader(stream.store.path) as reader:
        with reader.transaction():
            reader._connection.execute("SELECT count(*) FROM batches").fetchone()
            stream.fold()
            assert len(reader.raw("s")) == 1 and reader._connection.execute("SELECT 1 FROM chunks").fetchone() is None
        assert points.columns(reader, "s", frozenset("a"))["a"].size == 100


def test_few_records_of_a_live_stream_stay_raw_and_those_of_an_ended_one_do_not(stream: Stream) -> None:
    stream.log(*((s, {"a": 1.0}) for s in range(100)))
    assert not stream.store.is_ripe("s")
    stream.log(*((s, {"a": 1.0}) for s in range(100, 4100)))
    assert stream.store.is_ripe("s")
    stream.fold()
    stream.log(*((s, {"a": 1.0}) for s in range(5000, 5040)))
    assert not stream.store.is_ripe("s")
    with stream.store.transaction():
        stream.store.append(stream.name, stream.end, b"", digest(_end(stream.end), stream.end))
    assert stream.store.is_ripe("s")


def _end(offset: int) -> bytes:
    return record.encode(offset, record.pack(Kind.FINISH, 1, "finished", "", True))


def test_a_chunk_or_page_that_is_damaged_is_named_and_the_rest_is_read(stream: Stream) -> None:
    for first in (0, 5000, 10000):
        stream.log(*((s, {"a": math.sin(s), "b": s}) for s in range(first, first + 5000)))
        stream.fold()
    with database(stream.store.path) as connection:
        ids = [
            row[0]
            for row in connection.execute(
                "SELECT chunks.id FROM chunks JOIN series ON series.id = series WHERE name = 'a' ORDER BY chunks.id"
            )
        ]
        (blob,) = connection.execute("SELECT data FROM chunks WHERE id = ?", (ids[1],)).fetchone()
        broken = blob[:100] + bytes([blob[100] ^ 1]) + blob[101:]
        connection.execute("UPDATE chunks SET data = ? WHERE id = ?", (broken, ids[1]))
    with ProjectReader(stream.store.path) as reader:
        columns = points.columns(reader, "s", frozenset("ab"))
        assert columns["a"].steps.tolist() == [*range(5000), *range(10000, 15000)]
        assert columns["b"].size == 15000
        (problem,) = reader.problems
    assert "'a'" in problem and "damaged" in problem and stream.store.path in problem


def test_a_page_of_zeros_costs_what_stood_on_it(stream: Stream) -> None:
    for first in range(0, 40000, 5000):
        stream.log(*((s, {"a": math.sin(s)}) for s in range(first, first + 5000)))
        stream.fold()
    path = Path(stream.store.path)
    stream.store.close()
    data = bytearray(path.read_bytes())
    with database(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        blobs = connection.execute("SELECT data FROM chunks ORDER BY id").fetchall()
    data = bytearray(path.read_bytes())
    position = data.index(blobs[3][0][20000:20100]) // 4096 * 4096  # an overflow page in the middle of a chunk
    data[position : position + 4096] = bytes(4096)
    path.write_bytes(data)
    with ProjectReader(str(path)) as reader:
        found = points.columns(reader, "s", frozenset("a"))["a"]
        assert found.steps.tolist() == [*range(15000), *range(20000, 40000)]
        assert len(reader.problems) == 1 and str(path) in reader.problems[0]


def test_a_metric_that_changes_its_type_keeps_every_value(stream: Stream) -> None:
    values: list[Any] = [1, 2, 0.5, "now text", True, [1, 2], math.nan, 1 << 63, 7]
    for i, value in enumerate(values):
        stream.log((i, {"a": value}))
        if i in (1, 4, 6):
            stream.fold()
    found = stream.read("a")["a"].values.tolist()
    assert [(type(v), _bits(v)) for v in found] == [(type(v), _bits(v)) for v in values]


def test_folding_keeps_what_is_not_a_point(stream: Stream) -> None:
    payloads = [record.pack(Kind.CLOCK, 5, 77), record.pack(Kind.SUMMARY, 6, {"best": 0.9}),
                record.pack(Kind.CONFIG, 7, {"lr": 0.1})]  # fmt: skip
    data = b""
    for payload in payloads:
        data += record.encode(len(data), payload)
    with stream.store.transaction():
        stream.store.append("s", 0, data, digest(data, 0))
    stream.end = len(data)
    stream.log((0, {"a": 1.0}))
    stream.fold()
    with ProjectReader(stream.store.path) as reader:
        assert (reader.summary("s"), reader.config("s")) == ({"best": 0.9}, {"lr": 0.1})
        assert reader._all("SELECT * FROM clocks") == [("s", 5, 77)]


def test_a_raw_batch_on_a_damaged_page_costs_no_more_than_itself(stream: Stream) -> None:
    stream.log(*((s, {"a": 1.0}) for s in range(5000)))
    stream.fold()
    for first in (5000, 6000, 7000):
        stream.log(*((s, {"a": math.sin(s)}) for s in range(first, first + 1000)))
    stream.store.close()
    path = Path(stream.store.path)
    with database(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        blobs = connection.execute("SELECT data FROM batches ORDER BY id").fetchall()
    data = bytearray(path.read_bytes())
    position = data.index(blobs[1][0][20000:20100]) // 4096 * 4096
    data[position : position + 4096] = bytes(4096)
    path.write_bytes(data)
    with ProjectReader(str(path)) as reader:
        found = points.columns(reader, "s", frozenset("a"))["a"]
        assert found.steps.tolist() == [*range(6000), *range(7000, 8000)] and len(reader.problems) == 1


def test_a_stream_that_cannot_be_folded_does_not_keep_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = Databases(str(tmp_path), "store")
    streams = [Stream(tmp_path, f"s{i}") for i in range(4)]
    for each in streams:
        each.log(*((s, {"a": 1.0}) for s in range(5000)))
    store = databases.get("p")
    with store.transaction():  # a record whose chunk cannot be put anywhere: its series is gone
        store._do("DELETE FROM series WHERE stream = 's2'")
    monkeypatch.setattr(folding, "_AGAIN_SECONDS", 0.05)
    work = folding.Folding(databases)
    work.note("p", [each.name for each in streams])
    wait_for(lambda: work.step() or work.seconds_until_due() is None, 30, "the end of folding")
    assert store.raw_streams() == ["s2"] and not work.is_due()
    databases.close_all()
    for each in streams:
        each.store.close()


def test_an_attempt_that_is_hidden_whole_is_in_no_summary(tmp_path: Path) -> None:
    """Its process finished and logged again, so it has two streams; the last attempt logs twice at a step."""
    store = ProjectStore(str(tmp_path), "p", "store")
    for name, process, attempt, steps in (("s0", "P", "a", (5, 5)), ("s1", "P", "a", (6,)), ("s2", "Q", "b", (5, 5))):
        with store.transaction():
            store.register(name, META | {"process": process, "attempt": attempt, "started_ns": int(name[1]) + 1})
            data = b""
            for step in steps:
                data += record.encode(len(data), record.pack(Kind.LOG, 9, step, 0, {"a": float(len(data))}))
            store.append(name, 0, data, digest(data, 0))
            store.end(name, End("finished", "", explicit=True, time_ns=int(name[1]) + 2))
    with ProjectReader(store.path) as reader:
        overview = Overview(catalog.find_run(reader, "r"))
        assert overview.hidden == 4 and overview.summary("a") == {"last": 40.0, "min": 40.0, "max": 40.0, "mean": 40.0}
    store.close()
