"""The daemon's life: start, serve, stop. Everything before `serve` either succeeds or says why not."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from trackio import places, settings
from trackio.host import file_identity
from trackio.places import Endpoint, Places
from trackio.settings import Settings
from trackio.version import __version__
from trackio.voice import escaped
from trackiod.errors import (
    EXIT_ALREADY_RUNNING,
    EXIT_FAILED,
    EXIT_OK,
    AlreadyRunning,
    CannotStart,
    Failed,
    TrackiodError,
)
from trackiod.lock import FolderLock, bind, endpoint_at, remove_endpoint, write_endpoint
from trackiod.narrowing import narrow
from trackiod.systemd import Notifier, passed_socket
from trackiod.threads import Threads

if TYPE_CHECKING:
    from trackiod.committer import Committer
    from trackiod.errands import Errands
    from trackiod.outlets import Outlets
    from trackiod.sampling import Sampling
    from trackiod.server import Server

log = logging.getLogger("trackiod")

_THREADS = 10
"""Commit, leases, four that keep, send, the gate, and two of libzmq's."""
_STOP_SECONDS = 20.0
_COPY_SECONDS = 8.0
"""of these, kept for copying"""
_CHECK_PACKAGE_SECONDS = 1.0
_LOG_BYTES = 1 << 20

AUTOSTARTED, STARTED, SERVICE = "autostarted", "started", "service"
"""Who started this daemon: a training process; a user, in the background; or, in the foreground, somebody who
watches over it and starts it again (systemd, a container, a terminal)."""


def run(*, detach: bool = False, autostarted: bool = False) -> int:
    """Runs a daemon for this process's data folder until it is told to stop. Returns the exit code.

    With `detach` the caller's process returns as soon as the daemon is ready, or has failed.
    """
    ours, problems = settings.of_this_process()
    where = places.of(ours)
    try:
        fd = _detach() if detach else None
    except OSError as error:  # at the user's process limit, as the process that starts us may be
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        sys.stderr.write(
            f"trackiod: trackiod cannot start in {escaped(where.live)}: no process can be forked for it ({name}). "
            "Metrics are kept until it starts.\n"
        )
        return EXIT_FAILED
    if fd == _PARENT:
        return _await_child()
    os.umask(0o077)  # in the foreground too: what SQLite, logging and our children create goes by it
    report = _Report(fd)
    _write_logs(where, to_stderr=not detach)
    for problem in problems:
        log.warning("%s", problem)
    try:
        lock = FolderLock(where)
    except TrackiodError as error:
        return _give_up(error, report)
    life = AUTOSTARTED if autostarted else STARTED if detach else SERVICE
    try:
        _serve(where, lock, life, ours, report)
    except TrackiodError as error:
        return _give_up(error, report)
    except Exception as error:  # the border of the daemon: it ends with a sentence
        log.exception("internal error")
        return _give_up(
            Failed(f"trackiod ended by an internal error ({type(error).__name__}); see {where.log}."), report
        )
    finally:
        lock.release()
    return EXIT_OK


def _give_up(error: TrackiodError, report: _Report) -> int:
    code = EXIT_ALREADY_RUNNING if isinstance(error, AlreadyRunning) else EXIT_FAILED
    log.log(logging.INFO if code == EXIT_ALREADY_RUNNING else logging.ERROR, "%s", error)
    if not report.tell(f"{code} {error}"):
        sys.stderr.write(f"trackiod: {escaped(str(error))}\n")
    return code


@contextmanager
def _named_refusals(where: Places) -> Iterator[None]:
    """Turns what the system refuses while the daemon starts into a sentence. Raises CannotStart."""
    import zmq

    try:
        yield
    except (OSError, zmq.ZMQError) as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        path = f", {error.filename}" if isinstance(error, OSError) and error.filename else ""
        raise CannotStart(
            f"trackiod cannot start in {where.live}: {error.strerror or error} ({name}{path}). Metrics are kept until"
            " it starts."
        ) from error


