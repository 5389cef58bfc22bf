"""Where things lie: the data folder, the runtime folders with spools and socket, the endpoint file.

A daemon is its data folder. What must be fast or short-lived (spools, the socket) lies in a runtime folder
named after a hash of the data folder's real path, in every one of several candidate roots, because each of
them can vanish: whoever looks for streams looks in all.

Folders that we choose lie where other users can make folders too. One whose name another user has taken is not used;
one with a random name is, which is recorded in the data folder first (`fallbacks`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from trackio import fallbacks, mounts, trust
from trackio.descriptor import open_file
from trackio.durability import sync_folder
from trackio.lookup import is_there
from trackio.settings import Settings

MAX_SOCKET_PATH_BYTES = 107
STREAM_META = "stream.meta"
STORE_ID = "store.id"
OWNER = "owner"
COUNTERS = "counters"

_HASH_BYTES = 6
_LIVE_BASE = "/var/tmp"
_MOST_TAKEN = 3
"""random names that are tried in a row; nobody can guess one, so the first will do"""

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
    """the type of the data folder's file system if it is, or may be, on a network; else empty"""
    roots: tuple[str, ...]
    """candidate runtime folders under their usual names, best first, each under a base that exists; they need not exist
    themselves, and others may have made them"""
    shared: str = ""
    """the folder that all hosts see, into which runs are copied; empty if there is none"""
    is_named: bool = False
    """whether the user named the data folder: then it is used if it can be written, whoever made it"""

    def own_roots(self) -> tuple[str, ...]:
        """The runtime folders, under the usual and under random names, that nobody else can change as far as can be
        seen; they need not exist. Reads the record anew, since another process may have added a name. Raises OSError
        where it is not known which names there are."""
        recorded = fallbacks.read(self._record)
        return tuple(root for each in self.roots for root in _named(each, recorded) if not _is_foreign(root))

    def make_root(self, root: str) -> str:
        """Create the runtime folder `root`, one of `roots`, or, where others have taken its name, one with a random
        name beside it; return its path. Raises OSError."""
        if problem := _problem_of_base(os.path.dirname(os.path.dirname(root))):
            raise trust.NotTrusted(problem)
        recorded = self._recorded()
        candidates = _named(root, recorded)
        for _ in range(_MOST_TAKEN):
            for candidate in candidates:
                try:
                    make_private(candidate)
                except trust.NotTrusted:
                    if not _is_taken(os.path.dirname(candidate)):
                        raise  # what is wrong lies in our own folder
                    continue
                return candidate
            make_private(self._record)
            recorded.append(fallbacks.add(self._record, len(recorded)))
            candidates = _named(root, recorded[-1:])[1:]
        raise trust.NotTrusted(f"others have taken every name of ours beside {root}")

    def make_live(self) -> None:
        """Create the live folder; one that the user named may be anybody's. Raises OSError."""
        may_be_theirs = self.is_named and self.live == self.data and os.path.isdir(self.live)
        if not may_be_theirs or not os.access(self.live, os.W_OK | os.X_OK, effective_ids=True):
            make_private(self.live)

    @staticmethod
    def is_usual(root: str) -> bool:
        """Whether a runtime folder lies under the usual name, not a random one."""
        return os.path.basename(os.path.dirname(root)) == _own_name()

    @property
    def _record(self) -> str:
        return os.path.join(self.live, "places")

    def _recorded(self) -> list[str]:
        try:
            return fallbacks.read(self._record)
        except OSError:
            return []  # it is read again with the next look

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
        """The folders that may hold streams: one in each runtime folder that nobody else can change, and the spill.
        Raises OSError where it is not known which there are."""
        return (*(os.path.join(root, "streams") for root in self.own_roots()), self.spill)


