"""ZMTP 3.0, NULL mechanism, DEALER side: ZeroMQ's wire protocol as values in, bytes out.

The training process speaks it over a plain AF_UNIX socket. libzmq is not used there: it aborts the process
when file descriptors or threads run out, costs 40 ms of import, and a fork during that import deadlocks.
Source: rfc.zeromq.org/spec/23 (ZMTP 3.0) and spec/28 (DEALER). Knows no sockets and no messages of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
_GREETING_BYTES = 64
GREETING = (_SIGNATURE + b"\x03\x00" + b"NULL").ljust(_GREETING_BYTES, b"\0")

_MORE, _LONG, _COMMAND = 1, 2, 4
_MAX_FRAME_BYTES = 8 << 20  # what the daemon may send us
_MAX_PARTS = 16


class ProtocolError(Exception):
    """The peer speaks something else."""


def _command(name: bytes, body: bytes) -> bytes:
    content = bytes([len(name)]) + name + body
    return bytes([_COMMAND, len(content)]) + content


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


READY = _command(b"READY", _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))


def frame_header(size: int, *, more: bool) -> bytes:
    """The flags and length that stand before a frame of `size` bytes."""
    flags = _MORE if more else 0
    if size < 256:
        return bytes((flags, size))
    return bytes((flags | _LONG,)) + struct.pack(">Q", size)


def frames(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The buffers that carry one message of these parts; large parts are passed on uncopied."""
    out: list[bytes | memoryview] = []
    for i, part in enumerate(parts):
        out.append(frame_header(len(part), more=i + 1 < len(parts)))
        out.append(part)
    return out


class Dealer:
    """Reads what a ROUTER sends. Feed it bytes; it returns whole messages and says when it is ready."""

    def __init__(self) -> None:
        self.ready = False
        self._buffer = bytearray()
        self._greeted = False
        self._parts: list[bytes] = []

    @staticmethod
    def opening() -> bytes:
        """What to send first; NULL needs no answer in between."""
        return GREETING + READY

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Takes bytes from the peer, returns the messages now complete. Raises ProtocolError."""
        self._buffer += data
        if not self._greeted and not self._read_greeting():
            return []
        messages: list[list[bytes]] = []
        while (frame := self._next_frame()) is not None:
            flags, body = frame
            if flags & _COMMAND:
                self._on_command(body)
                continue
            self._parts.append(body)
            if len(self._parts) > _MAX_PARTS:
                raise ProtocolError("the peer sent a message without an end")
            if not flags & _MORE:
                messages.append(self._parts)
                self._parts = []
        return messages

    def _read_greeting(self) -> bool:
        seen = bytes(self._buffer[:_GREETING_BYTES])
        if seen[:1] not in (b"", b"\xff") or (len(seen) >= 10 and not seen[9] & 1):
            raise ProtocolError("the peer does not speak ZMTP")
        if len(seen) >= 11 and seen[10] < 3:
            raise ProtocolError(f"the peer speaks ZMTP {seen[10]}, not 3")
        if len(seen) < _GREETING_BYTES:
            return False
        if seen[12:32].rstrip(b"\0") != b"NULL":
            raise ProtocolError("the peer wants a security mechanism")
        del self._buffer[:_GREETING_BYTES]
        self._greeted = True
        return True

    def _next_frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        flags, start, size = buffer[0], 2, buffer[1]
        if flags & _LONG:
            if len(buffer) < 9:
                return None
            start, size = 9, struct.unpack_from(">Q", buffer, 1)[0]
        if flags & ~(_MORE | _LONG | _COMMAND) or size > _MAX_FRAME_BYTES:
            raise ProtocolError("the peer sent a frame that cannot be")
        if len(buffer) < start + size:
            return None
        body = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return flags, body

    def _on_command(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if name == b"READY":
            self.ready = True
        elif name == b"ERROR":
            raise ProtocolError("the peer refused the connection")
