"""Where things lie: the data folder, the runtime folders with spools and socket, the endpoint file.

A daemon is its data folder. What must be fast or short-lived (spools, the socket) lies in a runtime folder
named after a hash of the data folder's real path, in every one of several candidate roots, because each of
them can vanish: whoever looks for streams looks in all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from trackio import mounts
from trackio.settings import Settings

MAX_SOCKET_PATH_BYTES = 107
STREAM_META = "stream.meta"
OWNER = "owner"
COUNTERS = "counters"


_OFF = ("off", "0", "no", "none")
_BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "OAR_JOB_ID")


class Endpoint(NamedTuple):
    """Where the daemon of a data folder answers; the `endpoint` file holds it."""

    socket: str
    pid: int
    started_ns: int
    boot_id: str
    store: str
    version: str
    folder: str = ""
    """the live folder's `folder_id`: what is copied with a folder does not answer for the copy"""

    def to_text(self) -> str:
        """One `name value` a line."""
        return "".join(f"{name} {value}\n" for name, value in zip(self._fields, self, strict=True))


class Places(NamedTuple):
    """All paths that belong to one data folder."""

    data: str
    """where the user pointed, without links"""
    live: str
    """where the live store lies: `data`, or a node-local folder if `data` is on a network file system"""
    network: str
    """the network file system's type, or empty"""
    roots: tuple[str, ...]
    """candidate runtime folders, best first, each under a base that exists; they need not exist themselves"""
    shared: str = ""
    """the folder that all hosts see, into which runs are copied; empty if there is none"""

    @property
    def projects(self) -> str:
        return os.path.join(self.live, "projects")

    @property
    def spill(self) -> str:
        return os.path.join(self.live, "spill")

    @property
    def incoming(self) -> str:
        """Where processes stage files for the daemon, in a folder for each stream."""
        return os.path.join(self.live, "incoming")

    @property
    def blobs(self) -> str:
        """Where the daemon keeps files, by project and content."""
        return os.path.join(self.live, "blobs")

    @property
    def uploads(self) -> str:
        """What is remembered of each target, in a folder for it."""
        return os.path.join(self.live, "uploads")

    @property
    def deleted(self) -> str:
        """Where a file for each deleted project's database says so, until its copies are removed too."""
        return os.path.join(self.live, "deleted")

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a child that is to find the same places, wherever it runs."""
        return {**environ, "TRACKIO_DIR": self.data, "TRACKIO_SHARED_DIR": self.shared or "off"}

    @property
    def lock(self) -> str:
        return os.path.join(self.live, "trackiod.lock")

    @property
    def start_lock(self) -> str:
        return os.path.join(self.live, "trackiod.start")

    @property
    def endpoint(self) -> str:
        return os.path.join(self.live, "endpoint")

    @property
    def log(self) -> str:
        return os.path.join(self.live, "trackiod.log")

    @property
    def stream_folders(self) -> tuple[str, ...]:
        """The folders that may hold streams: one in each runtime root, and the spill."""
        return (*(os.path.join(root, "streams") for root in self.roots), self.spill)


def data_folder(configured: str, home: str, xdg_data_home: str = "") -> str:
    """The data folder's absolute path, not resolved: the setting, else XDG's, else `~/.local/share`."""
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    base = xdg_data_home if os.path.isabs(xdg_data_home) else os.path.join(home, ".local", "share")
    return os.path.join(base, "trackio")


def folder_hash(path: str) -> str:
    """A short name for a folder, equal for every path that leads to it."""
    return hashlib.blake2b(os.path.realpath(path).encode(errors="surrogateescape"), digest_size=6).hexdigest()


def find(configured_data: str, configured_spool: str, configured_shared: str = "") -> Places:
    """The places for this process. Creates nothing."""
    uid = os.geteuid()
    data = os.path.realpath(data_folder(configured_data, os.path.expanduser("~"), os.environ.get("XDG_DATA_HOME", "")))
    mount = mounts.of(data)
    name = folder_hash(data)
    live = data
    if mount.is_network:
        live = os.path.join("/var/tmp", f"trackio-{uid}", name)
    bases = [configured_spool, os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}", "/dev/shm", "/tmp"]
    roots = dict.fromkeys(
        os.path.join(os.path.realpath(base), f"trackio-{uid}", name)
        for base in bases
        if base.startswith("/") and os.path.isdir(base)
    )
    shared = _shared(configured_shared, data, mount)
    return Places(data, live, mount.type if mount.is_network else "", tuple(roots), shared)


def _shared(configured: str, data: str, mount: mounts.Mount) -> str:
    """The folder that all hosts see. A store that lies on this host while its user's home is on a network, as compute
    nodes have it, is copied to the home; so is one in a batch job's own folder, which goes with the job."""
    if configured:
        return "" if configured.lower() in _OFF else os.path.realpath(os.path.expanduser(configured))
    if mount.is_network:
        return os.path.join(data, "hosts")
    home = os.path.realpath(data_folder("", os.path.expanduser("~"), os.environ.get("XDG_DATA_HOME", "")))
    if data == home:
        return ""
    home_mount = mounts.of(home)
    in_job = any(name in os.environ for name in _BATCH_JOBS) and home_mount.point != mount.point
    return os.path.join(home, "hosts") if home_mount.is_network or in_job else ""


def make_private(path: str) -> None:
    """Creates a folder and its missing parents, ours alone (0700). Raises OSError if it is not ours.

    A folder that another user made there first, or a link, is refused: /tmp and /dev/shm are shared.
    """
    if os.path.isdir(path) and _is_ours(path):
        return
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        make_private(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", path) from None
        if not _is_ours(path):
            raise PermissionError(errno.EPERM, "it belongs to somebody else", path) from None


def _is_ours(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def replace(path: str, content: bytes, *, is_safe: bool = False) -> None:
    """Writes a file: whoever reads finds it whole, as it was or as it is now. `is_safe`: it is on the disk then. Raises
    OSError."""
    with open(f"{path}.new", "wb") as file:
        file.write(content)
        if is_safe:
            file.flush()
            os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def of(ours: Settings) -> Places:
    """The places that the settings of this process name."""
    return find(ours.data_dir, ours.spool_dir, ours.shared_dir)


def folder_id(path: str) -> str:
    """What tells a folder from its copies, within one boot. Raises OSError."""
    info = os.stat(path)
    return f"{info.st_dev}:{info.st_ino}"


def read_endpoint(path: str) -> Endpoint | None:
    """The endpoint in the file, or None if there is none, it cannot be read, or it is another folder's."""
    try:
        with open(path, encoding="utf-8") as file:
            values = dict(line.rstrip("\n").split(" ", 1) for line in file)
        folder = values.get("folder", "")
        if folder and folder != folder_id(os.path.dirname(path)):
            return None
        return Endpoint(
            values["socket"],
            int(values["pid"]),
            int(values["started_ns"]),
            values["boot_id"],
            values["store"],
            values["version"],
            folder,
        )
    except (OSError, ValueError, KeyError):
        return None


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none (macOS)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""
