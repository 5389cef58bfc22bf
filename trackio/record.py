"""How one log() call lies in a stream's bytes. Pure: bytes in, values out.

A stream is an endless sequence of records; an offset is a byte position in it. A record is

    0        8        12       16               16 + length, padded to a multiple of 8
    | commit | length | crc32  | payload        | padding |

The commit word, written last and in one aligned store, is the record's own offset with the lowest bit
set. A reader believes a record only if that word is the offset it expects, so whole records of an earlier
lap in a recycled segment never count, and neither do zeros.

A payload is a msgpack array `[kind, time_ns, ...]`; `Kind` lists what follows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

HEADER = struct.Struct("<QII")
HEADER_BYTES = HEADER.size
COMMITTED = 1
MAX_PAYLOAD_BYTES = 1 << 20
"""A larger log() call is split over several records; a single larger value is refused."""

CRC_SLICE = 4096  # zlib gives the GIL away above 5 KB; a slice keeps it, so log() is not interrupted here
_ALIGN = 8
_WORD_BYTES = 8
_ZEROS = bytes(4096)
_SHORT_BYTES = 512


class Kind(IntEnum):
    """What a payload holds after `[kind, time_ns`."""

    LOG = 0
    """step: int, origin: Origin, metrics: map of str to value"""
    CONFIG = 1
    """values: map; the run's configuration from here on"""
    DEFINE = 2
    """name or glob: str, options: map (step_metric, reduce, summary)"""
    FINISH = 3
    """state: str, cause: str, explicit: bool"""
    CLOCK = 4
    """monotonic_ns: int; written when the wall clock jumped against it"""
    SUMMARY = 5
    """values: map; what the user sets in the run's summary"""
    FILE = 6
    """number: int, facts: map; a file of the stream was staged (`staging`), before the record that speaks of it"""
    ALERT = 7
    """facts: map (title, text, level, step, webhook)"""
    NAME = 8
    """name: str; what the run is called from here on"""
    SYSTEM = 9
    """metrics: map of str to value; of the machine, by time"""
    ARTIFACT = 10
    """number: int, role: str, name: str, facts: map; an artifact was logged (after the FILEs of its files) or used"""


class Origin(IntEnum):
    """Where a record's step came from."""

    EXPLICIT = 0
    METRIC = 1
    COUNTER = 2


class Record(NamedTuple):
    """One whole, checked record: its range in the stream and its payload."""

    start: int
    end: int
    payload: bytes


class Damage(NamedTuple):
    """A range of the stream that holds no readable record."""

    start: int
    end: int


def framed_bytes(payload_bytes: int) -> int:
    """Bytes a payload takes in the stream, header and padding included."""
    return (payload_bytes + HEADER_BYTES + _ALIGN - 1) & -_ALIGN


def checksum(payload: bytes) -> int:
    """crc32 of `payload`, taken in slices small enough that zlib keeps the GIL."""
    if len(payload) <= CRC_SLICE:
        return crc32(payload)
    value = 0
    for start in range(0, len(payload), CRC_SLICE):
        value = crc32(payload[start : start + CRC_SLICE], value)
    return value


def encode(offset: int, payload: bytes) -> bytes:
    """The record for `payload` at `offset`, as it lies in the stream."""
    padding = framed_bytes(len(payload)) - HEADER_BYTES - len(payload)
    return HEADER.pack(offset | COMMITTED, len(payload), checksum(payload)) + payload + bytes(padding)


def pack(kind: Kind, time_ns: int, *fields: Any) -> bytes:
    """The payload of a record."""
    packed: bytes = msgpack.packb((int(kind), time_ns, *fields))
    return packed


def unpack(payload: bytes) -> list[Any]:
    """The payload's `[kind, time_ns, ...]`. Raises ValueError if it is not one."""
    try:
        fields = msgpack.unpackb(payload, strict_map_key=False)
    except Exception as error:
        raise ValueError(f"not a msgpack payload: {error}") from error
    if type(fields) is not list or len(fields) < 2 or type(fields[0]) is not int or type(fields[1]) is not int:
        raise ValueError("not an array that starts with kind and time")
    if not 0 <= fields[1] < 1 << 63:
        raise ValueError("its time is out of range")
    return fields


def record_at(data: bytes, position: int, offset: int) -> Record | None:
    """The record that stands at `position` of `data` and claims to be at `offset`, if it is whole."""
    body = position + HEADER_BYTES
    if body > len(data):
        return None
    word, length, crc = HEADER.unpack_from(data, position)
    if word != offset | COMMITTED or body + length > len(data):
        return None
    payload = data[body : body + length]
    if checksum(payload) != crc:
        return None
    return Record(offset, offset + framed_bytes(length), payload)


def records(data: bytes, offset: int) -> Iterator[Record]:
    """The records of `data`, which begins at `offset`, up to the first that is not whole."""
    position = 0
    while (record := record_at(data, position, offset + position)) is not None:
        yield record
        position = record.end - offset


def kind_of_last(data: bytes | memoryview, offset: int) -> int | None:
    """Return the kind of the record that ends `data`, which begins at `offset`; None if it is not a short one."""
    for position in range(len(data) - HEADER_BYTES - _ALIGN, max(-1, len(data) - _SHORT_BYTES), -_ALIGN):
        word, length, _ = HEADER.unpack_from(data, position)
        if word == offset + position | COMMITTED and position + framed_bytes(length) == len(data):
            return int(data[position + HEADER_BYTES + 1])  # behind the array's own byte
    return None


def salvage(data: bytes, offset: int) -> Iterator[Record | Damage]:
    """Everything readable in `data`, which begins at `offset`, and the ranges in between.

    Makes progress on any bytes: after damage it goes on at the next aligned position whose commit word is
    its own offset and whose checksum holds.
    """
    position, damaged_from = 0, -1
    while position + HEADER_BYTES <= len(data):
        record = record_at(data, position, offset + position)
        if record is None:
            damaged_from = position if damaged_from < 0 else damaged_from
            position = _next_committed(data, position + _ALIGN, offset)
            continue
        if damaged_from >= 0:
            yield Damage(offset + damaged_from, record.start)
            damaged_from = -1
        yield record
        position = record.end - offset
    if damaged_from < 0 and position < len(data):
        damaged_from = position
    if damaged_from >= 0:
        yield Damage(offset + damaged_from, offset + len(data))


def _next_committed(data: bytes, position: int, offset: int) -> int:
    """Return the next aligned position, from `position` on, whose commit word is its own offset; the end if none is.

    The commit words of 256 bytes of the stream differ in their lowest byte only, so the seven bytes above it are
    sought at the speed of C. Where these are zeros, as is most of what was never written, zeros are passed first.
    """
    end = len(data) - _WORD_BYTES
    while position <= end:
        if data.startswith(_ZEROS, position):
            position += len(_ZEROS)
            continue
        page = (offset + position) >> 8
        if page >= 1 << 56:
            break  # no offset of a stream: a damaged header says so
        last = min(end, ((page + 1) << 8) - offset - 1)  # of the positions in this page
        last -= (last - position) % _ALIGN
        needle = page.to_bytes(_WORD_BYTES - 1, "little")
        found = data.find(needle, position + 1, last + _WORD_BYTES)
        while found >= 0:
            word = (offset + found - 1) & 0xFF | COMMITTED
            if (found - 1 - position) % _ALIGN == 0 and data[found - 1] == word:
                return found - 1
            found = data.find(needle, found + 1, last + _WORD_BYTES)
        position = last + _ALIGN
    return len(data)
