"""Many records at once: those of one layout become a table, without reading each of them. Pure; knows numpy.

A training loop logs the same names again and again, so its records differ in their numbers only, which stand at
the same places. The first record of a length is read byte by byte and gives the layout: which bytes must be equal
in all, and where which number stands. What matches is cut out of the batch in columns; what does not (text, maps,
other kinds, damage) is given back for others to read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from trackio.record import COMMITTED, HEADER, HEADER_BYTES, Damage, Kind, Origin, Record, framed_bytes, salvage
from trackiod.store.sums import Stretch, Sums
from trackiod.views.column import Ints, Values, is_ascending

Rows = NDArray[np.uint8]
"""payloads of one length, one a row, each padded to a multiple of 8"""
_HEADER = np.dtype([("word", "<u8"), ("length", "<u4"), ("checksum", "<u4")])
"""`record.HEADER`"""

_FEWEST = 16
"""for fewer records of one length, looking for a layout takes longer than reading them"""
_MOST_LAYOUTS = 4
"""of records of one length"""

_FIXED_ARRAY_OF_5, _LOG = 0x95, int(Kind.LOG)
_FLOATS = {0xCA: ">f4", 0xCB: ">f8"}
_INTS = {0xCC: "u1", 0xCD: ">u2", 0xCE: ">u4", 0xCF: ">u8", 0xD0: "i1", 0xD1: ">i2", 0xD2: ">i4", 0xD3: ">i8"}
_UNSIGNED_64 = 0xCF


class Table(NamedTuple):
    """log() calls with the same names, in the stream's order; all arrays of one length."""

    names: tuple[str, ...]
    offsets: Ints
    times_ns: Ints
    steps: Ints
    origins: Ints
    columns: list[Values]
    """float64 or int64, one for each name"""


def tabulate(
    data: bytes, start: int, wanted: frozenset[str] | None = None
) -> tuple[list[Table], list[Record | Damage]]:
    """The tables of a batch that begins at offset `start`, and everything else in it.

    A table has all metrics, or the `wanted`; one that has none of these is left out.
    """
    positions, lengths, end = _scan(data, start)
    tables, kept = _tables(data, start, positions, lengths, wanted)
    others: list[Record | Damage] = [
        Record(start + p, start + p + framed_bytes(n), data[p + HEADER_BYTES : p + HEADER_BYTES + n])
        for p, n in zip(positions[kept].tolist(), lengths[kept].tolist(), strict=True)
    ]
    if end < len(data):
        others += salvage(data[end:], start + end)
    return tables, others


# -- summed up ---------------------------------------------------------------------------------------------


def summed(table: Table) -> Stretch:
    """A table in short, as if its records had been read one by one."""
    steps = table.steps
    return Stretch(
        table.names,
        len(steps),
        int((table.origins == Origin.COUNTER).sum()),
        int(steps.min()),
        int(steps.max()),
        int(steps[-1]),
        int(table.times_ns[-1]),
        [column[-1].item() for column in table.columns],
        is_ascending(steps),
        _sums(table.columns),
        int(table.offsets[-1]),
    )


def are_ascending(tables: Sequence[Table], others: Sequence[tuple[int, int]]) -> bool:
    """Whether each step is higher than the one before, over all tables and the (offset, step) of other calls."""
    places = np.array(others, np.int64).reshape(-1, 2)
    offsets = np.concatenate([*(table.offsets for table in tables), places[:, 0]])
    steps = np.concatenate([*(table.steps for table in tables), places[:, 1]])
    return is_ascending(steps[np.argsort(offsets)])


def _sums(columns: list[Values]) -> list[Sums]:
    """The sums of each column. What a sum means is told by `sums.sums_of`."""
    doubles = [column for column in columns if column.dtype == np.float64]
    of_doubles = iter(_sums_of_doubles(np.stack(doubles)) if doubles else ())
    return [next(of_doubles) if column.dtype == np.float64 else _sums_of_ints(column) for column in columns]


