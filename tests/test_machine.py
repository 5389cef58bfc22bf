"""A machine that does anything in any order to a client and a daemon: their real parts, but for threads and sockets.

The client is a real shipper over a real spool and spill, turned by hand with a clock of ours. The daemon is a real
committer over a real store, without its thread. Between them lies a link that delays, drops, doubles, reorders and
breaks; either side may be killed between any two steps. Whatever Hypothesis tries, what log() accepted is stored once
and in order, nothing is acked that is not durable, and what found no room is counted exactly.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trackio import places, shipper, wire
from trackio.link import LinkError
from trackio.record import Kind, Origin, pack
from trackio.shipper import Shipper
from trackio.spool import Spool
from trackiod import committer, folding
from trackiod.committer import Committer
from trackiod.exits import Exit
from trackiod.lock import endpoint_at, write_endpoint
from trackiod.recovery import Source, read_folder
from trackiod.store import points, project, schema
from trackiod.store.reader import ProjectReader
from trackiod.work import Append, Drain, Refused, Register, Reply

SEGMENT_BYTES = 8 << 10
RING_BYTES = 4 * SEGMENT_BYTES
SPILL_BYTES = 1 << 30


class Network:
    """What is on its way, and whether anybody listens."""

    def __init__(self) -> None:
        self.is_up = True
        self.to_daemon: deque[tuple[FaultyLink, list[bytes]]] = deque()
        self.to_client: deque[tuple[FaultyLink, wire.Message]] = deque()

    def lose_everything(self) -> None:
        for link, _ in (*self.to_daemon, *self.to_client):
            link.is_broken = True
        self.to_daemon.clear()
        self.to_client.clear()


class FaultyLink:
    """In the place of `trackio.link.Link`: what is sent arrives when and as often as the machine likes."""

    network: Network
    is_clear = True

    def __init__(self, path: str) -> None:
        if not self.network.is_up:
            raise LinkError("nobody listens")
        self.is_broken = False
        self.inbox: list[wire.Message] = []

    def send(self, message: wire.Message) -> None:
        self.flush()
        self.network.to_daemon.append((self, [bytes(frame) for frame in wire.encode(message)]))

    def flush(self) -> None:
        if self.is_broken or not self.network.is_up:
            raise LinkError("the connection is gone")

    def receive(self) -> list[wire.Message]:
        messages, self.inbox = self.inbox, []
        return messages

    def close(self) -> None:
        self.is_broken = True


class Threadless(Shipper):
    """A shipper whose turns are taken by the machine."""

    def ensure_thread(self) -> bool:
        return True

    def turn(self, now: float) -> None:
        with self._turn_lock:
            self._turn(now)

    def lose_link(self) -> None:
        if self._link is not None:
            self._link.is_broken = True  # type: ignore[attr-defined]


class Client:
    """One process's life: a stream, and what was logged to it."""

    def __init__(self, where: places.Places, number: int, now: float) -> None:
        self.stream = f"{number:016x}"
        self.meta: dict[str, Any] = {
            "stream": self.stream, "project": "p", "run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "0",
            "local_rank": 0, "world_size": 1, "started_ns": number + 1,
        }  # fmt: skip
        self.spool = Spool(where, self.stream, self.meta, limit_bytes=RING_BYTES, spill_bytes=SPILL_BYTES,
                           first_bytes=SEGMENT_BYTES)  # fmt: skip
        self.shipper = Threadless(where, autostart=False, starts_first=False)
        self.shipment = self.shipper.add(self.spool, lambda: None)
        self.accepted: list[int] = []
        self.refused = 0

    def log(self, value: int, padding: str) -> None:
        payload = pack(Kind.LOG, value + 1, value, int(Origin.EXPLICIT), {"i": value, "text": padding})
        if self.spool.ring.append(payload, 2):
            self.accepted.append(value)
        else:
            self.refused += 1


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="trackio-machine-", dir="/dev/shm")
        os.mkdir(os.path.join(self.folder, "spool"))
        self.where = places.find(os.path.join(self.folder, "data"), os.path.join(self.folder, "spool"))
        places.make_private(self.where.live)
        self.network = FaultyLink.network = Network()
        write_endpoint(self.where, endpoint_at(self.where, "anywhere", pid=os.getpid(), store="store"))
        self.now, self.value, self.dead = time.monotonic(), 0, []
        self.known: dict[str, int] = {}
        self.committer = Committer(self.where.projects, "store", lambda: None)
        self.committer.open_streams()
        self.client = Client(self.where, 0, self.now)
        self.a_calm_moment()

    # -- the client ------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 60), size=st.sampled_from([0, 10, 400]))
    def log(self, count: int, size: int) -> None:
        for _ in range(count):
            self.client.log(self.value, "x" * size)
            self.value += 1

    @rule(seconds=st.sampled_from([0.0, 0.1, 2.1, 5.1, 10.1]))
    def ship(self, seconds: float) -> None:
        self.now += seconds
        self.client.shipper.turn(self.now)

    @rule(counts=st.lists(st.integers(1, 20), min_size=2, max_size=5))
    def log_and_ship(self, counts: list[int]) -> None:
        """Several batches are on their way at once."""
        for count in counts:
            self.log(count, 10)
            self.ship(0.01)

    @rule()
    def kill_the_client(self) -> None:
        """What it had in memory is gone; a daemon finds what lies in its folders."""
        client = self.client
        self.network.lose_everything()
        client.shipper.abandon()
        self.dead.append(client)
        self.client = Client(self.where, len(self.dead), self.now)

    @precondition(lambda self: self.dead and self.network.is_up)
    @rule(which=st.integers(0, 1 << 16))
    def drain_a_dead_one(self, which: int) -> None:
        """As the server does for a process it finds dead, also twice."""
        client = self.dead[which % len(self.dead)]
        places_left = [parent for parent in self.where.stream_folders if os.path.isdir(f"{parent}/{client.stream}")]
        folders = tuple(os.path.join(parent, client.stream) for parent in places_left)

        def sources() -> list[Source]:
            return [source for path in folders for source in read_folder(path)]

        self.committer.submit(Drain("p", client.stream, client.meta, folders, sources, Exit(signal=9)))

    # -- the link --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.network.to_daemon)
    @rule(which=st.integers(0, 1 << 16), twice=st.booleans())
    def deliver_to_the_daemon(self, which: int, twice: bool) -> None:
        link, frames = self.network.to_daemon[which % len(self.network.to_daemon)]
        if not twice:
            self.network.to_daemon.remove((link, frames))
        self._on_message(link, wire.decode(frames))

    @precondition(lambda self: self.network.to_client)
    @rule(which=st.integers(0, 1 << 16), twice=st.booleans())
    def deliver_to_the_client(self, which: int, twice: bool) -> None:
        link, message = self.network.to_client[which % len(self.network.to_client)]
        if not twice:
            self.network.to_client.remove((link, message))
        link.inbox.append(message)

    @precondition(lambda self: self.network.to_daemon or self.network.to_client)
    @rule(which=st.integers(0, 1 << 16))
    def drop(self, which: int) -> None:
        pile: Any = self.network.to_daemon or self.network.to_client
        del pile[which % len(pile)]

    @rule()
    def break_the_connection(self) -> None:
        self.client.shipper.lose_link()
        self.network.lose_everything()

    @precondition(lambda self: self.network.is_up)
    @rule()
    def a_calm_moment(self) -> None:
        """Everything on its way arrives, and is answered."""
        self.ship(0.3)
        while self.network.to_daemon:
            self.deliver_to_the_daemon(0, False)
        self.commit()
        while self.network.to_client:
            self.deliver_to_the_client(0, False)
        self.ship(0.0)

    @precondition(lambda self: self.network.is_up)
    @rule()
    def data_are_late(self) -> None:
        """Heartbeats and answers get through while data wait on their way: in the end they are sent again."""
        for _ in range(6):
            self.ship(2.1)
            for link, frames in list(self.network.to_daemon):
                if isinstance(wire.decode(frames), wire.Heartbeat):
                    self.network.to_daemon.remove((link, frames))
                    self._on_message(link, wire.decode(frames))
            while self.network.to_client:
                self.deliver_to_the_client(0, False)

    # -- the daemon --------------------------------------------------------------------------------------------

    def _on_message(self, link: FaultyLink, message: wire.Message) -> None:
        """As the server does; it is known there which streams said HELLO to this daemon."""
        match message:
            case wire.Hello():
                self.known.setdefault(message.stream, 0)
                self.committer.submit(Register("p", message.stream, message.meta, link))
            case wire.Data() if message.stream in self.known:
                self.committer.submit(Append("p", message.stream, message, link))
            case wire.Heartbeat() if message.stream in self.known:
                self.committer.submit(Refused("p", message.stream, *message.refused))
                self.network.to_client.append((link, wire.Ack(message.stream, self.known[message.stream])))
            case wire.Data() | wire.Heartbeat():
                self.network.to_client.append((link, wire.Unknown(message.stream)))

    @precondition(lambda self: self.network.is_up)
    @rule()
    def commit(self) -> None:
        while self.committer.backlog:
            self.committer.commit_all()
            assert not self.committer.problem
        while self.committer.outcomes:
            outcome = self.committer.outcomes.popleft()
            if isinstance(outcome, Reply):
                if isinstance(outcome.message, (wire.Ack, wire.Welcome)):
                    self.known[outcome.message.stream] = outcome.message.committed
                self.network.to_client.append((outcome.peer, outcome.message))

    @precondition(lambda self: self.network.is_up)
    @rule(slices=st.integers(1, 6))
    def fold(self, slices: int) -> None:
        """A part of what is due; more may be committed before the rest."""
        self.committer._folding._due = dict.fromkeys(self.committer._folding._due, 0.0)
        for _ in range(slices):
            self.committer._folding.step()

    @precondition(lambda self: self.network.is_up)
    @rule(counts=st.lists(st.sampled_from([10, 30, 50]), min_size=2, max_size=6), slices=st.integers(1, 3))
    def fold_between_batches(self, counts: list[int], slices: int) -> None:
        """Some are stored raw and others in columns at once, while a fold of the raw ones is in hand."""
        for count in counts:
            self.log(count, 0)
            self.a_calm_moment()
            self.fold(slices)

    @rule()
    def kill_the_daemon(self) -> None:
        self.network.is_up = False
        self.network.lose_everything()
        self.known.clear()
        self.committer._databases.close_all()

    @precondition(lambda self: not self.network.is_up)
    @rule()
    def start_a_daemon(self) -> None:
        self.network.is_up = True
        self.committer = Committer(self.where.projects, "store", lambda: None)
        self.committer.open_streams()

    # -- what holds ----------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_acked_that_is_not_durable(self) -> None:
        committed = self.client.shipment.courier.committed
        if committed:
            assert self._stored(self.client.stream)[0] >= committed

    @invariant()
    def drops_are_counted_exactly(self) -> None:
        assert self.client.spool.refused == [self.client.refused, 2 * self.client.refused]

    @invariant()
    def what_is_stored_was_logged_in_this_order_once(self) -> None:
        for client in (self.client, *self.dead):
            values = self._stored(client.stream)[1]
            assert values == client.accepted[: len(values)]

    def _stored(self, stream: str) -> tuple[int, list[int]]:
        """(committed offset, values in the stream's order) in the database now."""
        path = schema.path_of(self.where.projects, "p")
        if not os.path.exists(path):
            return 0, []
        with ProjectReader(path) as reader:
            row = reader._all("SELECT committed FROM streams WHERE id = ?", stream)
            column = points.columns(reader, stream, frozenset({"i"}))["i"]
            assert not reader.problems and not reader._all("SELECT * FROM holes")
            return (row[0][0] if row else 0), column.values.tolist()

    def teardown(self) -> None:
        """At last everybody lives and nothing is lost any more: everything arrives."""
        if not hasattr(self, "client"):
            return
        try:
            if not self.network.is_up:
                self.start_a_daemon()
            self.break_the_connection()
            for number in range(len(self.dead)):
                self.drain_a_dead_one(number)
            for _ in range(400):
                self.a_calm_moment()
                if self.client.shipment.is_delivered:
                    break
            for client in (self.client, *self.dead):
                assert self._stored(client.stream)[1] == client.accepted
            assert self.client.shipment.is_delivered
            if self.dead:
                with ProjectReader(schema.path_of(self.where.projects, "p")) as reader:
                    counted = dict(reader._all("SELECT id, refused_records FROM streams"))
                assert all(counted[client.stream] == client.refused for client in self.dead)
        finally:
            self.committer._databases.close_all()
            self.client.shipper.abandon()
            shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's link, and folding of few records in the smallest slices: all of it happens in few steps."""
    monkeypatch.setattr(shipper, "Link", FaultyLink)
    monkeypatch.setattr(folding, "_SLICE_SECONDS", 0)
    monkeypatch.setattr(folding, "_GOOD_RECORDS", 40)
    monkeypatch.setattr(committer, "_PORTION_BYTES", 6 << 10)
    monkeypatch.setattr(project, "_FOLD_RECORDS", 60)
    monkeypatch.setattr(project, "_FOLD_BYTES", 16 << 10)
    monkeypatch.setattr(project, "_FOLD_RECORDS_AT_LEAST", 5)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=int(os.environ.get("TRACKIO_TEST_EXAMPLES", "60")), stateful_step_count=50, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
