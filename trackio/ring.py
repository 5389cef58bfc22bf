"""The ring: where log() writes. A few mapped segments that hold the stream from `oldest` to `head`.

`append` is the hot path: no system call, nothing that releases the GIL. The lock covers only reserving
space and copying. A log() that re-enters on the same thread (a signal handler, `__del__`) never waits for
it: its bytes queue and the outer call appends them.

A signal handler may log, wait for another thread that logs, and raise, wherever the main thread is in here: the lock is
taken as `locks` says, and every step leaves what the next append() can go on from. A thread that does not get the lock
leaves its bytes in the queue, too.

One other thread, the shipper, reads ranges and releases what is acked or spilled.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from zlib import crc32

from trackio.forks import mark, notice
from trackio.locks import CONTENDED_SECONDS, free, under
from trackio.record import COMMITTED, CRC_SLICE, checksum
from trackio.segment import HEADER_BYTES, Segment
from trackio.wake import Wake

_pack_header = struct.Struct("<II").pack
_MARK_BYTES = 128 << 10


class Retired(Exception):
    """The stream has ended for good; what is logged from now on belongs into another one."""


class Ring:
    """Segments in the order of their offsets: sealed ones, the active one, and spares that hold nothing."""

    def __init__(self, first: Segment, counters: memoryview, provide: Callable[[int], bool]) -> None:
        """`counters` are two words, records and points refused. `provide(size)` makes a spare that fits."""
        self.head = 0
        """the offset after the last record"""
        self.wanted = Wake()
        """set when the shipper has something to do"""
        self._counters = counters
        self._provide = provide
        self._lock = threading.RLock()  # a re-entrant call passes, and finds `_busy`
        self._main = threading.main_thread().ident
        self._busy = False
        self.is_retired = False
        self._queued: deque[tuple[bytes, int | None]] = deque()
        self._in_hand: tuple[bytes, int | None] | None = None
        """the one that is being put, whether or not something raised meanwhile; and the head before that"""
        self._in_hand_from = 0
        self._sealed: deque[Segment] = deque()
        self._spares: list[Segment] = []
        self._marks: deque[int] = deque()
        self._mark_at = _MARK_BYTES
        self._position = self._limit = 0
        self._activate(first)

    # -- the writing side ------------------------------------------------------------------------------

    def append(self, payload: bytes, points: int | None) -> bool:
        """Stores one record; False if there was no room. A log() call has `points` and is counted as refused then,
        a record of another kind has None. Raises Retired. (It takes the lock as `locks.under` does: a call costs.)"""
        if not mark[0]:
            notice()
            raise Retired  # it is the parent's
        lock = self._lock
        if get_ident() == self._main:
            try:
                with lock:
                    return self._append(payload, points)
            except BaseException:
                free(lock)
                raise
            finally:
                if self._queued:
                    self.append_queued()
        if not lock.acquire(True, CONTENDED_SECONDS):
            self._queued.append((payload, points))
            return True
        try:
            return self._append(payload, points)
        finally:
            lock.release()
            if self._queued:
                self.append_queued()

    def _append(self, payload: bytes, points: int | None) -> bool:
        if self._busy or self._queued:
            # a signal handler or __del__ in the middle of this thread's own append(), or others came first
            self._queued.append((payload, points))
            return True
        self._busy = True
        try:
            return self._put(payload, points)
        finally:
            self._busy = False

    def append_queued(self) -> None:
        """Appends what was left in the queue, unless somebody is in the middle of append()."""
        under(self._lock, self._drain, None)

    def _drain(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._queued:
                record = self._queued[0]
                if record is not self._in_hand:
                    self._in_hand_from = self.head
                    self._in_hand = record
                if self.head == self._in_hand_from:  # else it was put before something raised
                    self._put(*record)
                self._queued.popleft()
        finally:
            self._busy = False

    def _put(self, payload: bytes, points: int | None) -> bool:
        length = len(payload)
        size = (length + 23) & -8
        position = self._position
        if position + size > self._limit:
            if not self._roll(size):
                if points is not None:
                    self._counters[0] += 1
                    self._counters[1] += points
                return False
            position = self._position
        offset = self.head
        self._map[position + 8 : position + 16 + length] = (
            _pack_header(length, crc32(payload) if length <= CRC_SLICE else checksum(payload)) + payload
        )
        self._words[position >> 3] = offset | COMMITTED
        self._position = position + size
        self.head = head = offset + size
        if head >= self._mark_at:
            self._mark_at = head + _MARK_BYTES
            self._marks.append(head)
            self.wanted.set()
        return True

    def _roll(self, size: int) -> bool:
        """Goes on in a spare that holds `size` bytes; False if there is none to be had. Raises Retired."""
        if self.is_retired:
            raise Retired
        spare = self._spare_for(size)
        if spare is None and self._provide(size):
            spare = self._spare_for(size)
        self.wanted.set()
        if spare is None:
            return False
        self._seal()
        self._activate(spare)
        self._spares.remove(spare)
        return True

    def has_spare(self, size: int) -> bool:
        """Whether a spare holds `size` bytes."""
        return any(spare.capacity >= size for spare in self._spares)

    def _spare_for(self, size: int) -> Segment | None:
        self._drop_used()
        return next((spare for spare in self._spares if spare.capacity >= size), None)

    def _drop_used(self) -> None:
        """Spares no more are those that a roll went on in before something raised in the middle of it."""
        for spare in [*self._spares]:
            if spare is self._active or spare in self._sealed:
                self._spares.remove(spare)

    def _seal(self) -> None:
        """Nothing more fits into the active segment, whatever becomes of the next one."""
        self._limit = 0
        self._active.end = self.head
        if not self._sealed or self._sealed[-1] is not self._active:
            self._sealed.append(self._active)
        self._marks.append(self.head)

    def _activate(self, segment: Segment) -> None:
        segment.start_at(self.head)
        self._active, self._map, self._words = segment, segment.map, segment.words
        self._position = HEADER_BYTES
        self._limit = HEADER_BYTES + segment.capacity

    # -- the shipper's side ----------------------------------------------------------------------------

    @property
    def oldest(self) -> int:
        """The first offset still held here."""
        sealed = self._sealed
        try:
            first = sealed[0]
        except IndexError:
            first = self._active
        return first.base

    @property
    def has_queued(self) -> bool:
        """Whether calls left something that nobody has appended yet."""
        return bool(self._queued)

    @property
    def capacity_bytes(self) -> int:
        """What all segments hold together."""
        return sum(s.capacity for s in (*self._sealed, self._active, *self._spares))

    @property
    def spare_bytes(self) -> int:
        """Room left before the next segment is needed."""
        return sum(s.capacity for s in self._spares) + self._limit - self._position

    def segments(self) -> list[Segment]:
        """All of them, for whoever closes or checks them."""
        return list(dict.fromkeys([*self._sealed, self._active, *self._spares]))

    def add(self, spare: Segment) -> None:
        """Gives the ring one more segment to go on in."""
        self._spares.append(spare)

    def drop_spare(self) -> Segment | None:
        """Takes the largest spare away, if another one stays."""
        return under(self._lock, self._drop_largest, None)

    def _drop_largest(self) -> Segment | None:
        self._drop_used()
        if len(self._spares) < 2:
            return None
        largest = max(self._spares, key=lambda s: s.capacity)
        self._spares.remove(largest)
        return largest

    def retire(self, committed: int) -> bool:
        """Ends the ring, if everything in it is committed: from now on append() raises Retired."""
        return under(self._lock, lambda: self._retire(committed), False)

    def _retire(self, committed: int) -> bool:
        if self._busy or self._queued or self.head != committed:
            return False
        self.is_retired = True
        self._limit = 0
        return True

    def range_end(self, start: int, limit_bytes: int) -> int:
        """Where a batch from `start` ends: a record border of one segment, `limit_bytes` on or little more."""
        end = self.head  # read before the segments: it never lies in a later one than theirs
        for segment in list(self._sealed):
            if segment.base <= start < segment.end:
                end = segment.end
        if end - start <= limit_bytes:
            return end
        borders = [m for m in list(self._marks) if start < m <= end]
        within = [m for m in borders if m - start <= limit_bytes]
        return within[-1] if within else borders[0] if borders else end

    def view(self, start: int, end: int) -> memoryview | None:
        """The bytes of a range that `range_end` gave, or None if they are no longer here."""
        for segment in (*self._sealed, self._active):
            if segment.base <= start < (segment.end if segment is not self._active else self.head):
                return segment.view(start, end)
        return None

    def release(self, upto: int) -> list[Segment]:
        """Gives back the sealed segments that lie wholly below `upto`."""
        freed = []
        while self._sealed and self._sealed[0].end <= upto and self._sealed[0] is not self._active:
            freed.append(self._sealed.popleft())
        while self._marks and self._marks[0] <= self.oldest:
            self._marks.popleft()
        return freed

    def forget(self, segment: Segment) -> int:
        """Drops a sealed segment whose bytes are gone; returns how many it held."""
        if segment not in self._sealed:
            return 0
        self._sealed.remove(segment)
        return segment.end - segment.base

    def switch(self, segment: Segment, counters: memoryview, refused: list[int] | None = None) -> list[Segment] | None:
        """Goes on in `segment` at once, counts refusals in `counters`, and returns the spares, which lie where nothing
        may lie any more; None if somebody holds the lock for too long. `refused`: how many there were so far, where the
        counters so far cannot be read."""
        return under(self._lock, lambda: self._switch(segment, counters, refused), None)

    def _switch(self, segment: Segment, counters: memoryview, refused: list[int] | None) -> list[Segment]:
        counters[0], counters[1] = refused or (self._counters[0], self._counters[1])
        self._counters = counters
        self._drop_used()
        spares, self._spares = self._spares, []
        if self.head > self._active.base:
            self._seal()
        else:
            spares.append(self._active)
        self._activate(segment)
        return spares
