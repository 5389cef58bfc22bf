"""The rules by which stored points are shown: attempts, ranks, states, lineage (docs/semantics.md)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackio import places
from trackio.record import Origin
from trackiod.uploads import artifact_files
from trackiod.views.attempts import Place, Restarts, Start, Stream, place, start_of
from trackiod.views.buckets import blocks_of, buckets
from trackiod.views.column import Column, typed
from trackiod.views.lineage import RunRow, roots
from trackiod.views.reduction import Part, Shown, as_stored, reduce_ranks, sift
from trackiod.views.state import RunState, run_state
from trackiod.views.versions import Known, labels, meant


def stream(name: str, rank: int = 0, started: int = 0, ended: int | None = None, **other: Any) -> Stream:
    facts: dict[str, Any] = {
        "run": "r", "role": "rank", "attempt_key": "k", "process": name, "cause": "",
        "state": None if ended is None else "finished",
        "records": 1, "points": 1, "refused_records": 0, "refused_points": 0, "last_ns": None, "world_size": 1, **other,
    }  # fmt: skip
    return Stream(id=name, rank=rank, started_ns=started, ended_ns=ended, **facts)


class Point(NamedTuple):
    step: int
    value: Any
    rank: int = 0
    attempt: int = 0
    origin: int = Origin.EXPLICIT


point = Point


def parts(points: Iterable[Point]) -> list[Part]:
    """The points as the store gives them: a part for each rank and attempt, in the order they were logged."""
    streams: dict[tuple[int, int], list[Point]] = {}
    for p in points:
        streams.setdefault((p.rank, p.attempt), []).append(p)
    return [Part(rank, attempt, column(mine)) for (rank, attempt), mine in streams.items()]


def column(points: list[Point]) -> Column:
    steps = np.array([p.step for p in points], np.int64)
    is_counted = np.array([p.origin == Origin.COUNTER for p in points])
    return Column(steps, steps.copy(), is_counted, typed([p.value for p in points]))


# -- attempts ----------------------------------------------------------------------------------------------


def test_the_ranks_of_one_start_are_one_attempt() -> None:
    assert set(place([stream(f"s{r}", r, started=r) for r in range(4)]).values()) == {Place(0, 0)}


def test_another_start_is_another_attempt_in_the_order_of_starts_not_of_arrival() -> None:
    late_orphan = stream("old", started=10, ended=20, attempt_key="a")
    newer = stream("new", started=30, attempt_key="b")
    assert place([newer, late_orphan]) == {"old": Place(0, 0), "new": Place(1, 0)}


def test_a_rank_that_comes_again_after_its_end_is_a_new_attempt_whatever_the_launcher_counts() -> None:
    """Elastic membership changes do not move the restart count."""
    streams = [stream("a0", 0, 0, 50), stream("a1", 1, 0, 50), stream("b0", 0, 60), stream("b1", 1, 61)]
    assert place(streams) == {"a0": Place(0, 0), "a1": Place(0, 0), "b0": Place(1, 0), "b1": Place(1, 0)}


def test_a_killed_rank_that_is_back_before_its_end_is_noticed_is_a_new_attempt() -> None:
    killed = stream("a", 0, 0, ended=70, state="killed", last_ns=50)
    assert place([killed, stream("b", 0, 60)]) == {"a": Place(0, 0), "b": Place(1, 0)}


def test_a_process_that_logs_again_after_its_finish_goes_on_with_its_attempt() -> None:
    job = [stream("a0", 0, 0, 50, process="zero"), stream("a1", 1, 0), stream("again", 0, 60, process="zero")]
    assert set(place(job).values()) == {Place(0, 0)}
    twins = [stream("t", 0, 5, 40, process="one"), stream("u", 0, 60, process="one")]
    assert [place([*job, *twins])[name] for name in ("t", "u")] == [Place(0, 1), Place(0, 1)]


def test_two_living_streams_of_one_rank_are_kept_apart() -> None:
    assert place([stream("a", 0, 0), stream("b", 0, 5)]) == {"a": Place(0, 0), "b": Place(0, 1)}


def test_workers_stand_beside_their_rank() -> None:
    streams = [stream("a", 0, 0), stream("w1", 0, 5, role="worker"), stream("w2", 0, 6, role="worker")]
    assert set(place(streams).values()) == {Place(0, 0)}


HOUR = 3_600 * 10**9


class History(NamedTuple):
    """What happened in truth: streams by attempt and rank, and the points that each logged, in order."""

    streams: dict[tuple[int, int], Stream]
    points: list[Point]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Attempts one after the other, on hosts whose wall clocks are hours off and jump whenever they like.

    Either the launcher counts them, on whatever hosts they are, or their lowest rank stays in one boot."""
    is_counted, world = draw(st.booleans()), draw(st.integers(1, 3))
    is_one_boot = not is_counted and draw(st.booleans())
    offs = st.integers(-3, 3).map(lambda hours: hours * HOUR)
    key, now = "", 10 * HOUR
    history = History({}, [])
    for attempt in range(draw(st.integers(1, 5))):
        # a launcher that does not count what its ranks do gives one key to several
        key = f"k{attempt}" if not key or not is_one_boot or draw(st.booleans()) else key
        length = draw(st.integers(10, 10**12))
        for rank in range(world):
            boot = "boot" if is_one_boot or (rank == 0 and not is_counted) else draw(st.sampled_from(["a", "b", "c"]))
            start, end = now + draw(st.integers(0, 4)), now + length - draw(st.integers(0, 4))
            off, later = draw(offs), draw(st.none() | offs)
            jumped = draw(st.integers(start + 1, end - 1))
            jumps = () if later is None else ((jumped + later, jumped),)
            ended = end + (off if later is None else later)
            restarts = (Restarts("elastic", "one launch", attempt),) if is_counted else ()
            history.streams[attempt, rank] = stream(
                f"{attempt}/{rank}", rank, start + off, ended, attempt_key=key, last_ns=ended,
                state=draw(st.sampled_from(["finished", "killed", "lost"])),
                start=Start(boot, start + off, start, jumps, restarts),
            )  # fmt: skip
            steps = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
            history.points.extend(Point(step, float(len(history.points) + i), rank, attempt)
                                  for i, step in enumerate(steps))  # fmt: skip
        now += length
    return history


