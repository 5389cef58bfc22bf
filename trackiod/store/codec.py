"""Columns as bytes and back: deltas, shuffled bytes, deflate, a checksum. Pure; every value returns bit by bit.

Integers are stored as a first value and differences, in the narrowest width that holds them, or as a
stride where all are equal. Floats are stored as float32 where that loses nothing (what torch logs),
as decimals where that loses nothing (what callers round), else whole. Bytes of equal weight stand
together in planes, each deflated where that helps: the low ones of a measurement are noise. Everything else is msgpack.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from trackiod.views.column import Ints, Values

_LEVEL = 6
_SAMPLE_BYTES = 4096
_LEAST_WBITS = 9
_RANDOM_BITS = 7.5
"""bits a byte from which on deflating only takes time"""
_SYMBOL_BYTES = 0.5
"""what each byte value that occurs adds to a deflated plane"""
_STRIDE = struct.Struct("<Bqq")
_DELTAS = struct.Struct("<Bq")
_CRC = struct.Struct("<I")
_WIDTHS = (1, 2, 4, 8)
_DECIMALS = range(7)
_MAX_EXACT = 1 << 53
_RAW, _DEFLATED = b"\0", b"\1"


class Damaged(ValueError):
    """These bytes are not what was written."""


# -- whole blobs -------------------------------------------------------------------------------------------


def seal(parts: Sequence[bytes]) -> bytes:
    """Parts in one blob, with a checksum."""
    body = bytes((len(parts),)) + b"".join(struct.pack("<I", len(part)) for part in parts) + b"".join(parts)
    return _CRC.pack(zlib.crc32(body)) + body


def unseal(blob: bytes) -> list[memoryview]:
    """The parts of a blob. Raises Damaged."""
    body = memoryview(blob)[_CRC.size :]
    if len(body) < 1 or _CRC.unpack_from(blob)[0] != zlib.crc32(body):
        raise Damaged("its checksum does not hold")
    count = body[0]
    lengths = struct.unpack_from(f"<{count}I", body, 1)
    parts, position = [], 1 + 4 * count
    for length in lengths:
        parts.append(body[position : position + length])
        position += length
    return parts


# -- integers ----------------------------------------------------------------------------------------------


def pack_ints(values: Ints) -> bytes:
    """Any int64 values; those of equal distance take 17 bytes, however many."""
    if not len(values):
        return b""
    first = int(values[0])
    deltas = np.diff(values)  # wraps around where it must, and so does the sum
    if not len(deltas) or (deltas == deltas[0]).all():
        return _STRIDE.pack(0, first, int(deltas[0]) if len(deltas) else 0)
    least, most = int(deltas.min()), int(deltas.max())
    width = next(w for w in _WIDTHS if -(1 << 8 * w - 1) <= least and most < 1 << 8 * w - 1)
    return _DELTAS.pack(width, first) + _pack_planes(deltas.astype(f"<i{width}"))


def unpack_ints(data: memoryview, count: int) -> Ints:
    """What `pack_ints` packed. Raises Damaged."""
    values: Ints = np.empty(count, np.int64)
    if not count:
        return values
    if data[0] == 0:
        _, first, stride = _STRIDE.unpack_from(data)
        values[:] = np.arange(count)
        values *= stride
        values += first
        return values
    width, first = _DELTAS.unpack_from(data)
    deltas = _unpack_planes(data[_DELTAS.size :], f"<i{width}", count - 1)
    values[0] = first
    values[1:] = deltas
    values.cumsum(out=values)
    return values


# -- small tables ------------------------------------------------------------------------------------------


def pack_table(rows: Sequence[NDArray[Any]], dtype: str) -> bytes:
    """Arrays of one length as they are: for what is read often and takes little room."""
    return np.stack(rows).astype(dtype).tobytes()


def unpack_table(data: memoryview, dtype: str, rows: int, columns: int) -> NDArray[Any]:
    """What `pack_table` packed. Raises Damaged."""
    if len(data) != rows * columns * 8:
        raise Damaged("it is not as long as it says")
    return np.frombuffer(data, dtype).reshape(rows, columns)


# -- values ------------------------------------------------------------------------------------------------


def pack_values(values: Values) -> tuple[str, bytes]:
    """(kind, bytes). Kinds: `int`, `float`, `float32`, `e0` to `e6` (that many decimals), `any`."""
    if values.dtype == np.int64:
        return "int", pack_ints(values)
    if values.dtype == object:
        return "any", _deflate(msgpack.packb(values.tolist()))
    with np.errstate(over="ignore", invalid="ignore"):
        single = _exact(values, values.astype(np.float32))
    if single is not None:
        return "float32", _pack_planes(single)
    decimals = _decimals(values)
    if decimals is not None:
        return f"e{decimals[0]}", pack_ints(decimals[1])
    return "float", _pack_planes(values)


def unpack_values(kind: str, data: memoryview, count: int) -> Values:
    """What `pack_values` packed: an array of float64, int64 or objects. Raises Damaged."""
    if kind == "int":
        return unpack_ints(data, count)
    if kind == "float32":
        return _unpack_planes(data, "<f4", count).astype(np.float64)
    if kind == "float":
        return _unpack_planes(data, "<f8", count)
    if kind == "any":
        return np.fromiter(msgpack.unpackb(_inflate(data), strict_map_key=False), object, count)
    if kind[:1] == "e" and kind[1:].isdigit():
        return np.asarray(unpack_ints(data, count) / 10.0 ** int(kind[1:]))
    raise Damaged(f"no kind of values is called {kind!r}")


def _exact(values: Values, other: NDArray[Any]) -> NDArray[Any] | None:
    """`other` if it gives back each value bit by bit, NaNs included."""
    return other if np.array_equal(other.astype(np.float64).view(np.int64), values.view(np.int64)) else None


def _decimals(values: Values) -> tuple[int, Ints] | None:
    """The fewest decimals that give back each value exactly, and the values as whole numbers of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        for digits in _DECIMALS:
            scale = 10.0**digits
            sample = np.rint(values[:16] * scale) / scale
            if not np.array_equal(sample, values[:16]):
                continue
            whole = np.rint(values * scale)
            if not (np.abs(whole) < _MAX_EXACT).all():
                return None
            stored = whole.astype(np.int64)  # which has no -0.0
            if _exact(values, stored / scale) is not None:
                return digits, stored
    return None


