"""Files on their way to the daemon: written, linked or copied while the caller waits, named in the stream, then its.

Each lies at `<data>/incoming/<stream>/<number>` until the daemon has it under its content's name. A FILE record, which
stands in the stream before the record that speaks of the file, says what it is, so that a file is kept exactly once
and one that never came is known. Writing goes to the page cache: it outlives the process, and no fsync is waited for.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trackio import growth, voice
from trackio.names import project_id
from trackio.places import make_private
from trackio.values import Unstorable

SMALL_BYTES = 8 << 20
"""Up to this size a source is copied rather than linked: scripts write their next plot into the file of the last one,
and a link would change with it."""
COPIED_IN_THE_CALL_BYTES = 64 << 20
"""A source that can be neither cloned nor linked is copied while the caller waits up to this size; a larger one later,
by the daemon."""
_FICLONE = 0x40049409
_ANCHOR = ".live"
"""An empty file in a stream's folder: while it is there, nobody who takes the last of its files removes the folder."""
_SUFFIX_CHARS = 10

Buffer = bytes | memoryview


class Staged(NamedTuple):
    """A file that was handed over: its id in the store, its size in bytes."""

    id: str
    size: int


class Staging:
    """The files of one stream. Methods raise Unstorable with a sentence's end that says why."""

    def __init__(
        self, incoming: str, stream: str, note: Callable[[int, dict[str, Any]], bool], limit_bytes: int
    ) -> None:
        """`note` puts the FILE record into the stream and is False if there is no room; the folder is made at first
        use. `limit_bytes`: the most that written files may take before the daemon has them."""
        self.stream = stream
        self._incoming = incoming
        self._folder = os.path.join(incoming, stream)
        self._note = note
        self._limit_bytes = limit_bytes
        self._written_bytes = 0
        self._numbers = itertools.count()

    def write(self, parts: Sequence[Buffer], suffix: str, **facts: Any) -> Staged:
        """Stages new content. `facts` say what the daemon makes of it."""
        size = sum(memoryview(part).nbytes for part in parts)
        number, path = self._next()
        self._check_room(size)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for part in parts:
                    _write_all(fd, part)
            finally:
                os.close(fd)
        except OSError as error:
            _forget(path)
            raise Unstorable(f"its file could not be written ({error.strerror})") from error
        self._written_bytes += size
        return self._told(number, path, {"size": size, "suffix": clean_suffix(suffix), **facts})

    def take(self, source: str, **facts: Any) -> Staged:
        """Stages an existing file, so that its source may be rotated away at once: cloned where the file system can, a
        small one copied, a larger one linked, else copied up to 64 MiB. What is larger still and can not be linked is
        left to the daemon, for which the source must stay."""
        try:
            source = os.path.realpath(source)
            info = os.stat(source)
            if not stat.S_ISREG(info.st_mode):
                raise Unstorable(f"{source} is no regular file")
            with open(source, "rb"):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unstorable(f"the file {source} cannot be read ({reason})") from error
        number, path = self._next()
        how = self._taken(source, path, info.st_size)
        facts = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "how": how, **facts}
        facts.setdefault("suffix", clean_suffix(os.path.splitext(source)[1]))
        if how == "later":
            facts["source"] = os.fsdecode(source)
            voice.warn(
                f"{facts['source']!r} is copied by the daemon; keep it until `trackio status` names no file to keep."
            )
        return self._told(number, path, facts)

    def kept_in(self, project: str) -> str:
        """The folder that the project's files come to lie in, each under its content's name."""
        return os.path.join(os.path.dirname(self._incoming), "blobs", project_id(project))

    def _taken(self, source: str, path: str, size: int) -> str:
        if cloned(source, path):
            return "cloned"
        if size > SMALL_BYTES and _linked(source, path):
            return "linked"
        if size > COPIED_IN_THE_CALL_BYTES:
            return "later"
        self._check_room(size)
        try:
            import shutil  # with the compressors that it knows; most jobs never stage a file

            shutil.copyfile(source, path)
        except OSError as error:
            _forget(path)
            raise Unstorable(f"the file {source} could not be copied ({error.strerror})") from error
        self._written_bytes += size
        return "copied"

    def _next(self) -> tuple[int, str]:
        anchor = os.path.join(self._folder, _ANCHOR)
        try:
            if not os.path.exists(anchor):
                make_private(self._folder)
                os.close(os.open(anchor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise Unstorable(f"the data folder cannot be written ({error.strerror})") from error
        number = next(self._numbers)
        return number, os.path.join(self._folder, str(number))

    def _told(self, number: int, path: str, facts: dict[str, Any]) -> Staged:
        try:
            is_told = self._note(number, facts)
        except (ValueError, TypeError, OverflowError) as error:
            _forget(path)
            raise Unstorable(f"it cannot be described ({error})") from error
        except BaseException:
            _forget(path)
            raise
        if not is_told:
            _forget(path)
            raise Unstorable("there was no room for it")
        return Staged(f"{self.stream}/{number}", facts["size"])

    def _check_room(self, size: int) -> None:
        if self._written_bytes + size > self._limit_bytes:
            self._written_bytes = _held_bytes(self._folder)
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise Unstorable(f"the data folder cannot be written ({error.strerror})") from error
        if not growth.may_spill(
            size,
            held_bytes=self._written_bytes,
            limit_bytes=self._limit_bytes,
            disk_total=disk.f_blocks * disk.f_frsize,
            disk_free=disk.f_bavail * disk.f_frsize,
        ):
            raise Unstorable(f"there was no room for its {size:,} bytes")


def _write_all(fd: int, part: Buffer) -> None:
    left = memoryview(part).cast("B")
    while left:
        left = left[os.write(fd, left) :]


def cloned(source: str, path: str) -> bool:
    """Whether `path` now shares the source's blocks and none of its future (btrfs, XFS, bcachefs)."""
    try:
        with open(source, "rb") as old, open(path, "xb") as new:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        return True
    except OSError:
        _forget(path)
        return False


def sha256_of(path: str) -> str:
    """A file's digest in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _linked(source: str, path: str) -> bool:
    try:
        os.link(source, path)
    except OSError:
        return False  # another file system, another owner, or one without links
    return True


def _held_bytes(folder: str) -> int:
    """Bytes of written files that the daemon does not have yet."""
    try:
        with os.scandir(folder) as entries:
            return sum(info.st_size for info in (entry.stat() for entry in entries) if info.st_nlink == 1)
    except OSError:
        return 0


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def clean_suffix(suffix: str) -> str:
    """A file name's ending, short and of letters and digits: `.png`; empty for what is none."""
    letters = suffix.lower().lstrip(".")
    return f".{letters}" if letters.isalnum() and letters.isascii() and len(letters) <= _SUFFIX_CHARS else ""
