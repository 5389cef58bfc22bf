"""What is committed when: group commits, what somebody waits for, and projects whose commits fail. Without a clock."""

from __future__ import annotations

from collections import defaultdict

import pytest

from trackio import record, wire
from trackio.record import Kind
from trackiod.admission import Admission
from trackiod.backlog import FEW_COMMIT_SECONDS, MANY_COMMIT_SECONDS, MOST_BYTES, Backlog
from trackiod.exits import Exit
from trackiod.troubles import Troubles
from trackiod.work import Append, Drain, Edit, FileKept, Find, Raise, Refused, Register, Work


def batch(stream: str = "s", start: int = 0, size: int = 64, project: str = "p") -> Append:
    return Append(project, stream, wire.Data(stream, start, start + size, 0, [0, 0], bytes(size)), None)


def last_batch(stream: str = "s", start: int = 0) -> Append:
    body = record.encode(start, record.pack(Kind.LOG, 1, 0, 0, {"loss": 0.5}))
    body += record.encode(start + len(body), record.pack(Kind.FINISH, 1, "finished", "", True))
    return Append("p", stream, wire.Data(stream, start, start + len(body), 0, [0, 0], body), None)


def register(stream: str = "s") -> Register:
    return Register("p", stream, {}, None)


def commit(backlog: Backlog, now: float) -> list[Work]:
    taken = backlog.take(now)
    if taken:
        backlog.done(taken[0].project, now)
    return taken


