"""The connections of processes: accepts them, reads messages, sends answers. A shell around `zmtp.Router`.

libzmq is not used: it aborts where it finds no descriptor for a connection, or no thread. Where few descriptors are
left (`descriptors`), a connection is closed at once; its process keeps its data and tries again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import socket
import time
from collections.abc import Iterator, Sequence

from trackio import trust, wire, zmtp
from trackiod import descriptors

log = logging.getLogger("trackiod.connections")

_RECEIVE_BYTES = 256 << 10
_MOST_BYTES_A_TURN = 1 << 20
"""Of one connection: then the others are looked at."""
_MOST_UNSENT_BYTES = 1 << 20
"""Answers to one that does not read; more are dropped."""
_MOST_ACCEPTS_A_TURN = 256
_GREETING_SECONDS = 5.0
_SHORT_GREETING_SECONDS = 0.5
"""How long a connection may stay silent: at all, and where descriptors are short."""
_ACCEPT_AGAIN_SECONDS = 0.5
_LOG_AGAIN_SECONDS = 60.0


class _Connection:
    __slots__ = ("number", "opened_at", "pid", "protocol", "socket", "unsent")

    def __init__(self, number: int, connection: socket.socket, pid: int, now: float) -> None:
        self.number = number
        self.socket = connection
        self.pid = pid
        self.opened_at = now
        self.protocol = zmtp.Router(wire.MAX_MESSAGE_BYTES)
        self.unsent = bytearray()


class Connections:
    """Owns the listener and all connections. `receive` waits for messages; for one thread only."""

    def __init__(self, wake: int) -> None:
        """`wake`: a descriptor that ends `receive` when it can be read. Raises OSError."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)
        self._wake = wake
        self._listener: socket.socket | None = None
        self._is_listening = False
        self._accept_at = 0.0
        self._numbers = itertools.count(1)
        self._open: dict[int, _Connection] = {}
        self._silent: dict[int, _Connection] = {}
        """those that have not greeted, the oldest first"""
        self._refused = 0
        self._log_at: dict[str, float] = {}

    def listen(self, listener: socket.socket) -> None:
        """Takes over a bound and listening socket. Raises OSError."""
        listener.setblocking(False)
        self._listener = listener
        self._accept_from_now(True)

    def receive(self, seconds: float) -> Iterator[tuple[int, int, list[bytes]]]:
        """Waits for messages at most this long; gives (peer, its pid, frames) of each."""
        for key, events in self._selector.select(seconds):
            if key.data is not None:
                connection: _Connection = key.data
                if events & selectors.EVENT_WRITE:
                    self._flush(connection)
                if events & selectors.EVENT_READ and connection.number in self._open:
                    yield from ((connection.number, connection.pid, frames) for frames in self._read(connection))
            elif key.fd == self._wake:
                with contextlib.suppress(OSError):
                    os.read(self._wake, 4096)
            else:
                self._accept_some(time.monotonic())

    def send(self, peer: int, frames: Sequence[bytes | memoryview]) -> None:
        """Sends a message, or keeps what the socket does not take. One for a peer that is gone, or reads nothing, is
        dropped."""
        connection = self._open.get(peer)
        if connection is None or len(connection.unsent) > _MOST_UNSENT_BYTES:
            return
        connection.unsent += b"".join(zmtp.frames(frames))
        self._flush(connection)

    def check(self, now: float) -> None:
        """Ends connections that do not speak, and accepts again after a pause."""
        self._end_silent(now, _GREETING_SECONDS)
        if not self._is_listening and now >= self._accept_at:
            self._accept_from_now(True)

    def close(self, seconds: float) -> None:
        """Sends what is left, at most this long, and ends everything. May be called twice."""
        deadline = time.monotonic() + seconds
        self._accept_from_now(False)
        while any(connection.unsent for connection in self._open.values()) and time.monotonic() < deadline:
            for key, events in self._selector.select(0.01):
                if key.data is not None and events & selectors.EVENT_WRITE:
                    self._flush(key.data)
                elif key.data is not None:
                    self._end(key.data)  # it has gone, or sends what nobody takes any more
        for connection in list(self._open.values()):
            self._end(connection)
        if self._listener is not None:
            self._listener.close()
        self._selector.close()

    # -- accepting ---------------------------------------------------------------------------------------------------

    def _accept_from_now(self, is_listening: bool) -> None:
        if self._listener is not None and is_listening != self._is_listening:
            self._is_listening = is_listening
            if is_listening:
                self._selector.register(self._listener, selectors.EVENT_READ)
            else:
                self._selector.unregister(self._listener)

    def _accept_some(self, now: float) -> None:
        assert self._listener is not None
        for _ in range(_MOST_ACCEPTS_A_TURN):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, no memory: it would be tried again and again at once
                self._accept_from_now(False)
                self._accept_at = now + _ACCEPT_AGAIN_SECONDS
                self._say("refused", now, f"connections cannot be accepted now: {error.strerror or error}")
                return
            if descriptors.is_short(accepted.fileno(), descriptors.FOR_CONNECTIONS):
                accepted.close()
                self._refused += 1
                self._say("refused", now, f"descriptors are short: {self._refused} connections were refused so far")
                self._end_silent(now, _SHORT_GREETING_SECONDS)
            else:
                self._take(accepted, now)

    def _take(self, accepted: socket.socket, now: float) -> None:
        try:
            pid, uid = trust.peer_of(accepted)
            accepted.setblocking(False)
        except OSError:
            accepted.close()
            return
        if not trust.is_trusted(uid):
            self._say(f"uid {uid}", now, f"a connection of uid {uid} (pid {pid}) was refused")
            accepted.close()
            return
        connection = _Connection(next(self._numbers), accepted, pid, now)
        self._open[connection.number] = self._silent[connection.number] = connection
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        connection.unsent += zmtp.Router.opening()
        self._flush(connection)

    def _end_silent(self, now: float, seconds: float) -> None:
        for connection in list(self._silent.values()):
            if now - connection.opened_at < seconds:
                break
            self._end(connection)

    def _say(self, what: str, now: float, sentence: str) -> None:
        if now >= self._log_at.get(what, 0.0):
            self._log_at[what] = now + _LOG_AGAIN_SECONDS
            log.warning("%s", sentence)

    # -- one connection ----------------------------------------------------------------------------------------------

    def _read(self, connection: _Connection) -> list[list[bytes]]:
        """The messages that are whole now."""
        messages: list[list[bytes]] = []
        received = 0
        while received < _MOST_BYTES_A_TURN:
            try:
                data = connection.socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                self._end(connection)
                break
            received += len(data)
            try:
                messages += connection.protocol.receive(data)
            except zmtp.ProtocolError:
                self._end(connection)
                break
            if len(data) < _RECEIVE_BYTES and messages:
                break
        if connection.protocol.ready:
            self._silent.pop(connection.number, None)
        return messages

    def _flush(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                sent = connection.socket.send(connection.unsent)
                del connection.unsent[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self._end(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.socket).events != wanted:
            self._selector.modify(connection.socket, wanted, connection)

    def _end(self, connection: _Connection) -> None:
        if self._open.pop(connection.number, None) is not None:
            self._silent.pop(connection.number, None)
            self._selector.unregister(connection.socket)
            connection.socket.close()
