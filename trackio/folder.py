"""A stream's folder: its facts, its owner's lock, its segments. One lies in the spool, one in the spill.

`stream.meta` is written before anything is logged and removed after all of it, so whatever is found later can be read
by anyone. The lock on `owner` is an fcntl record lock held for life: it is seen across PID namespaces, ends with the
process and not with its forked children, and cannot be fooled by a reused pid. Closing any other descriptor of that
file in the owning process would drop it, so it is opened once there and never again.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any
from zlib import crc32

import msgpack

from trackio.descriptor import Descriptor, open_file, with_reserve
from trackio.lookup import unless_absent
from trackio.places import OWNER, STREAM_META, make_private, replace

_FLOCK = struct.Struct("hhqqi4x")
_MAX_META_BYTES = 4 << 20
_CRC = "crc"
_WIDEST = (1 << 32) - 1
"""packs to as many bytes as any checksum, if it is packed as wide"""
_CRC_MARK = b"\xa3crc\xce"
_CRC_BYTES = len(_CRC_MARK) + 4


class DamagedMeta(ValueError):
    """A `stream.meta` that says nothing which can be trusted. The message says why."""


class StreamFolder:
    """The folder of one stream that this process writes. Owns the lock; `remove` ends both."""

    def __init__(self, path: str, meta: dict[str, Any]) -> None:
        """Creates it, its meta file and its lock; one that is there already is taken on. Raises OSError and leaves what
        was there."""
        was_there = os.path.isdir(path)
        make_private(path)
        self.path = path
        self._owner: Descriptor | None = None
        self._keep: Descriptor | None = None
        try:
            self._take_lock(os.O_CREAT)
            write_meta(path, meta)
        except BaseException:
            if not was_there:
                remove(path)
            self.close()
            raise
        self._keep_from_ageing()

    def _take_lock(self, flags: int = 0) -> None:
        path = os.path.join(self.path, OWNER)
        self._owner = Descriptor(open_file(path, os.O_RDWR | os.O_NOFOLLOW | flags))
        fcntl.lockf(self._owner.number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _keep_from_ageing(self) -> None:
        """systemd-tmpfiles skips a folder with a shared flock on it; writes into a mapping look like age.
        It goes without where descriptors are short."""
        try:
            self._keep = Descriptor(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            fcntl.flock(self._keep.number, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return

    def hold(self) -> bool:
        """Whether the folder still has its name. Takes the lock again: a script that closes all descriptors drops it,
        and so does one that reads the owner file. Where an error leaves that open, it is so."""
        try:
            if self._owner is None or self._owner.number < 0:
                self._take_lock()
            assert self._owner is not None
            number = self._owner.number
            if os.fstat(number).st_nlink == 0:
                return False
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        if self._keep is None or self._keep.number < 0:
            self._keep_from_ageing()
        return True

    def remove(self) -> bool:
        """Removes everything, then lets go of the lock: nobody finds it unlocked and takes it for an orphan. False if
        something stays: it is one then, for a daemon to remove."""
        is_gone = remove(self.path)
        self.close()
        return is_gone

    def close(self) -> None:
        """Lets go of the lock and the descriptors; the files stay. Safe to call twice."""
        for descriptor in (self._owner, self._keep):
            if descriptor is not None:
                descriptor.close()
        self._owner = self._keep = None


def write_meta(path: str, meta: dict[str, Any]) -> None:
    """Writes `stream.meta` so that it is there whole or not at all."""
    replace(os.path.join(path, STREAM_META), packed_meta(meta))


def packed_meta(meta: dict[str, Any]) -> bytes:
    """Return a stream's facts as `stream.meta` holds them: a map whose last entry is the checksum of what is before."""
    body: bytes = msgpack.packb({**meta, _CRC: _WIDEST})[:-_CRC_BYTES]
    return body + _CRC_MARK + crc32(body).to_bytes(4, "big")


def read_meta(path: str) -> dict[str, Any] | None:
    """Return the stream's facts, or None if there are none. Raises DamagedMeta or OSError."""
    path = os.path.join(path, STREAM_META)
    data = unless_absent(lambda: _read(path), path)
    return None if data is None else unpacked_meta(data)


def unpacked_meta(data: bytes) -> dict[str, Any]:
    """Return the facts in the bytes of `stream.meta`. Raises DamagedMeta.

    The first release wrote no checksum; what has none is believed.
    """
    tail = data[-_CRC_BYTES:]
    if tail.startswith(_CRC_MARK) and crc32(data[:-_CRC_BYTES]) != int.from_bytes(tail[-4:], "big"):
        raise DamagedMeta(f"{STREAM_META} does not match its checksum")
    try:
        meta = msgpack.unpackb(data)
    except Exception as error:  # msgpack raises many kinds
        raise DamagedMeta(f"{STREAM_META} cannot be unpacked ({type(error).__name__})") from error
    if not isinstance(meta, dict):
        raise DamagedMeta(f"{STREAM_META} does not hold a map")
    meta.pop(_CRC, None)
    return meta


def _read(path: str) -> bytes:
    with open(path, "rb", opener=_unblocked) as file:
        return file.read(_MAX_META_BYTES)


def _unblocked(path: str, flags: int) -> int:
    return open_file(path, flags | os.O_NONBLOCK)  # a FIFO would wait for its writer


def remove(path: str) -> bool:
    """Removes a stream's folder; False if something of it stays. Its meta file goes last but for the owner file, and
    only after all else: what stays is found by it. Never raises."""
    try:
        names = with_reserve(lambda: os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    others = [name for name in names if name not in (STREAM_META, OWNER)]
    are_gone = [unlink(os.path.join(path, name)) for name in others]
    if not all(are_gone) or not unlink(os.path.join(path, STREAM_META)) or not unlink(os.path.join(path, OWNER)):
        return False
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def unlink(path: str) -> bool:
    """Removes a file; False if it stays. Never raises."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def holder(owner_fd: int) -> int | None:
    """The pid, in our PID namespace, of the process that holds an owner file; 0 if it has none here.

    None: nobody holds it. Raises OSError.
    """
    asked = _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
    kind: int
    pid: int
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(owner_fd, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    return max(0, pid)