@given(histories(), st.randoms())
def test_a_clock_that_is_wrong_hides_no_point_that_a_right_one_would_show(
    history: History, chance: random.Random
) -> None:
    """Against the rule, point by point: a later attempt hides from its own first step on; of a step the last shows."""
    streams = list(history.streams.values())
    chance.shuffle(streams)
    placed = place(streams)
    numbers = {name: placed[each.id] for name, each in history.streams.items()}
    assert numbers == {(attempt, rank): Place(attempt, 0) for attempt, rank in history.streams}
    assert [placed[id_].attempt for id_ in placed] == sorted(each.attempt for each in placed.values())
    points = history.points
    shows = {
        p.value
        for i, p in enumerate(points)
        if not any(later.attempt > p.attempt and later.step <= p.step for later in points)
        and not any(later[:1] + later[2:4] == p[:1] + p[2:4] for later in points[i + 1 :])
    }
    visible, _ = sift(parts([p._replace(attempt=numbers[p.attempt, p.rank].attempt) for p in points]))
    assert {value for part in visible for value in part.points.values.tolist()} == shows


def started(name: str, started_ns: int, boot: str, monotonic_ns: int, *restarts: Restarts, **other: Any) -> Stream:
    facts = {"attempt_key": name, "ended": started_ns + 1, **other}
    start = Start(boot, started_ns, monotonic_ns, (), restarts)
    return stream(name, facts.pop("rank", 0), started_ns, start=start, **facts)


def in_order(*streams: Stream) -> list[str]:
    return list(place(streams))


