"""docs/semantics.md on steps, points and ranks, sentence by sentence: real processes log, the command line reads.

The rules as pure functions are in `test_views` and `test_steps`, how processes end in `test_faults`, what trainers
make of it all in `test_trainers`.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import PATIENCE, Host, wait_for
from reading import Stored, ended_run, ended_runs

RESUME = "import trackio\ntrackio.init(project='p', name='n', resume='allow')\n"
RANK = "import os, trackio\nrank = int(os.environ['RANK'])\nrun = trackio.init(project='p', name='n')\n"


def log(host: Host, code: str, *, start: str = RESUME) -> str:
    """Runs `code` after an init(); it must end well. Returns what was said besides the first lines."""
    done = host.run(start + code)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return "".join(line + "\n" for line in done.stderr.splitlines() if "see it with" not in line)


def environ_of(rank: int, world_size: int, attempt: int) -> dict[str, str]:
    """What torchrun gives a rank; a real one is started in `test_launchers`."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCHELASTIC_ERROR_FILE": f"/tmp/none/job/attempt_{attempt}/{rank}/error.json",
    }  # fmt: skip


def start_ranks(host: Host, code: str, world_size: int, attempt: int = 0, *, start: str = "") -> list[Any]:
    """Starts one attempt of a job; each rank knows its `rank` and has its `run`. `start` runs before all else."""
    return [
        host.python(start + RANK + code, env=environ_of(rank, world_size, attempt), stdin=subprocess.PIPE)
        for rank in range(world_size)
    ]


def log_in_ranks(host: Host, code: str, world_size: int, attempt: int = 0, *, start: str = "") -> None:
    """One attempt of a job, to its end."""
    for rank in start_ranks(host, code, world_size, attempt, start=start):
        _, err = rank.communicate(timeout=60 * PATIENCE)
        assert rank.returncode == 0, err


def details(run: Stored, metric: str, *options: str) -> list[tuple[Any, ...]]:
    """(attempt, rank, step, value) of stored points."""
    points = run.metric(metric, *options)["values"]
    return [(p["attempt"], p["rank"], p["step"], p["value"]) for p in points]


# -- steps and points ------------------------------------------------------------------------------------------


def test_points_never_change_and_keep_their_attempt_and_order(daemon: Host) -> None:
    log(
        daemon, "for step, value in ((0, 'a'), (1, 'b'), (1, 'c'), (0, 'd'), (1, 'c')): trackio.log({'x': value}, step)"
    )
    before = ended_run(daemon, "p").metric("x", "--all")["values"]
    log(daemon, "trackio.log({'x': 'e'}, 1)")
    run = ended_run(daemon, "p")
    assert run.metric("x", "--all")["values"][:5] == before
    assert details(run, "x", "--all") == [
        (0, 0, 0, "a"), (0, 0, 0, "d"), (0, 0, 1, "b"), (0, 0, 1, "c"), (0, 0, 1, "c"), (1, 0, 1, "e"),
    ]  # fmt: skip


def test_the_last_of_a_step_shows_and_the_others_are_counted(daemon: Host) -> None:
    log(daemon, "for step, value in ((0, 'a'), (1, 'b'), (1, 'c'), (0, 'd')): trackio.log({'x': value}, step)")
    run = ended_run(daemon, "p")
    assert run.series("x") == run.series("x", "--rank", "0") == [(0, "d"), (1, "c")]
    assert (run.metric("x")["hidden"], run.facts["points"], run.facts["hidden_points"]) == (2, 4, 2)