def simulated(streams: int, seconds: int, hertz: int = 10) -> tuple[int, list[float]]:
    """Commits, and what each batch waited, of streams that log at the same pace, one after the other."""
    backlog, commits, waits, came = Backlog(), 0, list[float](), dict[tuple[str, int], float]()
    period = 1000 // hertz
    ranks_at = defaultdict(list)
    for rank in range(streams):
        ranks_at[rank * period // streams].append(rank)
    for tick in range(seconds * 1000):
        now = tick / 1000
        for rank in ranks_at[tick % period]:
            work = batch(f"s{rank}", tick * 64)
            came[work.stream, work.data.start] = now
            backlog.add(work, now)
        if taken := commit(backlog, now):
            commits += 1
            waits += [now - came[work.stream, work.data.start] for work in taken if isinstance(work, Append)]
    assert len(waits) >= streams * (seconds * hertz - 3), "all but the last rounds are committed"
    return commits, waits


@pytest.mark.parametrize(("streams", "most_commits"), [(1, 40), (4, 84), (16, 44), (64, 24), (1000, 24)])
def test_ranks_that_log_at_the_same_pace_share_commits(streams: int, most_commits: int) -> None:
    """64 ranks commit at most five times as often as one, and what a dying host loses is within a fifth of a second."""
    commits, waits = simulated(streams, 4)
    assert commits <= most_commits and max(waits) <= MANY_COMMIT_SECONDS + 0.002


def test_a_rank_that_logs_ten_times_a_second_does_not_wait_for_its_own_commits() -> None:
    commits, waits = simulated(1, 10)
    assert commits == 100 and max(waits) == 0


@pytest.mark.parametrize(
    "urgent",
    [register(), Find("p", "run", "", None), Drain("p", "s", {}, (), list, Exit()), Edit("p", "delete", "r", "", None),
     Raise("p", {}), last_batch()],
    ids=["HELLO", "a question", "a dead process", "an edit", "an alert", "the end of a run"],
)  # fmt: skip
def test_what_somebody_waits_for_is_due_at_once_and_takes_along_what_is_queued(urgent: Work) -> None:
    backlog = Backlog()
    assert backlog.add(batch(), 0.0) and commit(backlog, 0.0)
    assert not backlog.take(0.001) and backlog.add(batch(start=64), 0.001) and not backlog.take(0.002)
    assert backlog.add(urgent, 0.002), "the thread is woken"
    assert commit(backlog, 0.002)[-1] == urgent and not backlog


def test_what_nobody_waits_for_is_due_with_the_next_commit() -> None:
    backlog = Backlog()
    backlog.add(batch(), 0.0)
    commit(backlog, 0.0)
    for work in (batch(start=64), Refused("p", "s", 1, 1), FileKept("p", "s", "s/1", "kept")):
        backlog.add(work, 0.001)
    assert not backlog.take(0.001)
    assert backlog.seconds_until_due(0.001) == pytest.approx(FEW_COMMIT_SECONDS - 0.001)
    assert len(commit(backlog, 0.001 + FEW_COMMIT_SECONDS)) == 3


def test_much_is_due_at_once() -> None:
    backlog = Backlog()
    backlog.add(batch(), 0.0)
    commit(backlog, 0.0)
    backlog.add(batch(start=64, size=2 << 20), 0.001)
    assert commit(backlog, 0.001)


def test_projects_do_not_wait_for_each_other_and_take_turns() -> None:
    backlog = Backlog()
    for project in "abc":
        backlog.add(batch(project=project), 0.0)
    order = []
    for _ in range(3):
        (work,) = commit(backlog, 0.0)
        order.append(work.project)
        backlog.add(batch(project=work.project, size=2 << 20), 0.0)
    assert sorted(order) == ["a", "b", "c"]


# -- while commits fail ------------------------------------------------------------------------------------------


def failing(*more: Work) -> Backlog:
    """A backlog whose project could not commit its batches at time 0."""
    backlog = Backlog()
    for work in (register(), batch(), batch("other"), *more):
        backlog.add(work, 0.0)
    backlog.put_back("p", backlog.take(0.0), 0.0)
    return backlog


def test_a_failing_project_is_tried_with_one_batch_and_takes_no_other() -> None:
    backlog = failing(batch(start=64))
    assert backlog.is_failing("p") and backlog.room("p") == 0 and backlog.room("other") > 0
    assert backlog.bytes < 2048
    taken = backlog.take(10.0)
    assert taken == [register(), batch()]
    backlog.done("p", 10.0)
    assert backlog.room("p") == MOST_BYTES and backlog.bytes == 0


def test_a_failing_project_is_tried_ever_more_rarely_and_nobody_waits_for_it() -> None:
    backlog, tries, others = failing(), [], 0
    for tick in range(1, 12_000):
        now = tick / 1000
        if tick % 200 == 0:
            backlog.add(batch(start=tick, project="other"), now)
        while taken := backlog.take(now):
            if taken[0].project == "p":
                tries.append(now)
                backlog.put_back("p", taken, now)
            else:
                others += 1
                backlog.done("other", now)
    assert others == 59 and [round(b - a, 2) for a, b in zip([0.0, *tries], tries, strict=False)] == [
        0.5,
        1,
        2,
        2,
        2,
        2,
        2,
    ]


def test_what_is_said_again_and_again_to_a_failing_project_is_kept_once() -> None:
    backlog = failing()
    for i in range(1000):
        backlog.add(Register("p", "s", {}, i), 0.1)
        backlog.add(Refused("p", "s", i, i), 0.1)
        backlog.add(Find("p", "run", "", i), 0.1)
    assert len(backlog) < 300 and not backlog.take(0.2)
    by_kind = defaultdict(list)
    for work in backlog.take(1.0):
        by_kind[type(work)].append(work)
    assert [work.peer for work in by_kind[Register]] == [999] and by_kind[Refused] == [Refused("p", "s", 999, 999)]
    assert by_kind[Find][-1].peer == 999


def test_an_edit_is_done_though_commits_fail() -> None:
    """A deletion may be what makes room."""
    backlog = failing()
    backlog.add(Edit("p", "delete_project", "", "", None), 0.1)
    assert isinstance(backlog.take(0.1)[-1], Edit)


def test_batches_are_bounded_while_a_disk_is_slow() -> None:
    backlog, start = Backlog(), 0
    while backlog.room("p") >= 1 << 20:
        backlog.add(batch(f"s{start}", start, 1 << 20), 0.0)
        start += 1 << 20
    assert MOST_BYTES - (2 << 20) <= backlog.bytes <= MOST_BYTES
    taken = backlog.take(0.0)
    assert backlog.room("p") < 1 << 20, "what is being committed is in memory, too"
    backlog.done("p", 60.0)
    assert taken and backlog.bytes == 0


def test_a_daemon_that_leaves_tries_all_that_waits_once() -> None:
    backlog = failing()
    backlog.add(batch(project="other"), 0.0)
    commit(backlog, 0.0)
    backlog.add(batch(project="other", start=64), 0.001)
    backlog.hurry(is_last_try=True)
    projects = []
    while taken := backlog.take(0.002):
        projects.append(taken[0].project)
        if taken[0].project == "p":
            backlog.put_back("p", taken, 0.002)
        else:
            backlog.done("other", 0.002)
        backlog.hurry()
    assert sorted(projects) == ["other", "p"]


# -- whose batches are dropped ------------------------------------------------------------------------------------


def test_a_sender_goes_on_from_what_is_committed_and_what_it_had_sent_before_is_dropped() -> None:
    admission = Admission()
    assert admission.accepts("s", 64, 0)
    admission.drop("s")
    assert admission.dropped == ["s"] and not admission.accepts("s", 64, 0)
    admission.resume("s", 64)
    assert not admission.accepts("s", 128, 0), "it left before the sender heard that it is to go back"
    assert admission.accepts("s", 64, 0) and admission.accepts("s", 128, 0)


def test_a_sender_that_has_lost_what_it_is_to_go_back_to_goes_on_with_what_it_has() -> None:
    admission = Admission()
    admission.drop("s")
    admission.resume("s", 64)
    assert admission.accepts("s", 256, 256)


# -- what is said of it ---------------------------------------------------------------------------------------------


def test_a_failure_that_repeats_is_logged_once_and_counted() -> None:
    troubles = Troubles()
    said = [line for now in range(0, 700, 2) if (line := troubles.note("p", "It fails.", float(now)))]
    assert said == [
        "It fails.",
        "It fails. It has failed 31 times in 60 s.",
        "It fails. It has failed 331 times in 660 s.",
    ]
    assert troubles.summary == "It fails."
    assert troubles.clear("p", 700.0) == "project 'p' is written again, after 350 failures in 700 s."
    assert troubles.summary == "" and troubles.clear("p", 701.0) == ""


def test_a_failure_that_comes_and_goes_is_not_said_each_time() -> None:
    troubles, said = Troubles(), []
    for now in range(0, 50, 2):
        said += [troubles.note("p", "It fails.", float(now)), troubles.clear("p", now + 1.0)]
    assert len([line for line in said if line]) == 2


def test_status_says_one_failure_whole_and_counts_the_others() -> None:
    troubles = Troubles()
    for project in "abc":
        troubles.note(project, f"{project} fails.", 0.0)
    assert troubles.summary == "a fails. (2 more projects fail.)"


def test_a_project_that_fails_for_an_hour_is_tried_on() -> None:
    """The interval doubles, and ends at its bound: a power of two that no float holds ended the commit thread."""
    backlog, now = Backlog(), 0.0
    backlog.add(Register("p", "s", {}, None), now)
    for _ in range(2000):
        now += 3.0
        backlog.put_back("p", backlog.take(now), now)
    assert backlog.seconds_until_due(now) == 2.0
