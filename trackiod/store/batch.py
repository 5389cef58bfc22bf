"""What a batch of records holds: log() calls in tables where many are alike, everything else as records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trackio.record import Damage, Record, encode, record_at, salvage

if TYPE_CHECKING:  # numpy: an idle daemon does without
    from trackiod.store.tables import Table

_MANY_BYTES = 64 << 10
"""From this size on it is worth looking for records that are alike."""


class Contents(NamedTuple):
    """Everything in a batch, once."""

    tables: Sequence[Table]
    others: Sequence[Record | Damage]
    """what is in no table, in the stream's order"""


def read(data: bytes, start: int, wanted: frozenset[str] | None = None) -> Contents:
    """The contents of a batch that begins at offset `start`; in tables all metrics, or the `wanted`."""
    if len(data) < _MANY_BYTES:
        return Contents((), list(salvage(data, start)))
    try:
        from trackiod.store.tables import tabulate
    except (ImportError, OSError):  # numpy cannot be loaded (no descriptors, no memory): slower, and as good
        return Contents((), list(salvage(data, start)))
    return Contents(*tabulate(data, start, wanted))


def blanked(data: bytes, start: int, place: int, secret: bytes) -> bytes:
    """A batch that begins at offset `start`, in whose record at offset `place` a secret is blanked. No offset changes,
    and the record is whole."""
    position = place - start
    record = record_at(data, position, place)
    if record is None or not secret:
        return data
    payload = record.payload.replace(secret, b"-" * len(secret))
    blank = encode(place, payload)
    return data[:position] + blank + data[position + len(blank) :]