def test_a_later_attempt_hides_from_its_own_first_step_on_per_metric(daemon: Host) -> None:
    """Attempt 2 starts below attempt 1 and hides it whole; it never logs `b`, so all of `b` shows."""
    for attempt, a, b in ((0, range(6), range(6)), (1, range(4, 8), range(5, 7)), (2, range(3, 5), ())):
        log(daemon, f"for metric, steps in (('a', {list(a)}), ('b', {list(b)})):\n"
                    f"    for step in steps: trackio.log({{metric: {attempt * 100} + step}}, step)")  # fmt: skip
    run = ended_run(daemon, "p")
    assert run.facts["attempts"] == 3
    assert [value for _, value in run.series("a")] == [0, 1, 2, 203, 204]
    assert [value for _, value in run.series("b")] == [0, 1, 2, 3, 4, 105, 106]
    assert (run.metric("a")["hidden"], run.metric("b")["hidden"], run.facts["hidden_points"]) == (7, 1, 8)
    assert [value for _, value in run.series("a", "--attempt", "0")] == [0, 1, 2, 3, 4, 5]
    assert [value for _, value in run.series("a", "--attempt", "1")] == [104, 105, 106, 107]
    assert len(run.series("a", "--all")) == 12


def test_a_reduction_never_mixes_attempts(daemon: Host) -> None:
    """Four ranks, then an elastic restart with two."""
    log_in_ranks(daemon, "for step in range(4): trackio.log({'x': 100.0 + rank}, step)", 4)
    log_in_ranks(daemon, "for step in (2, 3): trackio.log({'x': 1.0 + rank}, step)", 2, attempt=1)
    run = ended_run(daemon, "p")
    shown = run.metric("x")
    assert [(p["step"], p["value"], p.get("ranks")) for p in shown["values"]] == [
        (0, 101.5, None), (1, 101.5, None), (2, 1.5, None), (3, 1.5, None),
    ]  # fmt: skip
    assert (run.facts["attempts"], shown["hidden"], len(run.series("x", "--all"))) == (2, 8, 20)
    assert run.series("x", "--rank", "3") == [(0, 103.0), (1, 103.0)], "the rest is hidden, whichever rank asks"
    assert run.series("x", "--rank", "3", "--attempt", "0") == [(step, 103.0) for step in range(4)]


def test_several_calls_at_one_step_are_one_row(daemon: Host) -> None:
    log(daemon, "trackio.log({'a': 1}, 7); trackio.log({'b': {'c': 2}}, 7); trackio.log({'d': 'x'}, 7)")
    run = ended_run(daemon, "p")
    assert run.points() == {"a": [(7, 1)], "b/c": [(7, 2)], "d": [(7, "x")]}
    assert (run.facts["last_step"], run.facts["num_logs"], run.facts["hidden_points"]) == (7, 3, 0)


def test_a_record_gets_this_step(daemon: Host) -> None:
    """By case: what each call of a run has besides its number (metrics, then keywords), and the step it gets."""
    cases: dict[str, list[tuple[dict[str, Any], dict[str, Any], int]]] = {
        "the counter": [({}, {}, 0), ({}, {}, 1), ({}, {}, 2)],
        "any order": [({}, {"step": 10}, 10), ({}, {}, 11), ({}, {"step": 3}, 3), ({}, {}, 12), ({}, {"step": -5}, -5),
                      ({}, {}, 13)],
        "of the trainer": [({"train/global_step": 40}, {}, 40), ({}, {}, 41), ({"train/global_step": 20}, {}, 20),
                           ({}, {}, 42)],
        "no whole number": [({"train/global_step": 2.5}, {}, 0), ({"train/global_step": "x"}, {}, 1),
                            ({"train/global_step": 9.0}, {}, 9)],
        "the caller's first": [({"train/global_step": 5}, {"step": 7}, 7), ({}, {}, 8)],
        "no commit": [({}, {}, 0), ({}, {"commit": False}, 1), ({}, {"commit": False}, 1), ({}, {}, 1), ({}, {}, 2)],
        "floats and text": [({}, {"step": 3.0}, 3), ({}, {"step": 1.5}, 4), ({}, {"step": "8"}, 5)],
    }  # fmt: skip
    said = log(daemon, f"""
for name, calls in {cases!r}.items():
    run = trackio.init(project="p", name=name)
    for number, (metrics, keywords, _) in enumerate(calls):
        run.log({{"number": number, **metrics}}, **keywords)
""", start="import trackio")  # fmt: skip
    lines = said.splitlines()
    assert len(lines) == 1 and "step=1.5 is no whole number; the next automatic step is used" in lines[0]
    runs = {run.facts["run"]: run for run in ended_runs(daemon, "p")}
    for name, calls in cases.items():
        got = sorted(runs[name].series("number", "--all"), key=lambda point: int(point[1]))
        assert got == [(step, number) for number, (_, _, step) in enumerate(calls)], name


