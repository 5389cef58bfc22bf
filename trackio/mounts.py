"""Which file system a path lies on, read from /proc/self/mountinfo. Parsing is pure."""

from __future__ import annotations

import os
from typing import NamedTuple

NETWORK_TYPES = frozenset(
    (
        "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph 9p afs wekafs panfs orangefs pvfs2 glusterfs ocfs2 gfs2 "
        "fuse.sshfs fuse.glusterfs fuse.ceph fuse.juicefs fuse.s3fs fuse.gcsfuse fuse.rclone fuse.mount-s3 "
        "virtiofs prl_fs vboxsf"
    ).split()
)
MAPPABLE_TYPES = frozenset({"tmpfs", "ramfs", "ext4", "ext3", "ext2"})
"""Where a preallocated page stays writable, so a store into a mapping cannot fail with SIGBUS. xfs is left
out: whether it shares blocks (reflink) cannot be told without asking the device."""


class Mount(NamedTuple):
    """One mount point and its file system's type, as the kernel names it."""

    point: str
    type: str

    @property
    def is_network(self) -> bool:
        return self.type in NETWORK_TYPES

    @property
    def is_memory(self) -> bool:
        return self.type in ("tmpfs", "ramfs")

    @property
    def is_mappable(self) -> bool:
        return self.type in MAPPABLE_TYPES


def parse(mountinfo: str) -> list[Mount]:
    """The mounts in the text of a mountinfo file, in its order (man 5 proc_pid_mountinfo)."""
    mounts = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        columns = fields.split(" ")
        if len(columns) >= 5 and rest:
            mounts.append(Mount(_unescaped(columns[4]), rest.split(" ")[0]))
    return mounts


def _unescaped(path: str) -> str:
    """mountinfo writes blanks and backslashes as three octal digits."""
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escape, character)
    return path


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """The mount that holds `path` (absolute, without links); of several on one point the last one wins."""
    best = Mount("/", "unknown")
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def of(path: str) -> Mount:
    """The mount that holds `path`, which may not exist yet."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = parse(file.read())
    except OSError:
        return Mount("/", "unknown")
    return mount_of(os.path.realpath(path), mounts)
