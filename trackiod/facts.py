"""What `doctor` has to know of this host and data folder. Reads, judges nothing, starts nothing.

A reading that cannot be made is None: no exception, no zero.
"""

from __future__ import annotations

import os
import pwd
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from trackio import host, launch, mounts, places
from trackio.places import Places
from trackiod import control, exposure, installation, library, orphans
from trackiod.errors import StoreError
from trackiod.exposure import Exposed
from trackiod.installation import Installation
from trackiod.store import reader, schema, wal
from trackiod.store.wal import LongLog

_LOG_TAIL_BYTES = 64 << 10
_LOGIND_FILES = (
    "/usr/lib/systemd/logind.conf.d",
    "/etc/systemd/logind.conf",
    "/run/systemd/logind.conf.d",
    "/etc/systemd/logind.conf.d",
)
_LINGER = "/var/lib/systemd/linger"


class Daemon(NamedTuple):
    """The data folder's daemon, as it shows itself."""

    report: dict[str, Any] | None
    """its own words; None if it does not answer"""
    is_running: bool
    pid: int | None
    has_python: bool | None
    """whether the interpreter it was started with is still there"""
    files_limit: int | None
    errors: tuple[str, ...]
    """what its log says went wrong in its present or last life, newest last"""


class Space(NamedTuple):
    """A folder that is there or could be made, and the file system it is on."""

    path: str
    exists: bool
    is_ours: bool
    """whether it, or what it would be made in, belongs to us and is no link"""
    is_writable: bool
    type: str
    is_memory: bool
    is_mappable: bool
    total_bytes: int | None
    free_bytes: int | None


class Limits(NamedTuple):
    """What the system lets a process of ours have; None: no limit, or unknown."""

    open_files: int | None
    """as far as a process may raise it itself"""
    locked_bytes: int | None
    has_infiniband: bool


class Login(NamedTuple):
    """What happens at the user's last logout."""

    user: str
    is_system_user: bool
    has_logind: bool
    lingers: bool | None
    removes_ipc: bool


class Facts(NamedTuple):
    """Everything."""

    installation: Installation
    settings: tuple[str, ...]
    """a sentence for each setting that is not understood"""
    autostart: bool
    data: str
    network: str
    """the network file system's type, or empty"""
    daemon: Daemon
    live: Space
    spools: tuple[Space, ...]
    shm: Space | None
    limits: Limits
    login: Login
    logs: tuple[LongLog, ...]
    """of databases, that could not begin anew for long"""
    waiting: int
    """streams of dead processes that nobody has stored yet"""
    incomplete: tuple[str, ...] = ()
    """a sentence for each artifact of which something was not kept"""
    exposed: tuple[Exposed, ...] = ()
    """folders that other users can write"""


def gather(where: Places, *, autostart: bool, settings: tuple[str, ...], group: str = "") -> Facts:
    """All facts of this process's surroundings. Writes nothing, starts no daemon."""
    return Facts(
        installation=installation.look(),
        settings=settings,
        autostart=autostart,
        data=where.data,
        network=where.network,
        daemon=_daemon(where),
        live=_live(where),
        spools=tuple(space(root) for root in exposure.runtime_folders(where)),
        shm=space("/dev/shm") if os.path.isdir("/dev/shm") else None,
        limits=_limits(),
        login=_login(),
        logs=tuple(_long_logs(where)),
        waiting=sum(1 for found in orphans.find(where) if not found.is_held),
        incomplete=tuple(library.incomplete(where.projects)),
        exposed=exposure.look(where, group),
    )


def _live(where: Places) -> Space:
    found = space(where.live)
    return found._replace(is_ours=found.is_ours or (where.is_named and found.is_writable))


def _long_logs(where: Places) -> Iterator[LongLog]:
    for path in reader.own_paths(where.projects):
        with suppress(StoreError):
            if (log := wal.find_long(path, schema.name_in(path))) is not None:
                yield log


def _daemon(where: Places) -> Daemon:
    is_running = launch.is_running(where)
    report = control.status(where) if is_running else None  # a connection may start one (socket activation)
    endpoint = places.read_endpoint(where.endpoint)
    pid = endpoint.pid if endpoint is not None and is_running else None
    python = report.daemon.get("python") if report else None
    return Daemon(
        report=report.daemon if report else None,
        is_running=is_running,
        pid=pid,
        has_python=os.path.exists(python) if isinstance(python, str) else None,
        files_limit=_files_limit(pid) if pid else None,
        errors=_errors(where.log),
    )


def _files_limit(pid: int) -> int | None:
    found = re.search(r"^Max open files\s+(\d+)", _text(f"/proc/{pid}/limits"), re.MULTILINE)
    return int(found.group(1)) if found else None


def _errors(log: str) -> tuple[str, ...]:
    """The errors in the tail of the log since the daemon last became ready."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ()
    errors: list[str] = []
    for line in lines:
        if " is ready: " in line:
            errors.clear()
        elif " ERROR " in line:
            errors.append(line)
    return tuple(errors)


def space(path: str) -> Space:
    """What is known of a folder's place; of the nearest folder above it where it does not exist."""
    nearest = path
    while not os.path.lexists(nearest) and nearest != os.path.dirname(nearest):
        nearest = os.path.dirname(nearest)
    exists = os.path.isdir(path)
    mount = mounts.of(path)
    try:
        total, free = host.disk(nearest)
        owner = os.lstat(nearest).st_uid
    except OSError:
        return Space(path, exists, False, False, mount.type, mount.is_memory, mount.is_mappable, None, None)
    return Space(
        path,
        exists,
        owner == os.geteuid() or not exists,
        os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK, effective_ids=True),
        mount.type,
        mount.is_memory,
        mount.is_mappable,
        total,
        free,
    )


def _limits() -> Limits:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        has_infiniband = bool(os.listdir("/sys/class/infiniband"))
    except OSError:
        has_infiniband = False
    return Limits(_finite(hard), _finite(locked), has_infiniband)


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _login() -> Login:
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    lingers = os.path.exists(os.path.join(_LINGER, user)) if os.path.isdir(os.path.dirname(_LINGER)) else None
    has_logind = os.path.isdir("/run/systemd/system") and os.path.isdir("/run/systemd/users")
    return Login(user, uid < 1000, has_logind, lingers, removes_ipc(_logind_texts()))


def _logind_texts() -> list[str]:
    texts = []
    for path in _LOGIND_FILES:
        try:
            names = [os.path.join(path, n) for n in sorted(os.listdir(path))] if os.path.isdir(path) else [path]
        except OSError:
            continue
        texts += [_text(name) for name in names]
    return texts


def removes_ipc(logind_texts: list[str]) -> bool:
    """logind's RemoveIPC in its configuration files, the last one rules; on unless they say otherwise."""
    ruling = True
    for text in logind_texts:
        for value in re.findall(r"^\s*RemoveIPC\s*=\s*(\w+)", text, re.MULTILINE):
            ruling = value.lower() in ("1", "yes", "true", "on", "y", "t")
    return ruling


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