def test_a_step_metric_is_what_define_metric_says(daemon: Host) -> None:
    log(daemon, """
trackio.define_metric("*", step_metric="tokens")
trackio.define_metric("val/*", step_metric="epoch")
trackio.log({"loss": 1, "tokens": 4096, "train/global_step": 1})
trackio.log({"val/loss": 2, "tokens": 8192, "epoch": 3})
trackio.log({"loss": 3, "train/global_step": 5})
trackio.log({"loss": 4})
""")  # fmt: skip
    run = ended_run(daemon, "p")
    assert run.series("loss") == [(5, 3), (4096, 1), (4097, 4)] and run.series("val/loss") == [(3, 2)]


def test_time_is_that_of_the_call_and_a_clock_that_jumps_back_changes_no_order(daemon: Host) -> None:
    log(daemon, """
trackio.log({'x': 'first'}, 1)
shift = -3600 * 10**9
trackio.log({'x': 'second'}, 1)
trackio.log({'x': 'third'}, 2)
""", start="import time\nreal, shift = time.time_ns, 0\ntime.time_ns = lambda: real() + shift\n" + RESUME)  # fmt: skip
    run = ended_run(daemon, "p")
    assert run.series("x", "--all") == [(1, "first"), (1, "second"), (2, "third")]
    assert run.series("x") == [(1, "second"), (2, "third")]
    first, second, third = (p["timestamp"] for p in run.metric("x", "--all")["values"])
    assert second <= third < first
    assert run.series("x", "--at-time", second, "--window", "60") == [(1, "second"), (2, "third")]


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_attempt_whose_clock_is_wrong_is_hidden_by_later_ones_alone(daemon: Host, hours: int) -> None:
    """The second of three attempts, of one process and of an elastic job, begins with a clock that is an hour off."""
    wrong = f"import time\nreal = time.time_ns\ntime.time_ns = lambda: real() + {hours} * 3600 * 10**9\n"
    for attempt, start in enumerate(("", wrong, "")):
        steps = range(2 * attempt, 2 * attempt + 4)
        code = f"for step in {steps}: trackio.log({{'x': {attempt * 100} + step}}, step)"
        log(daemon, code, start=start + RESUME.replace("'n'", "'alone'"))
        log_in_ranks(daemon, code, 2, attempt, start=start)
    elastic, alone = sorted(ended_runs(daemon, "p"), key=lambda run: -run.facts["world_size"])
    for run in (elastic, alone):
        assert run.facts["attempts"] == 3
        assert [value for _, value in run.series("x")] == [0, 1, 102, 103, 204, 205, 206, 207]
        assert [value for _, value in run.series("x", "--attempt", "1")] == [102, 103, 104, 105]


def test_the_newest_run_of_a_name_is_resumed_also_if_its_clock_was_behind(daemon: Host) -> None:
    new = "import trackio\ntrackio.init(project='p', name='n')\n"
    log(daemon, "trackio.log({'x': 'oldest'}, 1)", start=new)
    behind = "import time\nreal = time.time_ns\ntime.time_ns = lambda: real() - 3600 * 10**9\n"
    log(daemon, "trackio.log({'x': 'newest'}, 1)", start=behind + new)
    log(daemon, "trackio.log({'x': 'more'}, 2)")
    assert [run.series("x") for run in ended_runs(daemon, "p")] == [[(1, "oldest")], [(1, "newest"), (2, "more")]]


