"""Files on their way to the daemon: written, cloned, linked or copied within the call, and named in the stream.

Each lies at `<data>/incoming/<stream>/<number>` until the daemon has it under its content's name. A FILE record, which
stands in the stream before the record that speaks of the file, says what it is, so that a file is kept exactly once
and one that never came is known. Writing goes to the page cache: it outlives the process, and no fsync is waited for.

What a call was given is what is kept, however its source is written to afterwards: a clone and a copy are the file's
own, and a large file is linked only where the daemon holds a read lease on it (`trackiod.leases`), which makes whoever
wants to write to it wait until the daemon has its copy.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from trackio import growth
from trackio.names import project_id
from trackio.places import make_private
from trackio.values import Unstorable

SMALL_BYTES = 8 << 20
"""Up to this size a source that cannot be cloned is copied without asking the daemon for a lease."""
MAX_LEASES_A_CALL = 1024
"""files that one call asks leases for; the others are copied"""
_FICLONE = 0x40049409
_ANCHOR = ".live"
"""An empty file in a stream's folder: while it is there, nobody who takes the last of its files removes the folder."""
_SUFFIX_CHARS = 10
_COPY_BYTES = 64 << 20
"""in one system call, so that Ctrl-C is heard"""
_READ_BYTES = 1 << 20
_COPIES = 3
"""how often a source that is written to meanwhile is copied, in the hope of a quiet moment"""
_AGAIN_MAX_BYTES = 64 << 20
_PROTECT_SECONDS = 1.0
_SILENT_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 30.0
"""after a daemon did not answer"""
_DISK_SECONDS = 1.0
"""how old a reading of the free disk may be"""

Buffer = bytes | memoryview
Protect = Callable[[list[int], float], list[int] | None]


class Staged(NamedTuple):
    """A file that was handed over: its id in the store, its size in bytes."""

    id: str
    size: int


_State = tuple[int, int, int]
"""of a source: which file it is, its size, when it was last written to"""


class _Taken(NamedTuple):
    """A source whose content lies in the stream's folder, and the state that it was taken in."""

    number: int
    path: str
    facts: dict[str, Any]
    state: _State