# -- bytes -------------------------------------------------------------------------------------------------


def _pack_planes(values: NDArray[Any]) -> bytes:
    """All first bytes, then all second bytes, and so on: what is alike stands together. A plane that is as long
    as there are values is not deflated."""
    planes = [_pack_plane(plane) for plane in values.view(np.uint8).reshape(-1, values.itemsize).T]
    return struct.pack(f"<{len(planes)}I", *map(len, planes)) + b"".join(planes)


def _pack_plane(plane: NDArray[np.uint8]) -> bytes:
    raw = plane.tobytes()
    shares = np.bincount(plane, minlength=256) / len(plane)
    seen = shares[shares > 0]
    bits = -(seen * np.log2(seen)).sum()
    if bits > _RANDOM_BITS or len(plane) * bits / 8 + len(seen) * _SYMBOL_BYTES >= len(plane):
        return raw
    packed = _deflated(raw)
    return packed if len(packed) < len(raw) else raw


def _unpack_planes(data: memoryview, dtype: str, count: int) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    lengths = struct.unpack_from(f"<{size}I", data)
    values = np.empty((count, size), np.uint8)
    position = 4 * size
    for i, length in enumerate(lengths):
        part = data[position : position + length]
        plane = part if length == count else _inflated(part)
        if len(plane) != count:
            raise Damaged("it is not as long as it says")
        values[:, i] = np.frombuffer(plane, np.uint8)
        position += length
    return values.view(dtype).reshape(count)


def _deflated(data: bytes) -> bytes:
    """Deflated by runs and frequencies alone, unless a sample has repeats that make looking for them worth its time:
    in the high bytes of measurements there are few, and they take ten times as long."""
    sample = data[:_SAMPLE_BYTES]
    has_repeats = len(_deflated_by(sample, 1, zlib.Z_FILTERED)) < len(_deflated_by(sample, 1, zlib.Z_RLE))
    return _deflated_by(data, _LEVEL, zlib.Z_FILTERED if has_repeats else zlib.Z_RLE)


def _deflated_by(data: bytes, level: int, strategy: int) -> bytes:
    window = min(max(len(data).bit_length(), _LEAST_WBITS), zlib.MAX_WBITS)  # a short text needs no large tables
    packer = zlib.compressobj(level, zlib.DEFLATED, -window, min(window - 7, zlib.DEF_MEM_LEVEL), strategy)
    return packer.compress(data) + packer.flush()


def _inflated(data: memoryview) -> bytes:
    try:
        return zlib.decompress(data, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise Damaged(str(error)) from error


def _deflate(data: bytes) -> bytes:
    """Deflated or not, whichever is shorter, and which."""
    packed = _deflated(data)
    return _DEFLATED + packed if len(packed) < len(data) else _RAW + data


def _inflate(data: memoryview) -> bytes:
    return bytes(data[1:]) if data[:1] == _RAW else _inflated(data[1:])
