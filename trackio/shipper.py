"""The shipper: one daemon thread per process and data folder that carries streams to trackiod.

It does what `Courier` decides, over `Link`, out of `Spool`. Nothing here is waited for by the training, and
nothing raises out of it. Everything it needs is imported before it starts, so a fork never meets an import.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from trackio import places, voice, wire
from trackio.link import ForeignPeer, Link, LinkError
from trackio.places import Endpoint, Places
from trackio.shipping import Courier, Held, SayHello, SendData, SendHeartbeat, SpillUpTo
from trackio.spool import Spool
from trackio.starter import Starter
from trackio.values import short_repr
from trackio.version import __version__
from trackio.wake import Wake

_IDLE_SECONDS = 0.5
_ACTIVE_SECONDS = 0.05
_ACK_WAIT_SECONDS = 0.01
_CLOSE_SECONDS = 0.2
_RECONNECT_SECONDS = 0.2
_MAX_STEPS_A_TURN = 16


class Shipment:
    """One stream on its way."""

    __slots__ = (
        "closed",
        "courier",
        "each_second",
        "incomplete",
        "introduced",
        "is_over",
        "next_second",
        "secrets",
        "spool",
    )

    def __init__(self, spool: Spool, each_second: Callable[[], None], secrets: dict[str, Any]) -> None:
        self.spool = spool
        self.courier = Courier(time.monotonic())
        self.each_second = each_second
        self.secrets = secrets
        self.next_second = 0.0
        self.introduced = spool.path
        self.closed = False
        self.incomplete = 0
        """files that the daemon says it could not keep whole"""
        self.is_over = False
        """its run has ended and another one has taken its place"""

    def held(self) -> Held:
        ring = self.spool.ring
        return Held(ring.head, self.spool.oldest, ring.oldest, self.spool.room_bytes, self.spool.spill.end or 0)

    @property
    def is_delivered(self) -> bool:
        """Whether the daemon has everything."""
        return self.courier.committed >= self.spool.ring.head


class Shipper:
    """Carries the streams of this process. Owns the thread and the link."""

    def __init__(self, places: Places, *, autostart: bool, starts_first: bool) -> None:
        """`starts_first`: local rank 0 starts a missing daemon at once, the others give it two seconds."""
        self.places = places
        self.wanted = Wake()
        self._shipments: dict[str, Shipment] = {}
        self._link: Link | None = None
        self._daemon: Endpoint | None = None
        """the one behind the link"""
        self._turn_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._connect_at = 0.0
        self._incomplete = 0
        """files not kept whole, of streams that were let go of"""
        self._starter = Starter(places, allowed=autostart, goes_first=starts_first, now=time.monotonic())

    # -- streams -------------------------------------------------------------------------------------------

    def add(self, spool: Spool, each_second: Callable[[], None], secrets: dict[str, Any] | None = None) -> Shipment:
        """Takes a stream on. Never raises; without a thread (RLIMIT_NPROC) the data wait in the spool."""
        shipment = Shipment(spool, each_second, secrets or {})
        spool.ring.wanted = self.wanted
        spool.on_pressure = lambda: self._relieve(shipment)
        self._shipments[spool.stream] = shipment
        self._stopping = False
        self.ensure_thread()
        self.wanted.set()
        return shipment

    def _relieve(self, shipment: Shipment) -> None:
        """log() is short of room. The thread sees to it; where none can be started, log() spills itself."""
        if not self.ensure_thread():
            shipment.spool.spill_upto(shipment.courier.committed, shipment.spool.ring.head)

    @property
    def refused(self) -> tuple[int, int]:
        """Records and points that found no room; a stream that has any is carried to the end."""
        counts = [shipment.spool.refused for shipment in self._all()]
        return sum(records for records, _ in counts), sum(points for _, points in counts)

    @property
    def incomplete(self) -> int:
        """Files that the daemon could not keep whole."""
        return self._incomplete + sum(shipment.incomplete for shipment in self._all())

    def _all(self) -> list[Shipment]:
        return list(self._shipments.values())

    def ensure_thread(self) -> bool:
        """Starts the thread if it does not run."""
        if self._thread is not None and self._thread.is_alive():
            return True
        thread = threading.Thread(target=self._run, name="trackio-shipper", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            voice.warn_once(
                "no-thread",
                "no thread can be started (process limit reached); metrics are kept and sent when one can.",
            )
            return False
        self._thread = thread
        return True

    def deliver(self, shipment: Shipment, seconds: float, *, is_patient: bool = False) -> bool:
        """Waits until the daemon has everything of a stream; True if it has. Only who is patient waits on where there
        is no daemon: for the one that is started."""
        self.ensure_thread()
        self.wanted.set()
        deadline = time.monotonic() + seconds
        while not shipment.is_delivered:
            if time.monotonic() >= deadline or (self._is_alone() and not is_patient):
                return False
            time.sleep(0.02 if is_patient else 0.001)
        return True

    def _is_alone(self) -> bool:
        """Whether a connection was tried and there is none."""
        return self._link is None and self._connect_at > 0

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self.wanted.clear()
            try:
                with self._turn_lock:
                    delay = self._turn(time.monotonic())
            except Exception as error:  # noqa: BLE001 the border to the user's process: never raise, never stop
                voice.warn_once("shipper", f"internal error while sending ({short_repr(error)}); metrics are kept.")
                self._drop_link()
                delay = 1.0
            if delay:
                self._rest(delay)

    def _rest(self, seconds: float) -> None:
        """Until something is logged, or while an answer is due, until it comes. Both cannot be waited for at
        once without a system call in log(), so the second wait is a short one."""
        patience = max((s.courier.answer_due(time.monotonic()) for s in self._all()), default=0.0)
        if self._link is None or not patience:
            self.wanted.wait(seconds)
        elif not self.wanted.is_set():
            self._link.wait(patience)

    def _turn(self, now: float) -> float:
        """One round over connection and streams. Returns how long to wait before the next."""
        self._connect(now)
        self._receive(now)
        if self._link is not None and self._link.is_clear and self._starter.wants_room(now):
            self._send(wire.Stop(f"handing over to trackio {__version__}"))
        busy = False
        for shipment in self._all():
            if not shipment.closed:
                busy |= self._serve(shipment, now)
                if shipment.is_over:
                    self._retire(shipment)
        if self._link is not None and not self._link.is_clear:
            return _ACK_WAIT_SECONDS
        if busy:
            return 0.0
        behind = any(not s.is_delivered for s in self._all())
        return _ACTIVE_SECONDS if behind or self._link is None else _IDLE_SECONDS

    def _serve(self, shipment: Shipment, now: float) -> bool:
        """Does what the courier says. True if it stopped only for its share of the turn."""
        spool, courier = shipment.spool, shipment.courier
        if self._link is not None and not courier.connected:
            courier.on_connect(now)
        spool.release(courier.committed)
        spool.maintain(now)
        if spool.path != shipment.introduced:
            shipment.introduced = spool.path
            courier.introduce_again(now)
        if now >= shipment.next_second:
            shipment.next_second = now + 1.0
            shipment.each_second()
        for _ in range(_MAX_STEPS_A_TURN):
            may_send = self._link is not None and self._link.is_clear
            action = courier.next(now, shipment.held(), may_send=may_send)
            if action is None or not self._do(action, shipment, now):
                return False
        return True

    def _retire(self, shipment: Shipment) -> None:
        """Lets go of a stream that is over: a process may have hundreds of runs, one after the other."""
        spool, committed = shipment.spool, shipment.courier.committed
        if any(spool.refused):
            return  # its counters are read when the process has gone
        if shipment.is_delivered:
            if not spool.ring.retire(committed):
                return
            spool.close()
        elif self._link is None:
            head = spool.ring.head
            if spool.spill_upto(committed, head) or spool.spill.end != head or not spool.ring.retire(head):
                return
            spool.leave()
        else:
            return
        shipment.closed = True
        self._incomplete += shipment.incomplete
        del self._shipments[spool.stream]

    def _do(self, action: SayHello | SendData | SendHeartbeat | SpillUpTo, s: Shipment, now: float) -> bool:
        spool, stream = s.spool, s.spool.stream
        match action:
            case SpillUpTo(end=end):
                problem = spool.spill_upto(s.courier.committed, end) or spool.spill.sync()
                s.courier.on_spill(problem, now)
                if problem:
                    voice.warn_once("spill", f"unacked metrics cannot be moved to disk: {problem}")
                return not problem
            case SayHello():
                meta = {**spool.meta, "spool": os.fsencode(spool.path), "weakness": spool.weakness}
                return self._send(wire.Hello(stream, meta, spool.oldest, spool.ring.head, secrets=s.secrets))
            case SendHeartbeat():
                return self._send(wire.Heartbeat(stream, spool.ring.head, spool.refused))
            case SendData(start=start):
                return self._send_batch(s, start, now)

    def _send_batch(self, s: Shipment, start: int, now: float) -> bool:
        spool = s.spool
        body = spool.read(start)
        if not body:
            return False
        try:
            end = start + len(body)
            sent = self._send(wire.Data(spool.stream, start, end, spool.oldest, spool.refused, body))
        finally:
            if isinstance(body, memoryview):
                body.release()
        if sent:
            s.courier.on_sent(end, now)
        return sent

    # -- the connection --------------------------------------------------------------------------------------

    def _send(self, message: wire.Message) -> bool:
        if self._link is None:
            return False
        try:
            self._link.send(message)
        except LinkError:
            self._drop_link()
            return False
        return True

    def _receive(self, now: float) -> None:
        if self._link is None:
            return
        try:
            self._link.flush()
            messages = self._link.receive()
        except LinkError:
            self._drop_link()
            return
        for message in messages:
            shipment = self._shipments.get(getattr(message, "stream", ""))
            if shipment is not None:
                shipment.courier.on_message(message, now)
                if isinstance(message, wire.Ack):
                    shipment.incomplete = max(shipment.incomplete, message.incomplete)
            if isinstance(message, wire.Welcome):
                self._starter.on_welcome(self._daemon, message, now)
            elif isinstance(message, wire.HostSampler):
                self._starter.start_sampler()
            elif isinstance(message, wire.Refusal):
                voice.warn_once(f"refusal {message.reason}", f"{message.reason} Metrics are kept on this host.")

    def _connect(self, now: float) -> None:
        self._starter.reap()
        if self._link is not None or now < self._connect_at:
            return
        endpoint = places.read_endpoint(self.places.endpoint)
        if endpoint is not None and endpoint.boot_id == places.boot_id():
            try:
                self._link, self._daemon = Link(endpoint.socket), endpoint
            except ForeignPeer as error:
                self._distrust(str(error))
            except LinkError:
                pass
        elif endpoint is None and (problem := places.endpoint_problem(self.places.endpoint)):
            self._distrust(problem)
        self._connect_at = now + _RECONNECT_SECONDS  # only now: until it has been tried, nobody is alone
        if self._link is not None:
            self._starter.on_connect(now)
        elif self._shipments:
            self._starter.start(now)

    @staticmethod
    def _distrust(problem: str) -> None:
        voice.warn_once("distrust", f"{problem}; nothing is sent there, and metrics are kept on this host.")

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
            self._starter.on_disconnect(time.monotonic())
        for shipment in self._all():
            shipment.courier.on_disconnect()

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self, seconds: float) -> None:
        """At exit: gives the daemon a moment, spills what nobody took, removes what everybody has."""
        deadline = time.monotonic() + seconds
        for shipment in self._all():
            delivered = self.deliver(shipment, max(0.0, deadline - time.monotonic()))
            self._close_one(shipment, delivered)
        self._stopping = True
        self.wanted.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)  # an interpreter that ends it itself needs a free descriptor

    def _close_one(self, shipment: Shipment, delivered: bool) -> None:
        if not self._turn_lock.acquire(timeout=_CLOSE_SECONDS):
            return  # the thread is stuck in a disk; what lies in shared memory outlives us
        try:
            if shipment.closed:
                return  # it was over, and the thread let go of it just now
            shipment.closed = True
            spool = shipment.spool
            spool.ring.append_queued()
            if delivered and not any(spool.refused) and spool.ring.retire(shipment.courier.committed):
                spool.close()
            elif not shipment.courier.welcomed or spool.weakness:
                spool.spill_upto(shipment.courier.committed, spool.ring.head)
        finally:
            self._turn_lock.release()

    def abandon(self) -> None:
        """In a forked child: forget the parent's streams and connection without touching them."""
        if self._link is not None:
            self._link.close()
        for shipment in self._all():
            shipment.spool.abandon()
