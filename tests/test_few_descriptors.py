"""A daemon with few descriptors: it neither ends nor spins, and everything is stored once the load is gone."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing

from trackiod import descriptors
from trackiod.lock import NAMELESS

RUNS = """
import sys, trackio
count, projects = map(int, sys.argv[1:])
runs = [trackio.init(project=f"p{i % projects}", name=f"r{i}", reinit="create_new") for i in range(count)]
for step in range(20):
    for run in runs: run.log({"a": step}, step=step)
print("logged", flush=True)
sys.stdin.read()
"""


def start_with(host: Host, limit: int) -> int:
    """Starts the daemon with so many descriptors, which it cannot raise; returns its pid."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trackiod", "run", "--detach"], env=host.environ(), capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(host.status().daemon["pid"])


@contextmanager
def silent(host: Host, count: int) -> Iterator[list[socket.socket]]:
    """Connections that never say anything."""
    path = host.status().daemon["socket"]
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        deadline = time.monotonic() + 20 * PATIENCE
        while len(opened) < count and time.monotonic() < deadline:
            stranger = socket.socket(socket.AF_UNIX)
            stranger.setblocking(False)
            try:
                stranger.connect(path)
            except OSError:  # too many wait to be let in, or the socket has no name just now
                stranger.close()
                time.sleep(0.02)
                continue
            opened.append(stack.enter_context(stranger))
        yield opened


@pytest.mark.parametrize(("limit", "runs", "projects"), [(128, 60, 30), (64, 60, 2)])
def test_more_streams_than_descriptors_are_all_stored_in_the_end(
    host: Host, limit: int, runs: int, projects: int
) -> None:
    """Each stream takes descriptors of the daemon for its lock, its segments and its exit code, each project three."""
    pid = start_with(host, limit)
    process = host.python(RUNS, str(runs), str(projects), stdin=subprocess.PIPE)
    assert process.stdout.readline() == "logged\n"
    wait_for(lambda: (report := host.status()) and len(report.streams) >= 5, what="as many as can be")
    assert host.status().daemon["pid"] == pid, "it answers, whatever it holds"
    _, err = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 0 and "Traceback" not in err and len(err.splitlines()) <= runs + 3, err
    views = [view for i in range(projects) for view in host.ended_runs(f"p{i}", 60)]
    assert len(views) == runs
    for view in views:
        assert [point.value for point in shown(view, "a", all_points=True)] == list(range(20))
    log = Path(host.places.log).read_text()
    assert host.status().daemon["pid"] == pid and "Traceback" not in log and "damaged" not in log
    assert len(log.splitlines()) < 10 * runs


@pytest.mark.parametrize("limit", [64, 128])
def test_a_flood_of_connections_that_never_speak_ends_nothing(host: Host, limit: int) -> None:
    pid = start_with(host, limit)
    count = limit + 20
    with silent(host, count) as strangers:
        done = host.run("import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i}) for i in range(100)]")
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert host.ended_run("p", 40).points == 100
        assert len(strangers) == count
    assert wait_for(host.status, what="an answer").daemon["pid"] == pid
    assert Path(host.places.log).read_text().count("descriptors are short") == 1


def test_a_burst_of_connections_finds_no_name_once_descriptors_are_short(host: Host) -> None:
    """libzmq would accept all of them, and abort where it finds no descriptor for one."""
    pid = start_with(host, 256)
    path = host.status().daemon["socket"]
    with ExitStack() as stack:
        for _ in range(2000):
            stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
            stranger.setblocking(False)
            with suppress(OSError):
                stranger.connect(path)
    assert wait_for(host.status, what="an answer").daemon["pid"] == pid


def test_a_daemon_that_cannot_load_numpy_stores_large_batches_all_the_same(host: Host, tmp_path: Path) -> None:
    """It is loaded when it is needed first, which may be when nothing can be opened."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    pid = host.start()
    with failing.fail("open", errno.EMFILE, path="numpy", process="trackiod run") as rule:
        done = host.run("import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i}) for i in range(20_000)]")
        assert done.returncode == 0 and "Refus" not in done.stderr, done.stderr
        assert host.ended_run("p").points == 20_000
        assert rule.hits, "it was tried"
    assert host.status().daemon["pid"] == pid


def test_a_descriptor_of_a_high_number_is_given_back() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    reserve = descriptors.reserve_of(limit)
    assert not descriptors.is_short(limit - reserve - 9, 8) and descriptors.is_short(limit - reserve - 8, 8)
    assert not descriptors.are_short(8) and descriptors.are_short(limit)
    number = os.open(os.devnull, os.O_RDONLY)
    assert descriptors.unless_short(number, 8) == number
    assert descriptors.unless_short(number, limit) == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_socket_without_its_name_is_waited_for(host: Host) -> None:
    """As the gate takes it away where descriptors are short: no second daemon is started, and the first is met again as
    soon as it has its name back."""
    pid = host.start()
    path = host.status().daemon["socket"]
    os.rename(path, path + NAMELESS)
    process = host.python(
        """
import sys, time, trackio
run = trackio.init(project="p")
for i in range(100): trackio.log({"i": i})
shipper = run._stream._shipper
while not shipper._is_alone(): time.sleep(0.01)
print("alone", flush=True)
sys.stdin.readline()
""",
        env={"TRACKIO_AUTOSTART": "1"},
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "alone\n"
    report = host.command("trackiod", "status")
    assert "runs but does not answer" in report.stdout + report.stderr
    os.rename(path + NAMELESS, path)
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 100, 5, "all of it")
    _, err = process.communicate("\n", timeout=60 * PATIENCE)
    assert process.returncode == 0 and len(err.splitlines()) == 1, err
    assert host.status().daemon["pid"] == pid and "already runs" not in Path(host.places.log).read_text()
