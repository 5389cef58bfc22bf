"""The connection to the daemon: a ZeroMQ DEALER over a plain AF_UNIX socket. A thin shell around `zmtp`.

Never blocks: what the socket does not take at once is kept and sent first the next time.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence

from trackio import trust, wire, zmtp
from trackio.descriptor import Descriptor, with_reserve

_RECEIVE_BYTES = 256 << 10


class LinkError(Exception):
    """The connection is gone or was never made. The message says why."""


class ForeignPeer(LinkError):
    """Another user's process answers there. Nothing was sent to it."""


class Link:
    """One connection. Owns the socket; `close` ends it and may be called twice."""

    def __init__(self, path: str) -> None:
        """Connects to the socket at `path`, which must be this user's or root's. Raises LinkError; ForeignPeer where it
        is another user's."""
        self._dealer = zmtp.Dealer()
        self._unsent = memoryview(b"")
        try:
            self._descriptor = Descriptor(with_reserve(_new_socket))
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self._descriptor.number)
        except OSError as error:
            raise LinkError(f"no socket: {error.strerror or error}") from error
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
            trust.check_peer(self._socket, path)  # before the first byte: what follows holds tokens and data
            self._write([zmtp.Dealer.opening()])
        except trust.NotTrusted as error:
            self.close()
            raise ForeignPeer(str(error.strerror)) from error
        except OSError as error:
            self.close()
            raise LinkError(f"{path}: {error.strerror or error}") from error

    @property
    def is_clear(self) -> bool:
        """Whether the peer is ready and everything given so far has left: only then may more be sent."""
        return self._dealer.ready and not self._unsent

    def _check(self) -> None:
        """Raises LinkError where somebody else closed the socket: its number may be of a file or socket of theirs."""
        if self._descriptor.number < 0:
            raise LinkError("the script closed the connection")

    def send(self, message: wire.Message) -> None:
        """Sends a message, or keeps what the socket does not take. Raises LinkError."""
        self._check()
        try:
            self._write(zmtp.frames(wire.encode(message)))
        except OSError as error:
            raise LinkError(str(error.strerror or error)) from error

    def flush(self) -> None:
        """Sends on with what was kept. Raises LinkError."""
        if not self._unsent:
            return
        self._check()
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise LinkError(str(error.strerror or error)) from error

    def receive(self) -> list[wire.Message]:
        """The messages that have arrived. Raises LinkError when the peer is gone or talks nonsense."""
        messages: list[wire.Message] = []
        self._check()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                return messages
            except OSError as error:
                raise LinkError(str(error.strerror or error)) from error
            if not data:
                raise LinkError("the daemon closed the connection")
            try:
                messages += [wire.decode(parts) for parts in self._dealer.receive(data)]
            except (zmtp.ProtocolError, wire.WireError) as error:
                raise LinkError(str(error)) from error

    def wait(self, seconds: float) -> None:
        """Waits until something arrives, or room for what was kept, at most this long. Raises LinkError."""
        self._check()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        poll.poll(seconds * 1000)

    def close(self) -> None:
        """Ends the connection. Whoever closed the socket before has its number."""
        self._socket.detach()
        self._descriptor.close()

    def _write(self, buffers: Sequence[bytes | memoryview]) -> None:
        if self._unsent:
            self._unsent = memoryview(b"".join((self._unsent, *buffers)))
            return
        try:
            sent = self._socket.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            sent = 0
        kept = []
        for buffer in buffers:
            if sent < len(buffer):
                kept.append(memoryview(buffer)[sent:])
            sent = max(0, sent - len(buffer))
        if kept:  # copied: a segment may be freed and used again before the rest can leave
            self._unsent = memoryview(b"".join(kept))


def _new_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