# -- across ranks ----------------------------------------------------------------------------------------------


def test_ranks_are_reduced_as_define_metric_says_and_the_reduction_is_named(daemon: Host) -> None:
    log_in_ranks(daemon, """
for how in ("min", "max", "first", "last"):
    trackio.define_metric(f"{how}/*", reduce=how)
trackio.define_metric("min/but/*", reduce="max")
trackio.define_metric("min/but/sum", reduce="sum")
names = ("x", "min/a", "max/a", "first/a", "last/a", "min/but/sum")
trackio.log({name: (5, 2, 11)[rank] for name in names}, 0)
""", 3)  # fmt: skip
    run = ended_run(daemon, "p")
    expected = {"x": ("mean", 6), "min/a": ("min", 2), "max/a": ("max", 11), "first/a": ("first", 5),
                "last/a": ("last", 11), "min/but/sum": ("sum", 18)}  # fmt: skip
    for name, (how, value) in expected.items():
        got = run.metric(name)
        assert (got["reduce"], got["ranks"], [p["value"] for p in got["values"]]) == (how, 3, [value]), name
        text = daemon.command("trackio", "get", "metric", "--project", "p", "--run", "n", "--metric", name).stdout
        assert f"{how} of 3 ranks" in text
    assert run.series("x", "--rank", "1") == [(0, 2)]


def test_equal_values_are_shown_as_they_are_and_a_nan_names_its_rank(daemon: Host) -> None:
    log_in_ranks(daemon, """
trackio.define_metric("nan/sum", reduce="sum")
nan = float("nan") if rank == 1 else 1.0
trackio.log({"float": 0.1, "int": 3, "bool": True, "text": "t", "nan/mean": nan, "nan/sum": nan}, 0)
""", 3)  # fmt: skip
    run = ended_run(daemon, "p")
    assert repr(run.series("float")) == "[(0, 0.1)]" and repr(run.series("int")) == "[(0, 3)]"
    assert repr(run.series("bool")) == "[(0, True)]" and run.series("text") == [(0, "t")]
    for metric in ("nan/mean", "nan/sum"):
        (point,) = run.metric(metric)["values"]
        assert (point["value"], point["nan_rank"]) == ("NaN", 1)
    text = daemon.command("trackio", "get", "metric", "--project", "p", "--run", "n", "--metric", "nan/mean").stdout
    assert "NaN from rank 1" in text


def test_points_of_plain_counters_are_paired_by_their_ordinal_within_the_attempt(daemon: Host) -> None:
    """Rank 0 evaluates in between, so its counter runs ahead."""
    code = """
for i in range(%d):
    trackio.log({"loss": %d + i + rank})
    if rank == 0: trackio.log({"eval": i})
"""
    log_in_ranks(daemon, code % (3, 10), 2)
    first = ended_run(daemon, "p").metric("loss")["values"]
    assert [(p["step"], p["value"], p.get("ranks")) for p in first] == [
        (0, 10.5, None),
        (2, 11.5, None),
        (4, 12.5, None),
    ]
    log_in_ranks(daemon, code % (2, 20), 2, attempt=1)
    run = ended_run(daemon, "p")
    assert [(p["step"], p["value"], p.get("ranks")) for p in run.metric("loss")["values"]] == [
        (0, 20.5, None), (2, 21.5, None),
    ]  # fmt: skip
    assert run.series("loss", "--attempt", "0") == [(0, 10.5), (2, 11.5), (4, 12.5)]


def test_text_and_lists_are_the_lowest_ranks_that_logged_them(daemon: Host) -> None:
    log_in_ranks(
        daemon, "if rank: trackio.log({'text': f'of {rank}', 'list': [rank, 1]}, 0)\nelse: trackio.log({'x': 1})", 3
    )
    run = ended_run(daemon, "p")
    assert run.series("text") == run.series("text", "--rank", "1") == [(0, "of 1")]
    assert run.series("text", "--rank", "2") == [(0, "of 2")]
    assert run.series("list") == [(0, [1, 1])] and run.series("list", "--rank", "2") == [(0, [2, 1])]