def _serve(where: Places, lock: FolderLock, life: str, ours: Settings, report: _Report) -> None:
    from trackiod.committer import Committer  # after the fork: zmq and SQLite want a process of their own
    from trackiod.errands import Errands
    from trackiod.outlets import Outlets
    from trackiod.sampling import Sampling
    from trackiod.server import Server
    from trackiod.store_ids import settle

    _be_modest()
    narrow(where)
    with _named_refusals(where):
        passed = passed_socket(os.environ)
        listener = passed or bind(where)
        socket_path = listener.getsockname()
        store_id = settle(where)
        threads = Threads(lambda sentence: server.fail(sentence))
        threads.check_room(_THREADS)
        errands = Errands(where, lambda work: committer.submit(work))
        committer = Committer(
            where.projects, store_id, lambda: server.wake(), errands.take, ours.sample_bytes, errands.settle
        )
        idle_seconds = ours.idle_seconds if life == AUTOSTARTED else None
        outlets = Outlets(where, committer.submit, committer.of_project)
        sampling = Sampling(where, is_allowed=ours.sampling, interval=ours.sample_seconds)
        server = Server(
            where, committer, idle_seconds=idle_seconds, errands=errands, sampling=sampling, outlets=outlets
        )
    try:
        with _named_refusals(where):
            endpoint = endpoint_at(where, socket_path, pid=os.getpid(), store=store_id)
            open_streams = committer.open_streams()
            server.listen(listener, _facts(where, endpoint, life), threads)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda signum, _: server.stop(signal.Signals(signum).name))
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGIO, signal.SIG_IGN)  # of leases; it would end the process
            server.each_tick(_PackageWatch().check)
            server.each_tick(lambda: "" if lock.is_held() else "the data folder was removed")
            notifier = Notifier(os.environ)
            server.each_tick(_Feeding(notifier).check)
            committer.start(threads)
            errands.start(threads)
            write_endpoint(where, endpoint)
        server.end_lost(open_streams)
        log.info("trackiod %s is ready: %s, data in %s", __version__, socket_path, where.live)
        report.tell(f"{EXIT_OK} ")
        notifier.send(f"READY=1\nSTATUS=storing to {where.live}")
        server.serve()
        notifier.send("STOPPING=1")
        log.info("stopping: %s", server.stop_reason)
    finally:
        threads.stop()
        remove_endpoint(where, socket_path, is_passed=passed is not None)
        _stop(errands, sampling, committer, server, outlets)
    if server.failure:
        raise Failed(server.failure)


def _stop(errands: Errands, sampling: Sampling, committer: Committer, server: Server, outlets: Outlets) -> None:
    """In this order: no new connections, everything received is committed, everything committed is acked and copied."""
    deadline = time.monotonic() + _STOP_SECONDS
    errands.stop()
    sampling.end()
    server.drain_samplers()
    kept = _COPY_SECONDS if outlets.is_copying else 0.0
    if not committer.stop(max(1.0, deadline - time.monotonic() - kept)):
        log.error("the disk did not take the last batches in time; their senders still hold them")
    server.close()
    if not outlets.end(deadline - time.monotonic()):
        log.error("what was stored last could not be copied in time; it lies on this host")
    log.info("stopped")


def _facts(where: Places, endpoint: Endpoint, life: str) -> dict[str, Any]:
    return {
        "pid": endpoint.pid,
        "version": endpoint.version,
        "started_ns": endpoint.started_ns,
        "socket": endpoint.socket,
        "data": where.data,
        "live": where.live,
        "store": endpoint.store,
        "life": life,
        "python": sys.executable,
    }