def test_a_clock_that_was_wrong_once_moves_no_attempt_of_another_boot() -> None:
    behind = started("c", 9 * HOUR, "one", 60)
    assert in_order(started("b", 10 * HOUR - 9, "two", 5), started("a", 10 * HOUR, "one", 10), behind) == [
        "b",
        "a",
        "c",
    ]
    ahead = [started("a", 11 * HOUR, "one", 10), started("b", 10 * HOUR + 20, "one", 30), started("c", 10 * HOUR + 40,
             "one", 50), started("d", 10 * HOUR + 60, "two", 5)]  # fmt: skip
    assert in_order(*ahead) == ["a", "b", "c", "d"]


def test_a_laptop_that_slept_and_a_clock_that_was_set_end_no_attempt_late() -> None:
    """Both show as a jump of the wall clock. The next process of the rank is a new attempt, not a twin."""
    slept = stream("a", 0, 0, 9 * HOUR, start=Start("boot", 0, 100, ((9 * HOUR - 50, 150),)))
    assert place([slept, stream("b", 0, 60, start=Start("boot", 60, 300))]) == {"a": Place(0, 0), "b": Place(1, 0)}
    killed = stream("a", 0, 0, HOUR, state="killed", last_ns=40, start=Start("boot", 0, 100, ((HOUR, 150),)))
    assert place([killed, stream("b", 0, HOUR, start=Start("boot", HOUR, 160))])["b"] == Place(1, 0)
    assert place([killed, stream("b", 0, 30, start=Start("boot", 30, 130))])["b"] == Place(0, 1)


def test_an_attempt_begins_with_its_lowest_rank_whatever_another_hosts_clock_says() -> None:
    first = [
        started("a0", 10 * HOUR, "one", 10, attempt_key="a"),
        started("a1", 10 * HOUR, "x", 1, attempt_key="a", rank=1),
    ]
    second = [started("b0", 10 * HOUR + 30, "one", 40, attempt_key="b"),
              started("b1", 9 * HOUR, "two", 5, attempt_key="b", rank=1)]  # fmt: skip
    assert in_order(*second, *first) == ["a0", "a1", "b1", "b0"]


def test_counts_of_another_launch_order_nothing() -> None:
    def count(launch: str, number: int, requeued: int = 0) -> tuple[Restarts, Restarts]:
        return Restarts("slurm", "job", requeued), Restarts("elastic", launch, number)

    first = [started("a", 10, "", 0, *count("x", 0)), started("b", 20, "", 0, *count("x", 1))]
    second = [started("c", 30, "", 0, *count("y", 0)), started("d", 5, "", 0, *count("y", 1))]
    assert in_order(*second, *first) == ["a", "b", "c", "d"]
    requeued = [started("e", 1, "", 0, *count("z", 0, 1)), started("f", 2, "", 0, *count("z", 1, 1))]
    assert in_order(*requeued, *second, *first) == ["a", "b", "c", "d", "e", "f"]


def test_counts_of_a_launch_without_a_name_order_where_none_comes_twice() -> None:
    once = [started("a", 10, "", 0, Restarts("elastic", "", 0)), started("b", 5, "", 0, Restarts("elastic", "", 1))]
    assert in_order(*once) == ["a", "b"]
    again = started("c", 7, "", 0, Restarts("elastic", "", 0))
    assert in_order(*once, again) == ["b", "c", "a"], "two launches: the clock decides"


def test_what_a_stream_says_of_its_start_may_be_anything() -> None:
    assert start_of({}) == start_of({"boot_id": 1, "monotonic_ns": "x", "restarts": 7}) == Start()
    meta = {
        "boot_id": "b",
        "started_ns": 5,
        "monotonic_ns": 3,
        "restarts": [["slurm", "s", 1], ["x"], 4, ["a", "b", True]],
    }
    assert start_of(meta, [(9, 7), (8, 6)]) == Start("b", 5, 3, ((8, 6), (9, 7)), (Restarts("slurm", "s", 1),))


class Counted(int):
    """An instant that counts how often one is compared."""

    comparisons = 0

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __le__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) <= int(other)

    def __gt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) > int(other)


