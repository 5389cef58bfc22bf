"""The courier and the ingest rule against each other, over a link that drops, delays, doubles and cuts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackio import wire
from trackio.shipping import (
    HEARTBEAT_SECONDS,
    HELLO_AGAIN_SECONDS,
    SPILL_AFTER_SECONDS,
    WINDOW_BYTES,
    Courier,
    Held,
    SayHello,
    SendData,
    SendHeartbeat,
    SpillUpTo,
)
from trackiod.ingest import Duplicate, Refuse, Store, judge

LIMIT = 16 << 20


def held(head: int, oldest: int = 0) -> Held:
    return Held(head, oldest, oldest, LIMIT)


def welcomed(now: float = 0.0, committed: int = 0) -> Courier:
    courier = Courier(now)
    courier.on_connect(now)
    assert courier.next(now, held(0), may_send=True) == SayHello()
    courier.on_message(wire.Welcome("s", committed), now)
    return courier


def test_nothing_is_sent_before_the_welcome() -> None:
    courier = Courier(0)
    assert courier.next(0, held(100), may_send=True) is None
    courier.on_connect(0)
    assert courier.next(0, held(100), may_send=True) == SayHello()
    assert courier.next(1, held(100), may_send=True) is None
    assert courier.next(HELLO_AGAIN_SECONDS, held(0), may_send=True) == SayHello()


def test_the_window_bounds_what_is_in_flight() -> None:
    courier = welcomed()
    head, sent = 6 << 20, 0
    while isinstance(action := courier.next(0, held(head), may_send=True), SendData):
        assert action.start == sent
        sent = action.start + (1 << 20)
        courier.on_sent(sent, 0)
    assert sent == WINDOW_BYTES
    courier.on_message(wire.Ack("s", 1 << 20), 0)
    assert courier.next(0, held(head), may_send=True) == SendData(sent)


def test_a_full_socket_lets_nothing_be_sent_but_data_still_spill() -> None:
    courier = welcomed()
    assert courier.next(0, held(100), may_send=False) is None
    assert courier.next(SPILL_AFTER_SECONDS, held(100), may_send=False) == SpillUpTo(100)


def test_what_nobody_takes_for_five_seconds_is_spilled() -> None:
    courier = Courier(0)
    assert courier.next(0, held(8), may_send=False) is None
    assert courier.next(SPILL_AFTER_SECONDS - 0.1, held(8), may_send=False) is None
    assert courier.next(SPILL_AFTER_SECONDS, held(8), may_send=False) == SpillUpTo(8)
    courier.on_spill("", SPILL_AFTER_SECONDS)
    assert courier.next(SPILL_AFTER_SECONDS, held(8, oldest=8), may_send=False) is None


def test_what_is_on_disk_is_not_spilled_again_and_the_daemon_is_still_greeted() -> None:
    """The active segment keeps its bytes after they were spilled; they are not the courier's worry any more."""
    courier = Courier(0)
    assert courier.next(SPILL_AFTER_SECONDS, held(8), may_send=False) == SpillUpTo(8)
    courier.on_spill("", SPILL_AFTER_SECONDS)
    on_disk = held(8)._replace(spilled=8)
    assert courier.next(SPILL_AFTER_SECONDS, on_disk, may_send=False) is None
    courier.on_connect(SPILL_AFTER_SECONDS + 1)
    assert courier.next(SPILL_AFTER_SECONDS + 1, on_disk, may_send=True) == SayHello()


