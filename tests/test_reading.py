"""Answers about much: summaries, buckets, pages of runs, very many metrics, values on a terminal."""

from __future__ import annotations

import os
import pty
import select
import sqlite3
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PATIENCE, Host, database, wait_for

from trackio.record import Kind, Origin, encode, pack
from trackiod.store import codec
from trackiod.store.batch import read
from trackiod.store.digest import End, digest
from trackiod.store.fold import Folded, at_once, fold
from trackiod.store.project import ProjectStore

JOB = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x",
       "TORCHELASTIC_ERROR_FILE": "/tmp/a/b/attempt_0/0/error.json"}  # fmt: skip


def run_ranks(host: Host, code: str, count: int = 2) -> None:
    ranks = [host.python(code, env={**JOB, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(count)]
    for rank in ranks:
        _, stderr = rank.communicate(timeout=60 * PATIENCE)
        assert rank.returncode == 0, stderr


def summary(host: Host) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = host.cli("get", "run", "--project", "p", "--run", "r")["summary"]
    return found


# -- summaries ---------------------------------------------------------------------------------------------


def test_the_summary_has_last_least_greatest_and_mean_and_best_where_a_direction_is_given(daemon: Host) -> None:
    daemon.run("""
import trackio
run = trackio.init(project="p", name="r")
trackio.define_metric("acc*", goal="maximize")
trackio.define_metric("loss", summary="min")
trackio.define_metric("loss", reduce="max")
for step, (loss, acc) in enumerate([(4.0, 0.1), (1.0, 0.9), (2.5, float("nan")), (2.0, 0.5)]):
    trackio.log({"loss": loss, "acc/top1": acc, "tokens": step, "note": "x"})
run.summary["test/accuracy"] = 0.93
run.summary.update({"note": "good"}, verdict=True)
assert run.summary["test/accuracy"] == 0.93 and run.summary.verdict is True
""")
    daemon.ended_run("p")
    assert summary(daemon) == {
        "acc/top1": {"last": 0.5, "min": 0.1, "max": 0.9, "mean": 0.5, "best": 0.9, "nans": 1},
        "loss": {"last": 2.0, "min": 1.0, "max": 4.0, "mean": 2.375, "best": 1.0},
        "note": {"last": "x", "set": "good"},
        "tokens": {"last": 3, "min": 0, "max": 3, "mean": 1.5},
        "test/accuracy": {"set": 0.93},
        "verdict": {"set": True},
    }
    text = daemon.command("trackio", "get", "run", "--project", "p", "--run", "r").stdout
    assert ["loss", "2", "1", "4", "2.375", "1", "-"] in [line.split() for line in text.splitlines()]
    shown = daemon.cli("status")["runs"][0]["summary"]
    assert shown == {"loss": 1.0, "note": "good", "test/accuracy": 0.93, "verdict": True}
    assert "loss 1, note good, test/accuracy 0.93" in daemon.command("trackio", "status").stdout


def test_ranks_are_reduced_in_the_summary_as_in_the_curve(daemon: Host) -> None:
    run_ranks(daemon, """
import os, trackio
rank = int(os.environ["RANK"])
trackio.init(project="p", name="r")
trackio.define_metric("tokens", reduce="sum")
for step in range(3):
    trackio.log({"loss": 1.0 * step + rank, "tokens": 100, "lr": 0.1}, step=step)
""")  # fmt: skip
    daemon.ended_run("p")
    assert summary(daemon) == {
        "loss": {"last": 2.5, "min": 0.0, "max": 3.0, "mean": 1.5},
        "lr": {"last": 0.1, "min": 0.1, "max": 0.1, "mean": pytest.approx(0.1)},
        "tokens": {"last": 200, "min": 100, "max": 100, "mean": 100},
    }


def test_hidden_points_are_in_no_summary(daemon: Host) -> None:
    """Attempt 2 hides steps 2 and 3 of the first; GRPO's profile logs twice at a step."""
    log = "import trackio\ntrackio.init(project='p', name='r')\nfor s, v in %s: trackio.log({'a': v, 'b': 1}, step=s)"
    for values in ([(0, 5.0), (1, 9.0), (2, -99.0), (3, 99.0)], [(2, 6.0), (3, 0.03), (3, 7.0)]):
        daemon.run(log % values, env={"TRACKIO_RUN_ID": "job"})
    daemon.ended_run("p")
    run = daemon.cli("get", "run", "--project", "p", "--run", "r")
    assert run["summary"]["a"] == {"last": 7.0, "min": 5.0, "max": 9.0, "mean": 6.75}
    assert (run["points"], run["hidden_points"], run["attempts"]) == (14, 6, 2)
    shown = daemon.cli("get", "metric", "--project", "p", "--run", "r", "--metric", "a")
    assert [v["value"] for v in shown["values"]] == [5.0, 9.0, 6.0, 7.0] and shown["hidden"] == 3


def test_a_word_that_define_metric_does_not_know_is_named_once(daemon: Host) -> None:
    done = daemon.run("""
import trackio
trackio.init(project="p", name="r")
for _ in range(3): trackio.define_metric("a", summary="median", goal="up", reduce="mode")
trackio.log({"a": 1})
""")
    said = [line for line in done.stderr.splitlines() if "is none of" in line]
    assert [line.partition("=")[0].split()[-1] for line in said] == ["reduce", "summary", "goal"]
    daemon.ended_run("p")
    assert summary(daemon) == {"a": {"last": 1, "min": 1, "max": 1, "mean": 1}}


# -- long series -------------------------------------------------------------------------------------------


@pytest.fixture
def long(host: Host) -> Host:
    """A series of ten million points, in chunks that are copies of one but for their steps."""
    projects = Path(host.places.projects)
    projects.mkdir(parents=True)
    store = ProjectStore(str(projects), "p", "test")
    meta = {"run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "0", "started_ns": 1, "world_size": 1}
    data = b""
    for step in range(10_000):
        data += encode(len(data), pack(Kind.LOG, 1_000_000_000 + step, step, int(Origin.EXPLICIT), {"a": step / 4}))
    with store.transaction():
        store.register("s", meta)
        store.append("s", 0, data, digest(data, 0))
    (folded,) = at_once(fold(read(data, start) for start, data in store.raw("s")))
    table = np.frombuffer(codec.unseal(folded.axis.blocks or b"")[0], "<i8").reshape(5, -1)
    with store.transaction():
        for chunk in range(1000):
            first = chunk * 10_000
            steps = np.arange(first, first + 10_000)
            places = [codec.pack_ints(array) for array in (steps * 48, steps, steps + 1_000_000_000, steps * 0)]
            blocks = codec.seal([codec.pack_table([table[0] + first, table[1] + first, *table[2:]], "<i8")])
            axis = folded.axis._replace(
                start=first, first_step=first, last_step=first + 9_999, data=codec.seal(places), blocks=blocks
            )
            store.replace_raw("s", len(data), [Folded(axis, folded.chunks)], batches=int(chunk == 0))
        store._do("UPDATE series SET points = 10000000, numbers = 10000000, max_step = 9999999, last_step = 9999999")
        store._do("UPDATE streams SET points = 10000000, state = 'finished', ended_ns = 1")
    store.close()
    return host


METRIC = ("get", "metric", "--project", "p", "--run", "r", "--metric", "a")


def on_a_terminal(host: Host, *words: str, until: str = "") -> str:
    """What a command writes on a terminal; it is killed when `until` has been written."""
    main, side = pty.openpty()
    command = [str(Path(sys.executable).with_name("trackio")), *words]
    process = subprocess.Popen(command, stdout=side, stderr=side, stdin=side, env=host.environ())
    os.close(side)
    said = b""
    while select.select([main], [], [], 60 * PATIENCE)[0]:
        try:
            said += os.read(main, 65536)
        except OSError:
            break
        if until and until.encode() in said:
            process.kill()
            break
    process.wait()
    os.close(main)
    return said.decode()


def test_ten_million_values_on_a_terminal_are_summed_up_and_raw_if_told_so(long: Host) -> None:
    said = on_a_terminal(long, *METRIC)
    assert "10,000,000 values, in 50 stretches" in said and "--raw" in said
    lines = said.splitlines()
    assert len(lines) < 60 and lines[-1].split()[:2] == ["9800000", "9999999"]
    raw = on_a_terminal(long, *METRIC, "--raw", until="Timestamp")
    assert "Found 10000000 value(s)" in raw


def test_buckets_of_a_long_series_add_up(long: Host) -> None:
    found = long.cli(*METRIC, "--buckets", "1000")["buckets"]
    assert len(found) == 1000 and sum(b["points"] for b in found) == 10_000_000
    assert (found[0]["step"], found[-1]["last_step"]) == (0, 9_999_999)
    assert min(b["min"] for b in found) == 0 and max(b["max"] for b in found) == 9_999 / 4
    assert all(a["last_step"] + 1 == b["step"] for a, b in pairwise(found))


def test_a_paused_reader_does_not_hold_the_database(long: Host) -> None:
    """`| less`, and the user reads: what is shown was read before the first line is printed."""
    main, side = os.pipe()
    command = [str(Path(sys.executable).with_name("trackio")), *METRIC]
    process = subprocess.Popen(command, stdout=side, env=long.environ())
    os.close(side)
    assert os.read(main, 1)
    path = next(Path(long.places.projects).glob("*.db"))
    with database(path) as connection:
        connection.execute("CREATE TABLE later (x)")
        connection.commit()
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "a reader is in the way"
    process.kill()
    process.wait()
    os.close(main)


def test_text_is_never_summed_up(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\n"
               "for i in range(1200): trackio.log({'a': f'word{i}'})")  # fmt: skip
    daemon.ended_run("p")
    assert "word1199" in on_a_terminal(daemon, *METRIC)
    done = daemon.command("trackio", *METRIC, "--buckets", "3")
    assert done.stderr == "Error: --buckets sums up numbers, and not all values of 'a' are.\n"


@pytest.mark.parametrize("when", ["9999-01-01", "0001-01-01T00:00:00"])
def test_a_time_far_away_finds_nothing(daemon: Host, when: str) -> None:
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\ntrackio.log({'a': 1})")
    daemon.ended_run("p")
    assert daemon.cli(*METRIC, "--at-time", when)["values"] == []


def test_one_rank_shows_what_the_run_does_not_hide(daemon: Host) -> None:
    """Attempt 2 begins at step 5 in rank 0, at step 8 in rank 1: it hides attempt 1 from 5 on, in both."""
    code = """
import os, trackio
rank = int(os.environ["RANK"])
trackio.init(project="p", name="r")
for step in range(*%s[rank]): trackio.log({"a": float(%s)}, step=step)
"""
    run_ranks(daemon, code % ("[(0, 10), (0, 10)]", "step"))
    daemon.ended_run("p")
    JOB["TORCHELASTIC_ERROR_FILE"] = "/tmp/a/b/attempt_1/0/error.json"
    run_ranks(daemon, code % ("[(5, 10), (8, 10)]", "100 + step"))
    JOB["TORCHELASTIC_ERROR_FILE"] = "/tmp/a/b/attempt_0/0/error.json"
    wait_for(lambda: daemon.the_run("p").points == 27)
    daemon.ended_run("p")
    one = daemon.cli(*METRIC, "--rank", "1")
    assert [v["step"] for v in one["values"]] == [0, 1, 2, 3, 4, 8, 9] and one["hidden"] == 5
    assert daemon.cli(*METRIC, "--rank", "0")["hidden"] == 5
    assert daemon.cli("get", "run", "--project", "p", "--run", "r")["hidden_points"] == 10


def test_buckets_go_with_no_window(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\ntrackio.log({'a': 1})")
    daemon.ended_run("p")
    for words in (["--all"], ["--step", "1"]):
        done = daemon.command("trackio", *METRIC, "--buckets", "3", *words)
        assert done.returncode == 1 and done.stderr.startswith("Error: --buckets sums up a whole series")
    (bucket,) = daemon.cli(*METRIC, "--buckets", "3")["buckets"]
    assert {k: bucket[k] for k in ("step", "last_step", "points", "nans", "min", "mean", "max")} == {
        "step": 0, "last_step": 0, "points": 1, "nans": 0, "min": 1.0, "mean": 1.0, "max": 1.0,
    }  # fmt: skip


# -- many runs, many metrics -------------------------------------------------------------------------------


def fill(host: Host, count: int) -> None:
    """A project of so many runs, two of which go on with others."""
    projects = Path(host.places.projects)
    projects.mkdir(parents=True)
    store = ProjectStore(str(projects), "p", "test")
    with store.transaction():
        store.connection.executemany(
            "INSERT INTO runs (id, name, name_rank, created_ns, resumes) VALUES (?, ?, 0, ?, ?)",
            ((f"id{i}", f"name{i % 1000 if i < 1000 else i}", i, int(i % 5 == 0)) for i in range(count)),
        )
        store.connection.executemany(
            "INSERT INTO runs (id, name, name_rank, created_ns, resumes) VALUES (?, ?, 0, ?, 1)",
            [("again", "name7", count), ("more", "name7", count + 1)],
        )
        store.connection.executemany(
            "INSERT INTO streams (id, run, role, rank, attempt, process, started_ns, world_size, meta, committed,"
            " state, ended_ns) VALUES (?, ?, 'rank', 0, 'a', '', ?, 1, x'80', 0, 'finished', ?)",
            ((f"s{i}", f"id{i}", i, i) for i in range(count)),
        )
    store.close()


def test_a_million_runs_come_a_page_at_a_time(host: Host) -> None:
    fill(host, 1_000_000)
    page = host.cli("list", "runs", "--project", "p")
    assert (len(page["runs"]), page["runs"][0], page["runs"][-1]) == (1000, "name999000", "name999999")
    older = host.cli("list", "runs", "--project", "p", "--before", page["before"], "--limit", "3")
    assert [d["id"] for d in older["details"]] == ["id998997", "id998998", "id998999"]
    first = host.cli("list", "runs", "--project", "p", "--before", "id2")
    assert ([d["id"] for d in first["details"]], first["before"]) == (["id0", "id1"], None)
    text = host.command("trackio", "list", "runs", "--project", "p", "--limit", "2").stdout
    assert text.endswith("There are older ones: --before id999998\n")
    assert host.cli("get", "project", "--project", "p")["num_runs"] == 1_000_000
    for name in ("again", "id7", "name7"):
        assert host.cli("get", "run", "--project", "p", "--run", name)["run_id"] == "id7"
    assert len(host.cli("status")["runs"]) == 10


def test_status_finds_runs_behind_one_of_many_ranks(host: Host) -> None:
    projects = Path(host.places.projects)
    projects.mkdir(parents=True)
    store = ProjectStore(str(projects), "p", "test")
    meta = {"name": "n", "role": "rank", "attempt": "a", "world_size": 700}
    with store.transaction():
        for run, ranks in (("small1", 1), ("small2", 1), ("large", 700)):
            for rank in range(ranks):
                store.register(f"{run}-{rank}", {**meta, "run": run, "rank": rank, "started_ns": 1})
        for number, (stream, _) in enumerate(store.open_streams()):
            store.end(stream, End("finished", "", explicit=True, time_ns=number + 1000 * stream.startswith("large")))
    store.close()
    assert {row["run_id"] for row in host.cli("status")["runs"]} == {"small1", "small2", "large"}


def test_a_hundred_thousand_metrics_in_one_run(daemon: Host) -> None:
    done = daemon.run("""
import trackio
trackio.init(project="p", name="r")
for step in range(4):
    trackio.log({f"layer{i // 100}/w{i % 100}": i + step * 0.5 for i in range(100_000)}, step=step)
""", seconds=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 400_000, 60)
    daemon.ended_run("p", 60)
    assert len(daemon.cli("list", "metrics", "--project", "p", "--run", "r")["metrics"]) == 100_000
    got = daemon.cli("get", "metric", "--project", "p", "--run", "r", "--metric", "layer999/w99")
    assert [v["value"] for v in got["values"]] == [99_999 + step * 0.5 for step in range(4)]
    run = daemon.cli("get", "run", "--project", "p", "--run", "r")
    assert run["summary"]["layer0/w1"] == {"last": 2.5, "min": 1.0, "max": 2.5, "mean": 1.75}


# -- the database in other hands ---------------------------------------------------------------------------


def test_a_database_that_somebody_locks_is_named_and_nothing_is_lost(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\ntrackio.log({'a': 0})")
    daemon.ended_run("p")
    path = next(Path(daemon.places.projects).glob("*.db"))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    process = daemon.python("import trackio\ntrackio.init(project='p', name='r2')\n"
                            "for s in range(100): trackio.log({'a': s})")  # fmt: skip
    problem = wait_for(
        lambda: (daemon.status() or None) and daemon.status().daemon["problem"], 30, "a word of the lock"
    )
    assert "'p'" in problem and "locked" in problem
    assert [v["value"] for v in daemon.cli(*METRIC)["values"]] == [0], "readers go on"
    threading.Timer(0.1, lambda: connection.execute("ROLLBACK")).start()
    assert process.wait(60 * PATIENCE) == 0
    process.communicate()
    wait_for(lambda: sum(run.points for run in daemon.runs("p")) == 101, 60)
    wait_for(lambda: not daemon.status().daemon["problem"], 30, "the end of the problem")
    connection.close()


def test_nan_and_infinity_in_a_summary(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\n"
               "for v in (float('inf'), float('-inf'), 1.0): trackio.log({'a': v, 'b': float('nan')})")  # fmt: skip
    daemon.ended_run("p")
    assert summary(daemon) == {
        "a": {"last": 1.0, "min": "-Infinity", "max": "Infinity", "mean": "NaN"},
        "b": {"last": "NaN", "nans": 3},
    }
