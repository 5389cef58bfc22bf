"""Socket activation: somebody else listens, and the daemon answers on what it was passed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for

from trackio import launch, places
from trackiod.systemd import passed_socket

ACTIVATE = shutil.which("systemd-socket-activate")
LOG_AND_WAIT = "import trackio, sys\ntrackio.init(project='p')\ntrackio.log({'a': 1})\nsys.stdin.read()"

PASSED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS=sys.argv[2], LISTEN_PID=sys.argv[3] or str(os.getpid()), LISTEN_FDNAMES="trackiod.socket")
os.execv(sys.executable, [sys.executable, "-P", "-m", "trackiod", "run"])
"""
"""Does what systemd does between fork and exec; argv: descriptor, how many, for whom (empty: itself)."""


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    return listener


def activated(host: Host, listener: socket.socket, count: str = "1", pid: str = "") -> Any:
    """A daemon that got `listener`, as systemd would pass it."""
    fd = listener.fileno()
    return host.python(PASSED, str(fd), count, pid, pass_fds=(fd,))


def ended(process: Any, number: signal.Signals = signal.SIGTERM) -> str:
    process.send_signal(number)
    return str(process.communicate(timeout=20 * PATIENCE)[1])


@pytest.mark.skipif(not ACTIVATE, reason="needs systemd-socket-activate")
def test_the_first_process_that_logs_starts_the_daemon_behind_the_published_socket(host: Host) -> None:
    path = host.spool / "activated.sock"
    assert host.command("trackiod", "publish", str(path)).returncode == 0
    waiting = subprocess.Popen(
        [str(ACTIVATE), f"--listen={path}", *(f"--setenv={k}={v}" for k, v in host.environ().items()),
         sys.executable, "-P", "-m", "trackiod", "run"],
        env=host.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    host.processes.append(waiting)
    wait_for(path.exists)
    assert not launch.is_running(host.places), "nobody has asked for it yet"
    process = host.python(LOG_AND_WAIT, stdin=subprocess.PIPE, env={"TRACKIO_AUTOSTART": "1"})
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 1)
    facts = host.status().daemon
    assert (facts["pid"], facts["socket"], facts["life"]) == (waiting.pid, str(path), "service")
    process.communicate()
    assert (host.data / "trackiod.log").read_text().count("is ready") == 1, "none was started beside it"
    ended(waiting)
    assert waiting.returncode == 0 and path.exists()


def test_a_passed_socket_outlives_its_daemon_and_connections_wait_for_the_next(host: Host) -> None:
    path = host.spool / "passed.sock"
    with listening(path) as listener:
        first = activated(host, listener)
        wait_for(host.status)
        process = host.python("""
import trackio, sys
trackio.init(project="p")
for line in sys.stdin:
    trackio.log({"a": int(line)})
    print(flush=True)
""", stdin=subprocess.PIPE, env={"TRACKIO_AUTOSTART": "1"})  # fmt: skip

        def log(value: int) -> None:
            process.stdin.write(f"{value}\n")
            process.stdin.flush()
            process.stdout.readline()

        log(0)
        wait_for(lambda: host.runs("p"))
        ended(first)
        assert first.returncode == 0 and path.exists()
        endpoint = places.read_endpoint(host.places.endpoint)
        assert endpoint is not None and (endpoint.socket, endpoint.pid) == (str(path), 0)
        log(1)
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(str(path))  # it is taken, and waits
        second = activated(host, listener)
        log(2)
        wait_for(lambda: host.the_run("p").points == 3)
        ended(second, signal.SIGKILL)
        log(3)
        third = activated(host, listener)
        process.communicate()
        run = host.ended_run("p")
        assert [p.value for p in shown(run, "a")] == [0, 1, 2, 3] and run.holes == []
        ended(third)
    assert (host.data / "trackiod.log").read_text().count("is ready") == 3, "no process started one of its own"


def test_the_variables_are_taken_away_for_whomever_they_were() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "PATH": "/bin"}
    assert passed_socket(environ) is None and environ == {"PATH": "/bin"}


def test_a_socket_that_was_passed_to_another_process_is_left_alone(host: Host) -> None:
    path = host.spool / "others.sock"
    with listening(path) as listener:
        process = activated(host, listener, pid="1")
        socket_path = wait_for(host.status).daemon["socket"]
        assert socket_path != str(path)
        ended(process)
        assert not os.path.exists(socket_path) and path.exists()


@pytest.mark.parametrize(("family", "listens", "count", "word"), [
    (socket.AF_INET, True, "1", "no listening AF_UNIX"), (socket.AF_UNIX, False, "1", "no listening AF_UNIX"),
    (socket.AF_UNIX, True, "2", "2 sockets"),
])  # fmt: skip
def test_what_cannot_be_answered_on_is_named(
    host: Host, family: socket.AddressFamily, listens: bool, count: str, word: str
) -> None:
    with socket.socket(family) as odd:
        odd.bind(str(host.spool / "odd.sock") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        if listens:
            odd.listen(1)
        process = activated(host, odd, count=count)
        _, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 1 and word in err and "Traceback" not in err
    assert not launch.is_running(host.places)


def test_a_daemon_that_runs_makes_room_for_the_published_socket(daemon: Host) -> None:
    path = daemon.spool / "published.sock"
    with listening(path) as listener:
        assert daemon.command("trackiod", "publish", str(path)).returncode == 0
        assert not launch.is_running(daemon.places)
        service = activated(daemon, listener)
        facts = wait_for(daemon.status).daemon
        assert (facts["pid"], facts["socket"]) == (service.pid, str(path))
        ended(service)


def test_doctor_starts_no_daemon_by_looking(host: Host) -> None:
    path = host.spool / "published.sock"
    with listening(path) as listener:
        assert host.command("trackiod", "publish", str(path)).returncode == 0
        assert "does not run" in host.command("trackiod", "doctor").stdout
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_publish_makes_no_daemon_and_a_dead_endpoint_keeps_nobody_from_starting_one(host: Host) -> None:
    assert host.command("trackiod", "publish", str(host.spool / "nobody.sock")).returncode == 0
    assert host.status() is None and not launch.is_running(host.places)
    assert host.command("trackiod", "start").returncode == 0
    assert host.status().daemon["life"] == "started"
