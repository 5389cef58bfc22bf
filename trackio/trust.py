"""Whose a file, a folder or the other end of a socket is, and whether other users can change it.

On a host with other users only this user and root are trusted. What directs us (where the daemon answers, where the
store lies) is followed only if nobody else could have written it. Knows nothing of what the files are for.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from trackio import descriptor

MOST_BYTES = 64 << 10
"""The most that is read of a small file of ours: a larger one is not ours."""
_CREDENTIALS = struct.Struct("3i")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OVERFLOW_UID = "/proc/sys/kernel/overflowuid"


class NotTrusted(PermissionError):
    """Another user made it, or can change it. The message is a sentence without a full stop."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EPERM, sentence)


def is_trusted(uid: int) -> bool:
    """Whether it is this user, or root."""
    return uid in (os.geteuid(), 0)


# -- files -------------------------------------------------------------------------------------------------------------


def open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a plain file of ours or root's that nobody else can write; return its descriptor.

    Never follows a link and never waits for a pipe. Raises OSError; NotTrusted where it is something else. With
    `O_CREAT` a missing file is made, for its owner alone.
    """
    try:
        fd = descriptor.open_file(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotTrusted(f"{path} is a link") from error
        raise
    try:
        if problem := _problem_of_file(path, os.fstat(fd)):
            raise NotTrusted(problem)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _problem_of_file(path: str, info: os.stat_result) -> str:
    if not stat.S_ISREG(info.st_mode):
        return f"{path} is not a plain file"
    if not is_trusted(info.st_uid):
        return f"{path} belongs to {name_of(info.st_uid)}"
    if info.st_mode & _OTHERS_WRITE:
        return f"{path} can be written by other users"
    return ""


def read_file(path: str, most: int = MOST_BYTES) -> bytes:
    """Return the first `most` bytes of a file that `open_file` opens. Raises OSError."""
    fd = open_file(path)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


# -- folders -----------------------------------------------------------------------------------------------------------


def problem_above(path: str) -> str:
    """Say why another user could exchange `path`, an absolute path without links which need not exist; "" if nobody
    can. Raises OSError.

    Each folder above it must be ours or root's, and sticky where others can write: in a sticky folder only the owner of
    an entry, of the folder, or root can rename it. In a user namespace that does not know root, root's folders look
    like nobody's; they count as root's as long as no folder above them can be written by others, for then nobody but
    root could have made them.
    """
    only_root_could_make_it = True
    folder = "/"
    for name in [*path.strip("/").split("/")]:
        try:
            info = os.lstat(folder)
        except FileNotFoundError:
            return ""
        if not stat.S_ISDIR(info.st_mode):
            return f"{folder} is not a folder"
        if not is_trusted(info.st_uid) and not (only_root_could_make_it and _is_unknown_root(info.st_uid)):
            return f"{folder} belongs to {name_of(info.st_uid)}"
        if info.st_mode & _OTHERS_WRITE:
            only_root_could_make_it = False
            if not info.st_mode & stat.S_ISVTX:
                return f"{folder} can be written by other users and is not sticky"
        folder = os.path.join(folder, name)
    return ""


def _is_unknown_root(uid: int) -> bool:
    """Whether it stands for users that this user namespace does not know, root among them."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            # a line: the first uid in here, the first uid outside, how many; all of them in the first namespace
            rows = [tuple(map(int, line.split())) for line in file]
        with open(_OVERFLOW_UID, encoding="ascii") as file:
            overflow = int(file.read())
    except (OSError, ValueError):
        return False
    return uid == overflow and not any(outside == 0 for _, outside, _ in rows)


def problem_of_folder(path: str) -> str:
    """Say why a folder that exists is not ours alone to change; "" if it is. Raises OSError."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return f"{path} is a link"
    if not stat.S_ISDIR(info.st_mode):
        return f"{path} is not a folder"
    if info.st_uid != os.geteuid():
        return f"{path} belongs to {name_of(info.st_uid)}"
    if info.st_mode & _OTHERS_WRITE:
        return f"{path} can be written by other users"
    return ""


# -- sockets -----------------------------------------------------------------------------------------------------------


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid at the other end of a connected AF_UNIX socket, as they were when it connected, or, of the end
    that listens, when it began to listen. Raises OSError."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        raise OSError(errno.ENOTSUP, "this system does not tell whose a socket is")
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return pid, uid


def check_peer(connection: socket.socket, path: str) -> None:
    """Raise NotTrusted unless the other end is ours or root's. Raises OSError where it cannot be told."""
    _, uid = peer_of(connection)
    if not is_trusted(uid):
        raise NotTrusted(f"the process that answers at {path} belongs to {name_of(uid)}")


def name_of(uid: int) -> str:
    """A user in words. By number only: asking for the name may go over the network."""
    return "root" if uid == 0 else f"another user (uid {uid})" if uid != os.geteuid() else f"this user (uid {uid})"
