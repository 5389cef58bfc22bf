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
    *,
    is_first_namespace: bool,
) -> dict[int, Rank]:
    """The ranks behind pids that the driver told, where that is sure.

    `inner_pids`: a process's pids in the namespaces inside ours. `has_device`: whether a process of ours has a GPU's
    device file open. `is_first_namespace`: ours is the host's, in which the driver's pids are ours.
    """
    by_pid = {rank.pid: rank for rank in ranks if rank.pid > 0}
    pids = set(pids)
    found = {pid: by_pid[pid] for pid in pids & by_pid.keys()} if is_first_namespace else {}
    unsure = pids - found.keys()
    if not unsure:
        return found
    within: dict[int, list[Rank]] = {}
    for rank in by_pid.values():
        for pid in {rank.pid, *inner_pids(rank.pid)} & unsure:
            within.setdefault(pid, []).append(rank)
    for pid, candidates in within.items():
        candidates = [rank for rank in candidates if has_device(rank.pid)]
        if len(candidates) == 1:
            found[pid] = candidates[0]
    return found
