"""Takes over staged files: makes of each what it is to be, hashes it, puts it under its content's name.

Runs in a child (`python -m trackiod keep`), since a source on a dead file server hangs for ever and a codec may do
anything. A task may be done twice: it comes to the same. Only a file that is gone, changed or not what it is said to
be is settled as incomplete; any other failure may pass, and the file is tried again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar

from trackio import growth, host
from trackio.staging import clean_suffix, copied
from trackiod import blobs, encoding

_STALE_SECONDS = 600.0
_TIDY_SECONDS = 60.0
_MANY = 16
_MAX_DIRTY_BYTES = 256 << 20
_REMOVED = "its source was removed before it could be kept"
_CHANGED = "its source was written to before it could be kept"
_TORN = "it was written to while it was copied"

COPIED = "copied"
"""A line from the child: it has read the whole file. It goes on when it is told whether the file was protected."""
AGAIN = "again"
"""The state of a file that could not be kept now."""
FULL = "the disk is full"
"""Why, if it is that."""

IsIntact = Callable[[], bool]
_Result = TypeVar("_Result")
Task = tuple[str, str, dict[str, Any]]
"""where the file is staged, the project's folder, the file's facts"""


class Kept(NamedTuple):
    """What became of a file: `state` is kept, or incomplete for the `cause` given. With a digest there are bytes."""

    state: str
    digest: str | None = None
    size: int | None = None
    suffix: str = ""
    cause: str = ""


class _Final(Exception):
    """Nothing can be kept of the file. The message says why."""


class _Made(NamedTuple):
    """A file with the content that is kept."""

    path: str
    suffix: str
    cause: str = ""
    state: str = "kept"


def keep(tasks: list[Task], is_intact: IsIntact = lambda: False) -> list[Kept]:
    """Take over staged files; what is staged stays. Return what became of each, `again` for what may pass.

    `is_intact` is asked once the content of a linked file is read, and tells whether nobody could write to it until
    then. All files are written out at once before the first is waited for: so the disk takes many in little more time
    than one.
    """
    new = [f"{os.path.join(folder, '.new-')}{os.getpid()}-{place}" for place, (_, folder, _) in enumerate(tasks)]
    try:
        ready = [
            _settled(task[0], partial(_prepared, *task, path, is_intact)) for task, path in zip(tasks, new, strict=True)
        ]
        fresh = [each for each in ready if isinstance(each, _Prepared) and not os.path.exists(each.target)]
        problems = _sync_all([each.made.path for each in fresh])
        named = {os.path.dirname(each.target) for each in ready if isinstance(each, _Prepared)}
        named |= {os.path.dirname(path) for path in named if not os.path.isdir(path)}
        results = [
            each if isinstance(each, Kept) else _settled(staged, partial(_put, each, problems.get(each.made.path)))
            for (staged, _, _), each in zip(tasks, ready, strict=True)
        ]
        problem = next(iter(_sync_all(sorted(named)).values()), None)
        return [_again(str(problem.strerror), problem.errno) if problem and each.digest else each for each in results]
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _settled(staged: str, act: Callable[[], _Result]) -> _Result | Kept:
    """What `act` returns, or what its failure means for the file."""
    try:
        return act()
    except _Final as error:
        return Kept("incomplete", cause=str(error))
    except (ValueError, TypeError, LookupError) as error:
        return Kept("incomplete", cause=f"what is said of it cannot be used ({error})")
    except OSError as error:
        if _is_gone(staged):
            return Kept("incomplete", cause=_REMOVED)
        return _again(error.strerror or str(error), error.errno)


def _again(why: str, number: int | None = None) -> Kept:
    return Kept(AGAIN, cause=FULL if number in (errno.ENOSPC, errno.EDQUOT) else why)


def _is_gone(path: str) -> bool:
    """Whether a file is not there: any other error says nothing, and a stale handle is looked up again."""
    for _ in range(2):
        try:
            os.lstat(path)
            return False
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOTDIR):
                return False
    return False


class _Prepared(NamedTuple):
    """Content that is on its way to the disk."""

    made: _Made
    digest: str
    size: int
    target: str
    """its content's name"""


def _prepared(staged: str, folder: str, facts: dict[str, Any], new: str, is_intact: IsIntact) -> _Prepared:
    """The content that is to be kept, its digest and size; on its way to the disk. Raises OSError or _Final."""
    _make_folder(folder)
    _remove_stale(folder)
    made = _made(staged, new, facts, is_intact)
    if facts.get("torn"):
        made = made._replace(state="incomplete", cause=_TORN)
    with open(made.path, "rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write, and waits for nothing
    return _Prepared(made, digest, size, blobs.path_in(folder, digest, made.suffix))


def _put(prepared: _Prepared, problem: OSError | None) -> Kept:
    """Give content that is on the disk its name. Raises OSError, also the one for which it is not on the disk."""
    made, digest, size, target = prepared
    if problem is not None:
        raise problem
    if not os.path.exists(target):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(target), 0o700)
        with contextlib.suppress(FileExistsError):  # another child kept the same content just now
            os.link(made.path, target)
    return Kept(made.state, digest, size, made.suffix, made.cause)


