"""The ring: appending from threads and from within itself, rolling over, reading ranges."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trackio import record
from trackio.locks import under
from trackio.ring import Ring
from trackio.segment import Segment

SMALL = 4096


def make(sizes: list[int], *, provide: list[int] | None = None) -> tuple[Ring, memoryview]:
    """A ring over private memory with spares of these sizes; `provide` more when asked."""
    counters = memoryview(bytearray(16)).cast("Q")
    more = list(provide or [])

    def provide_one(size: int) -> bool:
        if not more:
            return False
        ring.add(Segment("", max(size, more.pop(0))))
        return True

    ring = Ring(Segment("", sizes[0]), counters, provide_one)
    for size in sizes[1:]:
        ring.add(Segment("", size))
    return ring, counters


def read_all(ring: Ring, limit: int = 1024) -> Iterator[record.Record]:
    start = ring.oldest
    while start < ring.head:
        end = ring.range_end(start, limit)
        view = ring.view(start, end)
        assert view is not None and end > start
        yield from record.records(bytes(view), start)
        start = end


def test_what_is_appended_is_read_in_order_over_segments() -> None:
    ring, _ = make([SMALL] * 4)
    parts = [bytes([i % 256]) * (i % 90 + 1) for i in range(150)]
    assert all(ring.append(part, 1) for part in parts)
    assert [r.payload for r in read_all(ring)] == parts


def test_a_full_ring_refuses_and_counts_exactly() -> None:
    ring, counters = make([SMALL])
    accepted = [ring.append(b"x" * 100, 7) for _ in range(60)]
    assert accepted.count(True) == SMALL // record.framed_bytes(100)
    assert (counters[0], counters[1]) == (accepted.count(False), 7 * accepted.count(False))


def test_a_released_segment_is_used_again_and_its_old_records_do_not_count() -> None:
    ring, counters = make([SMALL, SMALL])
    for lap in range(20):
        for i in range(25):
            assert ring.append(b"%02d%02d" % (lap, i) + b"." * 100, 1)
        got = [r.payload[:4] for r in read_all(ring)]
        assert got[-25:] == [b"%02d%02d" % (lap, i) for i in range(25)]
        for segment in ring.release(ring.head):
            ring.add(segment)
    assert counters[0] == 0


def test_a_record_larger_than_a_segment_gets_one_of_its_own() -> None:
    ring, counters = make([SMALL], provide=[0])
    assert ring.append(b"small", 1) and ring.append(b"L" * 50_000, 1)
    assert [len(r.payload) for r in read_all(ring)] == [5, 50_000] and counters[0] == 0


@pytest.mark.parametrize("limit", [1, 1000, 300_000, 1 << 20])
def test_a_range_ends_at_a_border_near_the_limit(limit: int) -> None:
    ring, _ = make([2 << 20])
    for i in range(3000):
        ring.append(b"%04d" % i + b"." * 400, 1)
    assert [r.payload[:4] for r in read_all(ring, limit)] == [b"%04d" % i for i in range(3000)]
    assert ring.range_end(0, 300_000) <= 300_000


def test_a_log_from_a_signal_handler_never_deadlocks_and_loses_nothing() -> None:
    ring, counters = make([32 << 20])
    inner = 0

    def handler(*_: object) -> None:
        nonlocal inner
        ring.append(b"inner", 1)
        inner += 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    outer = 0
    try:
        while inner < 100 and outer < 400_000:
            ring.append(b"o" * 20, 1)
            outer += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    got = [r.payload[:1] for r in read_all(ring, 1 << 20)]
    assert inner >= 100
    assert (got.count(b"i"), got.count(b"o"), counters[0]) == (inner, outer, 0)


def test_threads_append_whole_records() -> None:
    ring, counters = make([16 << 20])
    threads = [
        threading.Thread(target=lambda n=n: [ring.append(b"%02d%05d" % (n, i) * (i % 9 + 1), 1) for i in range(4000)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = [r.payload for r in read_all(ring, 1 << 20)]
    assert len(got) == 32_000 and counters[0] == 0
    for n in range(8):
        mine = [p for p in got if p.startswith(b"%02d" % n)]
        assert mine == [b"%02d%05d" % (n, i) * (i % 9 + 1) for i in range(4000)]


class Interrupted(BaseException):
    """What a signal handler raises."""


@contextmanager
def storm() -> Iterator[Callable[[Callable[[], None]], bool]]:
    """Calls something while a signal comes at an odd moment whose handler raises; returns whether it was interrupted
    by that."""
    chance, armed = random.Random(1), [False]

    def handle(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise Interrupted

    def interrupted(call: Callable[[], None]) -> bool:
        try:
            armed[0] = True
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
            call()
            armed[0] = False
        except Interrupted:
            return True
        return False

    before = signal.signal(signal.SIGALRM, handle)
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("size", [200, 3000])
def test_a_handler_that_raises_costs_at_most_the_record_it_interrupts(size: int) -> None:
    """Wherever it does: nothing else is lost, damaged or doubled, and no other thread is held up."""
    ring, counters = make([SMALL] * 8)
    read: list[bytes] = []
    sent: list[bytes] = []
    is_over = threading.Event()
    start = 0

    def ship() -> None:
        nonlocal start
        while start < ring.head:
            end = ring.range_end(start, 1024)
            view = ring.view(start, end)
            assert view is not None and end > start
            read.extend(r.payload for r in record.records(bytes(view), start))
            view.release()
            start = end
        for segment in ring.release(start):
            ring.add(segment)
        ring.append_queued()

    def keep_shipping() -> None:
        while not is_over.wait(0.0005):
            ship()

    def write(name: bytes) -> None:
        number = 0
        while not is_over.is_set():
            log(b"%s-%d-" % (name, number))
            number += 1

    def log(name: bytes) -> None:
        refused = counters[0]
        payload = name.ljust(size, b".")
        if ring.append(payload, 1):
            sent.append(payload)
        else:
            assert counters[0] > refused
            time.sleep(0.001)

    threads = [
        threading.Thread(target=keep_shipping, daemon=True),
        *(threading.Thread(target=write, args=(n,)) for n in (b"a", b"b")),
    ]
    for thread in threads:
        thread.start()
    interrupts, ends = 0, time.monotonic() + 4
    try:
        with storm() as interrupted:
            for number in itertools.count():
                interrupts += interrupted(lambda: log(b"main-%d-" % number))  # noqa: B023
                if time.monotonic() > ends:
                    break
    finally:
        is_over.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    ship()
    ship()
    assert interrupts > 100
    assert len(read) == len(set(read)) and set(sent) <= set(read)
    extra = set(read) - set(sent)
    assert len(extra) <= interrupts and all(payload.startswith(b"main-") for payload in extra)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_waits_in_the_queue_is_stored_once_whatever_interrupts_it(moment: str) -> None:
    """A handler raises as a record is taken off the queue, before or after that."""

    class Queue(deque[tuple[bytes, int]]):
        is_over = False

        def popleft(self) -> tuple[bytes, int]:
            if moment == "before" and not self.is_over:
                self.is_over = True
                raise Interrupted
            record = super().popleft()
            if not self.is_over:
                self.is_over = True
                raise Interrupted
            return record

    ring, _ = make([SMALL])
    ring._queued = Queue([(b"first", 1), (b"second", 1)])  # other threads', who had no time to wait
    with pytest.raises(Interrupted):
        ring.append(b"third", 1)
    ring.append(b"fourth", 1)
    assert [r.payload for r in read_all(ring)] == [b"first", b"second", b"third", b"fourth"]


class Gap:
    """A re-entrant lock, in the middle of taking which a handler raises once, as from Python 3.14 on it may."""

    def __init__(self) -> None:
        lock = threading.RLock()
        self.acquire, self.release, self.is_armed = lock.acquire, lock.release, False

    def __enter__(self) -> None:
        self.acquire()
        if self.is_armed:
            self.is_armed = False
            raise Interrupted

    def __exit__(self, *_: object) -> None:
        self.release()


def can_be_taken(lock: Any) -> bool:
    """By another thread."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(lock.acquire(timeout=0.01))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def test_a_lock_is_given_back_where_a_handler_raises_as_it_is_taken() -> None:
    lock: Any = Gap()
    lock.is_armed = True
    with pytest.raises(Interrupted):
        under(lock, lambda: None, None)
    assert can_be_taken(lock)
    ring, _ = make([SMALL])
    ring._lock = lock
    lock.is_armed = True
    with pytest.raises(Interrupted):
        ring.append(b"first", 1)
    assert can_be_taken(lock) and ring.append(b"second", 1)
    assert [r.payload for r in read_all(ring)] == [b"second"]


