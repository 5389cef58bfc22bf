"""A daemon that dies at a system call of our choice: while it starts, commits, folds, and drains what the dead left.

strace delivers SIGKILL as the daemon enters its n-th call of a kind, so each place is hit, not only the likely ones.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for

from trackiod.store import schema
from trackiod.store.reader import ProjectReader

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which .ci/run installs")

LOGGED = 6000
_LOG = """
import os, sys, time, trackio
trackio.init(project="p")
for i in range({count}):
    trackio.log({{"i": i, "half": i / 2}}, step=i)
    if i % {burst} == 0: time.sleep({pause})
{ending}
"""
ORPHAN = _LOG.format(count=LOGGED, burst=LOGGED, pause=0, ending="os.kill(os.getpid(), 9)")
SPILLED = _LOG.format(count=LOGGED, burst=LOGGED, pause=0, ending="")
LIVE = _LOG.format(count=20_000, burst=30, pause=0.01, ending="")


def daemon_killed_at(host: Host, call: str, when: int, seconds: float) -> bool:
    """Runs a daemon until its `when`-th `call`, at most so long; whether it came to that."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}",
               "-e", f"inject={call}:signal=SIGKILL:when={when}", sys.executable, "-m", "trackiod", "run"]  # fmt: skip
    daemon = subprocess.Popen(command, env=host.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        daemon.wait(seconds * PATIENCE)
        return True
    except subprocess.TimeoutExpired:
        host.stop()
        daemon.wait(20 * PATIENCE)
        return False


def is_folded(host: Host) -> bool:
    with ProjectReader(schema.path_of(host.places.projects, "p")) as reader:
        return not reader._all("SELECT 1 FROM batches GROUP BY stream HAVING sum(records) >= 32")


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "unlink", "rename", "ftruncate"])
def test_a_daemon_killed_at_any_of_its_system_calls_loses_and_doubles_nothing(host: Host, call: str) -> None:
    for number, code in enumerate((ORPHAN, SPILLED)):
        host.run(code, env={"TRACKIO_RUN_ID": "job", "RANK": str(number), "WORLD_SIZE": "3"})
    live = host.python(LIVE, env={"TRACKIO_RUN_ID": "job", "RANK": "2", "WORLD_SIZE": "3"})
    hit = 0
    for when in (1, 2, 3, 5, 8, 13, 30, 80, 200):
        if not daemon_killed_at(host, call, when, 3):
            break  # it does not make so many
        hit += 1
    assert hit >= (1 if call in ("rename", "ftruncate") else 5), "the calls were not met: this test shows nothing"
    assert live.wait(60 * PATIENCE) == 0
    host.start()
    run = host.ended_run("p", 60)
    assert run.holes == [] and run.refused_records == 0
    wait_for(lambda: is_folded(host), 60, "the last fold")
    run = host.the_run("p")
    for rank, count in ((0, LOGGED), (1, LOGGED), (2, 20_000)):
        for metric, value in (("i", 1), ("half", 0.5)):
            points = shown(run, metric, rank=rank, all_points=True)
            assert [(p.step, p.value) for p in points] == [(i, i * value) for i in range(count)], (rank, metric)
    wait_for(lambda: not leftovers(host), 30, "empty spools")


def leftovers(host: Host) -> list[Path]:
    return [*host.spool.rglob("seg-*"), *(host.data / "spill").rglob("seg-*")]


def test_two_daemons_forced_onto_one_folder_double_nothing(host: Host) -> None:
    """Locks that do not work, as on some network file systems: what is stored once stays once, by the offsets that
    each reads in its transaction. The second takes the socket; the first keeps its connections, and both look for
    the dead."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:retval=0",
               sys.executable, "-m", "trackiod", "run"]  # fmt: skip
    tracers, pids = [], []
    processes = []
    for turn in range(2):
        tracers.append(subprocess.Popen(command, env=host.environ(), stderr=subprocess.DEVNULL))
        wait_for(lambda: (report := host.status()) and report.daemon["pid"] not in pids, 20, "a daemon")
        pids.append(host.status().daemon["pid"])
        processes.append(host.python(LIVE))
        wait_for(lambda turn=turn: sum(r.records > 100 for r in host.runs("p")) > turn, 20, "its first records")
    assert [tracer.poll() for tracer in tracers] == [None, None], "both run"
    for _ in range(2):
        host.run(ORPHAN)
    os.kill(pids[0], signal.SIGKILL)
    for process in processes:
        assert process.wait(60 * PATIENCE) == 0, process.communicate()
    wait_for(lambda: len(host.runs("p")) == 4 and all(r.state.state != "running" for r in host.runs("p")), 60)
    os.kill(pids[1], signal.SIGTERM)
    for tracer in tracers:
        tracer.wait(20 * PATIENCE)
    counts = []
    for run in host.runs("p"):
        points = shown(run, "i", all_points=True)
        assert [p.value for p in points] == list(range(len(points)))
        assert run.records == len(points) and run.holes == [] and run.refused_records == 0
        counts.append(len(points))
    assert sorted(counts) == [LOGGED, LOGGED, 20_000, 20_000]