@pytest.mark.parametrize("ends", ["one after the other", "all at the end"])
def test_attempts_that_share_a_key_are_placed_in_nearly_linear_time(ends: str) -> None:
    def comparisons(count: int) -> int:
        Counted.comparisons = 0
        is_apart = ends == "one after the other"
        streams = [stream(f"s{i:05}", 0, Counted(10 * i), Counted(10 * i + 5 if is_apart else 10**9 + i))
                   for i in range(count)]  # fmt: skip
        assert set(place(streams).values()) == {Place(i, 0) if is_apart else Place(0, i) for i in range(count)}
        return Counted.comparisons

    assert comparisons(4000) < 5 * comparisons(1000)


# -- states ------------------------------------------------------------------------------------------------


def state_of(*streams: Stream) -> RunState:
    return run_state(streams, place(streams))


def test_a_run_runs_while_any_rank_does() -> None:
    assert state_of(stream("a", 0, 0, 9), stream("b", 1, 0)) == ("running", "")


def test_the_gravest_end_is_the_runs_and_the_first_of_them_its_cause() -> None:
    ranks = [
        stream("a", 0, 0, 30, state="killed", cause="SIGTERM"),
        stream("b", 1, 0, 29, state="failed", cause="ValueError"),
        stream("c", 2, 0, 31, state="failed", cause="KeyError"),
        stream("d", 3, 0, 10, state="finished"),
    ]
    assert state_of(*ranks) == ("failed", "rank 1: ValueError")


@pytest.mark.parametrize("graver,lesser", [("failed", "killed"), ("killed", "lost"), ("lost", "finished")])
def test_failed_before_killed_before_lost_before_finished(graver: str, lesser: str) -> None:
    assert state_of(stream("a", 0, 0, 1, state=lesser), stream("b", 1, 0, 2, state=graver)).state == graver


def test_only_the_latest_attempt_decides() -> None:
    old = stream("a", 0, 0, 5, state="failed", attempt_key="0")
    assert state_of(old, stream("b", 0, 10, 20, attempt_key="1")) == ("finished", "")


def test_a_workers_end_does_not_decide() -> None:
    assert state_of(stream("a", 0, 0, 9), stream("w", 0, 1, None, role="worker")).state == "finished"


# -- lineage -----------------------------------------------------------------------------------------------


def test_a_run_that_resumes_by_name_is_shown_with_the_newest_before_it() -> None:
    rows = [
        RunRow("a", "x", None, 1, False),
        RunRow("b", "x", None, 2, True),
        RunRow("c", "x", None, 3, False),
        RunRow("d", "x", None, 4, True),
        RunRow("e", "y", None, 5, True),
    ]
    expected = {"a": "a", "b": "a", "c": "c", "d": "c", "e": "e"}
    assert roots(rows) == roots(reversed(rows)) == expected


# -- what shows --------------------------------------------------------------------------------------------


def reduced(points: Iterable[Point], how: str = "mean") -> list[Shown]:
    return list(reduce_ranks(sift(parts(points)).visible, how).points())


def shown(points: Iterable[Point], how: str = "mean") -> list[tuple[int, Any]]:
    return [(s.step, s.value) for s in reduced(points, how)]


def test_the_last_point_of_a_step_shows_and_the_others_are_counted() -> None:
    """GRPO logs one profile point twice at a step: 33.7 ms, then 5 µs."""
    both = parts([point(0, 0.0337), point(0, 0.000005)])
    assert sift(both).visible[0].points.values.tolist() == [0.000005] and sift(both).hidden == 1
    assert [p.value for p in as_stored(both).points()] == [0.0337, 0.000005]


def test_a_later_attempt_hides_earlier_ones_from_its_own_first_step_on() -> None:
    old = [point(s, "old") for s in range(6)]
    new = [point(s, "new", attempt=1) for s in (3, 4)]
    assert shown(old + new) == shown(new + old) == [(0, "old"), (1, "old"), (2, "old"), (3, "new"), (4, "new")]
    assert sift(parts(old + new)).hidden == 3


def test_a_reduction_never_mixes_attempts() -> None:
    old = [point(s, 100.0, rank=r) for s in range(4) for r in range(8)]
    new = [point(s, 1.0 + r, rank=r, attempt=1) for s in (2, 3) for r in range(4)]
    assert [(s.step, s.value, s.ranks, s.of) for s in reduced(old + new)] == [
        (0, 100.0, 8, 8), (1, 100.0, 8, 8), (2, 2.5, 4, 4), (3, 2.5, 4, 4),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [0.1, 3, "text", True, [1, 2], 1e308, math.inf])