def test_a_ring_that_is_half_full_is_spilled_at_once() -> None:
    assert Courier(0).next(0.1, held(LIMIT // 2 + 8), may_send=False) == SpillUpTo(LIMIT // 2 + 8)


def test_a_failing_disk_is_not_tried_at_every_turn() -> None:
    courier = Courier(0)
    courier.next(SPILL_AFTER_SECONDS, held(8), may_send=False)
    courier.on_spill("full", SPILL_AFTER_SECONDS)
    assert courier.next(SPILL_AFTER_SECONDS + 0.5, held(8), may_send=False) is None
    assert courier.next(SPILL_AFTER_SECONDS + 1.0, held(8), may_send=False) == SpillUpTo(8)


def test_a_quiet_stream_says_that_it_lives() -> None:
    courier = welcomed()
    assert courier.next(1, held(0), may_send=True) is None
    assert courier.next(HEARTBEAT_SECONDS, held(0), may_send=True) == SendHeartbeat()


def test_an_older_ack_changes_nothing_and_a_rewind_does() -> None:
    courier = welcomed()
    courier.on_sent(100, 0)
    courier.on_message(wire.Ack("s", 80), 0)
    courier.on_message(wire.Ack("s", 40), 0)
    assert (courier.committed, courier.sent) == (80, 100)
    courier.on_message(wire.Ack("s", 40, rewind=True), 0)
    assert (courier.committed, courier.sent) == (40, 40)


def test_a_daemon_that_forgot_the_stream_is_told_again() -> None:
    courier = welcomed()
    courier.on_message(wire.Unknown("s"), 1)
    assert courier.next(1, held(8), may_send=True) == SayHello()


def test_a_refusal_keeps_the_data_and_asks_again_later() -> None:
    courier = welcomed()
    courier.on_message(wire.Refusal("s", "too new"), 1)
    assert not courier.welcomed
    assert courier.next(1.1, held(8), may_send=True) is None
    assert courier.next(HELLO_AGAIN_SECONDS + 0.1, held(8), may_send=True) in (SayHello(), SpillUpTo(8))


@pytest.mark.parametrize(
    ("committed", "start", "end", "oldest", "ruling"),
    [
        (100, 0, 100, 0, Duplicate(100)),
        (100, 0, 80, 0, Duplicate(100)),
        (100, 100, 200, 50, Store(100, 100)),
        (100, 50, 200, 50, Store(100, 100)),
        (100, 150, 200, 100, Refuse(100)),
        (100, 150, 200, 50, Refuse(100)),
        (100, 150, 200, 120, Refuse(120)),
        (100, 150, 200, 150, Store(150, 100)),
        (0, 0, 10, 0, Store(0, 0)),
    ],
)
def test_a_batch_is_stored_trimmed_refused_or_leaves_a_counted_hole(
    committed: int, start: int, end: int, oldest: int, ruling: object
) -> None:
    assert judge(committed, start, end, oldest) == ruling


class Store_:
    """A store that keeps bytes and counts holes, by `judge` alone."""

    def __init__(self) -> None:
        self.committed = 0
        self.kept: list[tuple[int, int]] = []
        self.holes: list[tuple[int, int]] = []

    def take(self, data: wire.Data) -> wire.Ack:
        ruling = judge(self.committed, data.start, data.end, data.oldest)
        if isinstance(ruling, Duplicate):
            return wire.Ack("s", self.committed)
        if isinstance(ruling, Refuse):
            return wire.Ack("s", ruling.committed, rewind=True)
        if ruling.has_hole:
            self.holes.append((ruling.hole_start, ruling.start))
        self.kept.append((ruling.start, data.end))
        self.committed = data.end
        return wire.Ack("s", data.end)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_over_a_bad_link_everything_arrives_once_and_in_order(seed: int, store_goes_back: bool) -> None:
    """Seeded chaos: messages are dropped, doubled, reordered; connections break; the store may be restored
    from a backup. At the end every byte is stored once, or lies in a counted hole that was freed before."""
    chance = random.Random(seed)
    courier, store, now = Courier(0), Store_(), 0.0
    head = oldest = spilled = 0
    network: list[wire.Message] = []
    back: list[wire.Message] = []
    backup = 0
    for turn in range(600):
        now += 0.1
        calm = turn > 250
        if not calm:
            head += 8 * chance.randrange(0, 40)
        if not courier.connected:
            courier.on_connect(now)
        elif not calm and chance.random() < 0.05:
            courier.on_disconnect()
            network.clear()
            continue
        for _ in range(10):
            action = courier.next(now, Held(head, oldest, oldest, LIMIT, spilled), may_send=True)
            if isinstance(action, SayHello):
                network.append(wire.Hello("s", {}))
            elif isinstance(action, SendData):
                end = min(head, action.start + 8 * chance.randrange(1, 30))
                network.append(wire.Data("s", action.start, end, oldest, [0, 0]))
                courier.on_sent(end, now)
            elif isinstance(action, SendHeartbeat):
                network.append(wire.Heartbeat("s", head, [0, 0]))
            elif isinstance(action, SpillUpTo):
                spilled = action.end
                courier.on_spill("", now)
            else:
                break
        if store_goes_back and turn == 200:
            store.committed = backup
            store.kept = [(a, b) for a, b in store.kept if b <= backup]
            courier.on_disconnect()
            network.clear()
        if turn == 100:
            backup = store.committed
        if not calm and chance.random() < 0.2:
            chance.shuffle(network)
        for message in network:
            if not calm and chance.random() < 0.1:
                continue
            copies = 1 + (not calm and chance.random() < 0.1)
            for _ in range(copies):
                if isinstance(message, wire.Hello):
                    back.append(wire.Welcome("s", store.committed))
                elif isinstance(message, wire.Data):
                    back.append(store.take(message))
                elif isinstance(message, wire.Heartbeat):
                    back.append(wire.Ack("s", store.committed))
        network.clear()
        for answer in back:
            if courier.connected and (calm or chance.random() > 0.1):
                courier.on_message(answer, now)
        back.clear()
        oldest = max(oldest, min(courier.committed, head))
    assert store.committed == head
    covered = sorted(store.kept + store.holes)
    position = 0
    for start, end in covered:
        assert start == position, f"gap or double at {position}"
        position = end
    assert position == head
    assert not store.holes or store_goes_back
