"""The commit thread's work without its thread: batches that wait together, and those that become columns at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trackio import record, wire
from trackio.record import Kind
from trackiod.committer import Committer
from trackiod.exits import Exit
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader
from trackiod.work import Append, Drain, Find, Register, Reply, joined


def append(stream: str, start: int, end: int, *, size: int | None = None, project: str = "p") -> Append:
    body = bytes(end - start if size is None else size)
    return Append(project, stream, wire.Data(stream, start, end, start // 2, [start, end], body), f"peer {start}")


def test_batches_that_follow_each_other_are_one_with_the_last_ones_words() -> None:
    (one,) = joined([append("a", 0, 8), append("a", 8, 24), append("a", 24, 32)])
    assert one == Append("p", "a", wire.Data("a", 0, 32, 12, [24, 32], bytes(32)), "peer 24")


def test_streams_are_joined_each_for_itself() -> None:
    done = joined([append("a", 0, 8), append("b", 0, 16), append("a", 8, 24), append("b", 16, 32)])
    assert [(work.stream, work.data.start, work.data.end) for work in done] == [("a", 0, 24), ("b", 0, 32)]


@pytest.mark.parametrize(
    "between",
    [append("a", 16, 24), append("a", 0, 8), append("a", 8, 16, size=3), Register("p", "a", {}, None),
     Drain("p", "a", {}, (), list, Exit())],
    ids=["a gap", "a replay", "not as long as it says", "another HELLO", "the end of the process"],
)  # fmt: skip
def test_what_does_not_follow_stays_by_itself_and_in_order(between: Any) -> None:
    works = [append("a", 0, 8), between, append("a", 24, 32)]
    done = joined(works)
    if isinstance(between, Append) and between.data.start == 16:
        assert [work.data.start for work in done] == [0, 16] and done[1].data.end == 32
    else:
        assert done == works


def test_a_question_in_between_changes_nothing() -> None:
    done = joined([append("a", 0, 8), Find("p", "x", "", None), append("a", 8, 16)])
    assert [type(work).__name__ for work in done] == ["Append", "Find"]


def test_a_joined_batch_is_bounded() -> None:
    megabyte = 1 << 20
    done = joined([append("a", i * megabyte, (i + 1) * megabyte) for i in range(10)])
    assert [work.data.end - work.data.start for work in done] == [4 * megabyte, 4 * megabyte, 2 * megabyte]


# -- as it is stored ---------------------------------------------------------------------------------------------


def calls(first: int, count: int, start: int) -> bytes:
    data = b""
    for i in range(first, first + count):
        data += record.encode(start + len(data), record.pack(Kind.LOG, 10**18 + i, i, 0, {"i": i, "third": i / 3}))
    return data


@pytest.fixture
def committer(tmp_path: Path) -> Iterator[Committer]:
    committer = Committer(str(tmp_path), "store", lambda: None)
    committer.open_streams()
    meta = {"run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "0", "started_ns": 1, "world_size": 1}
    committer.submit(Register("p", "s", meta, None))
    yield committer
    committer._databases.close_all()


def send(committer: Committer, start: int, *bodies: bytes) -> int:
    """Commits these batches together; returns the offset after them, which is acked."""
    for body in bodies:
        committer.submit(Append("p", "s", wire.Data("s", start, start + len(body), 0, [0, 0], body), None))
        start += len(body)
    committer.outcomes.clear()
    while committer.backlog:
        committer.commit_all()
    last = committer.outcomes[-1]
    assert isinstance(last, Reply) and last.message == wire.Ack("s", start)
    return start


def stored(committer: Committer) -> tuple[int, int, list[Any]]:
    """(raw batches, axes, values in the stream's order)."""
    with ProjectReader(schema.path_of(committer._projects, "p")) as reader:
        ((raw,),) = reader._all("SELECT count(*) FROM batches")
        ((axes,),) = reader._all("SELECT count(*) FROM axes")
        return raw, axes, points.columns(reader, "s", frozenset({"i"}))["i"].values.tolist()


def test_a_large_batch_becomes_columns_and_takes_what_is_raw_along(committer: Committer) -> None:
    end = send(committer, 0, calls(0, 100, 0))
    assert stored(committer) == (1, 0, list(range(100)))
    send(committer, end, calls(100, 2000, end))
    assert stored(committer) == (0, 1, list(range(2100)))


def test_small_batches_that_wait_together_become_columns_too(committer: Committer) -> None:
    bodies, start = [], 0
    for first in range(0, 2000, 200):
        bodies.append(calls(first, 200, start))
        start += len(bodies[-1])
    send(committer, 0, *bodies)
    assert stored(committer) == (0, 1, list(range(2000)))


def test_a_fold_in_hand_does_not_store_again_what_a_large_batch_took(committer: Committer) -> None:
    """It had read the raw batches, and was to replace them in a later slice."""
    end = 0
    for first in range(0, 5000, 500):
        end = send(committer, end, calls(first, 500, end))
    folding = committer._folding
    folding._due = {"p": 0.0}
    store = committer._databases.get("p")
    folding._project, folding._stream, folding._job = "p", "s", folding._fold(store, "s")
    next(folding._job)
    send(committer, end, calls(5000, 2000, end))
    for _ in range(20):
        folding.step()
    raw, _, values = stored(committer)
    assert (raw, values) == (0, list(range(7000)))