class Staging:
    """The files of one stream. Methods raise Unstorable with a sentence's end that says why."""

    def __init__(
        self,
        incoming: str,
        stream: str,
        note: Callable[[int, dict[str, Any]], bool],
        limit_bytes: int,
        protect: Protect = lambda numbers, seconds: None,
    ) -> None:
        """`note` puts the FILE record into the stream and is False if there is no room; the folder is made at first
        use. `limit_bytes`: the most that written files may take before the daemon has them. `protect` asks the daemon
        for leases on files of these numbers and returns those that it holds, or None if it does not answer in time."""
        self.stream = stream
        self._incoming = incoming
        self._folder = os.path.join(incoming, stream)
        self._note = note
        self._limit_bytes = limit_bytes
        self._protect = protect
        self._ask_at = 0.0
        self._written: dict[str, int] = {}
        """bytes of the written files that the daemon does not have yet, as far as is known"""
        self._written_bytes = 0
        self._spare_bytes = 0
        self._spare_at = 0.0
        self._unclonable: set[int] = set()
        """devices whose files cannot be cloned into the folder"""
        self._numbers = itertools.count()

    def write(self, parts: Sequence[Buffer], suffix: str, **facts: Any) -> Staged:
        """Stage new content. `facts` say what the daemon makes of it."""
        size = sum(memoryview(part).nbytes for part in parts)
        number, path = self._next()
        self._check_limit(size)
        self._check_disk(size)
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
        self._written[path] = size
        self._written_bytes += size
        return self._told(number, path, {"size": size, "suffix": clean_suffix(suffix), **facts})

    def take(self, source: str, **facts: Any) -> Staged:
        """Stage an existing file as it is now, so that its source may be written to or removed at once."""
        (taken,) = self.take_all([(source, facts)])
        if isinstance(taken, Unstorable):
            raise taken
        return taken

    def take_all(self, sources: Sequence[tuple[str, dict[str, Any]]]) -> list[Staged | Unstorable]:
        """Stage existing files, each with its facts; return what came of each. The daemon is asked once for all.

        Files of one call belong together, as the parts of a checkpoint: those that are written to while others are
        taken are taken again, until all were there at one moment. What is never left alone is kept and said to be torn;
        not so what only grows, as a log does.
        """
        found = self._take_each(sources)
        changed = _changed(sources, found)
        for _ in range(_COPIES - 1):
            if not changed:
                break
            for place, again in zip(changed, self._take_each([sources[place] for place in changed]), strict=True):
                old = found[place]
                if isinstance(old, _Taken):
                    _forget(old.path)
                found[place] = again
            changed = _changed(sources, found)
        return [
            self._staged(taken, is_torn=place in changed and not _has_grown(sources[place][0], taken))
            for place, taken in enumerate(found)
        ]

    def _take_each(self, sources: Sequence[tuple[str, dict[str, Any]]]) -> list[_Taken | Unstorable]:
        """Bring the content of each into the folder, so that its source may be written to."""
        found: list[_Taken | Unstorable] = []
        linked: list[int] = []
        for source, facts in sources:
            try:
                taken, is_link = self._take(source, facts, may_link=len(linked) < MAX_LEASES_A_CALL)
                linked += [len(found)] if is_link else []
                found.append(taken)
            except Unstorable as error:
                found.append(error)
        links = [(place, link) for place in linked if isinstance(link := found[place], _Taken)]
        protected = self._protected([link.number for _, link in links])
        for place, link in links:
            try:
                found[place] = (_leased if link.number in protected else self._unlinked)(link)
            except Unstorable as error:
                found[place] = error
        return found

    def _staged(self, taken: _Taken | Unstorable, *, is_torn: bool) -> Staged | Unstorable:
        """Put its record into the stream."""
        if isinstance(taken, Unstorable):
            return taken
        facts = {**taken.facts, "torn": True} if is_torn else taken.facts
        try:
            return self._told(taken.number, taken.path, facts)
        except Unstorable as error:
            return error

    def kept_in(self, project: str) -> str:
        """The folder that the project's files come to lie in, each under its content's name."""
        return os.path.join(os.path.dirname(self._incoming), "blobs", project_id(project))

    def _take(self, source: str, facts: dict[str, Any], *, may_link: bool) -> tuple[_Taken, bool]:
        """Bring a source's content into the folder; True if by a link, which the source's writers still share."""
        try:
            info = os.stat(source)
            if not stat.S_ISREG(info.st_mode):
                raise Unstorable(f"{source} is not a regular file")
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unstorable(f"the file {source} cannot be read ({reason})") from error
        try:
            info = os.fstat(fd)
            number, path = self._next()
            facts = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, **facts}
            facts.setdefault("suffix", clean_suffix(os.path.splitext(source)[1]))
            if info.st_dev not in self._unclonable and self._cloned(fd, path, info.st_dev):
                size = os.stat(path).st_size
                return _Taken(number, path, {**facts, "size": size, "how": "cloned"}, _state(info)), False
            if may_link and info.st_size > SMALL_BYTES and _linked(source, path, info):
                return _Taken(number, path, facts, _state(info)), True
            facts = self._copied(fd, path, source, facts)
            return _Taken(number, path, facts, (info.st_ino, facts["size"], facts["mtime_ns"])), False
        finally:
            os.close(fd)

    def _cloned(self, fd: int, path: str, device: int) -> bool:
        """Whether `path` now shares the source's blocks and none of its future (btrfs, XFS, bcachefs)."""
        try:
            _clone(fd, path)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.ENOSYS):
                self._unclonable.add(device)
            return False
        return True

    def _copied(self, fd: int, path: str, source: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Copy an open source; return its facts. One that is written to all the time is kept, and said to be torn."""
        for tries in range(_COPIES):
            before = os.fstat(fd)
            self._check_disk(before.st_size)
            try:
                size = _copy(fd, path, before.st_size or None)  # files of /proc have no size
            except OSError as error:
                _forget(path)
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise Unstorable(f"there was no room for its {before.st_size:,} bytes") from error
                raise Unstorable(f"the file {source} could not be copied ({error.strerror})") from error
            after = os.fstat(fd)
            facts = {**facts, "size": size, "mtime_ns": after.st_mtime_ns, "how": "copied"}
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and size >= before.st_size:
                return facts
            if size == before.st_size and _begins_with(fd, path, size):  # a log that grows: what was there is kept
                return facts
            if tries + 1 < _COPIES and after.st_size <= _AGAIN_MAX_BYTES:
                _forget(path)
            else:
                break
        return {**facts, "torn": True}

    def _protected(self, numbers: list[int]) -> set[int]:
        """Those of these files on which the daemon holds a lease. Waits a second at most, and not for a daemon that
        was silent just now."""
        if not numbers or time.monotonic() < self._ask_at:
            return set()
        start = time.monotonic()
        answer = self._protect(numbers, _PROTECT_SECONDS)
        if answer is None and time.monotonic() - start >= _SILENT_SECONDS:
            self._ask_at = time.monotonic() + _ASK_AGAIN_SECONDS
        return set(answer or ())

    def _unlinked(self, taken: _Taken) -> _Taken:
        """Replace a link, which its source's writers share, by a copy. The source's name may mean another file now."""
        copy = f"{taken.path}.copy"
        try:
            fd = os.open(taken.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unstorable(f"it could not be copied ({error.strerror})") from error
        try:
            facts = self._copied(fd, copy, taken.path, taken.facts)
            os.rename(copy, taken.path)
        except OSError as error:
            raise Unstorable(f"it could not be copied ({error.strerror})") from error
        except Unstorable:
            _forget(taken.path)
            raise
        finally:
            os.close(fd)
        return taken._replace(facts=facts, state=(taken.state[0], facts["size"], facts["mtime_ns"]))

    def _next(self) -> tuple[int, str]:
        number = next(self._numbers)
        if number % 1024 == 0 or not os.path.exists(os.path.join(self._folder, _ANCHOR)):
            try:
                make_private(self._folder)
                anchor = os.path.join(self._folder, _ANCHOR)
                os.close(os.open(anchor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise Unstorable(f"the data folder cannot be written ({error.strerror})") from error
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

    def _check_limit(self, size: int) -> None:
        """Refuse what would make written files take more than they may."""
        if self._written_bytes + size > self._limit_bytes:
            self._written = {path: its for path, its in self._written.items() if os.path.exists(path)}
            self._written_bytes = sum(self._written.values())
        if self._written_bytes + size > self._limit_bytes:
            raise Unstorable(f"there was no room for its {size:,} bytes")

    def _check_disk(self, size: int) -> None:
        """Refuse what would leave the disk too little room."""
        if size > self._spare_bytes or time.monotonic() - self._spare_at > _DISK_SECONDS:
            try:
                disk = os.statvfs(self._folder)
            except OSError as error:
                raise Unstorable(f"the data folder cannot be written ({error.strerror})") from error
            floor = growth.disk_floor(disk.f_blocks * disk.f_frsize)
            self._spare_bytes, self._spare_at = int(disk.f_bavail * disk.f_frsize - floor), time.monotonic()
        if size > self._spare_bytes:
            raise Unstorable(f"there was no room for its {size:,} bytes")
        self._spare_bytes -= size


def _leased(taken: _Taken) -> _Taken:
    """The facts of a link that nobody can write to now: those that the daemon compares its copy with."""
    try:
        info = os.stat(taken.path)
    except OSError as error:
        raise Unstorable(f"it could not be linked ({error.strerror})") from error
    facts = {**taken.facts, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "how": "leased"}
    return taken._replace(facts=facts, state=_state(info))


def _state(info: os.stat_result) -> _State:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _changed(sources: Sequence[tuple[str, dict[str, Any]]], found: Sequence[_Taken | Unstorable]) -> list[int]:
    """The places of sources that were written to or replaced while others were taken, but for large ones that grow.
    What was removed is as good as it was."""
    changed = []
    for place, ((source, _), taken) in enumerate(zip(sources, found, strict=True)):
        if len(found) < 2 or isinstance(taken, Unstorable) or _state_of(source) in (None, taken.state):
            continue
        if taken.state[1] <= _AGAIN_MAX_BYTES or not _has_grown(source, taken):
            changed.append(place)
    return changed


def _state_of(source: str) -> _State | None:
    """The state of a source now; None if it cannot be told."""
    try:
        return _state(os.stat(source))
    except OSError:
        return None


def _has_grown(source: str, taken: _Taken | Unstorable) -> bool:
    """Whether a source still begins with what was taken of it."""
    if isinstance(taken, Unstorable):
        return False
    file, size, _ = taken.state
    now = _state_of(source)
    if now is None or now[0] != file or now[1] < size or not size:
        return False
    try:
        with open(source, "rb", buffering=0) as grown:
            return _begins_with(grown.fileno(), taken.path, size)
    except OSError:
        return False


def _write_all(fd: int, part: Buffer) -> None:
    left = memoryview(part).cast("B")
    while left:
        left = left[os.write(fd, left) :]


def _copy(source: int, path: str, size: int | None = None) -> int:
    """Copy an open file, or so many bytes of it, into a new one; return the bytes that were copied. Raises OSError."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        by_kernel = True
        while size is None or offset < size:
            left = _COPY_BYTES if size is None else min(_COPY_BYTES, size - offset)
            try:
                if by_kernel:
                    count = os.copy_file_range(source, target, left, offset, offset)
                else:
                    data = os.pread(source, min(left, _READ_BYTES), offset)
                    _write_all(target, data)
                    count = len(data)
            except OSError as error:
                if by_kernel and error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    by_kernel = False
                    os.lseek(target, offset, os.SEEK_SET)
                    continue
                raise
            if not count and by_kernel:  # some file systems answer 0 where they should refuse
                by_kernel = False
                os.lseek(target, offset, os.SEEK_SET)
                continue
            if not count:
                return offset
            offset += count
        return offset
    finally:
        os.close(target)


def _begins_with(source: int, path: str, size: int) -> bool:
    """Whether an open file still begins with what was copied of it."""
    try:
        with open(path, "rb", buffering=0) as copy:
            return all(
                os.pread(source, _READ_BYTES, offset)[: size - offset] == copy.read(_READ_BYTES)
                for offset in range(0, size, _READ_BYTES)
            )
    except OSError:
        return False


def _clone(source: int, path: str) -> None:
    """Clone an open file into a new one. Raises OSError, and leaves nothing then."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        _forget(path)
        raise
    finally:
        os.close(target)


def cloned(source: str, path: str) -> bool:
    """Whether `path` now shares the source's blocks and none of its future."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        _clone(fd, path)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def copied(source: str, path: str) -> int:
    """Copy a file into a new one; return the bytes that were copied. Raises OSError, and leaves nothing then."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _copy(fd, path)
    except OSError:
        _forget(path)
        raise
    finally:
        os.close(fd)


def sha256_of(path: str) -> str:
    """A file's digest in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _linked(source: str, path: str, info: os.stat_result) -> bool:
    """Whether `path` is now another name of the file that was opened as `source`."""
    try:
        os.link(os.path.realpath(source), path)
        found = os.stat(path)
    except OSError:
        return False  # another file system, another owner, or one without links
    if (found.st_dev, found.st_ino) != (info.st_dev, info.st_ino):
        _forget(path)  # another file was given that name meanwhile
        return False
    return True


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def clean_suffix(suffix: str) -> str:
    """A file name's ending, short and of letters and digits: `.png`; empty for what is none."""
    letters = suffix.lower().lstrip(".")
    return f".{letters}" if letters.isalnum() and letters.isascii() and len(letters) <= _SUFFIX_CHARS else ""
