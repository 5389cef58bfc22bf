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
    inner: dict[int, list[Rank]] = {}
    for rank in by_pid.values():
        for pid in inner_pids(rank.pid):
            inner.setdefault(pid, []).append(rank)
    found: dict[int, Rank] = {}
    for pid in set(pids):
        own, within = by_pid.get(pid), inner.get(pid, [])
        if own is not None and is_first_namespace:
            found[pid] = own
            continue
        candidates = [rank for rank in dict.fromkeys([*([own] if own else []), *within]) if has_device(rank.pid)]
        if len(candidates) == 1:
            found[pid] = candidates[0]
    return found
