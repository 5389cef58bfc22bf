"""May a spool take more memory or disk? Pure: figures in, an answer out.

fallocate under a memory cgroup at its limit brings the OOM killer, not an error, and a 64 MiB /dev/shm is
shared with DataLoader and NCCL: so the question is asked before any byte is taken.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST_SEGMENT_BYTES = 256 << 10
WORKER_SEGMENT_BYTES = 64 << 10
MIN_FREE_BYTES = 32 << 20
MIN_FREE_SHARE = 0.5
CGROUP_HEADROOM = 4
HOST_BUDGET_SHARE = 1 / 8
HOST_BUDGET_BYTES = 1 << 30
SPILL_FLOOR_BYTES = 64 << 20
SPILL_FLOOR_SHARE = 0.02


class Room(NamedTuple):
    """What the host has left for spools."""

    total_bytes: int
    """size of the file system the spool lies on"""
    free_bytes: int
    ours_bytes: int
    """what all our spools there hold already"""
    cgroup_headroom_bytes: int | None = None
    """memory.max - memory.current; None without a limit"""

    def after(self, size: int) -> Room:
        """What is left when `size` bytes more are taken."""
        headroom = self.cgroup_headroom_bytes
        return Room(
            self.total_bytes,
            self.free_bytes - size,
            self.ours_bytes + size,
            None if headroom is None else headroom - size,
        )


def next_segment_bytes(held_bytes: int, limit_bytes: int, first_bytes: int) -> int:
    """How large the next segment would be: the spool doubles until it reaches its limit. 0: no more."""
    if held_bytes < 2 * first_bytes:
        return first_bytes
    size = min(held_bytes, limit_bytes - held_bytes)
    return size if size >= first_bytes else 0


def may_grow(size: int, room: Room) -> bool:
    """Whether the host can spare `size` bytes of shared memory."""
    left = room.free_bytes - size
    budget = min(room.total_bytes * HOST_BUDGET_SHARE, HOST_BUDGET_BYTES)
    return (
        left >= room.total_bytes * MIN_FREE_SHARE
        and left >= MIN_FREE_BYTES
        and room.ours_bytes + size <= budget
        and (room.cgroup_headroom_bytes is None or room.cgroup_headroom_bytes >= CGROUP_HEADROOM * size)
    )


def disk_floor(disk_total: int) -> float:
    """The bytes of a disk that stay free."""
    return min(SPILL_FLOOR_BYTES, disk_total * SPILL_FLOOR_SHARE)


def may_spill(size: int, *, held_bytes: int, limit_bytes: int, disk_total: int, disk_free: int) -> bool:
    """Whether `size` more bytes may go to disk: within the stream's limit, above the disk's floor."""
    return held_bytes + size <= limit_bytes and disk_free - size >= disk_floor(disk_total)