def data_folder(configured: str, home: str, xdg_data_home: str = "") -> str:
    """The data folder's absolute path, not resolved: the setting, else XDG's, else `~/.local/share`."""
    if configured:
        return os.path.abspath(os.path.expanduser(configured))
    base = xdg_data_home if os.path.isabs(xdg_data_home) else os.path.join(home, ".local", "share")
    return os.path.join(base, "trackio")


def folder_hash(path: str) -> str:
    """A short name for a folder, equal for every path that leads to it."""
    return hashlib.blake2b(os.path.realpath(path).encode(errors="surrogateescape"), digest_size=_HASH_BYTES).hexdigest()


def find(configured_data: str, configured_spool: str, configured_shared: str = "") -> Places:
    """The places for this process. Creates nothing."""
    data = os.path.realpath(data_folder(configured_data, os.path.expanduser("~"), os.environ.get("XDG_DATA_HOME", "")))
    mount = mounts.of(data)
    live = _live(data, mount)
    roots = dict.fromkeys(
        os.path.join(os.path.realpath(base), _own_name(), folder_hash(data))
        for base in (configured_spool, *_chosen_bases())
        if base.startswith("/") and os.path.isdir(base)
    )
    shared = _shared(configured_shared, data, mount, is_on_network=live != data)
    is_named = bool(configured_data)
    return Places(data, live, mount.type if mount.is_network else "", tuple(roots), shared, is_named)


def _own_name() -> str:
    """What a folder of ours is called where those of all users lie."""
    return f"trackio-{os.geteuid()}"


def _chosen_bases() -> list[str]:
    """Where we make folders though nobody said so, best first; `/var/tmp` is for the live store only."""
    return [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.geteuid()}", "/dev/shm", "/tmp"]


@lru_cache(4)
def _without_links(*paths: str) -> frozenset[str]:
    return frozenset(os.path.realpath(path) for path in paths if path)


def _live(data: str, mount: mounts.Mount) -> str:
    """Where the store of a data folder lies: in it, or on this host if it is, or may be, on a network.

    A store that an earlier release put there stays in use, unless this host has another one already. So does the folder
    where `/var/tmp` would be no better.
    """
    if not mount.is_network:
        return data
    live = _live_on_this_host(data)
    if not mount.may_hold_a_store or os.path.exists(os.path.join(live, STORE_ID)):
        return live
    if _holds_a_store(data) or mounts.of(_LIVE_BASE) == mount:
        return data
    return live


def _holds_a_store(data: str) -> bool:
    """Whether something was stored or moved to disk in a data folder; in doubt it was."""
    try:
        return any(is_there(os.path.join(data, name)) for name in (STORE_ID, "projects", "spill", "incoming"))
    except OSError:
        return True


def _live_on_this_host(data: str) -> str:
    """Where the store of a data folder on a network lies on this host. Where another user has taken our folder's name,
    a random one is recorded in the data folder, for this host: other hosts have the same data folder."""
    record = os.path.join(data, f"places-{host_key()}")
    usual = os.path.join(_LIVE_BASE, _own_name(), folder_hash(data))
    try:
        recorded = fallbacks.read(record)
        for _ in range(_MOST_TAKEN):
            path = _named(usual, recorded[-1:])[-1]
            is_readable = not recorded or bool(recorded[-1])
            if is_readable and not _is_taken(os.path.dirname(path)):
                return path
            make_private(record)
            recorded.append(fallbacks.add(record, len(recorded)))
    except OSError:
        pass  # whoever makes the folder says what is wrong
    return usual


def _named(usual: str, recorded: list[str]) -> tuple[str, ...]:
    """A folder of ours, `<base>/trackio-<uid>/<hash>`, and as it is called under random names."""
    first, folder = os.path.split(usual)
    return (usual, *(os.path.join(f"{first}-{name}", folder) for name in recorded if name))


