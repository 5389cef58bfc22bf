"""The connections of processes: a ROUTER, and a gate before it where descriptors are short.

libzmq accepts whatever comes, and aborts the process where it finds no descriptor for a connection. So a thread looks
at each that is accepted, and takes the socket's name away before the reserve is used up: who finds no name keeps its
data and tries again. What it accepts before the thread is heard comes out of the reserve.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import zmq

from trackio import trust, wire
from trackiod import descriptors
from trackiod.lock import BACKLOG, NAMELESS
from trackiod.threads import Threads

log = logging.getLogger("trackiod.connections")

_MAX_MESSAGES_A_TURN = 256
_RECEIVE_HWM = 2
"""Messages of a peer, up to 2 MiB each, that libzmq holds where the loop is slow."""
_GREETING_MILLISECONDS = 5000
"""How long a connection may stay silent."""
_MAX_KNOWN_PEERS = 10_000
_LOG_AGAIN_SECONDS = 60.0
_SWITCH_SECONDS = 0.0005
"""How long another thread may keep the interpreter from the gate's."""


class Connections:
    """Owns the listener and the ROUTER. `receive` waits for messages; for one thread only."""

    def __init__(self, wake: int) -> None:
        """`wake`: a descriptor that ends `receive` when it can be read. Raises OSError."""
        if descriptors.are_short(descriptors.FOR_CONNECTIONS):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # libzmq would abort
        self._wake = wake
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.RCVHWM, _RECEIVE_HWM)
        self._router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_MESSAGE_BYTES)
        self._router.setsockopt(zmq.HANDSHAKE_IVL, _GREETING_MILLISECONDS)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(wake, zmq.POLLIN)
        self._gate: _Gate | None = None
        self._pids: dict[bytes, int] = {}

    def listen(self, listener: socket.socket, threads: Threads) -> None:
        """Takes over a bound and listening socket. Raises OSError, or CannotStart."""
        path = listener.getsockname()
        self._gate = _Gate(listener, path, self._router.get_monitor_socket(zmq.EVENT_ACCEPTED))
        self._gate.check(time.monotonic())
        threads.start("gate", self._gate.run)
        self._router.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))
        self._router.bind(f"ipc://{path}")

    def receive(self, seconds: float) -> Iterator[tuple[bytes, int, list[bytes]]]:
        """Waits for messages at most this long; gives (peer, its pid, frames) of each."""
        events = dict(self._poller.poll(int(seconds * 1000) + 1))
        if self._wake in events:
            with contextlib.suppress(OSError):
                os.read(self._wake, 4096)
        if self._router in events:
            yield from self._messages()

    def send(self, peer: bytes, frames: Sequence[bytes | memoryview]) -> None:
        """Sends a message. One for a peer that is gone, or reads nothing, is dropped."""
        try:
            self._router.send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("an answer was dropped: %s", error)  # heartbeats repeat it

    def check(self, now: float) -> None:
        """Lets connections in again once there is room."""
        if self._gate is not None:
            self._gate.check(now)

    def close(self, seconds: float) -> None:
        """Sends what is left, at most this long, and ends everything."""
        if self._gate is not None:
            self._router.disable_monitor()
            self._gate.close()
        self._router.close(int(seconds * 1000))
        self._context.term()

    def _messages(self) -> Iterator[tuple[bytes, int, list[bytes]]]:
        for _ in range(_MAX_MESSAGES_A_TURN):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = frames[0].bytes
            pid = self._pid_of(peer, frames[-1])
            if pid is not None:
                yield peer, pid, [frame.bytes for frame in frames[1:]]

    def _pid_of(self, peer: bytes, frame: zmq.Frame) -> int | None:
        """The pid at the other end of a connection, by a frame that came from it; None if it is another user's process
        that is not root's, or gone."""
        if peer in self._pids:
            return self._pids[peer]
        try:
            # a copy of the descriptor: libzmq owns the original
            with socket.socket(fileno=os.dup(frame.get(zmq.SRCFD))) as connection:
                pid, uid = trust.peer_of(connection)
        except (OSError, zmq.ZMQError, KeyError):
            return None
        if not trust.is_trusted(uid):
            log.warning("a message from uid %d (pid %d) was refused", uid, pid)
            return None
        if len(self._pids) > _MAX_KNOWN_PEERS:
            self._pids.clear()
        self._pids[peer] = pid
        return pid


class _Gate:
    """Gives the socket its name while there are descriptors for more connections. Owns the listener."""

    def __init__(self, listener: socket.socket, path: str, monitor: zmq.Socket[bytes]) -> None:
        self._listener = listener
        self._path = path
        self._monitor = monitor
        self._lock = threading.Lock()
        self._is_open = True
        self._log_at = 0.0

    def run(self) -> None:
        """Looks at each connection as it is accepted, until the monitor ends. In a thread."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            while self._monitor.recv_multipart():
                if descriptors.are_short(descriptors.FOR_CONNECTIONS):
                    self.check(time.monotonic())
        except zmq.ContextTerminated:
            pass
        finally:
            self._monitor.close(0)

    def check(self, now: float) -> None:
        """Opens or closes the gate."""
        with self._lock:
            more = descriptors.TO_LET_IN_AGAIN if not self._is_open else descriptors.FOR_CONNECTIONS
            is_open = not descriptors.are_short(more)
            self._listener.listen(BACKLOG if descriptors.are_ample() else 0)
            if is_open == self._is_open:
                return
            names = (self._path, self._path + NAMELESS)
            try:
                os.rename(*(names if self._is_open else reversed(names)))
            except OSError:
                return  # systemd's, in a folder that is not ours, or somebody removed it
            self._is_open = is_open
            if not is_open and now >= self._log_at:
                self._log_at = now + _LOG_AGAIN_SECONDS
                log.warning("descriptors are short (ulimit -n): no more connections are accepted for now")

    def close(self) -> None:
        """Ends the listener; the monitor ends with its context."""
        self._listener.close()
