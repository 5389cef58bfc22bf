"""Which file system a path lies on, read from /proc/self/mountinfo. Parsing is pure."""

from __future__ import annotations

import os
from typing import NamedTuple

from trackio.descriptor import open_file

LOCAL_TYPES = frozenset(
    (
        "ext2 ext3 ext4 xfs btrfs bcachefs zfs f2fs jfs jffs2 ubifs nilfs2 reiserfs reiser4 ufs minix hfs hfsplus apfs "
        "vfat msdos exfat ntfs ntfs3 fuseblk fuse.ntfs-3g fuse.exfat "  # fuseblk: FUSE on a block device
        "tmpfs ramfs devtmpfs rootfs hugetlbfs "
        "overlay overlayfs aufs fuse.fuse-overlayfs simfs lxfs wslfs "  # what containers have on top of a disk
        "ecryptfs fuse.gocryptfs fuse.encfs fuse.cryfs "  # moved elsewhere, what is encrypted would not be any more
        "squashfs erofs cramfs romfs iso9660 udf "
        "proc sysfs cgroup2 configfs"  # the kernel's own, where a folder cannot be made, which is to be said
    ).split()
)
"""File systems of one host, on which locks and shared mappings are what SQLite expects. New network file systems come
every year, and most are in user space (`fuse.<name>`), so any other type counts as one."""
NETWORK_TYPES = frozenset(
    (
        "nfs nfs4 cifs smb3 smbfs lustre gpfs beegfs ceph 9p afs wekafs panfs orangefs pvfs2 glusterfs ocfs2 gfs2 "
        "fuse.sshfs fuse.glusterfs fuse.ceph fuse.juicefs fuse.s3fs fuse.gcsfuse fuse.rclone fuse.mount-s3 "
        "virtiofs prl_fs vboxsf"
    ).split()
)
"""Those on which no release ever put a store. One may be found on any other type that is not local."""
UNKNOWN = "unknown"
"""The type where the system does not tell (macOS); it counts as local."""
MAPPABLE_TYPES = frozenset({"tmpfs", "ramfs", "ext4", "ext3", "ext2"})
"""Where a preallocated page stays writable, so a store into a mapping cannot fail with SIGBUS. xfs is left
out: whether it shares blocks (reflink) cannot be told without asking the device."""


class Mount(NamedTuple):
    """One mount point and its file system's type, as the kernel names it."""

    point: str
    type: str

    @property
    def is_network(self) -> bool:
        """Whether it is, or may be, on a network."""
        return self.type not in LOCAL_TYPES and self.type != UNKNOWN

    @property
    def may_hold_a_store(self) -> bool:
        """Whether an earlier release took it for local, and put a store there."""
        return self.type not in NETWORK_TYPES

    @property
    def is_memory(self) -> bool:
        return self.type in ("tmpfs", "ramfs")

    @property
    def is_mappable(self) -> bool:
        return self.type in MAPPABLE_TYPES


def parse(mountinfo: str) -> list[Mount]:
    """The mounts in the text of a mountinfo file, in its order (man 5 proc_pid_mountinfo)."""
    mounts = []
    for line in mountinfo.split("\n"):
        fields, _, rest = line.partition(" - ")
        columns = fields.split(" ")
        if len(columns) >= 5 and rest:
            mounts.append(Mount(_unescaped(columns[4]), rest.split(" ")[0]))
    return mounts


def _unescaped(path: str) -> str:
    """mountinfo writes blanks, line ends, backslashes and, of late, number signs as three octal digits."""
    first, *rest = path.split("\\")
    return first + "".join(_character(part[:3]) + part[3:] for part in rest)


def _character(digits: str) -> str:
    is_octal = len(digits) == 3 and all(digit in "01234567" for digit in digits)
    return chr(int(digits, 8)) if is_octal else f"\\{digits}"


def mount_of(path: str, mounts: list[Mount]) -> Mount:
    """The mount that holds `path` (absolute, without links); of several on one point the last one wins."""
    best = Mount("/", UNKNOWN)
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def of(path: str) -> Mount:
    """The mount that holds `path`, which may not exist yet."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", opener=open_file) as file:
            mounts = parse(file.read())
    except OSError:
        return Mount("/", UNKNOWN)
    return mount_of(os.path.realpath(path), mounts)