def _sums_of_doubles(rows: NDArray[np.float64]) -> list[Sums]:
    with np.errstate(invalid="ignore", over="ignore"):
        totals = rows.sum(axis=1)
        if not np.isnan(totals).any():  # then there is no NaN, and numpy finds least and greatest much faster
            nans, lows, highs = np.zeros(len(rows), np.int64), rows.min(axis=1), rows.max(axis=1)
        else:
            is_nan = np.isnan(rows)
            nans, totals = is_nan.sum(axis=1), np.where(is_nan, 0.0, rows).sum(axis=1)
            lows, highs = np.fmin.reduce(rows, axis=1), np.fmax.reduce(rows, axis=1)
    count = rows.shape[1]
    return [
        Sums(count - nans, nans, low, high, total) if nans < count else Sums(nans=nans)
        for nans, low, high, total in zip(*(fact.tolist() for fact in (nans, lows, highs, totals)), strict=True)
    ]


def _sums_of_ints(column: Ints) -> Sums:
    low, high = int(column.min()), int(column.max())
    fits = max(-low, high) < (1 << 62) // len(column)
    return Sums(len(column), 0, low, high, int(column.sum()) if fits else sum(column.tolist()))


# -- layouts -----------------------------------------------------------------------------------------------


def _scan(data: bytes, start: int) -> tuple[Ints, Ints, int]:
    """Positions and payload lengths of the whole records that `data` begins with, and where these end."""
    unpack, view, size = HEADER.unpack_from, memoryview(data), len(data)
    found: list[Ints] = []
    position = 0
    while (body := position + HEADER_BYTES) <= size:
        word, length, checksum = unpack(data, position)
        if (
            word != start + position | COMMITTED
            or body + length > size
            or crc32(view[body : body + length]) != checksum
        ):
            break
        count = _alike(data, start, position, length)
        step = framed_bytes(length)
        found.append(np.column_stack((position + np.arange(count) * step, np.full(count, length))))
        position += count * step
    places = np.concatenate(found) if found else np.empty((0, 2), np.int64)
    return places[:, 0], places[:, 1], min(position, size)


def _alike(data: bytes, start: int, position: int, length: int) -> int:
    """How many whole records of this payload length follow each other from `position` on; the first is known."""
    step, view = framed_bytes(length), memoryview(data)
    most = (len(data) - position - HEADER_BYTES - length) // step + 1
    headers = np.ndarray((most,), _HEADER, data, position, (step,))
    expected = (start + position + np.arange(most) * step) | COMMITTED
    count = _leading((headers["word"] == expected.astype(np.uint64)) & (headers["length"] == length))
    bodies = range(position + HEADER_BYTES, position + HEADER_BYTES + count * step, step)
    checksums = np.array([crc32(view[body : body + length]) for body in bodies], np.uint32)
    return _leading(headers["checksum"][:count] == checksums)


def _leading(holds: NDArray[np.bool_]) -> int:
    """How many are true before the first that is not."""
    return len(holds) if holds.all() else int(holds.argmin())


def _tables(
    data: bytes, start: int, positions: Ints, lengths: Ints, wanted: frozenset[str] | None
) -> tuple[list[Table], list[int]]:
    """The tables of these records, and the numbers of the records that are in none."""
    tables = []
    kept = np.ones(len(positions), bool)
    for length in np.unique(lengths):
        numbers = np.flatnonzero((lengths == length) & (positions + framed_bytes(length) <= len(data)))
        for _ in range(_MOST_LAYOUTS):
            if len(numbers) < _FEWEST:
                break
            rows = _rows(data, positions[numbers], int(length))
            layout = _Layout.of(bytes(rows[0, :length]))
            if layout is None:
                numbers = numbers[1:]
                continue
            matches = layout.matches(rows)
            chosen = numbers[matches]
            table = layout.table(rows if matches.all() else rows[matches], start + positions[chosen], wanted)
            if table.names:
                tables.append(table)
            kept[chosen] = False
            numbers = numbers[~matches]
    return tables, np.flatnonzero(kept).tolist()


def _rows(data: bytes, positions: Ints, length: int) -> Rows:
    """The payloads at these positions, and their padding."""
    width, buffer = framed_bytes(length) - HEADER_BYTES, np.frombuffer(data, np.uint8)
    step = width + HEADER_BYTES
    if (np.diff(positions) == step).all():  # one after the other: a copy by rows is the quickest
        first = int(positions[0])
        return np.ascontiguousarray(buffer[first : first + len(positions) * step].reshape(-1, step)[:, HEADER_BYTES:])
    rows: Rows = np.lib.stride_tricks.sliding_window_view(buffer, width)[positions + HEADER_BYTES]
    return rows


class _Slot(NamedTuple):
    """Where a number stands in a payload, and how."""

    place: int
    kind: str
    """a numpy type"""

    @property
    def end(self) -> int:
        return self.place + np.dtype(self.kind).itemsize