def _make_folder(path: str) -> None:
    """Make a folder and its parents; their names are on the disk then."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    _sync(parent)


_tidied: dict[str, float] = {}


def _remove_stale(folder: str) -> None:
    """What a child that was killed had in hand; one that is at work writes to it all the time."""
    if time.monotonic() - _tidied.get(folder, -_TIDY_SECONDS) < _TIDY_SECONDS:
        return
    _tidied[folder] = time.monotonic()
    for path in glob.glob(os.path.join(glob.escape(folder), ".new-*")):
        with contextlib.suppress(FileNotFoundError):  # it was just finished
            if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
                os.unlink(path)


def _made(staged: str, new: str, facts: dict[str, Any], is_intact: IsIntact) -> _Made:
    suffix = clean_suffix(str(facts.get("suffix", "")))
    how, encode = facts.get("how"), facts.get("encode")
    if how == "later":
        _copy_later(str(facts["source"]), new, facts)
        return _Made(new, suffix)
    if how in ("leased", "linked"):
        _make_own(staged, facts, is_intact)
        return _Made(staged, suffix)
    size = os.stat(staged).st_size
    if "size" in facts and size != facts["size"]:
        raise _Final(f"its staged file was cut short: {size:,} of {facts['size']:,} bytes are left")
    if not encode:
        return _Made(staged, suffix)
    if why := facts.get("raw"):
        return _raw(staged, str(why))
    try:
        suffix, cause = encoding.encode(str(encode), staged, new, suffix, facts)
    except (encoding.NotEncoded, ValueError, TypeError, LookupError, OverflowError) as error:
        return _raw(staged, str(error))
    except OSError as error:
        if error.errno is None:  # a codec's own error
            return _raw(staged, str(error))
        raise
    return _Made(new, suffix, cause)


def _raw(staged: str, why: str) -> _Made:
    """The bytes as they were logged, of which nothing else can be made."""
    return _Made(staged, ".bin", f"it was not encoded: {why}; its bytes are kept as they were logged", "incomplete")


def _copy_later(source: str, new: str, facts: dict[str, Any]) -> None:
    """Copy what older clients left where it was. Raises _Final if it is not what it was."""
    if _is_gone(source):
        raise _Final(_REMOVED)
    shutil.copyfile(source, new)
    info = os.stat(source)
    if (info.st_size, info.st_mtime_ns) != (facts["size"], facts["mtime_ns"]):
        raise _Final(_CHANGED)


def secure(staged: str, is_intact: IsIntact) -> None:
    """Make a leased link a file of our own, for a daemon that goes before it knows more of it. Raises OSError."""
    info = os.stat(staged)
    with contextlib.suppress(_Final):  # the next daemon finds out
        _make_own(staged, {"size": info.st_size, "mtime_ns": info.st_mtime_ns}, is_intact)


def _make_own(staged: str, facts: dict[str, Any], is_intact: IsIntact) -> None:
    """Make a link to a file that others may write to a file of our own, with the content that was logged.

    It takes the link's place, with the time of that content, so that a daemon that has to do this again finds what
    was logged although its source was written to meanwhile. Raises _Final if somebody was there before.
    """
    own = f"{staged}.keep"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(own)
    is_shared = os.stat(staged).st_nlink > 1
    if is_shared:
        _copy_with_room(staged, own)
    intact = is_intact()
    info = os.stat(staged)
    if not intact and (info.st_size, info.st_mtime_ns) != (facts["size"], facts["mtime_ns"]):
        with contextlib.suppress(OSError):
            os.unlink(own)
        raise _Final(_CHANGED)
    if not is_shared and not intact:  # a process that had it open may write to it yet
        _copy_with_room(staged, own)
        is_shared = True
        info = os.stat(staged)
    size = os.stat(own if is_shared else staged).st_size
    if size != facts["size"] or (not intact and info.st_mtime_ns != facts["mtime_ns"]):
        raise _Final(_CHANGED)
    if not is_shared:
        try:
            os.chmod(staged, 0o600)  # its mode was that of its source; the file is ours now
            return
        except PermissionError:  # it belongs to somebody else
            _copy_with_room(staged, own)
    os.utime(own, ns=(facts["mtime_ns"], facts["mtime_ns"]))
    os.rename(own, staged)


def _copy_with_room(source: str, target: str) -> None:
    """Copy a file. Raises OSError, if the disk would be full then with ENOSPC."""
    disk = os.statvfs(os.path.dirname(target))
    left = disk.f_bavail * disk.f_frsize - os.stat(source).st_size
    if left < growth.disk_floor(disk.f_blocks * disk.f_frsize):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    copied(source, target)


def _sync_all(paths: list[str]) -> dict[str, OSError]:
    """Have files or folders of one file system on the disk; return those of which that failed.

    Each fsync makes the disk write out its cache, whatever is in it; many are cheaper as one syncfs, unless others have
    so much in memory that was not written yet that this would take long.
    """
    if len(paths) >= _MANY and host.dirty_bytes() < _MAX_DIRTY_BYTES and _synced_whole(paths[0]):
        return {}
    problems = {}
    for path in paths:
        try:
            _sync(path)
        except OSError as error:
            problems[path] = error
    return problems


def _synced_whole(path: str) -> bool:
    """Whether all of the file system at `path` was written to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(ctypes.CDLL(None, use_errno=True).syncfs(fd) == 0)
    except AttributeError:
        return False
    finally:
        os.close(fd)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def serve(tasks: IO[str], results: IO[str]) -> int:
    """Do the tasks of a line, a list of `[staged, folder, facts]` in JSON, and answer with a line; end with the input.
    A task with a linked file comes alone, and asks on its way whether that is intact."""

    def is_intact() -> bool:
        results.write(json.dumps(COPIED) + "\n")
        results.flush()
        return bool(json.loads(tasks.readline() or "false"))

    while line := tasks.readline():
        results.write(json.dumps(keep([(*task,) for task in json.loads(line)], is_intact)) + "\n")
        results.flush()
    return 0


def main() -> int:
    """The child's life."""
    try:
        os.nice(5)
        return serve(sys.stdin, sys.stdout)
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
