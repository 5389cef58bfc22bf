"""The loop: receives messages, hands work to the committer, sends answers. Never waits for the disk."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from trackio import wire
from trackio.places import Places
from trackio.shipping import WINDOW_BYTES
from trackio.values import plain_config
from trackio.version import __version__
from trackiod import descriptors, orphans, streams
from trackiod.admission import Admission
from trackiod.committer import Committer
from trackiod.connections import Connections
from trackiod.ended import Ended
from trackiod.errands import Errands
from trackiod.outlets import Outlets
from trackiod.sampling import Sampling
from trackiod.streams import LiveStream
from trackiod.threads import Threads
from trackiod.work import (
    Append,
    Deleted,
    Drained,
    Edit,
    Failing,
    Find,
    MovedAside,
    NotDrained,
    Refused,
    Register,
    Reply,
    TakenUp,
)

log = logging.getLogger("trackiod.server")

_TICK_SECONDS = 0.5
_LOOK_SECONDS = 0.05
"""from tick to tick while somebody waits for what other hosts copied"""
_SCAN_SECONDS = 5.0
_LINGER_SECONDS = 0.2
_NO_DESCRIPTORS = "trackiod has no descriptors left for more processes: raise the limit (ulimit -n) and restart it."


class Server:
    """Owns the connections and the live streams. `serve` runs until `stop` is called."""

    def __init__(
        self,
        places: Places,
        committer: Committer,
        *,
        idle_seconds: float | None,
        errands: Errands,
        sampling: Sampling,
        outlets: Outlets,
    ) -> None:
        """`idle_seconds`: leave after this long with nothing to do; None stays for ever."""
        self.stop_reason = ""
        self.failure = ""
        """why the daemon must not go on, if it is not to"""
        self._places = places
        self._committer = committer
        self._idle_seconds = idle_seconds
        self._errands = errands
        self._sampling = sampling
        self._outlets = outlets
        self._streams: dict[str, LiveStream] = {}
        self._ended = Ended(places, committer.submit)
        self._admission = Admission()
        self._nonsense = 0
        self._complained_at = 0.0
        self._started_at = self._busy_at = time.monotonic()
        self._next_tick = self._next_scan = 0.0
        self._facts: dict[str, Any] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._connections = Connections(self._wake_read)
        self._each_tick: list[Callable[[], str]] = []

    # -- life ------------------------------------------------------------------------------------------------

    def listen(self, listener: socket.socket, facts: dict[str, Any], threads: Threads) -> None:
        """Takes over a bound and listening socket. `facts` go into every status report. Raises OSError, or
        CannotStart."""
        self._facts = facts
        self._connections.listen(listener, threads)

    def each_tick(self, check: Callable[[], str]) -> None:
        """A check for every tick; what it returns, if anything, is the reason to stop."""
        self._each_tick.append(check)

    def wake(self) -> None:
        """From any thread or signal handler: look at outcomes, and at `stop_reason`."""
        try:
            os.write(self._wake_write, b"x")
        except (BlockingIOError, OSError):
            pass  # the pipe is full: it is awake

    def stop(self, reason: str) -> None:
        self.stop_reason = self.stop_reason or reason
        self.wake()

    def fail(self, sentence: str) -> None:
        """From any thread: the daemon ends, and says why."""
        self.failure = self.failure or sentence
        self.stop(sentence)

    def serve(self) -> None:
        """Runs until there is a reason to stop."""
        while not self.stop_reason:
            timeout = max(0.0, self._next_tick - time.monotonic())
            for peer, pid, frames in self._connections.receive(timeout):
                self._receive(peer, pid, frames)
            self._send_outcomes()
            self._tick(time.monotonic())

    def close(self) -> None:
        """Sends what is answered, then ends the socket. Call after the committer has stopped."""
        self._send_outcomes()
        for stream in self._streams.values():
            stream.close()
        self._ended.close()
        self._connections.close(_LINGER_SECONDS)
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- messages --------------------------------------------------------------------------------------------

    def _receive(self, peer: bytes, pid: int, frames: list[bytes]) -> None:
        try:
            message = wire.decode(frames)
        except wire.WireError as error:
            self._complain(pid, str(error))
            return
        self._busy_at = time.monotonic()
        try:
            self._handle(peer, pid, message)
        except Exception:  # the border to peers: what one of them sends must not end the others' daemon
            log.exception("a %s of pid %d could not be handled and was dropped", type(message).__name__, pid)

    def _complain(self, pid: int, why: str) -> None:
        """Says what a peer sends that is no message of ours, or not for us; of a flood, one a second."""
        self._nonsense += 1
        if time.monotonic() - self._complained_at >= 1.0:
            log.warning("a message from pid %d was dropped (%d so far): %s", pid, self._nonsense, why)
            self._complained_at = time.monotonic()

    def _handle(self, peer: bytes, pid: int, message: wire.Message) -> None:
        match message:
            case wire.Hello():
                self._on_hello(peer, pid, message)
            case wire.Data():
                self._on_data(peer, message)
            case wire.Heartbeat():
                self._on_heartbeat(peer, message)
            case wire.Find():
                find = Find(message.project, message.name, message.attempt, peer)
                self._outlets.looking.first(lambda: self._committer.submit(find), time.monotonic())
                self._next_tick = 0.0
            case wire.Edit():
                self._committer.submit(Edit(*message, peer))
            case wire.SetAside():
                if (answer := self._set_aside(message.stream, peer)) is not None:
                    self._send(peer, answer)
            case wire.Copy():
                self._send(peer, self._outlets.copy())
            case wire.Sync():
                self._send(peer, self._outlets.sync(message))
            case wire.Protect():
                self._errands.leases.ask(message.stream, message.files, partial(self._on_leases, peer, message.stream))
            case wire.SamplerQuery():
                orders = self._sampling.orders(message, self._streams, time.monotonic())
                self._send(peer, wire.SamplerOrders(orders))
            case wire.StatusQuery():
                self._send(peer, self._report())
            case wire.Stop():
                self._send(peer, wire.Stopping(os.getpid()))
                self.stop(message.reason or "asked to stop")
            case _:
                self._complain(pid, f"a {type(message).__name__} is not for a daemon")

    def _on_leases(self, peer: bytes, stream: str, files: list[int]) -> None:
        """From another thread: these are protected."""
        self._committer.outcomes.append(Reply(peer, wire.Protected(stream, files)))
        self.wake()

    def _on_hello(self, peer: bytes, pid: int, hello: wire.Hello) -> None:
        if wire.common_version(hello.versions) is None:
            self._send(peer, wire.Refusal(hello.stream, f"trackiod {__version__} speaks another protocol version."))
            return
        problem = streams.problem_in(hello.meta) if orphans.is_id(hello.stream) else "its id is not one"
        if problem:
            self._send(peer, wire.Refusal(hello.stream, f"trackiod cannot take this stream: {problem}."))
            return
        if hello.stream in self._ended and not self._ended.give_back(hello.stream):
            return  # it says HELLO again
        meta = streams.usable(hello.meta)
        stream = self._streams.get(hello.stream)
        if stream is None and descriptors.are_short(descriptors.FOR_STREAMS):
            self._send(peer, wire.Refusal(hello.stream, _NO_DESCRIPTORS))
            return
        if stream is None:
            stream = self._streams[hello.stream] = LiveStream(hello.stream, meta)
        stream.meta, stream.peer, stream.head, stream.heard_at = meta, peer, hello.head, time.monotonic()
        stream.watch(streams.path_of(meta.get("spool")))
        stream.is_alive(pid)
        self._outlets.meet(meta, hello.secrets)
        self._admission.forget(stream.id)  # the WELCOME says where it goes on
        self._committer.submit(Register(stream.project, stream.id, meta, peer))

    def _on_data(self, peer: bytes, data: wire.Data) -> None:
        stream = self._streams.get(data.stream)
        if stream is None:
            self._send(peer, wire.Unknown(data.stream))
            return
        self._hear(stream, data.end, data.refused)
        if not self._admission.accepts(stream.id, data.start, data.oldest):
            return
        data = data._replace(refused=[*stream.refused])  # two counts that can be stored, whatever it said
        if not self._committer.submit_batch(Append(stream.project, stream.id, data, peer)):
            self._admission.drop(stream.id)

    def _on_heartbeat(self, peer: bytes, beat: wire.Heartbeat) -> None:
        stream = self._streams.get(beat.stream)
        if stream is None:
            self._send(peer, wire.Unknown(beat.stream))
            return
        if self._hear(stream, beat.head, beat.refused):
            self._committer.submit(Refused(stream.project, stream.id, *stream.refused))
        if not self._admission.is_dropped(stream.id):  # else it would send again what cannot be taken
            self._send(peer, wire.Ack(stream.id, stream.committed))

    @staticmethod
    def _hear(stream: LiveStream, head: int, refused: list[int]) -> bool:
        """Notes what a stream says of itself; True if it has refused more than before."""
        stream.head, stream.heard_at = max(stream.head, head), time.monotonic()
        counts = tuple(min(max(0, n), (1 << 63) - 1) for n in (*refused, 0, 0)[:2])
        if counts == stream.refused:
            return False
        stream.refused = (counts[0], counts[1])
        return True

    def _send(self, peer: bytes, message: wire.Message) -> None:
        if isinstance(message, wire.Ack):
            message = message._replace(incomplete=self._errands.incomplete[message.stream])
        self._connections.send(peer, wire.encode(message))

    def _send_outcomes(self) -> None:
        outcomes = self._committer.outcomes
        while outcomes:
            outcome = outcomes.popleft()
            if isinstance(outcome, Drained):
                self._ended.on_drained(outcome)
            elif isinstance(outcome, NotDrained):
                self._ended.on_not_drained(outcome)
            elif isinstance(outcome, MovedAside):
                if (answer := self._ended.on_moved_aside(outcome)) is not None:
                    self._send(*answer)
            elif isinstance(outcome, Deleted):
                self._outlets.uploading.forget(outcome.project)
            elif isinstance(outcome, TakenUp):
                self.end_lost(outcome.open_streams)
            elif isinstance(outcome, Failing):
                self._drop_batches(outcome.project)
            elif isinstance(outcome, Reply):
                self._note_commit(outcome.message)
                self._send(outcome.peer, self._introduced(outcome.message))
        self._resume_dropped()

    def _drop_batches(self, project: str) -> None:
        """Commits of a project fail: what its senders have sent is dropped here, they keep it."""
        for stream in self._streams.values():
            if stream.project == project:
                self._admission.drop(stream.id)

    def _resume_dropped(self) -> None:
        """Asks senders whose batches were dropped to go on, as many as there is room for."""
        promised = 0
        for stream_id in self._admission.dropped:
            stream = self._streams.get(stream_id)
            if stream is None:
                self._admission.forget(stream_id)
            elif self._committer.room(stream.project) - promised >= WINDOW_BYTES:
                promised += WINDOW_BYTES
                self._admission.resume(stream_id, stream.committed)
                self._send(stream.peer, wire.Ack(stream_id, stream.committed, rewind=True))

    def _note_commit(self, message: wire.Message) -> None:
        if isinstance(message, (wire.Ack, wire.Welcome)) and message.stream in self._streams:
            self._streams[message.stream].committed = message.committed

    def _introduced(self, message: wire.Message) -> wire.Message:
        """A WELCOME says what we are, so that a newer client may ask us to hand over."""
        if not isinstance(message, wire.Welcome):
            return message
        return message._replace(release=__version__, life=str(self._facts.get("life", "")))

    def _set_aside(self, stream_id: str, peer: bytes) -> wire.Edited | None:
        if stream_id in self._streams:
            return wire.Edited(False, f"The process of stream {stream_id} lives.")
        return self._ended.set_aside(stream_id, peer)

    # -- what time brings --------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        self._connections.check(now)
        self._next_tick = now + (_LOOK_SECONDS if self._outlets.looking.is_waited_for else _TICK_SECONDS)
        for stream in list(self._streams.values()):
            if stream.is_alive():
                stream.hold_segments()
            elif stream.is_settled(now):
                self._drain_dead(stream)
        for stream in self._sampling.check(self._streams, now):
            self._send(stream.peer, wire.HostSampler(stream.id))
        self._ended.retry(now)
        is_busy = bool(self._streams) or not self._ended.is_empty
        self._outlets.check(self._committer.commits, self._ended.count, is_busy=is_busy, now=now)
        if now >= self._next_scan:
            self._next_scan = now + _SCAN_SECONDS
            self._ended.look(self._streams)
        for check in self._each_tick:
            if reason := check():
                self.stop(reason)
        is_logged_to = any(stream.role != "sampler" for stream in self._streams.values())
        errands = self._errands.backlog - self._errands.stuck
        waits = self._committer.backlog or errands > 0 or self._outlets.uploading.backlog
        if is_logged_to or self._ended.is_busy or waits:
            self._busy_at = now
        elif self._idle_seconds is not None and now - self._busy_at > self._idle_seconds:
            self.stop("idle")

    def _drain_dead(self, stream: LiveStream) -> None:
        """The process is gone: everything it left is stored, then its stream ends."""
        del self._streams[stream.id]
        self._admission.forget(stream.id)
        ended = stream.exit().cause or "nobody tells how"
        log.info("%s of run %s (%s) ended: %s", stream.name, stream.meta["run"], stream.id, ended)
        self._ended.add(stream, stream.exit())

    def end_lost(self, open_streams: list[tuple[str, str, dict[str, Any]]]) -> None:
        """Streams that were open at start, whose processes nobody can find any more."""
        self._ended.end_lost(open_streams, self._streams.keys())

    def drain_samplers(self) -> None:
        """At the end: samplers that were ended leave what they logged like any process."""
        for stream in list(self._streams.values()):
            if stream.role == "sampler" and not stream.is_alive():
                self._drain_dead(stream)

    # -- status ------------------------------------------------------------------------------------------------

    def _report(self) -> wire.StatusReport:
        now = time.monotonic()
        daemon = {
            **self._facts,
            "uptime_seconds": round(now - self._started_at, 1),
            "commits": self._committer.commits,
            "backlog": self._committer.backlog,
            "errands": self._errands.backlog,
            "waiting_files": self._errands.waiting,
            "problem": self._committer.problem,
            "blocked": self._ended.report(),
            **self._outlets.facts(self._committer.commits),
            "sampler": self._sampling.facts(self._streams),
        }
        streams = [s.report(now) for s in self._streams.values() if s.role != "sampler"]
        return wire.StatusReport(plain_config(daemon), streams)  # paths in it need not be UTF-8