class _Layout:
    """Which bytes of a payload are the same in all records that have this layout, and where the numbers are."""

    def __init__(self, payload: bytes) -> None:
        """Reads a payload. Raises ValueError or IndexError if it is no log() call of plain numbers."""
        padding = bytes(-len(payload) % 8)
        self._payload = np.frombuffer(payload + padding, np.uint64)
        self._mask = np.frombuffer(b"\xff" * len(payload) + padding, np.uint8).copy()
        if payload[0] != _FIXED_ARRAY_OF_5 or payload[1] != _LOG:
            raise ValueError("not a log() call")
        self._time = self._slot(payload, 2)
        self._step = self._slot(payload, self._time.end)
        self._origin = self._slot(payload, self._step.end)
        self._slots: dict[str, _Slot] = {}
        count, place = _map_header(payload, self._origin.end)
        for _ in range(count):
            name, place = _text(payload, place)
            self._slots[name] = self._slot(payload, place)
            place = self._slots[name].end
        if len(self._slots) != count or place != len(payload):
            raise ValueError("names come twice, or more follows")
        if any(slot.kind in _FLOATS.values() for slot in (self._time, self._step, self._origin)):
            raise ValueError("a time, step or origin that is no whole number")

    @classmethod
    def of(cls, payload: bytes) -> _Layout | None:
        """The layout of a payload, if it has one."""
        try:
            return cls(payload)
        except (ValueError, IndexError):
            return None

    def _slot(self, payload: bytes, place: int) -> _Slot:
        """The number that begins at `place`; its bytes may differ between records, its kind may not."""
        code = payload[place]
        if code < 0x80 or code >= 0xE0:  # the number itself, in 7 or 5 bits
            self._mask[place] = 0x80 if code < 0x80 else 0xE0
            return _Slot(place, "i1")
        kind = _FLOATS.get(code) or _INTS.get(code)
        if kind is None:
            raise ValueError("not a number")
        slot = _Slot(place + 1, kind)
        self._mask[slot.place : slot.end] = 0
        if code == _UNSIGNED_64:  # which must fit 64 bits with sign
            self._mask[slot.place] = 0x80
            if payload[slot.place] & 0x80:
                raise ValueError("a number past 64 bits with sign")
        return slot

    def matches(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows have this layout."""
        differs = rows.view(np.uint64) ^ self._payload
        differs &= self._mask.view(np.uint64)
        matches: NDArray[np.bool_] = ~np.any(differs, axis=1)
        return matches

    def table(self, rows: Rows, offsets: Ints, wanted: frozenset[str] | None) -> Table:
        """These rows, which match, in columns."""
        slots = {name: slot for name, slot in self._slots.items() if wanted is None or name in wanted}
        times_ns, steps, origins = (_cut(rows, slot) for slot in (self._time, self._step, self._origin))
        return Table(tuple(slots), offsets, times_ns, steps, origins, [_cut(rows, slot) for slot in slots.values()])


def _map_header(payload: bytes, place: int) -> tuple[int, int]:
    """How many pairs the map at `place` has, and where they begin."""
    code = payload[place]
    if code & 0xF0 == 0x80:
        return code & 0x0F, place + 1
    size = {0xDE: 2, 0xDF: 4}.get(code)
    if size is None:
        raise ValueError("not a map")
    return int.from_bytes(payload[place + 1 : place + 1 + size], "big"), place + 1 + size


def _text(payload: bytes, place: int) -> tuple[str, int]:
    """The text at `place`, and what follows it."""
    code = payload[place]
    if code & 0xE0 == 0xA0:
        size, body = code & 0x1F, place + 1
    else:
        width = {0xD9: 1, 0xDA: 2, 0xDB: 4}.get(code)
        if width is None:
            raise ValueError("not a text")
        size, body = int.from_bytes(payload[place + 1 : place + 1 + width], "big"), place + 1 + width
    if body + size > len(payload):
        raise ValueError("a text that is cut off")
    return payload[body : body + size].decode(), body + size


def _cut(rows: Rows, slot: _Slot) -> Values:
    """The numbers that stand in a slot."""
    cells = np.ndarray((len(rows),), slot.kind, rows, slot.place, (rows.shape[1],))
    return cells.astype(np.float64 if slot.kind in _FLOATS.values() else np.int64)
