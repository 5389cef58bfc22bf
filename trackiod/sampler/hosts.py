"""Reading the host: CPU, memory, pressure, the data folder's disk, networks. Where the kernel does not say, absent."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

from trackiod.sampler.counters import Counters
from trackiod.sampler.table import GIB, MIB

_PRESSURE = "/proc/pressure"
_INFINIBAND = "/sys/class/infiniband"
_SHORT_LIVED = ("veth", "cali", "lxc", "tap")
"""interfaces of containers, which come and go with them"""
_INFINIBAND_UNIT = 4
"""its data counters count words of four bytes"""
_INFINIBAND_ERRORS = ("symbol_error", "port_rcv_errors", "link_downed")


class Host:
    """The host that this process runs on."""

    def __init__(self, folder: str, infiniband: str = _INFINIBAND) -> None:
        """`folder` lies on the disk that is looked at; `infiniband` is where the kernel shows its cards."""
        self._folder = folder
        self._cards = infiniband
        self._counters = Counters()
        self._device = _device_of(folder)

    def read(self, now: float) -> dict[str, float]:
        """Everything that is to be had now."""
        found: dict[str, float] = {}
        for part in (self._cpu, self._memory, self._pressure, self._disk, self._network, self._infiniband):
            try:
                found.update(part(now))
            except (OSError, ValueError, AttributeError, RuntimeError, psutil.Error):
                continue  # not on this kernel, or not in this container
        return found

    def _cpu(self, now: float) -> Iterator[tuple[str, float]]:
        loads = psutil.getloadavg()
        yield from zip(("cpu/load_1", "cpu/load_5", "cpu/load_15"), loads, strict=True)
        shares = []
        for core, times in enumerate(psutil.cpu_times(percpu=True)):
            idle = times.idle + getattr(times, "iowait", 0.0)
            total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # in user and nice
            all_of_it = self._counters.growth(f"cpu {core}", total, now)
            idle_time = self._counters.growth(f"idle {core}", idle, now)
            if all_of_it is not None and idle_time is not None and all_of_it.amount > 0:
                share = 100.0 * max(0.0, 1.0 - idle_time.amount / all_of_it.amount)
                shares.append(share)
                yield f"cpu/{core}/utilization", round(share, 2)
        if shares:
            yield "cpu/utilization", round(sum(shares) / len(shares), 2)

    def _memory(self, now: float) -> Iterator[tuple[str, float]]:
        memory = psutil.virtual_memory()
        yield "memory/used", memory.used / GIB
        yield "memory/total", memory.total / GIB
        yield "memory/available", memory.available / GIB
        yield "memory/percent", memory.percent
        swap = psutil.swap_memory()
        yield "swap/used", swap.used / GIB
        yield "swap/total", swap.total / GIB
        yield "swap/percent", swap.percent

    def _pressure(self, now: float) -> Iterator[tuple[str, float]]:
        for what in ("cpu", "memory", "io"):
            with open(f"{_PRESSURE}/{what}", encoding="ascii") as file:
                lines = file.read().splitlines()
            for line in lines:
                kind, *fields = line.split()
                total = next(int(f.removeprefix("total=")) for f in fields if f.startswith("total="))
                growth = self._counters.growth(f"pressure {what} {kind}", total, now)
                if growth is not None and (what, kind) != ("cpu", "full"):  # which says nothing for a whole host
                    yield f"pressure/{what}_{kind}", round(min(100.0, growth.rate / 1e4), 3)

    def _disk(self, now: float) -> Iterator[tuple[str, float]]:
        usage = psutil.disk_usage(self._folder)
        yield "disk/used", usage.used / GIB
        yield "disk/free", usage.free / GIB
        yield "disk/percent", usage.percent
        counters = psutil.disk_io_counters(perdisk=True).get(self._device) if self._device else None
        if counters is None:
            return
        yield from self._rate("disk/read_mb_per_sec", counters.read_bytes, now, MIB)
        yield from self._rate("disk/write_mb_per_sec", counters.write_bytes, now, MIB)
        yield from self._rate("disk/read_iops", counters.read_count, now)
        yield from self._rate("disk/write_iops", counters.write_count, now)

    def _network(self, now: float) -> Iterator[tuple[str, float]]:
        for name, counters in psutil.net_io_counters(pernic=True).items():
            if name != "lo" and not name.startswith(_SHORT_LIVED):
                yield from self._rate(f"network/{name}/sent_mb_per_sec", counters.bytes_sent, now, MIB)
                yield from self._rate(f"network/{name}/recv_mb_per_sec", counters.bytes_recv, now, MIB)

    def _infiniband(self, now: float) -> Iterator[tuple[str, float]]:
        for card in sorted(os.listdir(self._cards)):
            ports = os.path.join(self._cards, card, "ports")
            for port in sorted(os.listdir(ports)):
                try:
                    yield from self._port(os.path.join(ports, port, "counters"), f"infiniband/{card}:{port}", now)
                except (OSError, ValueError):
                    continue  # this one does not count

    def _port(self, folder: str, name: str, now: float) -> Iterator[tuple[str, float]]:
        sent, received = (_count(folder, counter) for counter in ("port_xmit_data", "port_rcv_data"))
        yield from self._rate(f"{name}/sent_mb_per_sec", sent * _INFINIBAND_UNIT, now, MIB)
        yield from self._rate(f"{name}/recv_mb_per_sec", received * _INFINIBAND_UNIT, now, MIB)
        yield f"{name}/errors", sum(_count(folder, error) for error in _INFINIBAND_ERRORS)

    def _rate(self, name: str, value: float, now: float, unit: float = 1.0) -> Iterator[tuple[str, float]]:
        growth = self._counters.growth(name, value, now)
        if growth is not None:
            yield name, growth.rate / unit


def _count(folder: str, name: str) -> int:
    with open(os.path.join(folder, name), encoding="ascii") as file:
        return int(file.read())


def _device_of(folder: str) -> str:
    """The name of the block device under a folder, as the kernel's counters have it; empty if there is none."""
    number = os.stat(folder).st_dev
    try:
        return os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    except OSError:
        return ""
