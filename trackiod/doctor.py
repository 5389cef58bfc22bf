"""What `trackiod doctor` finds: each check's verdict, a sentence, and the fix. Pure: facts in, checks out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trackio import growth
from trackio.version import __version__, is_older
from trackiod.exposure import Exposed
from trackiod.facts import Daemon, Facts, Limits, Login, Space
from trackiod.installation import Copy, Installation
from trackiod.store.wal import LongLog

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_LOW_DISK_BYTES = 1 << 30
_LAST_DISK_BYTES = 100 << 20
_SMALL_SHM_BYTES = 64 << 20
_FILES_A_STREAM = 8
_LOW_FILES, _LAST_FILES = 1024, 256
_LOW_LOCKED_BYTES = 1 << 30
_REINSTALL = "Remove what is there and install this package again: python -m pip uninstall -y trackio"
_SETTING = "Change or remove it, in the environment or in settings.toml."


class Check(NamedTuple):
    """One thing that was looked at. `fix` is empty where there is nothing to do."""

    name: str
    verdict: str
    sentence: str
    fix: str = ""


def examine(facts: Facts) -> list[Check]:
    """All checks, in the order in which a user would look."""
    return [
        *_package(facts.installation),
        *(Check("settings", WARNING, sentence, _SETTING) for sentence in facts.settings),
        *_daemon(facts.daemon, autostart=facts.autostart),
        *_folder(facts),
        _other_users(facts.exposed),
        _free_space(facts.live),
        *_logs(facts.logs),
        _spool(facts.spools),
        _shared_memory(facts.shm),
        _open_files(facts.limits, facts.daemon),
        _locked_memory(facts.limits),
        _linger(facts.login),
        _waiting(facts),
        *_files(facts),
        *_blocked(facts.daemon),
        _errors(facts.daemon),
    ]


# -- the package -----------------------------------------------------------------------------------------------


def _package(found: Installation) -> Iterator[Check]:
    ours, imported = found.ours, found.imported
    if imported is None or imported.path != ours.path:
        what = "nothing" if imported is None else _named(imported)
        yield Check(
            "package", PROBLEM, f"`import trackio` finds {what} instead of {_named(ours)}; it would log elsewhere.",
            "Take its folder out of PYTHONPATH (see: echo $PYTHONPATH), or uninstall that one.",
        )  # fmt: skip
    else:
        yield Check("package", OK, f"`import trackio` finds {_named(ours)}, with {found.python}.")
    if found.in_cwd is not None:
        yield Check(
            "current folder", WARNING, f"Scripts in the current folder import {_named(found.in_cwd)}.",
            f"Rename it, or run them elsewhere: mv {found.in_cwd.path} {found.in_cwd.path}.aside",
        )  # fmt: skip
    hidden = [copy for copy in found.hidden if found.in_cwd is None or copy.path != found.in_cwd.path]
    if hidden:
        yield Check(
            "other copies", WARNING, f"It takes the place of {'; '.join(map(_named, hidden))}.",
            "Uninstall them, so that no other order of the path brings them back: python -m pip uninstall trackio",
        )  # fmt: skip
    yield from _distributions(found)


def _distributions(found: Installation) -> Iterator[Check]:
    locations = [owner.location for owner in found.owners]
    twice = [owner for owner in found.owners if locations.count(owner.location) > 1]
    if twice:
        names = " and ".join(f"{owner.name} {owner.version}" for owner in twice)
        yield Check("package files", PROBLEM, f"{names} share the folder {twice[0].location}.", f"{_REINSTALL}.")
    elif found.strangers:
        some = ", ".join(found.strangers[:3]) + (", ..." if len(found.strangers) > 3 else "")
        left = f"{len(found.strangers)} module(s) of another trackio are left in {found.ours.path} ({some})."
        yield Check("package files", WARNING, left, f"{_REINSTALL}.")


def _named(copy: Copy) -> str:
    return f"trackio {copy.version or '(of unknown version)'} in {copy.path}"


# -- the daemon ------------------------------------------------------------------------------------------------


def _daemon(daemon: Daemon, *, autostart: bool) -> Iterator[Check]:
    report = daemon.report
    if report is None:
        yield _absent(daemon, autostart=autostart)
        return
    version, pid = str(report.get("version", "")), report.get("pid")
    runs = f"trackiod {version} runs (pid {pid}, {report.get('python')})"
    restart = "Restart it: trackiod restart"
    if report.get("life") == "service":
        restart = "Upgrade its installation, then restart the service: systemctl --user restart trackiod"
    if is_older(version, __version__):
        yield Check("daemon", WARNING, f"{runs}; this client is newer ({__version__}).", restart)
    elif daemon.has_python is False:
        yield Check("daemon", WARNING, f"{runs}; that interpreter is gone.", restart)
    else:
        newer = f"; this client is older ({__version__}), which is fine" if is_older(__version__, version) else ""
        yield Check("daemon", OK, f"{runs}{newer}.")
    if problem := report.get("problem"):
        yield Check(
            "storing", PROBLEM, f"The daemon cannot store now: {problem}", "Make room on that disk; see: trackiod logs"
        )


def _absent(daemon: Daemon, *, autostart: bool) -> Check:
    if daemon.is_running:
        who = f" (pid {daemon.pid})" if daemon.pid else ""
        return Check(
            "daemon", PROBLEM, f"trackiod runs{who} but does not answer; processes keep what they log.",
            "See what it did last (trackiod logs), then restart it: trackiod restart",
        )  # fmt: skip
    if autostart:
        return Check("daemon", OK, "trackiod does not run; the first training process starts it.")
    return Check(
        "daemon", WARNING, "trackiod does not run, and TRACKIO_AUTOSTART=0 keeps training processes from starting it.",
        "Start it: trackiod start",
    )  # fmt: skip


def _errors(daemon: Daemon) -> Check:
    if not daemon.errors:
        return Check("log", OK, "The daemon's log names no error since it last started.")
    count = len(daemon.errors)
    return Check(
        "log",
        WARNING,
        f"The daemon's log names {count} error(s), the last: {daemon.errors[-1]}",
        "Read it: trackiod logs",
    )


# -- the data folder -------------------------------------------------------------------------------------------


def _folder(facts: Facts) -> Iterator[Check]:
    live = facts.live
    move = f"Make it yours (chown -R $(id -u) {live.path}; chmod -R u+rwX {live.path}), or set TRACKIO_DIR to another."
    if not live.is_ours:
        yield Check("data folder", PROBLEM, f"{live.path} is no folder of yours.", move)
    elif not live.is_writable:
        yield Check("data folder", PROBLEM, f"{live.path} cannot be written.", move)
    else:
        yield Check("data folder", OK, f"{live.path}{'' if live.exists else ' (not made yet)'}, on {live.type}.")
    if facts.network and live.path == facts.data:
        yield Check(
            "file system", WARNING,
            f"{facts.data} is on {facts.network}, which is not known as a file system of this host; the store there "
            "stays in use, and may be damaged if hosts share it.",
            "Choose a folder on a disk of this host: export TRACKIO_DIR=/path/to/disk",
        )  # fmt: skip
    elif facts.network:
        yield Check(
            "file system", WARNING,
            f"{facts.data} is on a network file system ({facts.network}); the live store is {live.path}, on this host.",
            "Read the runs on this host, or choose a local folder: export TRACKIO_DIR=/path/to/disk",
        )  # fmt: skip
    elif live.is_memory:
        yield Check(
            "file system", WARNING, f"{live.path} is memory ({live.type}): a reboot takes what is stored.",
            "Choose a folder on a disk: export TRACKIO_DIR=/path/to/disk",
        )  # fmt: skip


def _other_users(exposed: tuple[Exposed, ...]) -> Check:
    if not exposed:
        return Check("other users", OK, "No other user can write where data, spools and copies are.")
    sentences = " ".join(each.sentence for each in exposed)
    return Check("other users", WARNING, sentences, "; ".join(dict.fromkeys(each.fix for each in exposed)))


def _free_space(live: Space) -> Check:
    if live.free_bytes is None:
        return Check(
            "free space", WARNING, f"It is unknown how much room there is for {live.path}.", f"Look: df -h {live.path}"
        )
    sentence = f"{_size(live.free_bytes)} of {_size(live.total_bytes or 0)} are free for {live.path}."
    if live.free_bytes >= _LOW_DISK_BYTES:
        return Check("free space", OK, sentence)
    verdict = PROBLEM if live.free_bytes < _LAST_DISK_BYTES else WARNING
    return Check("free space", verdict, sentence, "Make room there, or set TRACKIO_DIR to another disk.")


def _logs(logs: tuple[LongLog, ...]) -> Iterator[Check]:
    for log in logs:
        yield Check("database log", WARNING, log.sentence, "End those processes, or their transactions.")
    if not logs:
        yield Check("database log", OK, "No reader keeps a database's log from being cut.")


# -- spools and limits -----------------------------------------------------------------------------------------


def _spool(spools: tuple[Space, ...]) -> Check:
    """The same choice as a training process makes, in `trackio.spool`."""
    usable = [space for space in spools if not _why_not(space)]
    if not usable:
        looked = ", ".join(f"{s.path} ({_why_not(s)})" for s in spools) or "none"
        return Check(
            "spool", PROBLEM,
            f"No folder takes spools: {looked}. A killed process loses what it has not sent yet.",
            "Point TRACKIO_SPOOL_DIR to a writable tmpfs with room; in a container: docker run --shm-size=1g",
        )  # fmt: skip
    chosen, *others = usable
    room = f"{_size(chosen.free_bytes or 0)} of {_size(chosen.total_bytes or 0)} free"
    where = f"Spools lie in {chosen.path} ({chosen.type}, {room})"
    if not chosen.is_memory:
        return Check(
            "spool", WARNING, f"{where}: on a disk, where a log() may wait for a checkpoint.",
            "Point to a tmpfs with room: export TRACKIO_SPOOL_DIR=/dev/shm",
        )  # fmt: skip
    otherwise = f"; where they cannot, in {' or '.join(space.path for space in others)}" if others else ""
    return Check("spool", OK, f"{where}{otherwise}.")


def _why_not(space: Space) -> str:
    """Why a spool cannot lie there, or empty."""
    if not space.is_mappable:
        return f"on {space.type}"
    if not space.is_ours or not space.is_writable:
        return "not yours to write"
    room = growth.Room(space.total_bytes or 0, space.free_bytes or 0, 0)
    return "" if growth.may_grow(2 * growth.FIRST_SEGMENT_BYTES, room) else "nearly full"


def _shared_memory(shm: Space | None) -> Check:
    fix = "In a container: docker run --shm-size=8g (Kubernetes: an emptyDir of medium Memory at /dev/shm)."
    if shm is None or shm.total_bytes is None or shm.free_bytes is None:
        return Check(
            "/dev/shm", WARNING, "There is no /dev/shm that can be looked at; DataLoader and NCCL want one.", fix
        )
    sentence = f"/dev/shm has {_size(shm.total_bytes)}, {_size(shm.free_bytes)} free"
    if shm.total_bytes <= _SMALL_SHM_BYTES:
        return Check("/dev/shm", WARNING, f"{sentence}: little, and DataLoader and NCCL want some of it.", fix)
    return Check("/dev/shm", OK, f"{sentence}.")


def _open_files(limits: Limits, daemon: Daemon) -> Check:
    limit = daemon.files_limit or limits.open_files
    if limit is None:
        return Check("open files", OK, "The daemon may open any number of files.")
    streams = max(0, limit - 64) // _FILES_A_STREAM
    sentence = f"The daemon may open {limit:,} files, enough for about {streams:,} logging processes."
    if limit >= _LOW_FILES:
        return Check("open files", OK, sentence)
    verdict = PROBLEM if limit < _LAST_FILES else WARNING
    return Check(
        "open files",
        verdict,
        sentence,
        "Raise it, then restart: ulimit -n 65536 (LimitNOFILE= in a unit); trackiod restart",
    )


def _locked_memory(limits: Limits) -> Check:
    locked = limits.locked_bytes
    text = "Any amount of memory" if locked is None else _size(locked)
    if limits.has_infiniband and locked is not None and locked < _LOW_LOCKED_BYTES:
        return Check(
            "locked memory", WARNING, f"{text} may be locked. trackio locks none, but NCCL over InfiniBand fails then.",
            "Raise it: ulimit -l unlimited (LimitMEMLOCK=infinity in a unit; docker run --ulimit memlock=-1).",
        )  # fmt: skip
    return Check("locked memory", OK, f"{text} may be locked; trackio locks none.")


# -- logout and what waits -------------------------------------------------------------------------------------


def _linger(login: Login) -> Check:
    if not login.has_logind:
        return Check("linger", OK, "No logind here: nothing is removed at a logout.")
    if login.lingers or login.is_system_user:
        return Check("linger", OK, f"What {login.user} runs outlives the last logout.")
    if login.lingers is None:
        return Check(
            "linger", WARNING, f"It is unknown whether {login.user} lingers.", "Switch it on: loginctl enable-linger"
        )
    lost = "/run/user, and what is yours in /dev/shm" if login.removes_ipc else "/run/user"
    return Check(
        "linger", WARNING,
        f"At the last logout of {login.user} systemd removes {lost}, and ends user services: spools go to disk then.",
        "Let your processes outlive it: loginctl enable-linger",
    )  # fmt: skip


def _waiting(facts: Facts) -> Check:
    if not facts.waiting:
        return Check("waiting", OK, "Nothing waits on this host to be stored.")
    sentence = f"What {facts.waiting} ended process(es) logged waits on this host to be stored."
    if facts.daemon.report is not None:
        return Check("waiting", OK, f"{sentence} The daemon is about to.")
    return Check("waiting", WARNING, sentence, "Start the daemon: trackiod start")


def _files(facts: Facts) -> Iterator[Check]:
    """Files that wait for another try, and artifacts that are not whole."""
    waiting = (facts.daemon.report or {}).get("waiting_files") or []
    for file in waiting:
        yield Check(
            "files", PROBLEM, f"{file['path']} of project '{file['project']}' is not kept yet: {file['problem']}.",
            "It is tried again until it is kept; see what its disk says: dmesg",
        )  # fmt: skip
    for sentence in facts.incomplete:
        yield Check("artifacts", WARNING, sentence, "Log it again while its files are there.")
    if not waiting and not facts.incomplete:
        yield Check("artifacts", OK, "Nothing that was logged as an artifact is missing.")


def _blocked(daemon: Daemon) -> Iterator[Check]:
    for one in (daemon.report or {}).get("blocked") or []:
        who = f"Stream {one['stream']}" if one["stream"] else "What processes left"
        aside = f", or move it out of the way: trackiod repair --set-aside {one['stream']}" if one["stream"] else ""
        yield Check(
            "blocked", PROBLEM, f"{who} cannot be stored: {one['sentence']}. It is tried again; nothing is removed.",
            f"Make {one['path'] or 'it'} readable{aside}.",
        )  # fmt: skip


def _size(count: int) -> str:
    """Bytes in words, whole units."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 10 << shift:
            return f"{count >> shift:,} {unit}"
    return f"{count:,} B"
