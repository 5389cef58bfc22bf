"""Records that are read many at once say what they say one by one."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackio import record
from trackio.record import Kind, Origin, salvage
from trackiod.store import tables
from trackiod.store.batch import Contents, read
from trackiod.store.digest import digest_of
from trackiod.store.fold import at_once, gather

START = 4096


def batch(payloads: list[bytes]) -> bytes:
    data = b""
    for payload in payloads:
        data += record.encode(START + len(data), payload)
    return data


VALUES: dict[str, Any] = {
    "float": lambda r: r.choice([r.gauss(0, 1), float(np.float32(r.random())), -0.0, math.inf, 1e300]),
    "nan": lambda r: r.choice([math.nan, 1.5]),
    "small int": lambda r: r.randrange(-32, 128),
    "int": lambda r: r.choice([r.randrange(-(1 << 40), 1 << 40), (1 << 63) - 1, -(1 << 63)]),
    "huge int": lambda r: r.randrange(1 << 62, 1 << 64),
    "bool": lambda r: r.random() < 0.5,
    "text": lambda r: r.choice(["a", "bb"]),
    "list": lambda r: [1, 2.5],
}


def logs(seed: int, shapes: list[list[str]], count: int) -> list[bytes]:
    """Calls of these shapes in turn, as a rank, an evaluation and a profiler would interleave them."""
    chance = random.Random(seed)
    payloads, step = [], chance.choice([0, 100, 1 << 20])
    for i in range(count):
        kinds = chance.choice(shapes)
        metrics = {f"{kind}/{n}": VALUES[kind](chance) for n, kind in enumerate(kinds)}
        step += chance.choice([1, 1, 1, 0, -3])
        origin = int(chance.choice([Origin.EXPLICIT, Origin.COUNTER]))
        payloads.append(record.pack(Kind.LOG, (1 << 60) + i * 1000, step, origin, metrics))
        if chance.random() < 0.02:
            payloads.append(record.pack(Kind.CONFIG, (1 << 60) + i * 1000, {"lr": i}))
    return payloads


def one_by_one(data: bytes) -> Contents:
    return Contents((), list(salvage(data, START)))


def points_of(contents: Contents) -> dict[str, list[Any]]:
    """What is folded of them: (step, time, is counted, value and its type) of each metric, in order."""
    found = {}
    for group in at_once(gather([contents])):
        for name, column in group.columns().items():
            values = [(type(value), repr(value)) for value in column.values.tolist()]
            found[name] = list(
                zip(column.steps.tolist(), column.times_ns.tolist(), column.is_counted.tolist(), values, strict=True)
            )
    return found


def same_sums(ours: Any, theirs: Any) -> bool:
    """Totals may differ in their last bits, by the order in which they were added."""
    close = math.isclose(ours.total, theirs.total, rel_tol=1e-9, abs_tol=1e-6) or ours.total != ours.total
    return close and ours._replace(total=0) == theirs._replace(total=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.lists(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_a_batch_says_the_same_read_at_once_and_one_by_one(seed: int, shapes: list[list[str]]) -> None:
    data = batch(logs(seed, shapes, 300))
    at_once_read = Contents(*tables.tabulate(data, START))
    ours, theirs = digest_of(at_once_read), digest_of(one_by_one(data))
    assert set(ours.metrics) == set(theirs.metrics)
    for name, tally in theirs.metrics.items():
        mine = ours.metrics[name]
        assert repr(mine._replace(sums=None)) == repr(tally._replace(sums=None))  # type: ignore[arg-type]
        assert same_sums(mine.sums, tally.sums), (name, mine.sums, tally.sums)
    assert replace(ours, metrics={}) == replace(theirs, metrics={})
    assert points_of(at_once_read) == points_of(one_by_one(data))


@pytest.mark.parametrize("seed", range(20))
def test_damage_costs_what_it_hits_and_no_more(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(batch(logs(seed, [["float", "float"], ["float", "int"]], 300)))
    for _ in range(chance.randrange(1, 4)):
        position = chance.randrange(len(data))
        data[position : position + chance.randrange(1, 40)] = chance.randbytes(8)
    if seed % 2:
        del data[chance.randrange(len(data)) :]
    broken = bytes(data)
    ours, theirs = Contents(*tables.tabulate(broken, START)), one_by_one(broken)
    assert digest_of(ours).damages == digest_of(theirs).damages
    assert points_of(ours) == points_of(theirs)


def test_most_of_what_a_training_logs_is_read_at_once() -> None:
    """Else all of this were only a test of reading one by one."""
    data = batch(logs(1, [["float"] * 5, ["float", "int"]], 3000))
    found, others = tables.tabulate(data, START)
    assert sum(len(table.steps) for table in found) > 2800 and len(others) < 200


def test_only_what_is_wanted_is_cut_out() -> None:
    data = batch(logs(1, [["float", "float", "float"], ["int"]], 3000))
    contents = read(data, START, frozenset({"float/1"}))
    assert {table.names for table in contents.tables} == {("float/1",)}
    whole = points_of(one_by_one(data))
    assert {name: points for name, points in points_of(contents).items() if name == "float/1"} == {
        "float/1": whole["float/1"]
    }


def test_padding_of_an_earlier_lap_hides_no_record() -> None:
    """A ring's segment is used again; what lay between two records stays there."""
    payloads = [record.pack(Kind.LOG, 1 << 60, 70_000 + i, 0, {"a": i / 7}) for i in range(200)]
    data = bytearray(batch(payloads))
    size = record.framed_bytes(len(payloads[0]))
    assert size - record.HEADER_BYTES > len(payloads[0])
    for i in range(200):
        data[(i + 1) * size - 1] = i
    found, others = tables.tabulate(bytes(data), START)
    assert [len(table.steps) for table in found] == [200] and not others


def test_a_metric_that_is_now_a_number_and_now_none_keeps_each_value() -> None:
    """All of these take one byte."""
    values = [3, True, -5, False, 7, ""] * 50
    data = batch([record.pack(Kind.LOG, 1 << 60, 70_000 + i, 0, {"a": value}) for i, value in enumerate(values)])
    contents = Contents(*tables.tabulate(data, START))
    assert contents.tables
    assert points_of(contents) == points_of(one_by_one(data))


@pytest.mark.parametrize("swapped", [False, True])
def test_steps_ascend_over_calls_of_several_shapes_or_do_not(swapped: bool) -> None:
    """A training logs its loss, and now and then more beside it."""
    steps = list(range(70_000, 70_400))
    if swapped:
        steps[200], steps[201] = steps[201], steps[200]
    payloads = [
        record.pack(Kind.LOG, 1 << 60, step, 0, {"loss": 0.5} | ({"eval": 1.5} if i % 2 else {}))
        for i, step in enumerate(steps)
    ]
    contents = Contents(*tables.tabulate(batch(payloads), START))
    assert len(contents.tables) == 2
    assert digest_of(contents).metrics["loss"].ascending is not swapped
