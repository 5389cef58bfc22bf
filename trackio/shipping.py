"""What one stream does next: send, wait, spill. Pure: offsets and times in, decisions out.

`Courier` knows no sockets, threads or clock; the shipper carries out what it decides and tells it what came
back. The daemon's committed offset is the only truth; everything here is a guess that any answer corrects.
`Succession` decides whether an older daemon is asked to make room.
"""

from __future__ import annotations

from typing import NamedTuple

from trackio.version import is_older
from trackio.wire import Ack, Message, Refusal, Unknown, Welcome

WINDOW_BYTES = 4 << 20
HELLO_AGAIN_SECONDS = 5.0
HEARTBEAT_SECONDS = 2.0
RESEND_SECONDS = 10.0
SPILL_AFTER_SECONDS = 5.0
HAND_OVERS_A_PROCESS = 3
_LIVES_THAT_HAND_OVER = ("autostarted", "started")
_PROMPT_SECONDS, _PROMPT_FOR_SECONDS, _PATIENT_SECONDS = 0.01, 1.0, 0.03


class Held(NamedTuple):
    """What the spool holds now: offsets, and what the ring may come to hold in bytes."""

    head: int
    oldest: int
    ring_oldest: int
    ring_room: int
    spilled: int = 0
    """the end of what lies on disk"""


class SayHello(NamedTuple):
    """Introduce the stream."""


class SendData(NamedTuple):
    """Send a batch that begins at `start`."""

    start: int


class SendHeartbeat(NamedTuple):
    """Say that the stream lives."""


class SpillUpTo(NamedTuple):
    """Move the ring's bytes below `end` to disk."""

    end: int


Action = SayHello | SendData | SendHeartbeat | SpillUpTo


class Courier:
    """Decides for one stream."""

    def __init__(self, now: float) -> None:
        self.committed = 0
        """everything below is durable in the daemon's store, as far as it told us"""
        self.sent = 0
        self.connected = False
        self.welcomed = False
        """the daemon's reason for not taking the stream, if it gave one"""
        self._hello_at = -HELLO_AGAIN_SECONDS
        self._spoke_at = now
        self._progress_at = now
        """when the backlog was last empty or shrank"""
        self._resend_after = now
        """when something was sent into an empty pipe, or acked"""
        self._spill_again_at = now

    @property
    def in_flight(self) -> int:
        """Bytes sent and not yet acked."""
        return max(0, self.sent - self.committed)

    def answer_due(self, now: float) -> float:
        """How long to wait for the daemon's next word at a time, in seconds; 0 if none is due."""
        if self.welcomed and not self.in_flight:
            return 0.0
        spoke = max(self._progress_at, self._hello_at) if self.connected else now
        return _PROMPT_SECONDS if now - spoke < _PROMPT_FOR_SECONDS else _PATIENT_SECONDS

    def on_connect(self, now: float) -> None:
        """A fresh connection: the daemon behind it may be another one."""
        self.connected = True
        self.introduce_again(now)

    def on_disconnect(self) -> None:
        self.connected = self.welcomed = False

    def introduce_again(self, now: float) -> None:
        """The daemon has forgotten the stream, or its facts have changed."""
        self.welcomed = False
        self._hello_at = now - HELLO_AGAIN_SECONDS

    def on_sent(self, end: int, now: float) -> None:
        """A batch up to `end` has left."""
        if not self.in_flight:
            self._resend_after = now
        self.sent = max(self.sent, end)
        self._spoke_at = now

    def on_message(self, message: Message, now: float) -> None:
        """What the daemon answered about this stream."""
        match message:
            case Welcome():
                self.welcomed = True
                self.committed = self.sent = message.committed
                self._progress_at = now
            case Ack() if message.rewind:
                self.committed = self.sent = message.committed
            case Ack() if message.committed > self.committed:
                self.committed = message.committed
                self.sent = max(self.sent, message.committed)
                self._progress_at = self._resend_after = now
            case Ack() if self.in_flight and now - self._resend_after > RESEND_SECONDS:
                self.sent, self._resend_after = self.committed, now  # the daemon answers: a batch got lost
            case Unknown():
                self.introduce_again(now)
            case Refusal():
                self.welcomed = False
            case _:
                pass

    def next(self, now: float, held: Held, *, may_send: bool) -> Action | None:
        """The next thing to do, or None: wait. Call again after doing it. `may_send`: the link takes more."""
        if held.head <= self.committed:
            self._progress_at = now
        if (spill := self._spill(now, held)) is not None:
            return spill
        if not self.connected or not may_send:
            return None
        if not self.welcomed:
            if now - self._hello_at < HELLO_AGAIN_SECONDS:
                return None
            self._hello_at = self._spoke_at = now
            return SayHello()
        start = max(self.sent, held.oldest)
        if start < held.head and start - self.committed < WINDOW_BYTES:
            return SendData(start)
        if now - self._spoke_at >= HEARTBEAT_SECONDS:
            self._spoke_at = now
            return SendHeartbeat()
        return None

    def _spill(self, now: float, held: Held) -> SpillUpTo | None:
        """Memory is short, or data have waited too long with nobody to take them."""
        in_ring = held.head - held.ring_oldest
        unacked = held.head - max(self.committed, held.ring_oldest, held.spilled)
        if unacked <= 0 or now < self._spill_again_at:
            return None
        waited = now - self._progress_at
        if waited < SPILL_AFTER_SECONDS and in_ring <= held.ring_room // 2:
            return None
        return SpillUpTo(held.head)

    def on_spill(self, problem: str, now: float) -> None:
        """The spill was done, or failed; a failing disk is not tried at every turn."""
        self._spill_again_at = now + (1.0 if problem else 0.0)


class Succession:
    """Whether to ask the daemon we met to hand over to one of our own release: if it is older and nobody but us
    would start it again. Each daemon is asked once, and a process asks three times in its life: two releases
    that both keep starting daemons must not chase each other."""

    def __init__(self, release: str, patience_seconds: float) -> None:
        """`patience_seconds`: how long the daemon is left to others who may ask it first."""
        self.life = ""
        """who had started the daemon that was asked"""
        self._release = release
        self._patience_seconds = patience_seconds
        self._asked: list[tuple[int, int]] = []
        self._met: tuple[tuple[int, int], str] | None = None
        self._ask_at = 0.0

    def on_welcome(self, daemon: tuple[int, int], release: str, life: str, now: float) -> None:
        """A daemon, told from others by its pid and start, said what it is."""
        is_worth_it = is_older(release, self._release) and life in _LIVES_THAT_HAND_OVER
        if self._met is None and is_worth_it and daemon not in self._asked:
            self._met, self._ask_at = (daemon, life), now + self._patience_seconds

    def on_disconnect(self) -> None:
        self._met = None

    def asks(self, now: float) -> bool:
        """Whether to ask now; it is then taken for done."""
        if self._met is None or now < self._ask_at or len(self._asked) >= HAND_OVERS_A_PROCESS:
            return False
        daemon, self.life = self._met
        self._asked.append(daemon)
        self._met = None
        return True
