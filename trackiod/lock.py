"""A daemon is its data folder: the lock held for life, the socket bound by us, the endpoint file.

The lock is taken before the socket is bound, so a second daemon never takes the path from the first.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from functools import partial

from trackio import trust
from trackio.lookup import unless_absent
from trackio.places import (
    MAX_SOCKET_PATH_BYTES,
    Endpoint,
    Places,
    boot_id,
    folder_id,
    make_private,
    read_endpoint,
    replace,
)
from trackio.version import __version__
from trackiod.errors import AlreadyRunning, FolderUnusable

_SOCKET_NAME = "trackiod.sock"
NAMELESS = ".full"
"""What the socket's name ends with while nobody is to find it."""
BACKLOG = 256
_TRIES, _TRY_AGAIN_SECONDS = 5, 0.02
NOBODY = 0
"""The pid in the endpoint of a socket on which systemd listens while no daemon runs."""


_FOLDERS = "projects incoming spill blobs deleted damaged uploads webhooks elsewhere places".split()


def _check_what_lies_in(places: Places) -> None:
    """Raise OSError where another user has put something in the place of one of our folders: what lies in it, or where
    a link leads, would be stored, changed and removed as ours."""
    for name in _FOLDERS:
        path = os.path.join(places.live, name)
        info = unless_absent(partial(os.lstat, path), path)
        if info is not None and not trust.is_trusted(info.st_uid):
            raise trust.NotTrusted(f"{path} belongs to {trust.name_of(info.st_uid)}")


class FolderLock:
    """The data folder's lock, held until the process ends. Creates the folder."""

    def __init__(self, places: Places) -> None:
        """Raises AlreadyRunning or FolderUnusable."""
        self._path, self._endpoint = places.lock, places.endpoint
        try:
            places.make_live()
            _check_what_lies_in(places)
            make_private(places.projects)
            self._fd = trust.open_file(places.lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise FolderUnusable(
                f"The data folder {places.live} cannot be used: {error.strerror or error}. Set TRACKIO_DIR to another."
            ) from error
        if not self._take():
            os.close(self._fd)
            endpoint = read_endpoint(places.endpoint)
            who = f"pid {endpoint.pid}" if endpoint else "another process"
            raise AlreadyRunning(f"trackiod already runs for {places.live} ({who}).")

    def _take(self) -> bool:
        """Tries for a moment where no daemon answers: whoever looks for one holds the lock just then."""
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if os.path.exists(self._endpoint):
                    return False
                time.sleep(_TRY_AGAIN_SECONDS)
        return False

    def is_held(self) -> bool:
        """Whether the file we lock still is the folder's: somebody may remove the folder under us."""
        try:
            ours, named = os.fstat(self._fd), unless_absent(lambda: os.stat(self._path), self._path)
        except OSError:
            return True  # that it cannot be looked at does not make it another's
        if named is None:
            return False
        return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def release(self) -> None:
        """Gives the folder free. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def bind(places: Places) -> socket.socket:
    """A listening socket in the best runtime root, ours alone. Raises FolderUnusable."""
    problems = []
    for root in places.roots:
        try:
            root = places.make_root(root)
        except OSError as error:
            problems.append(f"{root}: {error.strerror or error}")
            continue
        path = os.path.join(root, _SOCKET_NAME)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            problems.append(f"{path} is longer than {MAX_SOCKET_PATH_BYTES} bytes")
            continue
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            for stale in (path, path + NAMELESS):
                if os.path.lexists(stale):
                    os.unlink(stale)  # we hold the folder's lock
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            problems.append(f"{path}: {error.strerror or error}")
            continue
        return listener
    raise FolderUnusable(f"No socket can be made: {'; '.join(problems)}.")


def endpoint_at(places: Places, socket_path: str, *, pid: int, store: str) -> Endpoint:
    """What to publish for the live folder, which exists. Raises OSError."""
    return Endpoint(socket_path, pid, time.time_ns(), boot_id(), store, __version__, folder_id(places.live))


def write_endpoint(places: Places, endpoint: Endpoint) -> None:
    """Publishes where we answer, whole or not at all. Raises OSError."""
    replace(places.endpoint, endpoint.to_text().encode(errors="surrogateescape"))


def remove_endpoint(places: Places, socket_path: str, *, is_passed: bool) -> None:
    """Takes back what we published, and runtime folders that are empty; never raises.

    A socket that was passed to us (`is_passed`) is listened on without us, so its path and the endpoint stay:
    the next connection starts the next daemon.
    """
    endpoint = read_endpoint(places.endpoint)
    if endpoint is not None and endpoint.pid != os.getpid():
        return  # the folder was made anew and has another daemon, or somebody else listens for it
    if is_passed:
        _republish(places, endpoint)
        return
    for path in (places.endpoint, socket_path, socket_path + NAMELESS):
        try:
            os.unlink(path)
        except OSError:
            continue
    for root in _own_roots(places):
        usual = (os.path.dirname(root),) if places.is_usual(root) else ()  # a random name that goes could be taken
        for folder in (os.path.join(root, "streams"), root, *usual):
            try:
                os.rmdir(folder)
            except OSError:
                break


def _own_roots(places: Places) -> tuple[str, ...]:
    try:
        return places.own_roots()
    except OSError:
        return ()


def _republish(places: Places, endpoint: Endpoint | None) -> None:
    """Leaves word of where systemd goes on listening."""
    if endpoint is None:
        return
    try:
        write_endpoint(places, endpoint._replace(pid=NOBODY))
    except OSError:
        return


def publish(places: Places, socket_path: str) -> None:
    """Leaves word that somebody listens at `socket_path` and starts a daemon at the first connection.
    Raises FolderUnusable."""
    try:
        places.make_live()
        write_endpoint(places, endpoint_at(places, socket_path, pid=NOBODY, store=""))
    except OSError as error:
        raise FolderUnusable(
            f"The data folder {places.live} cannot be used: {error.strerror or error}. Set TRACKIO_DIR to another."
        ) from error
