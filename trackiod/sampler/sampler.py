"""The sampler's life: asks the daemon what to sample and for whom, reads, and logs to a stream of its own.

It is a client like a training process: the same spool, the same shipper, the same offsets. It leaves when the daemon
says so, or has not answered for long. What the driver does to it, it does to nobody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from trackio import alerts, inquiry, names, places, settings, wire
from trackio.host import control_group
from trackio.newest import Board, Sample
from trackio.places import Places
from trackio.record import Kind, Origin
from trackio.shipper import Shipper
from trackio.stream import Stream
from trackio.values import clean_text
from trackio.version import __version__
from trackiod.sampler import processes
from trackiod.sampler.cgroups import Cgroups
from trackiod.sampler.gpus import Device, Event, Gpus, NoDriver
from trackiod.sampler.hosts import Host
from trackiod.sampler.joining import joined
from trackiod.sampler.nvml import has_changed
from trackiod.sampler.pacing import Pace
from trackiod.sampler.processes import Processes, Rank
from trackiod.sampler.table import GIB

_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""the number that the kernel gives the host's PID namespace"""
_ASK_SECONDS = 1.0
"""from question to question; up to five times as long where samples are as rare"""
_ANSWER_SECONDS = 0.3
"""which sampling waits for; without an answer all goes on as before"""
_ASK_AGAIN_SECONDS = 2.0
_ALONE_SECONDS = 30.0
_LOOK_AGAIN_SAMPLES = 12
"""after so many samples it is looked whether the devices are still the same, or there again"""
_CLOSE_SECONDS = 1.0


def main(hosted: bool = False, told: str = "") -> int:
    """Samples until there is nobody to sample for. `hosted`: started by a training process, for what the daemon may
    not see. `told`: what went wrong with the sampler before, to be said."""
    ours, _ = settings.of_this_process()
    where = places.of(ours)
    Sampler(where, ours, hosted=hosted, told=told).run()
    return 0


