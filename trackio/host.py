"""Figures of this host: free space, memory headroom, files' identities, control groups. Reads, decides nothing."""

from __future__ import annotations

import errno
import os

from trackio.descriptor import AT_THE_LIMIT, open_file, with_reserve
from trackio.growth import Room

_CGROUP_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 60
_NOT_SHOWN = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENODEV, errno.ENOTSUP)


def disk(path: str) -> tuple[int, int]:
    """(total, free to us) bytes of the file system that holds `path`."""
    info = os.statvfs(path)
    return info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize


def dirty_bytes() -> int:
    """What the host's page cache has not written yet; more than anything if that cannot be read."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return sum(int(facts[name].split()[0]) << 10 for name in ("Dirty", "Writeback"))
    except (OSError, ValueError, LookupError):
        return _UNLIMITED


def file_identity(path: str) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place; None if it is gone."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns


def control_group(pid: int | str = "self") -> str:
    """The text of `/proc/<pid>/cgroup`; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def devices_group(text: str) -> str:
    """The path of the control group that rules over devices: version 1's of that name, else version 2's. `text` is that
    of `control_group`."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        found.update(dict.fromkeys(controllers.split(","), path))
    return str(found.get("devices", found.get("", "/")))


def covers(sampler: str, process: str) -> bool:
    """Whether a sampler sees all the devices that a process may see, by their control groups: what is allowed in a
    group is allowed in those above it."""
    above, below = devices_group(sampler), devices_group(process)
    return above == below or below.startswith(above.rstrip("/") + "/")


def room(root: str) -> Room:
    """What is left for spools under the runtime folder `root`. Raises OSError where it cannot be told now: an error is
    not "no limit", and taking memory beyond one brings the OOM killer."""
    total, free = disk(root)
    return Room(total, free, with_reserve(lambda: _held_bytes(os.path.dirname(root))), cgroup_headroom())


def _unless_at_the_limit(error: OSError) -> None:
    if error.errno in AT_THE_LIMIT:
        raise error


def _held_bytes(folder: str) -> int:
    """Bytes in the streams of all of our data folders here. Raises OSError at the descriptor limit."""
    held = 0
    for parent, _, names in os.walk(folder, onerror=_unless_at_the_limit):
        for name in names:
            try:
                held += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return held


def cgroup_headroom() -> int | None:
    """Memory this process's cgroup may still take; None without a limit or where none is shown to us. Raises OSError
    where it cannot be read now."""
    lines = [line.strip().split(":", 2) for line in _read_text("/proc/self/cgroup").splitlines()]
    headrooms = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            headrooms += _headrooms(_CGROUP_ROOT, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            headrooms += _headrooms(f"{_CGROUP_ROOT}/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return min(headrooms, default=None)


def _headrooms(root: str, path: str, limit_file: str, usage_file: str) -> list[int]:
    """The headroom at each level from the cgroup up to the root: a parent's limit binds too."""
    found = []
    folder = path.strip("/")
    while True:
        limit, usage = (_read_bytes(os.path.join(root, folder, name)) for name in (limit_file, usage_file))
        if limit is not None and usage is not None and limit < _UNLIMITED:
            found.append(max(0, limit - usage))
        if not folder:
            return found
        folder = os.path.dirname(folder)


def _read_bytes(path: str) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdigit() else None


def _read_text(path: str) -> str:
    """What a file of the kernel's says; empty where it has or shows none. Raises OSError."""
    try:
        with open(path, encoding="utf-8", opener=open_file) as file:
            return file.read()
    except OSError as error:
        if error.errno in _NOT_SHOWN:
            return ""
        raise
