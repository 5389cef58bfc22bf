"""What a dead process left, put back in order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trackio import record
from trackio.segment import Content
from trackiod import recovery
from trackiod.recovery import Batch, Source


def batches(contents: list[Content], committed: int) -> Iterator[Batch]:
    """Of segments that are read already."""
    sources = [Source(c.base, c.base + len(c.data), lambda c=c: c) for c in contents]  # type: ignore[misc]
    return recovery.batches(sources, committed)


def stream_of(count: int, seed: int) -> tuple[bytes, list[int]]:
    """A stream's bytes and its record borders."""
    chance = random.Random(seed)
    data, borders = b"", [0]
    for i in range(count):
        data += record.encode(len(data), b"%05d" % i + b"." * chance.randrange(0, 60))
        borders.append(len(data))
    return data, borders


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 5))
def test_overlapping_copies_give_each_record_once_and_in_order(seed: int, count: int, copies: int) -> None:
    data, borders = stream_of(count, seed)
    chance = random.Random(seed)
    committed = chance.choice(borders)
    contents = [Content(0, data + bytes(64))]
    for _ in range(copies):
        start, end = sorted((chance.choice(borders), chance.choice(borders)))
        contents.append(Content(start, data[start:end] + bytes(8 * chance.randrange(4))))
    chance.shuffle(contents)
    got = list(batches(contents, committed))
    assert b"".join(b.data for b in got) == data[committed:]
    assert [b.start for b in got] == [committed, *(b.end for b in got)][: len(got)]


@given(st.integers(0, 10**6), st.integers(3, 60))
def test_a_missing_middle_is_the_only_gap(seed: int, count: int) -> None:
    data, borders = stream_of(count, seed)
    first, second = sorted(random.Random(seed).sample(borders[1:-1], 2)) if count > 3 else (borders[1], borders[2])
    got = list(batches([Content(0, data[:first]), Content(second, data[second:])], 0))
    assert b"".join(b.data for b in got) == data[:first] + data[second:]
    assert [b.start for b in got if b.start == second] == [second]


@given(st.integers(0, 10**6))
def test_records_of_an_earlier_lap_do_not_count(seed: int) -> None:
    """A recycled segment: new records over old ones that are whole and checksummed."""
    old, _ = stream_of(30, seed)
    base = 1 << 20
    new = record.encode(base, b"new") + record.encode(base + 24, b"newer")
    recycled = new + old[len(new) :]
    got = list(batches([Content(base, recycled)], 0))
    assert b"".join(b.data for b in got) == new


@given(st.lists(st.binary(max_size=200), max_size=4), st.integers(0, 100).map(lambda n: n * 8))
def test_any_bytes_are_survived(blobs: list[bytes], base: int) -> None:
    for batch in batches([Content(base, blob) for blob in blobs], 0):
        assert batch.end > batch.start


def test_segments_that_do_not_overlap_are_never_in_memory_together() -> None:
    data, borders = stream_of(40, 1)
    read: list[int] = []

    def source(start: int, end: int) -> Source:
        return Source(start, end, lambda: read.append(start) or Content(start, data[start:end]))  # type: ignore[func-returns-value]

    cuts = [0, borders[10], borders[20], borders[30], len(data)]
    sources = [source(a, b) for a, b in pairwise(cuts)]
    got = recovery.batches(reversed(sources), borders[12])
    assert not read
    whole = b"".join(batch.data for batch in got)
    assert whole == data[borders[12] :] and read == cuts[1:-1], "what is committed is not even read"