class Sampler:
    """One sampler. Owns its stream, the shipper that carries it, and the driver's handle."""

    def __init__(self, where: Places, ours: settings.Settings, *, hosted: bool, told: str) -> None:
        self._places = where
        self._told = told
        self._shipper = Shipper(where, autostart=False, starts_first=False)
        self._stream = Stream(self._shipper, self._facts(hosted), ours)
        self._board = Board(where, self._stream.id)
        self._board.clear()
        self._step = 0
        self._orders: dict[str, Any] = {}
        self._ranks: list[Rank] = []
        self._gpus: Gpus | None = None
        self._mine: list[Device] = []
        """the devices that this sampler reads, and no other one does"""
        self._looks = 0
        self._trouble = ""
        self._wants_new_life = False
        self._look_at = 0.0
        self._host = Host(where.live)
        self._processes = Processes()
        self._cgroups = Cgroups()
        self._hosted = hosted
        self._paces: dict[str, Pace] = {}
        self._values: dict[str, dict[str, Any]] = {}
        """the newest reading of each probe"""
        self._has_device: dict[int, bool] = {}
        self._is_first_namespace = _is_first_namespace()

    @staticmethod
    def _facts(hosted: bool) -> dict[str, Any]:
        return {
            "project": names.HOST, "run": "node", "name": clean_text(os.uname().nodename), "role": "sampler", "rank": 0,
            "local_rank": 0, "world_size": 1, "attempt": names.random_id(), "cgroup": control_group(), "hosted": hosted,
            "is_first_namespace": _is_first_namespace(),
        }  # fmt: skip

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._sample()
        finally:
            self._close_gpus()
            self._board.clear()
            self._stream.note(Kind.FINISH, "finished", "", True, seconds=_CLOSE_SECONDS)
            close_by = time.monotonic() + _CLOSE_SECONDS
            self._shipper.close(close_by, close_by)

    def _sample(self) -> None:
        ask_at = answered_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= ask_at:
                answer = self._ask()
                if answer is not None:
                    answered_at = now
                    self._obey(answer)
                ask_at = time.monotonic() + (_ASK_AGAIN_SECONDS if answer is None else self._ask_seconds)
                if self._orders.get("leave") or now - answered_at > _ALONE_SECONDS or self._wants_new_life:
                    return
            self._turn()
            soonest = min([ask_at, *(pace.due for pace in self._paces.values())])
            time.sleep(max(0.0, soonest - time.monotonic()))

    @property
    def _ask_seconds(self) -> float:
        return min([5 * _ASK_SECONDS, *(max(_ASK_SECONDS, pace.interval) for pace in self._paces.values())])

    def _ask(self) -> dict[str, Any] | None:
        state = {
            "release": __version__,
            "hosted": self._hosted,
            "devices": [device.uuid for device in self._gpus.devices] if self._gpus else [],
            "hidden": self._gpus.hidden if self._gpus else 0,
            "trouble": self._trouble,
        }
        answer = inquiry.ask(self._places, wire.SamplerQuery(self._stream.id, state), _ANSWER_SECONDS)
        return answer.orders if isinstance(answer, wire.SamplerOrders) else None

    def _obey(self, orders: dict[str, Any]) -> None:
        """Takes up what the daemon wants: who is sampled, what, and how often."""
        now = time.monotonic()
        is_first = not self._orders
        ranks = [Rank(*rank[: len(Rank._fields)]) for rank in orders.get("ranks", [])]
        if ranks != self._ranks:
            self._ranks = ranks
            self._has_device.clear()
            processes.inner_pids.cache_clear()
            self._processes.expect(ranks)
            self._cgroups.expect(ranks)
        self._orders = orders
        if is_first and self._told:
            self._alert(alerts.AlertLevel.WARN, "The sampler was restarted", self._told)
        wanted: dict[str, float] = {}
        if orders.get("gpu"):
            self._open_gpus(now)
            others = set(orders.get("elsewhere", ()))
            self._mine = [device for device in self._gpus.devices if device.uuid not in others] if self._gpus else []
            if self._mine:
                wanted["gpus"] = wanted["traffic"] = float(orders["gpu_interval"])
        else:
            self._close_gpus()
        if orders.get("host") and not self._hosted:
            wanted["host"] = wanted["processes"] = float(orders["host_interval"])
        for name in self._paces.keys() - wanted.keys():
            del self._paces[name]
        for name, interval in wanted.items():
            if name in self._paces:
                self._paces[name].change(interval, now)
            else:
                self._paces[name] = Pace(interval, now)

    def _turn(self) -> None:
        """Reads what is due, and logs each reading with the time it was made at."""
        is_new = False
        for name, pace in list(self._paces.items()):
            started = time.monotonic()
            if not pace.is_due(started):
                continue
            try:
                for what, values in self._readings(name):
                    self._values[what] = values
                    if values:
                        self._stream.log(self._step, int(Origin.COUNTER), values)
                        is_new = True
            except NoDriver as error:
                self._lose_gpus(error)
            pace.done(started, time.monotonic())
        self._tell_troubles()
        if is_new:
            self._step += 1
            self._show()

    def _readings(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What a probe reads, each with what it was read of. Raises NoDriver."""
        now = time.monotonic()
        if name == "host":
            yield "host", self._host.read(now)
        elif name == "processes":
            yield "processes", {**self._processes.read(now), **self._cgroups.read(now)}
        elif self._gpus is None:
            return
        elif name == "traffic":  # one device a turn, since each takes 40 ms
            self._looks += 1
            device = self._mine[self._looks % len(self._mine)]
            yield f"traffic {device.uuid}", _named(device, self._gpus.slow(device))
        else:
            for device in self._mine:
                values = _named(device, self._gpus.read(device, time.monotonic()))
                yield f"gpu {device.uuid}", {**values, **self._uses(self._gpus, device)}

    def _uses(self, gpus: Gpus, device: Device) -> dict[str, Any]:
        """What the ranks' processes do on a device; one that no rank is behind only counts."""
        uses = gpus.uses(device)
        if uses is None:
            return {}
        found: dict[str, Any] = {f"gpu/{device.uuid}/processes": len(uses)}
        ranks = joined(
            (use.pid for use in uses), self._ranks, processes.inner_pids, self._holds_device,
            processes.is_here, is_first_namespace=self._is_first_namespace,
        )  # fmt: skip
        for use in uses:
            for rank in ranks.get(use.pid, ()):
                prefix = f"gpu/{device.uuid}/process/{rank.stream}"
                found[f"{prefix}/is_there"] = 1
                if use.memory_bytes is not None:
                    found[f"{prefix}/memory"] = use.memory_bytes / GIB
                if use.sm_percent is not None:
                    found[f"{prefix}/utilization"] = use.sm_percent
        return found

    def _holds_device(self, pid: int) -> bool:
        if not self._has_device.get(pid):
            self._has_device[pid] = processes.holds_device(pid)
        return self._has_device[pid]

    def _show(self) -> None:
        devices = [device.facts() for device in self._gpus.devices] if self._gpus else []
        self._values = {what: values for what, values in self._values.items() if self._is_read(what)}
        values = {name: value for reading in self._values.values() for name, value in reading.items()}
        interval = min((pace.interval for pace in self._paces.values()), default=1.0)
        ranks = [list(rank[:6]) for rank in self._ranks]
        now_ns = time.time_ns()
        self._board.write(
            Sample(
                self._stream.id, now_ns, interval, devices, ranks, values, self._trouble,
                self._stream.meta["started_ns"], self._stream.meta["cgroup"],
            )
        )  # fmt: skip

    def _is_read(self, what: str) -> bool:
        """Whether something that was read is still read."""
        kind, _, uuid = what.partition(" ")
        return kind in self._paces if not uuid else any(device.uuid == uuid for device in self._mine)

    # -- the driver ------------------------------------------------------------------------------------------------

    def _open_gpus(self, now: float) -> None:
        """Opens the driver, and from time to time looks whether its devices are still those that were found."""
        if now < self._look_at:
            return
        self._look_at = now + self._patience
        if has_changed():
            self._wants_new_life = True  # the next one loads the library that is there now
            return
        try:
            if self._gpus is not None and self._gpus.is_current():
                return
            self._close_gpus()
            self._look_at = now + self._patience
            self._gpus = Gpus()
        except NoDriver as error:
            self._lose_gpus(error)
            return
        self._trouble = ""
        self._stream.note(Kind.CONFIG, {"devices": [device.facts() for device in self._gpus.devices]})
        self._gpus.watch(self._on_event)

    @property
    def _patience(self) -> float:
        """Seconds until the driver is looked at again: a minute, where there are samples every five seconds."""
        return _LOOK_AGAIN_SAMPLES * float(self._orders.get("gpu_interval", 5.0))

    def _close_gpus(self) -> None:
        gpus, self._gpus = self._gpus, None
        self._mine = []
        self._look_at = 0.0
        if gpus is not None:
            gpus.close()

    def _lose_gpus(self, error: NoDriver) -> None:
        """The driver does not work: the host is sampled on, and the driver is tried again later."""
        self._close_gpus()
        self._look_at = time.monotonic() + self._patience
        if error.is_odd and self._trouble != str(error):
            self._trouble = str(error)
            self._alert(alerts.AlertLevel.WARN, "GPUs are not sampled", str(error))

    def _tell_troubles(self) -> None:
        while self._gpus is not None and self._gpus.troubles:
            self._trouble = self._gpus.troubles.pop(0)
            self._alert(alerts.AlertLevel.ERROR, "A GPU cannot be read", self._trouble)

    def _on_event(self, event: Event) -> None:
        """From the thread that waits for them."""
        self._stream.log(self._step, int(Origin.COUNTER), {f"gpu/{event.uuid}/xid": event.xid})
        self._alert(alerts.AlertLevel.ERROR, f"Xid {event.xid}", f"GPU {event.label} ({event.uuid}) reported it.")

    def _alert(self, level: alerts.AlertLevel, title: str, text: str) -> None:
        hooks = (url for url, least in self._orders.get("webhooks", ()) if level >= least)
        self._stream.note(Kind.ALERT, alerts.facts(level, title, text, None, next(hooks, None)), seconds=_CLOSE_SECONDS)


def _named(device: Device, values: dict[str, float]) -> dict[str, Any]:
    return {f"gpu/{device.uuid}/{metric}": value for metric, value in values.items()}


def _is_first_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False