def host_key() -> str:
    """What tells this host from the others that have the same data folder."""
    machine = ""
    try:
        with open("/etc/machine-id", encoding="utf-8") as file:
            machine = file.read(64).strip()
    except (OSError, ValueError):
        pass
    node = os.uname().nodename
    digest = hashlib.blake2b(f"{node}\n{machine}".encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in node)[:64]}-{digest}"


def _shared(configured: str, data: str, mount: mounts.Mount, *, is_on_network: bool) -> str:
    """The folder that all hosts see. A store that lies on this host while its user's home is on a network, as compute
    nodes have it, is copied to the home; so is one in a batch job's own folder, which goes with the job."""
    if configured:
        return "" if configured.lower() in _OFF else os.path.realpath(os.path.expanduser(configured))
    if is_on_network:
        return os.path.join(data, "hosts")
    home = os.path.realpath(data_folder("", os.path.expanduser("~"), os.environ.get("XDG_DATA_HOME", "")))
    if data == home:
        return ""
    home_mount = mounts.of(home)
    in_job = any(name in os.environ for name in _BATCH_JOBS) and home_mount.point != mount.point
    return os.path.join(home, "hosts") if home_mount.is_network or in_job else ""


# -- making and checking folders ---------------------------------------------------------------------------------------


def make_private(path: str) -> None:
    """Creates a folder and its missing parents, ours alone (0700). Raises OSError if it is not ours.

    A folder that another user made there first, or a link, is refused: /tmp and /dev/shm are shared. In a place that we
    chose (`trackio-<uid>/<hash>` in one of several bases) each folder on the way is checked, since whoever owns a
    parent, or can write it, can put another folder there later. One of ours that others can write is narrowed.
    """
    if (ours := _ours_in(path)) is not None:
        _make_chosen(path, *ours)
        return
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


def _make_chosen(path: str, base: str, first: str) -> None:
    """Creates `path`, which is `first`, a folder in `base`, or lies in it."""
    if problem := _problem_of_base(base):
        raise trust.NotTrusted(problem)
    for folder in _from(first, path):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
        if trust.problem_of_folder(folder) and _is_ours(folder):
            os.chmod(folder, 0o700)
        if problem := trust.problem_of_folder(folder):
            raise trust.NotTrusted(problem)


def _is_taken(folder: str) -> bool:
    """Whether something that is not a folder of ours has the name of one. Raises OSError."""
    try:
        return bool(trust.problem_of_folder(folder)) and not _is_ours(folder)
    except FileNotFoundError:
        return False


def problem_of(path: str) -> str:
    """Say why others could change a folder in a place that we chose; "" if they cannot, as far as it exists. Raises
    OSError."""
    if (ours := _ours_in(path)) is None:
        return ""  # whoever made these places did not choose it as we do
    base, first = ours
    if problem := _problem_of_base(base):
        return problem
    try:
        return next((problem for folder in _from(first, path) if (problem := trust.problem_of_folder(folder))), "")
    except FileNotFoundError:
        return ""


def _is_foreign(root: str) -> bool:
    """Whether others can change a runtime folder. One that cannot be looked at is not foreign: an I/O error is not an
    answer."""
    try:
        return bool(problem_of(root))
    except OSError:
        return False


def _ours_in(path: str) -> tuple[str, str] | None:
    """The base and the first folder of ours in a path that we chose: `<base>/trackio-<uid>[-<random>]/<hash>/...`."""
    parts = path.split("/")
    for index, part in enumerate(parts[:-1]):
        if (part == _own_name() or part.startswith(f"{_own_name()}-")) and _is_hash(parts[index + 1]):
            return "/".join(parts[:index]) or "/", "/".join(parts[: index + 1])
    return None


def _is_hash(name: str) -> bool:
    return len(name) == 2 * _HASH_BYTES and all(digit in "0123456789abcdef" for digit in name)


def _from(first: str, path: str) -> Iterator[str]:
    """`first`, and each folder on the way to `path` in it."""
    yield first
    for index, letter in enumerate(path):
        if letter == "/" and index > len(first):
            yield path[:index]
    yield path