def test_who_has_a_lock_keeps_it_whatever_is_raised_further_in() -> None:
    """A handler logs in the middle of log(), and raises or is interrupted there."""
    lock: Any = Gap()

    def inner() -> bool:
        lock.is_armed = True
        with pytest.raises(Interrupted):
            under(lock, lambda: None, None)
        return can_be_taken(lock)

    assert under(lock, inner, True) is False


def test_a_handler_may_wait_for_a_thread_that_logs() -> None:
    """Wherever in append() it interrupts the main thread, whose lock the other one wants."""
    ring, _ = make([1 << 20] * 4)
    waits, in_vain, logged, is_over = 0, 0, 0, threading.Event()

    def write() -> None:
        nonlocal logged
        while not is_over.is_set():
            ring.append(b"w" * 50, 1)
            logged += 1

    def handle(*_: object) -> None:
        nonlocal waits, in_vain
        waits += 1
        before, patience = logged, time.monotonic() + 10
        while logged == before and not in_vain:
            time.sleep(0.0001)
            in_vain += time.monotonic() > patience

    thread = threading.Thread(target=write, daemon=True)
    before = signal.signal(signal.SIGALRM, handle)
    try:
        thread.start()
        ends = time.monotonic() + 3
        while time.monotonic() < ends and not in_vain:
            signal.setitimer(signal.ITIMER_REAL, 1e-4)
            for _ in range(200):
                ring.append(b"m" * 50, 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        is_over.set()
        thread.join(20)
    assert waits > 20 and not in_vain
