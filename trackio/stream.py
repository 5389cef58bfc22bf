"""A stream: all that this process logs in one attempt of one run. Packs records, puts them in the spool."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import msgpack

from trackio import places, wire
from trackio.growth import FIRST_SEGMENT_BYTES, WORKER_SEGMENT_BYTES
from trackio.record import MAX_PAYLOAD_BYTES, Kind, pack
from trackio.settings import Settings
from trackio.shipper import Shipper
from trackio.spool import Spool
from trackio.staging import Staging
from trackio.values import clean_text
from trackio.version import __version__

_LOG = int(Kind.LOG)
_CLOCK_SLACK_NS = 1_000_000_000
_packers: list[msgpack.Packer] = []
"""Idle packers. One is taken for the time of a pack, so neither threads nor re-entrant calls share one; they
have no hook, so nothing of the user's runs inside."""

PACK_ERRORS = (TypeError, ValueError, OverflowError, RuntimeError, BufferError)
"""What a hookless Packer raises for values that are not plain, lone surrogates and 65-bit ints included, and for a dict
that another thread changes meanwhile."""


class Stream:
    """One stream of records. Owns its spool; the shipper closes it at exit."""

    def __init__(
        self, shipper: Shipper, facts: dict[str, Any], settings: Settings, secrets: dict[str, Any] | None = None
    ) -> None:
        """`facts` are the run's and rank's; the process's own are added. Never raises."""
        self.id = os.urandom(8).hex()
        self._clock = (time.time_ns(), time.monotonic_ns())
        self.meta = {
            "format": wire.VERSION,
            "stream": self.id,
            "client": __version__,
            "pid": os.getpid(),
            "host": clean_text(os.uname().nodename),
            "boot_id": places.boot_id(),
            "started_ns": self._clock[0],
            "monotonic_ns": self._clock[1],
            **facts,
        }
        is_worker = facts.get("role") == "worker"
        self.spool = Spool(
            shipper.places,
            self.id,
            self.meta,
            limit_bytes=settings.spool_bytes,
            spill_bytes=settings.spill_bytes,
            first_bytes=WORKER_SEGMENT_BYTES if is_worker else FIRST_SEGMENT_BYTES,
        )
        self.places = shipper.places
        self._shipper = shipper
        self.shipment = shipper.add(self.spool, self.check_clock, secrets)
        self._ring = self.spool.ring
        self._artifacts = itertools.count()
        self.staging = Staging(
            shipper.places.incoming, self.id, self._note_file, settings.spill_bytes, self._ask_for_leases
        )

    def log(self, step: int, origin: int, metrics: dict[str, Any], _time_ns: Any = time.time_ns) -> bool:
        """Stores one log() call of plain values. False if there was no room. Raises PACK_ERRORS."""
        try:
            packer = _packers.pop()
        except IndexError:
            packer = msgpack.Packer(autoreset=True)
        now = _time_ns()
        payload = packer.pack((_LOG, now, step, origin, metrics))
        _packers.append(packer)
        if len(payload) > MAX_PAYLOAD_BYTES:
            return self._log_parts(step, origin, metrics, now)
        return self._ring.append(payload, len(metrics))

    def _log_parts(self, step: int, origin: int, metrics: dict[str, Any], now: int) -> bool:
        """A call too large for one record becomes several at the same step and time: all of them, or none."""
        parts = list(_parts(step, origin, metrics, now))
        accepted = [self._ring.append(payload, points) for payload, points in parts]
        return all(accepted)

    def note(self, kind: Kind, *fields: Any, seconds: float = 0.0) -> bool:
        """Stores a record of another kind; waits at most this long for room, and is False if there was none.
        Raises ValueError if it is too large."""
        payload = pack(kind, time.time_ns(), *fields)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"it is larger than {MAX_PAYLOAD_BYTES >> 20} MiB")
        deadline = time.monotonic() + seconds
        while not (accepted := self._ring.append(payload, None)) and time.monotonic() < deadline:
            time.sleep(0.002)  # the shipper was told that there is no room
        return accepted

    def next_artifact(self) -> int:
        """The number of the stream's next artifact."""
        return next(self._artifacts)

    def note_artifact(self, number: int, role: str, name: str, facts: dict[str, Any]) -> bool:
        """Stores that an artifact was logged or used."""
        return self.note(Kind.ARTIFACT, number, role, name, facts, seconds=1.0)

    def _note_file(self, number: int, facts: dict[str, Any]) -> bool:
        return self.note(Kind.FILE, number, facts)

    def _ask_for_leases(self, numbers: list[int], seconds: float) -> list[int] | None:
        from trackio import inquiry  # only where there is a large file

        answer = inquiry.ask(self.places, wire.Protect(self.id, numbers), seconds)
        return answer.files if isinstance(answer, wire.Protected) else None

    def check_clock(self) -> None:
        """Notes that the wall clock jumped against the monotonic one, so that durations can be told."""
        wall, monotonic = time.time_ns(), time.monotonic_ns()
        if abs((wall - self._clock[0]) - (monotonic - self._clock[1])) > _CLOCK_SLACK_NS:
            self._clock = (wall, monotonic)
            self.note(Kind.CLOCK, monotonic)

    @property
    def is_retired(self) -> bool:
        """Whether nothing can be logged to it any more."""
        return self.spool.ring.is_retired

    def deliver(self, seconds: float, *, is_patient: bool = False) -> bool:
        """Waits at most this long until the daemon has everything; where there is none, only who is patient."""
        return self._shipper.deliver(self.shipment, seconds, is_patient=is_patient)


def _parts(step: int, origin: int, metrics: dict[str, Any], now: int) -> Iterator[tuple[bytes, int]]:
    """Payloads of at most MAX_PAYLOAD_BYTES and their points. Raises ValueError for a larger single value."""
    payload = pack(Kind.LOG, now, step, origin, metrics)
    if len(payload) <= MAX_PAYLOAD_BYTES:
        yield payload, len(metrics)
        return
    items = list(metrics.items())
    if len(items) == 1:
        raise ValueError(f"{items[0][0]!r} is larger than {MAX_PAYLOAD_BYTES >> 20} MiB")
    half = len(items) // 2
    for part in (items[:half], items[half:]):
        yield from _parts(step, origin, dict(part), now)
