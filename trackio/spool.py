"""The spool: one stream's bytes on this host until they are acked. Ring in shared memory, spill on disk.

It decides where segments lie and how many there are; `Ring` writes into them, `Spill` takes what must leave
memory. Everything about the stream is in its folder, so whoever finds it can finish the job.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from trackio import growth, host, mounts, voice
from trackio.descriptor import open_file, reserve
from trackio.folder import StreamFolder, unlink
from trackio.locks import under
from trackio.mapping import map_file
from trackio.places import COUNTERS, Places
from trackio.record import records
from trackio.ring import Ring
from trackio.segment import PREFIX, Segment, preallocate
from trackio.spill import Spill, SpillError
from trackio.wire import MAX_BATCH_BYTES

_COUNTER_BYTES = 4096
_SHRINK_AFTER_SECONDS = 30.0
_CHECK_EVERY_SECONDS = 1.0


class Spool:
    """The bytes of one stream. Owns its segments, its folders and the owner lock; `close` ends them."""

    def __init__(
        self,
        places: Places,
        stream: str,
        meta: dict[str, Any],
        *,
        limit_bytes: int,
        spill_bytes: int,
        first_bytes: int = growth.FIRST_SEGMENT_BYTES,
    ) -> None:
        """Creates the stream's folder in the best runtime root. Never raises: without any usable root, or
        without file descriptors, the ring is private memory and `weakness` says what that costs."""
        self.stream = stream
        self.meta = meta
        self.weakness = ""
        self._places = places
        self._limit_bytes = limit_bytes
        self._first_bytes = first_bytes
        self._folder: StreamFolder | None = None
        self._root = ""
        self._room = growth.Room(0, 0, 0)
        self._room_until = 0.0
        self._is_cramped = False
        self.on_pressure: Callable[[], None] = lambda: None
        """called when log() itself needs room: the shipper has not kept up, or has no thread"""
        self._names = 0
        self._provide_lock = threading.RLock()  # a log() in a signal handler passes
        self._stale: set[int] = set()
        self._former: list[StreamFolder] = []
        """removed ones; the daemon tells by their owner files that we live"""
        self._left: list[str] = []
        """segments of no use that could not be removed"""
        self._next_check = 0.0
        self._quiet_since = time.monotonic()
        self._acked = 0
        self._seen_refused = [0, 0]
        first = self._settle()
        self._counters_map = self._open_counters()
        self._counters = memoryview(self._counters_map).cast("Q")
        self.ring = Ring(first, self._counters, self._provide_for_log)
        self.spill = Spill(os.path.join(places.spill, stream), lambda: self.meta, spill_bytes)
        self._provide(0)

    # -- where it lies ---------------------------------------------------------------------------------

    def _settle(self) -> Segment:
        """A folder and a first segment in the first root that can take them."""
        problem = "no tmpfs is usable"
        for root in self._places.roots:
            if not mounts.of(root).is_mappable:
                continue
            folder = None
            try:
                root = self._places.make_root(root)
                self._root, self._room_until = root, 0.0
                if not self._has_room(2 * self._first_bytes):
                    problem = f"{root} is nearly full"
                    continue
                folder = StreamFolder(os.path.join(root, "streams", self.stream), self.meta)
                segment = Segment(self._segment_path(folder.path), self._first_bytes)
            except OSError as error:
                problem = f"{root}: {error.strerror or error}"
                if folder is not None:
                    folder.remove()
                continue
            self._folder, self.weakness = folder, ""
            return segment
        self._folder, self._root = None, ""
        self.weakness = f"{problem}, so metrics wait in the process's own memory: a kill loses what is not yet sent."
        voice.warn_once("no-shared-memory", self.weakness)
        return Segment("", self._first_bytes)

    def _segment_path(self, folder: str) -> str:
        self._names += 1
        return os.path.join(folder, f"{PREFIX}{self._names:06d}")

    def _open_counters(self) -> mmap.mmap:
        """A page that outlives a SIGKILL: two words, the records and the points refused."""
        if self._folder is None:
            return mmap.mmap(-1, _COUNTER_BYTES)
        try:
            fd = open_file(os.path.join(self._folder.path, COUNTERS), os.O_RDWR | os.O_CREAT)
        except OSError:
            return mmap.mmap(-1, _COUNTER_BYTES)
        try:
            preallocate(fd, _COUNTER_BYTES)
            return map_file(fd, _COUNTER_BYTES)
        except OSError:
            return mmap.mmap(-1, _COUNTER_BYTES)
        finally:
            os.close(fd)

    @property
    def path(self) -> str:
        """The stream's folder in shared memory; empty if the ring is private."""
        return self._folder.path if self._folder else ""

    @property
    def refused(self) -> list[int]:
        """Records and points refused so far."""
        self._seen_refused = [self._counters[0], self._counters[1]]
        return self._seen_refused

    @property
    def oldest(self) -> int:
        """The first offset this process still holds."""
        spilled = self.spill.oldest
        return self.ring.oldest if spilled is None else min(spilled, self.ring.oldest)

    @property
    def room_bytes(self) -> int:
        """What the ring may come to hold: its limit, or where the host spares it no more, what it has."""
        return self.ring.capacity_bytes if self._is_cramped else self._limit_bytes

    # -- growing and shrinking ---------------------------------------------------------------------------

    def _provide(self, size: int) -> bool:
        """Makes one more spare, if the host can spare it: ahead of need by the shipper, else by log(), which
        then needs one of `size` bytes."""
        return under(self._provide_lock, lambda: self._make_spare(size), False)

    def _make_spare(self, size: int) -> bool:
        try:
            held = self.ring.capacity_bytes
            grown = growth.next_segment_bytes(held, self._limit_bytes, self._first_bytes)
            if size > max((s.capacity for s in self.ring.segments()), default=0):
                grown = max(grown, (size + 4095) & -4096)  # a record larger than any segment gets one of its own
            if not grown or grown < size:
                return False
            self._is_cramped = True
            if self._root and not self._has_room(grown):
                return False
            path = self._segment_path(self._folder.path) if self._folder else ""
            self.ring.add(Segment(path, grown))
            self._is_cramped = False
            return True
        except OSError:
            return False

    def _provide_for_log(self, size: int) -> bool:
        self.on_pressure()
        return self._provide(size) or self.ring.has_spare(size)

    def _has_room(self, size: int) -> bool:
        """Whether the host can spare it, by figures at most a second old: taking them walks all our spools."""
        if time.monotonic() >= self._room_until:
            self._room, self._room_until = growth.Room(0, 0, 0), time.monotonic() + _CHECK_EVERY_SECONDS
            self._room = host.room(self._root)
        if not growth.may_grow(size, self._room):
            return False
        self._room = self._room.after(size)
        return True

    def maintain(self, now: float) -> None:
        """The shipper's housekeeping: a spare ahead of need, fewer when idle, a new home if names vanish."""
        ring = self.ring
        if ring.has_queued:
            ring.append_queued()
        if ring.spare_bytes < ring.capacity_bytes // 2:
            self._provide(0)
        if ring.head > self._acked:
            self._quiet_since = now
        elif now - self._quiet_since > _SHRINK_AFTER_SECONDS and (spare := ring.drop_spare()):
            self._discard(spare)
        if now >= self._next_check:
            self._next_check = now + _CHECK_EVERY_SECONDS
            self._check()

    def check_soon(self) -> None:
        """Something looks wrong: somebody may have closed our descriptors."""
        self._next_check = 0.0

    def _check(self) -> None:
        """What others do to our files and descriptors is made good."""
        reserve.take()
        self._left = [path for path in self._left if not unlink(path)]
        self.spill.maintain()
        if self._folder is None:
            return
        segments = self.ring.segments()
        cut = [segment for segment in segments if segment.is_cut]
        if cut or not self._folder.hold() or not all(segment.is_linked for segment in segments):
            self._move(self._folder, segments, cut)

    def _move(self, gone: StreamFolder, old: list[Segment], cut: list[Segment]) -> None:
        """A logout, an epilog or a cleaner may unlink our files, or cut them. What lies there goes to disk, and the
        ring goes on in another folder. What was cut is not touched any more: that would be a SIGBUS."""
        refused = self._seen_refused if self._counters_are_cut(gone) else None
        fresh, counters_map = self._settle(), self._open_counters()
        counters = memoryview(counters_map).cast("Q")
        spares = self.ring.switch(fresh, counters, refused)
        if spares is None:
            self._discard(fresh)
            return
        self._former.append(gone)
        self._counters, self._counters_map = counters, counters_map
        lost = sum(self.ring.forget(segment) for segment in cut)
        for segment in cut:
            self._discard(segment)
        self._stale = {id(s) for s in old if s not in cut}
        for spare in spares:
            if spare not in cut:
                self._discard(spare)
        self._provide(0)
        what = "was removed by somebody; nothing is lost"
        if cut:
            what = f"was cut short by somebody; {lost:,} bytes of what was logged are lost if they were not sent before"
        voice.warn_once("spool-moved", f"the spool {gone.path} {what}, it goes on elsewhere.")
        self.spill_upto(self.ring.oldest, self.ring.head)

    @staticmethod
    def _counters_are_cut(folder: StreamFolder) -> bool:
        try:
            return os.stat(os.path.join(folder.path, COUNTERS)).st_size < _COUNTER_BYTES
        except OSError:
            return False  # removed, which a mapping survives

    def _discard(self, segment: Segment) -> None:
        """Gives a segment's memory back, and its file, now or later."""
        segment.close()
        if segment.path and not unlink(segment.path):
            self._left.append(segment.path)

    # -- leaving memory ----------------------------------------------------------------------------------

    def read(self, start: int, limit_bytes: int = MAX_BATCH_BYTES) -> bytes | memoryview:
        """The next batch from `start`: whole records, from disk or memory; empty if there is nothing."""
        if start >= self.ring.head:
            return b""
        if start < self.ring.oldest:
            return self.spill.read(start, limit_bytes)
        end = self.ring.range_end(start, limit_bytes)
        return self.ring.view(start, end) or b""

    def release(self, acked: int) -> None:
        """Frees what lies below `acked`: the daemon has it."""
        self._acked = acked
        self.spill.release(acked)
        self._free(acked)

    def _free(self, upto: int) -> None:
        for segment in self.ring.release(upto):
            if id(segment) in self._stale or not self._folder:
                self._stale.discard(id(segment))
                self._discard(segment)
            else:
                self.ring.add(segment)

    def spill_upto(self, start: int, end: int) -> str:
        """Copies [start, end) of the ring to disk and frees it there. Returns why it could not, or ""."""
        spilled = self.spill.end
        start = max(start, spilled) if spilled is not None else start
        start = max(start, self.ring.oldest)
        while start < end:
            view = self.ring.view(start, self.ring.range_end(start, MAX_BATCH_BYTES))
            if view is None:
                return ""
            try:
                with view:
                    self.spill.append(start, view)
                    start += len(view)
            except SpillError as error:
                return str(error)
            self._free(start)
        return ""

    # -- the end -------------------------------------------------------------------------------------------

    def count_only_here(self, acked: int) -> int:
        """How many records end with this process: they lie in its own memory, and nowhere else."""
        if self._folder is not None:
            return 0
        count, start = 0, max(acked, self.spill.end or 0, self.ring.oldest)
        while start < self.ring.head and (view := self.ring.view(start, self.ring.range_end(start, MAX_BATCH_BYTES))):
            with view:
                count += sum(1 for _ in records(bytes(view), start))
                start += len(view)
        return count

    def close(self) -> None:
        """Removes everything: the daemon has it all."""
        self._close_segments()
        self.spill.release(self.ring.head)
        self._remove_folder()

    def leave(self) -> None:
        """Lets go of a stream whose bytes all lie in the spill: whoever finds it there takes it from there."""
        self._close_segments()
        self._remove_folder()
        self.spill.leave()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.remove()
        for former in self._former:
            former.close()

    def _close_segments(self) -> None:
        for segment in self.ring.segments():
            segment.close()
        self._counters.release()
        self._counters_map.close()

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's mappings and descriptors, touches none of its files."""
        self._close_segments()
        for folder in (self._folder, *self._former):
            if folder is not None:
                folder.close()
        self.spill.abandon()
