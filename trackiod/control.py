"""Starting, stopping and asking a daemon from outside it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import NamedTuple

from trackio import inquiry, launch, places, trust, wire
from trackio.places import Places
from trackiod.errors import EXIT_ALREADY_RUNNING, EXIT_OK, FolderUnusable, TrackiodError

START_SECONDS = 30.0
STOP_SECONDS = 30.0
ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.02


class Started(NamedTuple):
    """A daemon answers; `is_new`: because of this call."""

    pid: int
    is_new: bool


def status(where: Places, seconds: float = ANSWER_SECONDS) -> wire.StatusReport | None:
    """What the daemon says of itself; None if none answers."""
    answer = inquiry.ask(where, wire.StatusQuery(), seconds)
    return answer if isinstance(answer, wire.StatusReport) else None


def start(where: Places, seconds: float = START_SECONDS) -> Started:
    """Returns when a daemon answers. Safe to call twice, or from many processes at once: one of them starts
    it, the others wait for that one. Raises TrackiodError with the reason."""
    deadline = time.monotonic() + seconds
    if (report := status(where)) is not None:
        return Started(int(report.daemon["pid"]), False)
    try:
        where.make_live()
        gate = trust.open_file(where.start_lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise FolderUnusable(
            f"The data folder {where.live} cannot be used: {error.strerror or error}. Set TRACKIO_DIR to another."
        ) from error
    try:
        _pass(gate, deadline)
        if (report := status(where)) is not None:
            return Started(int(report.daemon["pid"]), False)
        while (report := status(where)) is None:
            # one that runs may be about to answer, or about to leave
            problem = "" if launch.is_running(where) else _spawn_and_wait(where, deadline)
            if problem or time.monotonic() >= deadline:
                raise TrackiodError(problem or f"trackiod{_pid_of(where)} does not answer; see {where.log}.")
            time.sleep(_POLL_SECONDS)
        return Started(int(report.daemon["pid"]), True)
    finally:
        os.close(gate)


def _pass(gate: int, deadline: float) -> None:
    """Waits for the others who start a daemon, but not for ever."""
    while True:
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise TrackiodError("Another process has been starting trackiod for too long.") from None
            time.sleep(_POLL_SECONDS)


def _spawn_and_wait(where: Places, deadline: float) -> str:
    """Starts one and waits until it is ready. Returns why not, or ""."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = launch.spawn(where, errors=writer)
    except OSError as error:
        os.close(reader)
        raise TrackiodError(f"trackiod cannot be started: {error}.") from error
    finally:
        os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as errors:
        while True:
            done, status_word = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() >= deadline:
                return f"trackiod is not ready yet; see {where.log}."
            time.sleep(_POLL_SECONDS)
        if os.waitstatus_to_exitcode(status_word) in (EXIT_OK, EXIT_ALREADY_RUNNING):
            return ""  # another one was quicker: it is the one that will answer
        return errors.read().strip().removeprefix("trackiod: ") or f"trackiod ended at once; see {where.log}."


def stop(where: Places, reason: str, seconds: float = STOP_SECONDS) -> bool:
    """Asks the daemon to leave and waits until it has. False if none ran. Raises TrackiodError."""
    if not launch.is_running(where):
        return False
    deadline = time.monotonic() + seconds
    asked: int | None = None
    while launch.is_running(where):
        endpoint = places.read_endpoint(where.endpoint)
        if endpoint is not None and endpoint.pid != asked:  # again, if another one was starting meanwhile
            asked = endpoint.pid
            if inquiry.ask(where, wire.Stop(reason), ANSWER_SECONDS) is None:
                _signal(where)
        if time.monotonic() >= deadline:
            raise TrackiodError(f"trackiod{_pid_of(where)} has not stopped within {seconds:g} s; see {where.log}.")
        time.sleep(_POLL_SECONDS)
    return True


def _pid_of(where: Places) -> str:
    endpoint = places.read_endpoint(where.endpoint)
    return f" (pid {endpoint.pid})" if endpoint else ""


def _signal(where: Places) -> None:
    """It does not answer: SIGTERM, if the endpoint's process is a trackiod of this boot."""
    endpoint = places.read_endpoint(where.endpoint)
    if endpoint is None or endpoint.boot_id != places.boot_id():
        return
    try:
        with open(f"/proc/{endpoint.pid}/cmdline", "rb") as file:
            if b"trackiod" in file.read():
                os.kill(endpoint.pid, signal.SIGTERM)
    except OSError:
        return
