"""Takes over one staged file: makes of it what it is to be, hashes it, puts it under its content's name.

Runs in a child (`python -m trackiod keep`), since a source on a dead file server hangs for ever and a codec may do
anything. A task may be done twice: it comes to the same.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import sys
import time
from typing import IO, Any, NamedTuple

from trackio.staging import clean_suffix, sha256_of
from trackiod import blobs, encoding

_FREE_SHARE = 0.05
"""of the disk stays free when a linked file is copied so that it no longer changes with its source"""
_STALE_SECONDS = 600.0
_NO_COPY = "it shares its data with its source, since there is no room for a copy: it changes if that is written to"


class Kept(NamedTuple):
    """What became of a file: `state` is kept or incomplete, for the `cause` given."""

    state: str
    digest: str | None = None
    size: int | None = None
    suffix: str = ""
    cause: str = ""


def keep(staged: str, folder: str, facts: dict[str, Any]) -> Kept:
    """Takes over the file at `staged`, or at its source, into `folder`, the project's; the staged one stays. Raises
    OSError if the disk is full."""
    suffix = clean_suffix(str(facts.get("suffix", "")))
    new = os.path.join(folder, f".new-{os.getpid()}")
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        _remove_stale(folder)
        made = _made(staged, new, suffix, facts)
        digest, size = sha256_of(made.path), os.stat(made.path).st_size
        if why := _changed(staged, facts):
            return Kept("incomplete", cause=why)
        target = blobs.path_in(folder, digest, made.suffix)
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            _sync(made.path)
            os.link(made.path, target)
            _sync(os.path.dirname(target))
        return Kept("kept", digest, size, made.suffix, made.cause)
    except FileNotFoundError:
        return Kept("incomplete", cause="its source was removed before it could be kept")
    except encoding.NotEncoded as error:
        return Kept("incomplete", cause=str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(errno.ENOSPC, error.strerror) from error  # it may pass
        return Kept("incomplete", cause=f"it could not be kept ({error.strerror or error})")
    finally:
        if os.path.lexists(new):
            os.unlink(new)


def _remove_stale(folder: str) -> None:
    """What a child that was killed had in hand; one that is at work writes to it all the time."""
    for path in glob.glob(os.path.join(glob.escape(folder), ".new-*")):
        with contextlib.suppress(FileNotFoundError):  # it was just finished
            if time.time() - os.stat(path).st_mtime > _STALE_SECONDS:
                os.unlink(path)


class _Made(NamedTuple):
    """A file with the content that is kept."""

    path: str
    suffix: str
    cause: str = ""


def _made(staged: str, new: str, suffix: str, facts: dict[str, Any]) -> _Made:
    how, encode = facts.get("how"), facts.get("encode")
    if encode:
        suffix, cause = encoding.encode(str(encode), staged, new, suffix, facts)
        return _Made(new, suffix, cause)
    if how == "later":
        shutil.copyfile(str(facts["source"]), new)
        return _Made(new, suffix)
    if how == "linked" and os.stat(staged).st_nlink > 1:  # the source is there, and may be written to
        disk = os.statvfs(os.path.dirname(new))
        if disk.f_bavail * disk.f_frsize - os.stat(staged).st_size < disk.f_blocks * disk.f_frsize * _FREE_SHARE:
            return _Made(staged, suffix, _NO_COPY)
        shutil.copyfile(staged, new)
        return _Made(new, suffix)
    return _Made(staged, suffix)


def _changed(staged: str, facts: dict[str, Any]) -> str:
    """Why what was read is not what was logged, or nothing."""
    how = facts.get("how")
    if how not in ("linked", "later"):
        return ""
    info = os.stat(staged if how == "linked" else str(facts["source"]))
    if (info.st_size, info.st_mtime_ns) != (facts["size"], facts["mtime_ns"]):
        return "its source was written to before it could be kept"
    return ""


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def serve(tasks: IO[str], results: IO[str]) -> int:
    """Does a task a line, `[staged, folder, facts]` in JSON, and answers each with a line; ends with its input."""
    for line in tasks:
        results.write(json.dumps(keep(*json.loads(line))) + "\n")
        results.flush()
    return 0


def main() -> int:
    """The child's life."""
    try:
        os.nice(5)
        return serve(sys.stdin, sys.stdout)
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    except OSError as error:  # a full disk, which `keep` lets through: the daemon tries again
        return error.errno or 1
