"""Having the disk keep what was written, also through a loss of power, without waiting for the disk.

Each fsync runs in a native thread of its own that knows nothing of Python: a disk that hangs holds up nobody, many
files are synced at once, and it can be done at the end of the interpreter, when Python starts no more threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from trackio.descriptor import Descriptor, open_file, reserve

try:
    import ctypes
except ImportError:  # a Python that was built without libffi: then fsync is waited for
    ctypes = None  # type: ignore[assignment]

_MOST_AT_ONCE, _FEW_AT_ONCE = 64, 1
"""the latter where descriptors are few"""
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EROFS)
_running = 0
_folders: dict[str, Durable] = {}
_soon: list[Durable] = []


class Durable:
    """A file or folder, how far it is written, and how far the disk keeps that."""

    __slots__ = ("_fsync", "_fsync_covers", "kept", "path", "written")

    def __init__(self, path: str, start: int = 0) -> None:
        self.path = path
        self.written = self.kept = start
        self._fsync: _Fsync | None = None
        self._fsync_covers = start

    @property
    def is_kept(self) -> bool:
        """Whether a loss of power would cost nothing of it."""
        return self.kept >= self.written

    def advance(self) -> str:
        """Takes up an fsync that has ended, and starts one that is due. Returns why the disk did not keep it, or ""."""
        most = _FEW_AT_ONCE if reserve.is_low else _MOST_AT_ONCE
        if self._fsync is None and not self.is_kept and _running < most:
            try:
                fd = Descriptor(open_file(self.path, os.O_RDONLY))
            except FileNotFoundError:
                self.kept = self.written  # whatever was written is gone with it
                return ""
            except OSError as error:
                return f"{self.path}: {error.strerror or error}"
            self._fsync, self._fsync_covers = _Fsync(fd), self.written
        if self._fsync is not None and self._fsync.has_ended:
            fsync, self._fsync = self._fsync, None
            if fsync.problem:
                return f"{self.path}: {fsync.problem}"
            self.kept = self._fsync_covers
        return ""

    def abandon(self) -> None:
        """In a forked child: the fsync is the parent's."""
        if self._fsync is not None:
            self._fsync.close()
            self._fsync = None


class _Fsync:
    """One fsync on its way. Owns the descriptor."""

    def __init__(self, descriptor: Descriptor) -> None:
        global _running
        self.problem = ""
        self._descriptor = descriptor
        self._thread: Any = _start(descriptor.number)
        if self._thread is not None:
            _running += 1
            return
        try:
            os.fsync(descriptor.number)
        except OSError as error:
            self.problem = error.strerror or str(error)
        self.close()

    @property
    def has_ended(self) -> bool:
        """Whether the disk has answered; `problem` says what, if it refused."""
        global _running
        if self._thread is None:
            return True
        result = ctypes.c_void_p()
        if _library.pthread_tryjoin_np(self._thread, ctypes.byref(result)) == errno.EBUSY:
            return False
        self._thread = None
        _running -= 1
        if (result.value or 0) & 0xFFFFFFFF:
            self.problem = "the disk did not keep it (fsync failed)"
        self.close()
        return True

    def close(self) -> None:
        self._descriptor.close()
        reserve.take()


def _start(fd: int) -> Any:
    """Has a native thread call fsync(fd). None where there is none to be had: then the caller waits for the disk."""
    if _library is None:
        return None
    thread = ctypes.c_size_t()
    entry = ctypes.cast(_library.fsync, ctypes.c_void_p)
    if _library.pthread_create(ctypes.byref(thread), None, entry, ctypes.c_void_p(fd)):
        return None
    return thread


def _load() -> Any:
    try:
        library = ctypes.CDLL(None)
        library.pthread_create.argtypes = [ctypes.c_void_p] * 4
        library.pthread_tryjoin_np.argtypes = [ctypes.c_size_t, ctypes.c_void_p]
    except (AttributeError, OSError, TypeError):  # no ctypes, or another system than Linux
        return None
    return library


_library = _load()


def folders_above(path: str) -> list[Durable]:
    """The folders whose entries lead to `path`, as far up as they are ours and the first that is not, each to be kept
    anew. The process has one object for each. Raises OSError."""
    found = []
    for folder in _parents(path):
        durable = _folders.setdefault(folder, Durable(folder))
        durable.written += 1
        found.append(durable)
    return found


def _parents(path: str) -> Iterator[str]:
    device, ours = os.stat(path).st_dev, os.geteuid()
    while (parent := os.path.dirname(path)) != path:
        info = os.stat(parent)
        if info.st_dev != device or not os.access(parent, os.R_OK):
            return  # a mount point's entry was there before us
        yield parent
        if info.st_uid != ours:
            return
        path = parent


def keep_soon(path: str) -> None:
    """Has the disk keep a file that was just written and the names that lead to it, and waits for nothing. What an
    earlier call began is taken up. Raises OSError."""
    _soon[:] = [durable for durable in _soon if not durable.advance() and not durable.is_kept]
    file = Durable(path)
    file.written += 1
    begun = (file, *folders_above(path))
    _soon.extend(durable for durable in begun if not durable.advance() and not durable.is_kept)


def sync_names(path: str) -> None:
    """Waits until the disk keeps the entries that lead to `path`, as `folders_above` says. Raises OSError."""
    for folder in _parents(path):
        sync_folder(folder)


def sync_folder(path: str) -> None:
    """Waits until the disk keeps a folder's entries, where its file system knows of that. Raises OSError."""
    fd = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(fd)


def abandon() -> None:
    """In a forked child: the parent's folders are its own to keep."""
    global _running
    for durable in _folders.values():
        durable.abandon()
    _folders.clear()
    _running = 0