def _problem_of_base(base: str) -> str:
    """Say why another user could exchange a folder of ours in a base that we chose. One that the user named is used
    if it can be written."""
    if base != _LIVE_BASE and base not in _without_links(*_chosen_bases()):
        return ""
    return trust.problem_above(os.path.join(base, _own_name()))


def _is_ours(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def replace(path: str, content: bytes, *, is_safe: bool = False, mode: int = 0o600) -> None:
    """Writes a file: whoever reads finds it whole, as it was or as it is now. `is_safe`: it is on the disk then,
    name and all. Its mode does not depend on the umask. Raises OSError."""
    new = f"{path}.new"
    with os.fdopen(create(new, mode), "wb") as file:
        file.write(content)
        if is_safe:
            file.flush()
            os.fsync(file.fileno())
    os.rename(new, path)
    if is_safe:
        sync_folder(os.path.dirname(path))


def private(path: str, flags: int) -> int:
    """An opener for `open()`: what it creates is its owner's alone, whatever the umask."""
    return open_file(path, flags)


def create(path: str, mode: int = 0o600) -> int:
    """Opens a file of ours for writing, empty, with this mode whatever the umask. What another user left under its
    name, or a link, goes. Raises OSError."""
    fresh = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = open_file(path, fresh, mode)
    except FileExistsError:
        try:
            fd = trust.open_file(path, os.O_WRONLY)
            os.ftruncate(fd, 0)
        except trust.NotTrusted:
            os.unlink(path)
            fd = open_file(path, fresh, mode)
    try:
        os.fchmod(fd, mode)
    except OSError:
        pass  # it is root's, or on a file system without modes
    return fd


def append(path: str) -> int:
    """Opens a file of ours for writing at its end. What another user left under its name, or a link, goes. Raises
    OSError."""
    for _ in range(2):
        try:
            fd = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EACCES) or not os.path.lexists(path):
                raise
        else:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode) and trust.is_trusted(info.st_uid) and info.st_nlink == 1:
                return fd
            os.close(fd)
        os.unlink(path)
    raise OSError(errno.EAGAIN, "somebody keeps taking its name", path)


def of(ours: Settings) -> Places:
    """The places that the settings of this process name."""
    return find(ours.data_dir, ours.spool_dir, ours.shared_dir)


def folder_id(path: str) -> str:
    """What tells a folder from its copies, within one boot. Raises OSError."""
    info = os.stat(path)
    return f"{info.st_dev}:{info.st_ino}"


def read_endpoint(path: str) -> Endpoint | None:
    """The endpoint in the file, or None if there is none, it cannot be read, is another folder's, or another user could
    have written it."""
    try:
        return _endpoint_in(path)
    except OSError:
        return None


def endpoint_problem(path: str) -> str:
    """Say why the endpoint file is not followed though it is there; "" if it is followed, is not there, or came with a
    copy of another folder."""
    try:
        _endpoint_in(path)
    except trust.NotTrusted as error:
        return "" if _came_with_a_copy(path) else str(error.strerror)
    except OSError:
        pass
    return ""


def _came_with_a_copy(path: str) -> bool:
    try:
        with open(open_file(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            lines = file.read(trust.MOST_BYTES).split(b"\n")
        ids = [line.removeprefix(b"folder ").decode(errors="replace") for line in lines if line.startswith(b"folder ")]
        return ids != [] and folder_id(os.path.dirname(path)) not in ids
    except OSError:
        return False


def _endpoint_in(path: str) -> Endpoint | None:
    text = trust.read_file(path).decode(errors="surrogateescape")
    try:
        values = dict(line.split(" ", 1) for line in text.split("\n") if line)
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
    except (ValueError, KeyError):
        return None


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none (macOS)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8", opener=open_file) as file:
            return file.read().strip()
    except OSError:
        return ""