class _Feeding:
    """Feeds systemd's watchdog from the loop: a loop that hangs is restarted."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._next = 0.0

    def check(self) -> str:
        now = time.monotonic()
        if self._notifier.watchdog_seconds is not None and now >= self._next:
            self._next = now + self._notifier.watchdog_seconds
            self._notifier.send("WATCHDOG=1")
        return ""


class _PackageWatch:
    """A daemon whose own package changed on disk ends: half of one version and half of another is worse.

    It leaves when two looks in a row find the same change: an upgrade in the middle has nothing to start yet.
    """

    def __init__(self) -> None:
        folder = os.path.dirname(os.path.realpath(__file__))
        client = os.path.dirname(os.path.realpath(places.__file__))
        self._paths = (os.path.join(folder, "__init__.py"), os.path.join(client, "version.py"))
        self._started_with = self._last = self._look()
        self._next = time.monotonic() + _CHECK_PACKAGE_SECONDS

    def _look(self) -> list[tuple[int, int] | None]:
        return [file_identity(path) for path in self._paths]

    def check(self) -> str:
        if time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + _CHECK_PACKAGE_SECONDS
        before, self._last = self._last, self._look()
        return "the installed package changed" if self._started_with != self._last == before else ""


def _be_modest() -> None:
    """The trainers come first: lower priority, all CPUs instead of one rank's, first to go when memory is
    short (nothing is lost with a daemon), as many descriptors as allowed."""
    _try(lambda: os.nice(5))
    _try(lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_CPU):
        _, hard = resource.getrlimit(limit)
        _try(partial(resource.setrlimit, limit, (hard, hard)))  # the job's own limits are not for us
    _try(_expect_oom)


def _expect_oom() -> None:
    with open("/proc/self/oom_score_adj", "w", encoding="utf-8") as file:
        file.write("300")


def _try(act: Any) -> None:
    try:
        act()
    except (OSError, ValueError, AttributeError):
        pass  # not allowed here; it only helps


# -- detaching ---------------------------------------------------------------------------------------------

_PARENT = -1
_reader = -1


def _detach() -> int:
    """Forks into a session of its own with nothing inherited. Returns _PARENT in the parent, else the
    descriptor to report readiness on. Runs before any thread exists."""
    global _reader
    _reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(writer)
        return _PARENT
    os.close(_reader)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(writer, 3)
    os.closerange(4, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 16))
    os.set_inheritable(3, False)
    return 3


class _Report:
    """Tells whoever waits for a detached daemon once, whether it is ready or why not. Owns the descriptor."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, text: str) -> bool:
        """False if nobody waits."""
        fd, self._fd = self._fd, None  # its number may be somebody else's later
        if fd is None:
            return False
        try:
            os.write(fd, text.encode())
            os.close(fd)
        except OSError:
            pass  # whoever started us has gone
        return True


def _await_child() -> int:
    """The parent's part: waits until the daemon is ready or has said why not."""
    with os.fdopen(_reader, encoding="utf-8") as file:
        text = file.read()
    code, _, message = text.partition(" ")
    if not code.isdigit():
        code, message = str(EXIT_FAILED), "trackiod ended while starting; see trackiod logs."
    if message:
        sys.stderr.write(f"trackiod: {escaped(message)}\n")
    return int(code)


def _write_logs(where: Places, *, to_stderr: bool) -> None:
    """A log of its own, bounded: 1 MiB and one older file. On a full disk it is begun once there is room."""
    logging.raiseExceptions = False  # what cannot be logged is no traceback on stderr
    handlers: list[logging.Handler] = [logging.StreamHandler()] if to_stderr else []
    try:
        where.make_live()
    except OSError:
        pass  # the lock says it
    handlers.append(_LogFile(where.log, maxBytes=_LOG_BYTES, backupCount=1, delay=True))
    for handler in handlers:
        handler.setFormatter(_CleanFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)


class _LogFile(logging.handlers.RotatingFileHandler):
    """Follows no link that somebody else put in its place: lines hold names of users' choice."""

    def _open(self) -> Any:
        return os.fdopen(places.append(self.baseFilename), self.mode, encoding=self.encoding, errors=self.errors)


class _CleanFormatter(logging.Formatter):
    """Names and texts of users can neither end a line of the log nor move the cursor of who reads it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return escaped(super().formatException(ei), "\n\t")
