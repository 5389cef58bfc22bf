"""Trainers at their descriptor limit: what log() took is stored once, or counted as dropped and said."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing

LIMIT = """
import os, resource, sys, threading, time, trackio
def take_all(limit):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
    held = []
    try:
        while True: held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError: return held
def log_all(name, count, *runs):
    for i in range(count):
        for run in runs: run.log({name: i, "text": "x" * 300})
        spools = [run._stream.spool for run in runs]
        deadline = time.monotonic() + 10
        while i % 100 == 0 and any(s.ring.head - s.ring.oldest > 1 << 20 for s in spools):
            if time.monotonic() > deadline: break
            time.sleep(0.005)
"""
ONE = (
    LIMIT
    + """
run = trackio.init(project="p")
held = take_all(200)
log_all("i", 12_000, run)
print("logged", run._stream.spool.spill.held_bytes, flush=True)
if sys.stdin.readline() == "free\\n":
    for n in held: os.close(n)
    sys.stdin.readline()
"""
)
COUNT = 12_000
SMALL = {"TRACKIO_SPOOL_MIB": "2"}


@pytest.mark.parametrize("then", ["stays", "free", "ends"])
@pytest.mark.parametrize("daemon_is", ["stopped", "killed", "absent"])
def test_a_trainer_at_its_limit_from_the_first_call_on_loses_nothing(host: Host, daemon_is: str, then: str) -> None:
    """It moves data to disk, reads them again, and connects, with what was held in reserve from the start."""
    if daemon_is != "absent":
        host.start()
        pid = host.status().daemon["pid"]
    if daemon_is == "stopped":
        os.kill(pid, signal.SIGSTOP)
    elif daemon_is == "killed":
        os.kill(pid, signal.SIGKILL)
    process = host.python(ONE, env=SMALL, stdin=subprocess.PIPE)
    try:
        word, spilled = process.stdout.readline().split()
        assert word == "logged" and int(spilled) > 1 << 20
        if then == "ends":
            _, err = process.communicate("\n", timeout=60 * PATIENCE)
    finally:
        if daemon_is == "stopped":
            os.kill(pid, signal.SIGCONT)
    if daemon_is != "stopped":
        host.start()
    if then != "ends":
        process.stdin.write("free\n" if then == "free" else "")
        process.stdin.flush()
        wait_for(lambda: host.runs("p") and host.the_run("p").points == 2 * COUNT, 30, "all of it")
        _, err = process.communicate("\n", timeout=60 * PATIENCE)
    run = host.ended_run("p")
    assert [p.value for p in shown(run, "i", all_points=True)] == list(range(COUNT))
    assert run.holes == [] and run.refused_points == 0 and run.state.state == "finished"
    assert process.returncode == 0 and len(err.splitlines()) == 1, err


def test_25_runs_and_a_forked_child_at_the_limit_lose_nothing(host: Host) -> None:
    """One descriptor is held for the lock of each stream on disk; the child has its own."""
    done = host.run(
        LIMIT
        + """
runs = [trackio.init(project="p", name=f"r{n}", reinit="create_new") for n in range(25)]
take_all(200)
log_all("i", 600, *runs)
pid = os.fork()
log_all("child" if pid == 0 else "more", 200, *runs)
if pid == 0: sys.exit(0)
sys.exit(os.waitpid(pid, 0)[1])
""",
        env={"TRACKIO_SPOOL_MIB": "1"},
    )
    assert done.returncode == 0 and "dropped" not in done.stderr, done.stderr
    host.start()
    runs = host.ended_runs("p", 60)
    assert len(runs) == 25 and all(run.holes == [] and run.refused_points == 0 for run in runs)
    for run in runs:
        assert sorted((s.role, s.points) for s in run.streams) == [("rank", 1600), ("worker", 400)]


@pytest.mark.parametrize("what", ["lowered", "taken"])
def test_what_finds_no_room_at_the_limit_is_counted(host: Host, what: str) -> None:
    """A limit lowered below what is open, and another thread that takes whatever is given up, leave no descriptor."""
    code = {
        "lowered": "resource.setrlimit(resource.RLIMIT_NOFILE, (50, 4096))",
        "taken": "from trackio.descriptor import reserve\ntake_all(200)\nwhile reserve.give_up(): take_all(200)",
    }
    done = host.run(
        LIMIT
        + f"""
first = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
run = trackio.init(project="p")
{code[what]}
for i in range(12_000): trackio.log({{"i": i, "text": "x" * 300}})
""",
        env=SMALL,
    )
    assert done.returncode == 0, done.stderr
    host.start()
    run = host.ended_run("p")
    assert run.refused_points > 0 and run.points + run.refused_points == 2 * COUNT and run.holes == []
    assert f"{run.refused_points // 2:,} log() calls ({run.refused_points:,} points) found no room" in done.stderr


def test_records_that_end_with_their_process_are_counted(host: Host) -> None:
    """init() where nothing can be opened at all: the ring is private memory, and nothing of it can leave."""
    done = host.run(LIMIT + "take_all(200)\ntrackio.init(project='p')\nfor i in range(100): trackio.log({'i': i})")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    lost = re.search(r"([\d,]+) records lay in this process's own memory alone and are lost", done.stderr)
    assert lost and int(lost[1]) >= 100, done.stderr


@pytest.mark.parametrize(
    ("call", "error"), [("socket", errno.EMFILE), ("connect", errno.EMFILE), ("open", errno.ENFILE)]
)
def test_a_limit_that_is_met_only_for_a_while_delays(host: Host, tmp_path: Path, call: str, error: int) -> None:
    """The process's at the connection, or the system's at any file: all that was logged comes once it is over."""
    failing = Failing(tmp_path / "failing")
    code = (
        LIMIT
        + """
run = trackio.init(project="p")
print("begun", flush=True); sys.stdin.readline()
log_all("i", 1000, run)
print("logged", flush=True); sys.stdin.readline()
"""
    )
    process = host.python(code, env=failing.environ, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "begun\n"
    with failing.fail(call, error, process=" -c ") as rule:
        host.start()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "logged\n"
        wait_for(lambda: rule.hits > 3, what="three tries")
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 2000, what="all of it")
    _, err = process.communicate("\n", timeout=60 * PATIENCE)
    assert process.returncode == 0 and "dropped" not in err and host.ended_run("p").holes == []
