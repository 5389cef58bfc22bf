"""Which rank a process on a device is. Pure: what is asked of the host is an argument.

NVML tells pids. Mostly they are ours, but a driver may tell those of another PID namespace, where the same number is
somebody else's process. Nobody is better than the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trackiod.sampler.processes import Rank


def joined(
    pids: Iterable[int],
    ranks: Iterable[Rank],
    inner_pids: Callable[[int], list[int]],
    has_device: Callable[[int], bool],
    is_here: Callable[[int], bool],
    *,
    is_first_namespace: bool,
) -> dict[int, list[Rank]]:
    """The ranks behind pids that the driver told, where that is sure; several where a process has several runs.

    `inner_pids`: a process's pids in the namespaces inside ours. `has_device`: whether a process of ours has a GPU's
    device file open. `is_here`: whether a pid names a process of ours. `is_first_namespace`: ours is the host's, in
    which the driver's pids are ours; only one that names nobody may be meant for a namespace inside.
    """
    by_pid: dict[int, list[Rank]] = {}
    for rank in ranks:
        if rank.pid > 0:
            by_pid.setdefault(rank.pid, []).append(rank)
    pids = set(pids)
    found: dict[int, list[Rank]] = {}
    if is_first_namespace:
        found = {pid: by_pid[pid] for pid in pids & by_pid.keys()}
        pids = {pid for pid in pids - found.keys() if not is_here(pid)}
    if not pids:
        return found
    meant: dict[int, set[int]] = {}
    for own in by_pid:
        for pid in {own, *inner_pids(own)} & pids:
            meant.setdefault(pid, set()).add(own)
    for pid, candidates in meant.items():
        holders = [own for own in candidates if has_device(own)]
        if len(holders) == 1:
            found[pid] = by_pid[holders[0]]
    return found
