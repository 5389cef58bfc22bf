"""What lies on disk beside a running process: errors are no answers, a disk that hangs holds nobody up."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing

SPILLED = """
import os, sys, time, trackio
run = trackio.init(project="p")
spool = run._stream.spool
for i in range(6000):
    trackio.log({"i": i, "text": "x" * 300})
    while i % 100 == 0 and spool.ring.head - spool.ring.oldest > spool.room_bytes // 2: time.sleep(0.01)
def is_spilled(): return spool.ring.head - (spool.spill.end or 0) < 1 << 20 and spool.spill.held_bytes > 1 << 20
while not is_spilled(): time.sleep(0.01)
print("spilled", flush=True)
sys.stdin.readline()
"""
SMALL = {"TRACKIO_SPOOL_MIB": "2"}


@pytest.fixture
def failing(tmp_path: Path) -> Failing:
    return Failing(tmp_path / "failing")


@pytest.mark.parametrize(("call", "error"), [("open", errno.EMFILE), ("open", errno.EACCES), ("read", errno.EIO)])
def test_an_error_in_reading_the_spill_is_no_answer(host: Host, failing: Failing, call: str, error: int) -> None:
    """The daemon comes while the disk gives errors; when these end, all of it arrives from the living process."""
    code = SPILLED + "sys.stdin.readline()\n"
    process = host.python(code, env={**failing.environ, **SMALL}, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "spilled\n", process.communicate()
    with failing.fail(call, error, path="/spill/") as rule:
        host.start()
        wait_for(lambda: rule.hits >= 3, what="three tries")
        assert not host.runs("p") or host.the_run("p").holes == []
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 12_000, 30, "all of it")
    _, err = process.communicate("\n\n", timeout=60 * PATIENCE)
    assert host.ended_run("p").holes == [] and host.values("p", "i") == list(range(6000))
    assert err.count("cannot be read now") == 1


def test_a_spill_that_is_cut_short_gives_what_is_there(host: Host) -> None:
    process = host.python(SPILLED, env=SMALL, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "spilled\n"
    first = min((host.data / "spill").rglob("seg-*"))
    os.truncate(first, 400_000)
    host.start()
    wait_for(lambda: host.runs("p") and host.the_run("p").holes, what="the gap")
    process.communicate("\n", timeout=60 * PATIENCE)
    run = host.ended_run("p")
    kept = [p.value for p in shown(run, "i")]
    assert 1000 < len(kept) < 6000 and len(run.holes) == 1 and run.refused_points == 0
    assert kept[:1000] == list(range(1000)) and kept[-1] == 5999


MANY = """
import sys, time, trackio
runs = [trackio.init(project="p", name=f"r{n}", reinit="create_new") for n in range(25)]
for i in range(100):
    for run in runs: run.log({"i": i})
print(time.time(), flush=True)
"""


def test_25_runs_beside_a_disk_that_hangs_end_within_a_second(host: Host, failing: Failing) -> None:
    """All are moved to disk, and what the disk does not say in time is said."""
    rule = failing.hang("fsync", 30, path="/spill")
    started = time.monotonic()
    process = host.python(MANY, env=failing.environ)
    out, err = process.communicate(timeout=60 * PATIENCE)
    took = time.time() - float(out)
    assert process.returncode == 0 and took < 1.5 * PATIENCE, took
    assert rule.hits > 25 and "the disk did not keep the last records of 25 stream(s)" in err, err
    assert time.monotonic() > started
    failing.heal()
    host.start()
    runs = host.ended_runs("p")
    assert sorted(r.points for r in runs) == [100] * 25 and {r.state.state for r in runs} == {"finished"}


def test_a_disk_that_hangs_keeps_no_other_stream(host: Host, failing: Failing) -> None:
    """The thread that sends goes on beside an fsync that does not return."""
    code = (
        SPILLED
        + """
other = trackio.init(project="q", reinit="create_new")
other.log({"a": 1})
sys.stdin.readline()
"""
    )
    rule = failing.hang("fsync", 60, path="/spill")
    process = host.python(code, env={**failing.environ, **SMALL}, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "spilled\n"
    wait_for(lambda: rule.hits > 0)
    host.start()
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: host.runs("q") and host.the_run("q").points == 1)
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 12_000)
    process.communicate("\n", timeout=60 * PATIENCE)