def test_a_step_that_not_all_ranks_reached_is_partial_and_not_the_last(daemon: Host) -> None:
    """Rank 3 stops early, and what rank 0 alone logs has no other rank to wait for."""
    log_in_ranks(daemon, """
for step in range(3 if rank < 3 else 2): trackio.log({'x': rank}, step)
if rank == 0: trackio.log({'mine': 1}, 9)
""", 4)  # fmt: skip
    run = ended_run(daemon, "p")
    points = run.metric("x")["values"]
    assert [(p["step"], p["value"], p.get("ranks")) for p in points] == [
        (0, 1.5, None),
        (1, 1.5, None),
        (2, 1, "3 of 4"),
    ]
    assert "ranks" not in run.metric("mine")["values"][0]
    assert (run.facts["last_step"], run.facts["highest_step"]) == (1, 9)
    text = daemon.command("trackio", "get", "run", "--project", "p", "--run", "n").stdout
    assert "Last step: 1 (highest 9)" in text


def test_silent_ranks_are_no_fault(daemon: Host) -> None:
    log_in_ranks(daemon, "if rank == 0: trackio.log({'x': 1}, 0)", 3)
    run = ended_run(daemon, "p")
    assert (run.facts["state"], run.facts["logging"], run.facts["world_size"], run.facts["last_step"]) == (
        "finished",
        1,
        3,
        0,
    )
    assert "Ranks: 1 logging of 3" in daemon.command("trackio", "get", "run", "--project", "p", "--run", "n").stdout
    assert "ranks" not in run.metric("x")["values"][0]


def test_a_run_runs_while_any_rank_does_and_ends_as_its_gravest_end(daemon: Host) -> None:
    """Rank 0 finishes, rank 1 is killed, rank 2 fails last: the failure is the run's."""
    code = """
import signal, sys
trackio.log({"x": rank}, 0)
sys.stdin.readline()
if rank == 1: os.kill(os.getpid(), signal.SIGKILL)
if rank == 2: raise ValueError("the reason")
"""
    ranks = start_ranks(daemon, code, 3)

    def facts() -> Any:
        return daemon.cli("get", "run", "--project", "p", "--run", "n")

    def state_of(rank: int) -> str:
        return next((r["state"] for r in facts()["ranks"] if r["rank"] == rank), "")

    def is_known() -> bool:
        return "p" in daemon.cli("list", "projects")["projects"] and bool(
            daemon.cli("get", "project", "--project", "p")["runs"]
        )

    wait_for(is_known, what="the run")
    wait_for(lambda: facts()["logging"] == 3, what="the first points of all ranks")
    for number, states in ((0, {"finished"}), (1, {"killed", "lost"})):
        ranks[number].communicate("go on\n", timeout=60 * PATIENCE)
        wait_for(lambda rank=number, ends=states: state_of(rank) in ends, what=f"the end of rank {number}")
        assert facts()["state"] == "running"
    ranks[2].communicate("go on\n", timeout=60 * PATIENCE)
    run = ended_run(daemon, "p")
    assert (run.facts["state"], run.facts["cause"]) == ("failed", "rank 2: ValueError")


def test_an_interpreter_somebody_typed_into_and_left_is_ended(daemon: Host) -> None:
    """A notebook's kernel: nobody said that the run is finished, and nobody will."""
    typed = "import trackio\ntrackio.init(project='p', name='n')\ntrackio.log({'x': 1})\n"
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=typed, env=daemon.environ(), capture_output=True, text=True,
        timeout=60 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = ended_run(daemon, "p")
    assert (run.facts["state"], run.series("x")) == ("ended", [(0, 1)])