def test_equal_values_are_returned_as_they_are(value: Any) -> None:
    ((_, got),) = shown([point(0, value, rank=r) for r in range(3)])
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("how", "value"), [("mean", 2.5), ("min", 1), ("max", 4), ("sum", 10), ("first", 1), ("last", 4), ("odd", 2.5)]
)
def test_ranks_are_reduced(how: str, value: Any) -> None:
    assert shown([point(0, r + 1, rank=r) for r in (2, 0, 3, 1)], how) == [(0, value)]


def test_equal_values_are_summed_all_the_same() -> None:
    assert shown([point(0, 4096, rank=r) for r in range(4)], "sum") == [(0, 16384)]


@pytest.mark.parametrize("how", ["mean", "sum", "min", "max"])
def test_a_nan_in_one_rank_wins_and_is_named(how: str) -> None:
    (got,) = reduced([point(0, float(r) if r != 2 else math.nan, rank=r) for r in range(4)], how)
    assert math.isnan(got.value) and got.nan_rank == 2


def test_a_step_that_not_all_ranks_reached_is_partial() -> None:
    points = [point(s, float(r), rank=r) for r in range(4) for s in range(3 if r else 2)]
    assert [(s.ranks, s.of, s.is_partial) for s in reduced(points)] == [
        (4, 4, False), (4, 4, False), (3, 4, True),
    ]  # fmt: skip


def test_strings_are_the_lowest_ranks() -> None:
    assert shown([point(0, name, rank=r) for r, name in ((2, "c"), (1, "b"))]) == [(0, "b")]


def test_counted_points_are_paired_by_ordinal_not_by_counter() -> None:
    """Rank 0 logs something else in between, so its counter runs ahead."""
    zero = [point(s, 0.0, origin=Origin.COUNTER) for s in (0, 2, 4)]
    one = [point(s, 2.0, rank=1, origin=Origin.COUNTER) for s in (0, 1, 2)]
    assert [(s.step, s.value, s.ranks) for s in reduced(zero + one)] == [(0, 1.0, 2), (2, 1.0, 2), (4, 1.0, 2)]


def test_sums_past_the_largest_float_do_not_raise() -> None:
    assert shown([point(0, v, rank=r) for r, v in enumerate((1.7e308, 1.6e308))])[0][1] == pytest.approx(1.65e308)
    assert math.isnan(shown([point(0, v, rank=r) for r, v in enumerate((math.inf, -math.inf))])[0][1])
    assert shown([point(0, v, rank=r) for r, v in enumerate((10**18, 10**18 + 1))], "sum") == [(0, 2 * 10**18 + 1)]


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 2), st.floats(allow_nan=False)), max_size=60
    )
)
def test_every_point_is_shown_or_counted_as_hidden_and_order_of_arrival_is_irrelevant(
    rows: list[tuple[int, int, int, float]],
) -> None:
    points = [point(s, v, rank=r, attempt=a) for s, r, a, v in rows]
    sifted, again = sift(parts(points)), sift(reversed(parts(points)))
    keys = [(p.rank, int(step)) for p in sifted.visible for step in p.points.steps]
    assert len(keys) + sifted.hidden == len(points) and len(keys) == len(set(keys))
    assert [(p.rank, p.attempt, p.points.values.tolist()) for p in sifted.visible] == [
        (p.rank, p.attempt, p.points.values.tolist()) for p in again.visible
    ]


