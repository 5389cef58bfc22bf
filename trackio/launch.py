"""Starting a daemon for a data folder, from a training process or from `trackiod start`.

The daemon gets a clean start: no inherited descriptors (an inherited stdout pipe hangs `| tee` for ever),
no launcher, CUDA or token variables, the folder `/` (a `datasets/` in the cwd shadows imports), a session
of its own. It imports nothing here: this runs in the shipper thread, where a fork could meet a lazy import.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping

from trackio.descriptor import open_file
from trackio.places import Places, append
from trackio.settings import Settings

_KEPT = frozenset(
    (
        "HOME PATH LANG LC_ALL LC_CTYPE TZ USER LOGNAME TMPDIR VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH "
        "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY "
        "http_proxy https_proxy no_proxy all_proxy"
    ).split()
)
_KEPT_PREFIXES = ("TRACKIO_", "XDG_")
_DROPPED = frozenset(
    (
        "TRACKIO_PARENT TRACKIO_RUN_ID TRACKIO_RUN_NAME TRACKIO_PROJECT TRACKIO_PROJECT_NAME TRACKIO_MODE "
        "TRACKIO_WRITE_TOKEN TRACKIO_SERVER_URL TRACKIO_SPACE_ID TRACKIO_WEBHOOK_URL TRACKIO_DIR "
        "TRACKIO_DATASET_ID TRACKIO_DATASET_REPO TRACKIO_BUCKET_ID"
    ).split()
)


def environment(environ: Mapping[str, str], places: Places, package_folder: str) -> dict[str, str]:
    """What the daemon's environment is made of. `package_folder` holds our packages."""
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES)) and name not in _DROPPED
    }
    kept["TRACKIO_DIR"] = places.data
    kept["TRACKIO_SHARED_DIR"] = places.shared or "off"  # it was found with the job's variables
    if _on_python_path(environ.get("PYTHONPATH", ""), package_folder):
        kept["PYTHONPATH"] = package_folder
    return kept


def _on_python_path(python_path: str, folder: str) -> bool:
    return any(os.path.realpath(entry) == folder for entry in python_path.split(os.pathsep) if entry)


def is_possible() -> bool:
    """Whether our own installation is still where it was: a venv may be deleted under a long job."""
    daemon = os.path.join(_package_folder(), "trackiod", "__main__.py")
    return os.path.exists(sys.executable) and os.path.exists(daemon)


def _package_folder() -> str:
    return os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def is_running(places: Places) -> bool:
    """Whether some daemon holds the data folder's lock now; in doubt it does."""
    try:
        # a lock can be asked for where nothing can be written
        fd = open_file(places.lock, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def spawn(places: Places, *options: str, errors: int | None = None) -> int:
    """Starts `trackiod run` detached; returns the pid of the process that detaches it. Raises OSError.

    That process ends when the daemon is ready, with its exit code; it writes why not to the descriptor
    `errors`, else to the daemon's log.
    """
    return _spawn(places, ["run", "--detach", *options], errors)


def ensure(places: Places, ours: Settings, seconds: float) -> None:
    """Where no daemon runs and one may be started, starts it and waits until it is ready; it may not be, which shows
    when it is asked. Never raises."""
    if not ours.autostart or is_running(places):
        return
    try:
        reap_soon(spawn(places, "--autostarted"), seconds)
    except (OSError, TypeError, ValueError):
        return


def spawn_sampler(places: Places) -> int:
    """Starts a sampler detached; returns the pid of the process that detaches it. Raises OSError."""
    return _spawn(places, ["sample", "--detach", "--hosted"], None)


def _spawn(places: Places, arguments: list[str], errors: int | None) -> int:
    places.make_live()
    log = append(places.log)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "trackiod", *arguments],
            environment(os.environ, places, _package_folder()),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log if errors is None else errors, 2),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE],
        )
    finally:
        os.close(log)


def reap(pid: int) -> bool:
    """Whether the detaching process has ended; collects it without waiting."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap_soon(pid: int, seconds: float) -> bool:
    """Waits until the detaching process has ended: the daemon is ready then, or has said why not."""
    deadline = time.monotonic() + seconds
    while not reap(pid):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True
