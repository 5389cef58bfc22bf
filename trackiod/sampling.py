"""Who samples this node: starts the sampler while a training process lives, tells it what to do, ends it.

A sampler is a stream like a rank's, so a daemon that starts finds the one that is there and goes on with it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

from trackio import wire
from trackio.host import control_group, covers, devices_group
from trackio.places import Places, append
from trackio.settings import LONGEST_SAMPLE_SECONDS, SHORTEST_SAMPLE_SECONDS
from trackio.version import __version__
from trackiod import children
from trackiod.streams import LiveStream

log = logging.getLogger("trackiod.sampling")

LINGER_SECONDS = 30.0
"""An open handle to the driver blocks resets and MIG changes, so the sampler goes this long after the last stream."""
_SETTLE_SECONDS = 1.0
"""a process that lives no longer than this starts no sampler"""
_FIRST_SECONDS = 60.0
_SILENT_SECONDS = 15.0
"""how long a sampler may say nothing, at first, while the driver wakes its devices, and then"""
_LONGEST_PAUSE_SECONDS = 60.0
_END_SECONDS = 2.0
_WELL_SECONDS = 300.0
"""a sampler that lived so long did not fail at its start"""
_MOST_FAILURES = 3
_WITHOUT_GPU_SECONDS = 600.0
_HOST_AGAIN_SECONDS = 60.0


class Wishes(NamedTuple):
    """How often the streams want GPUs and host sampled, in seconds; None: nobody wants it."""

    gpu: float | None
    host: float | None


def wishes(asked: Iterable[Mapping[str, Any]], default: float) -> Wishes:
    """What the streams together want: each asks for `gpu` and `cpu` (False: not for me; None: as is the rule) at an
    interval, or at the default one; the smallest is taken."""
    found: dict[str, list[float]] = {"gpu": [], "cpu": []}
    for one in asked:
        for what, intervals in found.items():
            if one.get(what) is not False:
                interval = one.get(f"{what}_interval")
                intervals.append(float(interval) if _is_interval(interval) else default)
    return Wishes(min(found["gpu"], default=None), min(found["cpu"], default=None))


def _is_interval(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and SHORTEST_SAMPLE_SECONDS <= value <= LONGEST_SAMPLE_SECONDS


class Sampling:
    """Owns the sampler's process. Called from the loop; never waits."""

    def __init__(self, where: Places, *, is_allowed: bool, interval: float) -> None:
        self._places = where
        self._is_allowed = is_allowed
        self._interval = interval
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._wanted_at = time.monotonic()
        self._wishes = Wishes(None, None)
        self._failures = 0
        self._without_gpu_until = 0.0
        self._host_at = 0.0
        self._told = ""
        self._heard_at: dict[str, float] = {}
        self._states: dict[str, dict[str, Any]] = {}
        """what each sampler said last, by stream"""

    # -- in the loop -------------------------------------------------------------------------------------------------

    def check(self, streams: Mapping[str, LiveStream], now: float) -> list[LiveStream]:
        """Starts and ends the sampler as the streams need it. Returns the streams whose processes are to host another,
        since they see devices that ours may not."""
        ranks = [stream for stream in streams.values() if stream.role == "rank"]
        samplers = [stream for stream in streams.values() if stream.role == "sampler"]
        settled = [s.meta.get("sampling") or {} for s in ranks if now - s.met_at >= _SETTLE_SECONDS]
        self._wishes = wishes((asked for asked in settled if isinstance(asked, dict)), self._interval)
        if self._is_allowed and self._wishes != (None, None):
            self._wanted_at = now
        self._forget(samplers)
        self._look_after(samplers, now)
        is_there = self._child is not None or any(not stream.meta.get("hosted") for stream in samplers)
        if now == self._wanted_at and not is_there and now >= self._start_at:
            self._start(now)
        return self._hosts_wanted(ranks, samplers, now) if self._is_allowed else []

    def _hosts_wanted(self, ranks: list[LiveStream], samplers: list[LiveStream], now: float) -> list[LiveStream]:
        """One process of each group of devices that no sampler covers, at most once a minute."""
        if now < self._host_at or not any(self._states.get(s.id, {}).get("hidden") for s in samplers):
            return []
        covered = [str(sampler.meta.get("cgroup", "")) for sampler in samplers]
        found: dict[str, LiveStream] = {}
        for stream in ranks:
            group = control_group(stream.pid)
            if group and now - stream.met_at >= _SETTLE_SECONDS and not any(covers(c, group) for c in covered):
                found.setdefault(devices_group(group), stream)
        if found:
            self._host_at = now + _HOST_AGAIN_SECONDS
        return list(found.values())

    def orders(self, query: wire.SamplerQuery, streams: Mapping[str, LiveStream], now: float) -> dict[str, Any]:
        """What a sampler is to do until it asks again."""
        if query.stream in streams:
            self._heard_at[query.stream], self._states[query.stream] = now, query.state
        elders = self._elders(query.stream, streams)
        is_one_too_many = not query.state.get("hosted") and any(not elder.meta.get("hosted") for elder in elders)
        is_other = query.state.get("release") != __version__
        has_gpus = now >= self._without_gpu_until
        if has_gpus and self._wishes.gpu is not None and query.stream in streams and not query.state.get("devices"):
            self._heard_at[query.stream] = now + _FIRST_SECONDS - _SILENT_SECONDS  # it opens the driver next
        return {
            "leave": now - self._wanted_at > LINGER_SECONDS or is_one_too_many or is_other,
            "gpu": self._wishes.gpu is not None and has_gpus,
            "gpu_interval": self._wishes.gpu or self._interval,
            "host": self._wishes.host is not None,
            "host_interval": self._wishes.host or self._interval,
            "ranks": [_rank(stream) for stream in _by_rank(streams.values())],
            "webhooks": _webhooks(streams.values()),
            "elsewhere": [uuid for elder in elders for uuid in _devices(self._states.get(elder.id, {}))],
        }

    def facts(self, streams: Mapping[str, LiveStream]) -> dict[str, Any] | None:
        """What `status` says of it; None where nothing is sampled."""
        samplers = [stream for stream in streams.values() if stream.role == "sampler"]
        if not samplers and not self._failures:
            return None
        troubles = [str(t) for s in samplers if (t := self._states.get(s.id, {}).get("trouble"))]
        return {
            "pids": [stream.pid for stream in samplers],
            "gpu_interval": self._wishes.gpu,
            "host_interval": self._wishes.host,
            "failures": self._failures,
            "trouble": troubles[0] if troubles else self._told,
        }

    def end(self) -> None:
        """Ends the sampler at once; what it logged lies in its spool."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            try:
                child.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                log.error("the sampler (pid %d) is stuck in the driver; it is left behind", child.pid)

    # -- the child -----------------------------------------------------------------------------------------------------

    def _start(self, now: float) -> None:
        options = [self._told] if self._told else []
        try:
            with os.fdopen(append(self._places.log), "ab") as errors:
                self._child = children.start(self._places, "sample", *options, stderr=errors)
        except OSError as error:
            self._fail(f"It could not be started: {error}.", now)
            return
        self._started_at, self._told = now, ""

    def _look_after(self, samplers: list[LiveStream], now: float) -> None:
        """Ends a sampler that hangs, and takes note of one that ended."""
        child = self._child
        if child is not None and (code := child.poll()) is not None:
            self._child = None
            if code:
                how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
                self._fail(self._told or f"It ended with {how}, in the driver or the kernel.", now)
        elif child is not None and now - self._started_at > _WELL_SECONDS:
            self._failures = 0
        for stream in samplers:
            heard_at = self._heard_at.setdefault(stream.id, now + _FIRST_SECONDS - _SILENT_SECONDS)
            if now - heard_at > _SILENT_SECONDS and stream.pid > 0:
                self._told = f"It said nothing for {_SILENT_SECONDS:.0f} s, in a call to the driver, and was ended."
                log.warning("the sampler (pid %d) hangs and is ended", stream.pid)
                self._heard_at[stream.id] = now
                _kill(stream.pid)

    def _fail(self, sentence: str, now: float) -> None:
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            self._without_gpu_until = now + _WITHOUT_GPU_SECONDS
            sentence += f" GPUs are left alone for {_WITHOUT_GPU_SECONDS / 60:.0f} minutes."
        log.warning("the sampler failed (%d): %s", self._failures, sentence)
        self._told = sentence
        self._start_at = now + min(2.0**self._failures, _LONGEST_PAUSE_SECONDS)

    def _forget(self, samplers: list[LiveStream]) -> None:
        alive = {stream.id for stream in samplers}
        for stream in self._states.keys() - alive:
            del self._states[stream]
        for stream in self._heard_at.keys() - alive:
            del self._heard_at[stream]

    @staticmethod
    def _elders(stream_id: str, streams: Mapping[str, LiveStream]) -> list[LiveStream]:
        own = streams.get(stream_id)
        age = (own.meta["started_ns"], own.id) if own is not None else (1 << 63, "")
        return [s for s in streams.values() if s.role == "sampler" and (s.meta["started_ns"], s.id) < age]


def _by_rank(streams: Iterable[LiveStream]) -> list[LiveStream]:
    ranks = [stream for stream in streams if stream.role == "rank"]
    return sorted(ranks, key=lambda stream: (stream.meta["started_ns"], stream.meta["rank"]))


def _devices(state: Mapping[str, Any]) -> list[str]:
    devices = state.get("devices")
    return [str(uuid) for uuid in devices] if isinstance(devices, list) else []


def _rank(stream: LiveStream) -> list[Any]:
    """As `trackiod.sampler.processes.Rank` has it."""
    meta = stream.meta
    return [stream.id, stream.project, meta["run"], meta["name"], meta["rank"], stream.pid, meta["started_ns"]]


def _webhooks(streams: Iterable[LiveStream]) -> list[list[str]]:
    """(address, least level) of the runs that are here, each once, in the order of their starts."""
    found: dict[tuple[str, ...], None] = {}
    for stream in _by_rank(streams):
        hook = stream.meta.get("webhook")
        if isinstance(hook, list) and len(hook) == 2 and all(isinstance(part, str) for part in hook):
            found[tuple(hook)] = None
    return [list(hook) for hook in found]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass  # it is gone