def plainly_reduced(points: list[Point], how: str) -> list[tuple[int, Any]]:
    """The rules of docs/semantics.md once more, a point at a time."""
    starts = {a: min(p.step for p in points if p.attempt == a) for a in {p.attempt for p in points}}
    last: dict[tuple[int, int, int], Point] = {}
    for p in points:
        if all(p.step < start for attempt, start in starts.items() if attempt > p.attempt):
            last[(p.attempt, p.step, p.rank)] = p
    steps: dict[tuple[int, int], list[Point]] = {}
    for key in sorted(last):
        steps.setdefault(key[:2], []).append(last[key])
    amounts = {"min": min, "max": max, "sum": sum, "first": lambda v: v[0], "last": lambda v: v[-1],
               "mean": lambda v: v[0] if len(set(v)) == 1 else math.fsum(v) / len(v)}  # fmt: skip
    return sorted((step, amounts[how]([p.value for p in mine])) for (_, step), mine in steps.items())


numbers = st.one_of(st.integers(-(1 << 40), 1 << 40), st.floats(-1e9, 1e9))
rows = st.tuples(st.integers(0, 9), numbers, st.integers(0, 3), st.integers(0, 2))


@given(st.lists(rows, max_size=60), st.sampled_from(["mean", "min", "max", "sum", "first", "last"]))
def test_arrays_are_reduced_as_single_points_would_be(rows: list[tuple[int, float, int, int]], how: str) -> None:
    points = [point(*row) for row in rows]
    for chosen in (points, [p._replace(value=float(p.value)) for p in points]):
        got, expected = shown(chosen, how), plainly_reduced(chosen, how)
        assert [s for s, _ in got] == [s for s, _ in expected]
        assert [v for _, v in got] == pytest.approx([v for _, v in expected], rel=1e-12, abs=1e-3)


# -- buckets -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=3000), st.integers(1, 40))
def test_buckets_say_exactly_what_their_points_are(values: list[float], most: int) -> None:
    steps = np.arange(len(values)) * 3
    found = buckets(blocks_of(steps, steps, np.array(values), 7), most)
    assert len(found.counts) <= most and found.counts.sum() == len(values)
    start = 0
    for i, count in enumerate(found.counts.tolist()):
        mine = values[start : start + count]
        finite = [v for v in mine if not math.isnan(v)]
        assert (found.first_steps[i], found.last_steps[i]) == (3 * start, 3 * (start + count - 1))
        assert found.nans[i] == len(mine) - len(finite)
        if finite:
            assert (found.lows[i], found.highs[i]) == (min(finite), max(finite))
            assert found.means[i] == pytest.approx(math.fsum(finite) / len(finite), abs=1e-6)
        else:
            assert math.isnan(found.means[i])
        start += count


# -- versions of artifacts that several hosts numbered ----------------------------------------------------------------


def test_versions_of_several_hosts_have_names_that_last() -> None:
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    ours = [Known(0, 50, a), Known(1, 60, b)]
    theirs = [Known(f"0-{c[:8]}", 10, c), Known(f"2-{a[:8]}", 5, a)]
    assert labels(ours) == {a: 0, b: 1}
    assert labels(ours + theirs) == {a: 0, c: f"0-{c[:8]}", b: 1}, "this host's numbers stay what they are"
    assert meant("v0", ours + theirs) == a and meant(f"v0-{c[:8]}", ours + theirs) == c
    assert labels(theirs) == {c: 0, a: 2}, "elsewhere, the first that was logged"
    assert labels([*theirs, Known(f"0-{b[:8]}", 7, b)]) == {b: 0, c: f"0-{c[:8]}", a: 2}
    for known in (ours, theirs, ours + theirs):
        assert all(meant(f"v{each.number}-{each.digest[:8]}", known) == each.digest for each in known)
    for which in ("v3", "latest", "v", "v0-", f"v1-{a[:8]}", "v" + "9" * 30):
        assert meant(which, ours) is None


def test_what_is_incomplete_where_it_was_logged_keeps_no_version_back(tmp_path: Path) -> None:
    where = places.find(str(tmp_path), "")
    lost = {"path": "a", "incomplete": "it was removed", "digest": None}
    kept = {"path": "b", "digest": "d" * 64, "size": 1}
    for manifest, is_here in (([lost], True), ([lost, {"path": "c", "ref": "s3://x"}], True), ([lost, kept], False)):
        version = artifact_files.Version("model", 0, 1, "t", "e" * 64, {}, manifest)
        assert artifact_files.is_here(where, "p", version) == is_here
