"""What others do to the files in shared memory, and what the system refuses there."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing

LOGGED = """
import sys, time, trackio
trackio.init(project="p")
for i in range(100): trackio.log({"i": i})
time.sleep(0.7)
print("logged", flush=True)
sys.stdin.readline()
for i in range(100, 200): trackio.log({"i": i})
"""


def cut_all(host: Host) -> None:
    for pattern in ("seg-*", "counters"):
        for path in host.spool.rglob(pattern):
            os.truncate(path, 0)


def test_a_process_that_dies_of_a_spool_that_was_cut_short_is_told_so(daemon: Host) -> None:
    """It logs at full speed, and a mapping of what is no longer there is a SIGBUS."""
    process = daemon.python(LOGGED.replace("range(100, 200)", "range(100, 10**9)"), stdin=subprocess.PIPE)
    assert process.stdout.readline() == "logged\n"
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points > 200)
    cut_all(daemon)
    process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == -7
    run = daemon.ended_run("p")
    if run.state.state == "lost":
        pytest.skip("this kernel does not tell the exit of processes that are not children (Linux 6.15 does)")
    assert run.state.state == "killed" and run.state.cause.startswith("SIGBUS: its spool file /"), run.state
    assert "cut short" in run.state.cause
    values = [p.value for p in shown(run, "i", all_points=True)]
    assert values == list(range(len(values))) and len(values) > 200


def test_what_was_in_a_spool_that_killed_its_process_is_a_gap(host: Host, tmp_path: Path) -> None:
    """The daemon had heard how far it went, and could store nothing just then."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    host.start()
    code = (
        LOGGED
        + """
for i in range(200, 5000):
    trackio.log({"i": i})
    if i % 50 == 0: time.sleep(0.02)
print("more", flush=True)
sys.stdin.readline()
while True: trackio.log({"i": -1})
"""
    )
    process = host.python(code, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "logged\n"
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 100)
    with failing.fail("write", errno.ENOSPC, path="/projects/", process="trackiod"):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "more\n"
        wait_for(lambda: (s := host.status().streams) and s[0]["head"] > s[0]["committed"])
        cut_all(host)
        process.communicate("\n", timeout=60 * PATIENCE)
        assert process.returncode == -7
    run = host.ended_run("p")
    values = [p.value for p in shown(run, "i", all_points=True)]
    assert values == list(range(len(values))) and 100 <= len(values) < 5000
    assert [hole.cause for hole in run.holes] == ["its spool was cut short"] and run.holes[0].end > run.holes[0].start
    assert run.state.state in ("killed", "lost")


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_spool_that_is_cut_short_between_two_calls_is_left(host: Host, with_daemon: bool) -> None:
    """What was not sent is a gap; the process goes on, in another file."""
    if with_daemon:
        host.start()
    process = host.python(LOGGED.replace("sys.stdin.readline()", "sys.stdin.readline(); time.sleep(2.5)"),
                          stdin=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "logged\n"
    if with_daemon:
        wait_for(lambda: host.runs("p") and host.the_run("p").points == 100)
    cut_all(host)
    _, err = process.communicate("\n", timeout=60 * PATIENCE)
    assert process.returncode == 0 and err.count("was cut short by somebody") == 1, err
    if not with_daemon:
        host.start()
    run = host.ended_run("p")
    assert host.values("p", "i") == list(range(0 if with_daemon else 100, 200))
    assert len(run.holes) == (0 if with_daemon else 1) and run.state.state == "finished"


def test_what_a_process_cannot_remove_from_shared_memory_the_daemon_does(daemon: Host, tmp_path: Path) -> None:
    failing = Failing(tmp_path / "failing")
    with failing.fail("unlink", errno.EIO, path="/streams/") as rule:
        done = daemon.run(LOGGED.replace("sys.stdin.readline()", ""), env=failing.environ)
    assert done.returncode == 0 and rule.hits > 0
    assert daemon.ended_run("p").points == 200
    wait_for(lambda: not any(daemon.spool.rglob("seg-*")), what="empty shared memory")


def test_a_segment_whose_removal_fails_once_is_removed_later(host: Host, tmp_path: Path) -> None:
    failing = Failing(tmp_path / "failing")
    rule = failing.fail("unlink", errno.EIO, path="/seg-", count=1)
    done = host.run(
        """
import glob, sys, time
from trackio import places
from trackio.spool import Spool
spool = Spool(places.find(sys.argv[1], sys.argv[2]), "s1", {"stream": "s1"}, limit_bytes=2 << 20, spill_bytes=1 << 20)
for _ in range(1800): spool.ring.append(b"x" * 1000, 1)
spool.release(spool.ring.head)
before, now = glob.glob(spool.path + "/seg-*"), time.monotonic()
for seconds in range(0, 200, 5): spool.maintain(now + seconds)
print(len(before), len(glob.glob(spool.path + "/seg-*")), len(spool.ring.segments()))
spool.close()
""",
        str(host.data),
        str(host.spool),
        env=failing.environ,
    )
    assert done.returncode == 0, done.stderr
    before, after, held = map(int, done.stdout.split())
    assert rule.hits == 1 and after == held < before


def test_a_memory_limit_that_cannot_be_read_is_not_taken_for_none(host: Host, tmp_path: Path) -> None:
    """More than the limit allows brings the OOM killer: what cannot be told lets the ring not grow, for a second."""
    failing = Failing(tmp_path / "failing")
    code = """
import sys
from trackio import host
try: print(host.cgroup_headroom())
except OSError as error: print(error.errno)
"""
    with failing.fail("open", errno.EMFILE, path="/proc/self/cgroup"):
        assert host.run(code, env=failing.environ).stdout == f"{errno.EMFILE}\n"
    with failing.fail("open", errno.ENOENT, path="cgroup"):
        assert host.run(code, env=failing.environ).stdout == "None\n"
