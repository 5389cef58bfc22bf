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

from trackio import durability, places, voice, wire
from trackio.descriptor import reserve
from trackio.link import ForeignPeer, Link, LinkError
from trackio.places import Endpoint, Places
from trackio.shipping import Courier, Held, SayHello, SendData, SendHeartbeat, SpillUpTo
from trackio.spill import SpillError
from trackio.spool import Spool
from trackio.starter import Starter
from trackio.values import short_repr
from trackio.version import __version__
from trackio.wake import Wake

_IDLE_SECONDS = 0.5
_ACTIVE_SECONDS = 0.05
_ACK_WAIT_SECONDS = 0.01
_LAST_SECONDS = 0.05
_RECONNECT_SECONDS = 0.2
_MAX_STEPS_A_TURN = 16
_SYNC_AGAIN_SECONDS = 1.0
_LEAST_PATIENCE_SECONDS, _MOST_PATIENCE_SECONDS = 0.1, 60.0
_LOOK_SECONDS = 0.002


class Shipment:
    """One stream on its way."""

    __slots__ = (
        "closed", "courier", "each_second", "incomplete", "introduced", "is_over", "next_second", "patience", "read_at",
        "secrets", "spool", "sync_at",
    )  # fmt: skip

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
        self.read_at = self.patience = 0.0
        """when to try again to read what lies on disk, and how long to wait after the next failure"""
        self.sync_at = 0.0

    def held(self) -> Held:
        ring = self.spool.ring
        return Held(ring.head, self.spool.oldest, ring.oldest, self.spool.room_bytes, self.spool.spill.end or 0)

    @property
    def is_delivered(self) -> bool:
        """Whether the daemon has everything."""
        return self.courier.committed >= self.spool.ring.head

    @property
    def is_at_stake(self) -> bool:
        """Whether the end of the host, without a daemon before it, would cost records."""
        spool = self.spool
        if self.is_delivered or (self.courier.welcomed and not spool.weakness):
            return False
        return not spool.spill.is_kept or (spool.spill.end or 0) < spool.ring.head

    def keep(self, now: float) -> str:
        """Goes on with having the disk keep what was moved there; nothing is waited for. Returns why not, or ""."""
        spill = self.spool.spill
        if now < self.sync_at or spill.is_kept:
            return ""
        problem = spill.keep()
        if problem:
            self.sync_at = now + _SYNC_AGAIN_SECONDS
            voice.warn_once("sync", f"what was moved to disk may not outlive a loss of power: {problem}")
        return problem

    def on_unreadable(self, error: SpillError, now: float) -> None:
        """The disk does not give back what it has: that is no answer, so it is asked again, more and more rarely."""
        self.patience = min(_MOST_PATIENCE_SECONDS, 2 * self.patience or _LEAST_PATIENCE_SECONDS)
        self.read_at = now + self.patience
        voice.warn_once("unreadable", f"metrics on disk cannot be read now, and are kept there: {error}")


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
        self._stopping = self._is_closed = False
        self._close_by = 0.0
        """when the process leaves, whatever the disk does; 0 while it stays"""
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
        self._stopping = self._is_closed = False
        self._close_by = 0.0
        reserve.take(len(self._shipments))
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

    def count_only_here(self) -> int:
        """Records that end with this process: no daemon took them, and the disk could not."""
        streams = [shipment for shipment in self._all() if not shipment.is_delivered]
        return sum(shipment.spool.count_only_here(shipment.courier.committed) for shipment in streams)

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
                    if self._close_by:
                        self._close_all(self._close_by)
                        return
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
            try:
                self._link.wait(patience)
            except LinkError:
                self._drop_link()

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
        shipment.keep(now)
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
            if spool.spill_upto(committed, head) or spool.spill.end != head or not spool.spill.is_kept:
                return
            if not spool.ring.retire(head):
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
                problem = spool.spill_upto(s.courier.committed, end)
                s.keep(now)  # a disk that does not sync now is no reason to move less there
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
        if now < s.read_at:
            return False
        try:
            body = spool.read(start)
        except SpillError as error:
            s.on_unreadable(error, now)
            return False
        s.patience = 0.0
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
            shipment.spool.check_soon()

    # -- the end -----------------------------------------------------------------------------------------------

    def close(self, deliver_by: float, close_by: float) -> int:
        """At exit: gives the daemon a moment, has the disk keep what nobody took, removes what everybody has. Returns
        how many streams would lose their last records with the host: what the disk did not take or keep in time.

        The thread does it, so a disk that hangs holds up nobody for longer."""
        for shipment in self._all():
            self.deliver(shipment, max(0.0, deliver_by - time.monotonic()))
        self._close_by = close_by
        self.wanted.set()
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._close_all(close_by, may_wait=False)
        else:
            while thread.is_alive() and not self._is_closed and time.monotonic() < close_by:
                time.sleep(_LOOK_SECONDS)
            thread.join(_LAST_SECONDS)  # an interpreter that ends it itself needs a free descriptor
        if self._link is not None:
            self._link.close()
        self._stopping = True
        return sum(shipment.is_at_stake for shipment in self._all())

    def _close_all(self, close_by: float, *, may_wait: bool = True) -> None:
        for shipment in self._all():
            try:
                self._close_one(shipment)
            except Exception as error:  # noqa: BLE001 the others are to be closed, too
                voice.warn_once(
                    "close", f"internal error at exit ({short_repr(error)}); metrics are kept on this host."
                )
        waiting = [shipment.spool.spill for shipment in self._all()] if may_wait else []
        while waiting and time.monotonic() < close_by:
            waiting = [spill for spill in waiting if not spill.keep() and not spill.is_kept]
            time.sleep(_LOOK_SECONDS if waiting else 0)
        self._is_closed = True

    def _close_one(self, shipment: Shipment) -> None:
        if shipment.closed:
            return
        shipment.closed = True
        spool, committed = shipment.spool, shipment.courier.committed
        spool.ring.append_queued()
        if shipment.is_delivered and not any(spool.refused) and spool.ring.retire(committed):
            spool.close()
        elif not shipment.courier.welcomed or spool.weakness:
            spool.spill_upto(committed, spool.ring.head)

    def abandon(self) -> None:
        """In a forked child: forget the parent's streams and connection without touching them."""
        if self._link is not None:
            self._link.close()
        for shipment in self._all():
            shipment.spool.abandon()
        durability.abandon()
