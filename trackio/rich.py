"""What may be logged beside numbers and text: `Table`, `Trace`, `Histogram`, `Markdown`. Media are in `media`.

A rich value is stored as a map that says its `_type`, and what it holds if that is small; else that lies in a file.
numpy is imported where an array is met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import msgpack

from trackio.border import raises_only
from trackio.interrupts import hand_on
from trackio.staging import Staging
from trackio.steps import integral
from trackio.values import (
    Keep,
    Unstorable,
    are_plain,
    clean_text,
    is_mapping,
    key_text,
    plain,
    short_repr,
    text_of,
    type_name,
)

_INLINE_BYTES = 32 << 10
"""What a value holds up to this size stands in the record itself; more lies in a file."""
_MOST_BINS = 512
_DEFAULT_BINS = 64


class Rich:
    """A value with a `_type`. Subclasses say how they are stored. Their constructors raise ValueError or TypeError, and
    nothing else, for what they cannot be made of."""

    TYPE: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "__init__" in cls.__dict__:
            guarded: Any = raises_only(ValueError, TypeError)(cls.__dict__["__init__"])
            type.__setattr__(cls, "__init__", guarded)

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        """The plain map that stands for it; its files go to `staging`. Raises Unstorable."""
        raise NotImplementedError


def inline_or_file(value: dict[str, Any], content: dict[str, Any], staging: Staging) -> dict[str, Any]:
    """`value` with the plain `content` in it or, if that is large, with the file that holds it."""
    packed = packed_or_refused(content)
    if len(packed) <= _INLINE_BYTES:
        return {**value, **content}
    return {**value, "file": staging.write([packed], ".msgpack").id}


def packed_or_refused(content: Any) -> bytes:
    """msgpack of plain content. Raises Unstorable."""
    try:
        packed: bytes = msgpack.packb(content)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Unstorable(f"it cannot be stored ({error})") from error
    return packed


class Table(Rich):
    """Rows and columns. Cells hold numbers, text, lists and maps, media and lists of media.

    Made of `data` (rows as lists or maps, with `columns` or without) or of a `dataframe`. Raises TypeError for what is
    no table.
    """

    TYPE = "trackio.table"

    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        data: Any = None,
        dataframe: Any = None,
        rows: Any = None,
        optional: Any = True,
        allow_mixed_types: bool = False,
        log_mode: str | None = "IMMUTABLE",
    ) -> None:
        self._columns: list[Any] = [_column(name) for name in columns] if columns is not None else []
        self._rows: list[list[Any]] = []
        if dataframe is not None:
            self._take_dataframe(dataframe)
            return
        data = data if data is not None else rows
        if data is None:
            return
        if hasattr(data, "to_dict") and hasattr(data, "columns"):
            self._take_dataframe(data)
            return
        if hasattr(data, "tolist"):
            data = data.tolist()
        if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
            raise TypeError(f"Table data must be a list of rows, not a {type_name(data)}.")
        if isinstance(data, list) and all(type(row) is list and len(row) == len(self._columns) for row in data):
            self._rows = [row.copy() for row in data]
            return
        for row in data:
            self._take_row(row)

    def _take_dataframe(self, dataframe: Any) -> None:
        try:
            names = list(dataframe.columns)
            lists = [_cells_of(dataframe, name, place) for place, name in enumerate(names)]
            self._rows = [list(row) for row in zip(*lists, strict=True)]
        except Exception as error:
            hand_on(error)
            raise TypeError("Table(dataframe=) takes a pandas.DataFrame, or what has its columns.") from error
        self._columns = _distinct(names)

    def _take_row(self, row: Any) -> None:
        if isinstance(row, Mapping):
            cells_by_name = {_column(name): value for name, value in row.items()}
            for name in cells_by_name:
                if name not in self._columns:
                    self._add_column(name)
            self._rows.append([cells_by_name.get(name) for name in self._columns])
            return
        if isinstance(row, (str, bytes)) or not isinstance(row, Iterable):
            raise TypeError(f"A row of a Table must be a list or a map, not a {type_name(row)}.")
        cells = list(row)
        for number in range(len(self._columns), len(cells)):
            self._add_column(number)
        self._rows.append(cells + [None] * (len(self._columns) - len(cells)))

    def _add_column(self, name: Any) -> None:
        self._columns.append(name)
        for row in self._rows:
            row.append(None)

    @property
    def columns(self) -> list[Any]:
        """The columns' names."""
        return list(self._columns)

    @property
    def data(self) -> list[dict[Any, Any]]:
        """The rows, each a map of column to cell (as upstream; wandb's are lists)."""
        return [dict(zip(self._columns, row, strict=True)) for row in self._rows]

    @raises_only(ValueError, TypeError)
    def add_data(self, *cells: Any) -> None:
        """Adds a row."""
        self._take_row(cells)

    @raises_only(ValueError, TypeError)
    def add_row(self, *cells: Any) -> None:
        """Adds a row, as `add_data`."""
        self._take_row(cells)

    @raises_only(ValueError, TypeError)
    def add_column(self, name: Any, data: Iterable[Any]) -> None:
        """Adds a column. Raises ValueError if it has not as many cells as there are rows."""
        cells = list(data)
        if self._rows and len(cells) != len(self._rows):
            raise ValueError(f"Column {short_repr(name)} has {len(cells)} cells and the Table {len(self._rows)} rows.")
        self._rows = self._rows or [[] for _ in cells]
        self._columns.append(_column(name))
        for row, cell in zip(self._rows, cells, strict=True):
            row.append(cell)

    @raises_only(ValueError, TypeError)
    def get_column(self, name: Any, convert_to: str | None = None) -> Any:
        """A column's cells. Raises ValueError if there is none of that name."""
        place = self._columns.index(_column(name))
        cells = [row[place] for row in self._rows]
        if convert_to == "numpy":
            import numpy as np

            return np.array(cells)
        return cells

    def __len__(self) -> int:
        return len(self._rows)

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        columns = [text_of(name) for name in self._columns]
        rows = [row if are_plain(map(type, row)) else [cell(value, keep) for value in row] for row in self._rows]
        value = {"_type": self.TYPE, "rows_count": len(rows)}
        try:
            return inline_or_file(value, {"columns": columns, "rows": rows}, staging)
        except Unstorable:  # text that only looked plain: lone surrogates, ints beyond 64 bits
            rows = [[cell(value, keep) for value in row] for row in self._rows]
            return inline_or_file(value, {"columns": columns, "rows": rows}, staging)


def _column(name: Any) -> Any:
    """A column's name: as it is if it is plain, else as text, so that nothing of the user's runs in comparing it."""
    return name if type(name) in (str, int, float, bool) else text_of(name)


def _cells_of(dataframe: Any, name: Any, place: int) -> list[Any]:
    """A column's cells, by its place where it can be had so: several may have the same name."""
    by_place = getattr(dataframe, "iloc", None)
    column = dataframe[name] if by_place is None else by_place[:, place]
    cells: list[Any] = column.tolist() if hasattr(column, "tolist") else column.to_list()
    return cells


def _distinct(names: list[Any]) -> list[Any]:
    """Names of columns; one that is there already gets a number: `loss`, `loss_2`."""
    found: list[Any] = []
    for name in map(_column, names):
        new, number = name, 1
        while new in found:
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def cell(value: Any, keep: Keep) -> Any:
    """What a table or trace holds: the plain form, or the bounded repr of what has none."""
    try:
        return plain(value, 0, keep)
    except Unstorable:
        if isinstance(value, Rich):
            raise
        return short_repr(value)
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
        return short_repr(value)


class Trace(Rich):
    """A conversation or an agent's request: messages as chat APIs have them, metadata, spans of execution.

    Raises TypeError unless `messages` and `spans` are lists of maps.
    """

    TYPE = "trackio.trace"

    def __init__(self, messages: Any, metadata: Any = None, spans: Any = None) -> None:
        for name, value in (("messages", messages), ("spans", spans or [])):
            if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
                raise TypeError(f"`{name}` must be a list of dictionaries.")
        self.messages = [dict(message) for message in messages]
        self.metadata: dict[Any, Any] = dict(metadata) if metadata is not None else {}
        self.spans = [dict(span) for span in spans or []]

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        content = {name: _tree(getattr(self, name), keep) for name in ("messages", "metadata", "spans")}
        return inline_or_file({"_type": self.TYPE}, content, staging)


def _tree(value: Any, keep: Keep, depth: int = 0) -> Any:
    """Nested maps and lists in plain form, the odd leaf as its repr."""
    if depth < 16 and is_mapping(value):
        return {key_text(k): _tree(v, keep, depth + 1) for k, v in value.items()}
    if depth < 16 and type(value) in (list, tuple):
        return [_tree(item, keep, depth + 1) for item in value]
    return cell(value, keep)


class Histogram(Rich):
    """How values are distributed: counts over bins.

    Of a `sequence` (list, array or tensor of numbers of any shape; what is not finite is left out and counted), in
    `num_bins` bins (64 without, at most 512); or ready, as `np_histogram=(counts, edges)` with one edge more than
    counts. Raises ValueError for neither or both, and for what does not fit together.
    """

    TYPE = "trackio.histogram"

    def __init__(self, sequence: Any = None, np_histogram: Any = None, num_bins: int | None = None) -> None:
        import numpy as np

        if (sequence is None) == (np_histogram is None):
            raise ValueError("Histogram takes either a sequence or an np_histogram.")
        self.non_finite = 0
        """values of the sequence that were NaN or infinite"""
        if np_histogram is not None:
            try:
                counts, edges = np_histogram
                self.histogram, self.bins = np.asarray(counts), np.asarray(edges)
                fits = self.histogram.ndim == self.bins.ndim == 1 and len(self.bins) == len(self.histogram) + 1
            except (TypeError, ValueError) as error:
                raise ValueError("np_histogram must be (counts, edges).") from error
            if not fits and len(self.histogram):
                raise ValueError("np_histogram must have one edge more than counts.")
            if len(self.histogram) > _MOST_BINS:
                raise ValueError(f"A Histogram has at most {_MOST_BINS} bins, not {len(self.histogram)}.")
            return
        try:
            data = as_array(sequence)
            if isinstance(data, np.ma.MaskedArray):
                data = data.compressed()
            if np.iscomplexobj(data):
                raise ValueError("complex ones have no order")
            data = np.asarray(data, np.float64).ravel()
        except (TypeError, ValueError) as error:
            raise ValueError(f"A Histogram is made of numbers ({error}).") from error
        finite = np.isfinite(data)
        self.non_finite = int(len(data) - finite.sum())
        data = data[finite]
        self.histogram, self.bins = np.array([]), np.array([])
        if len(data):
            wanted = _DEFAULT_BINS if num_bins is None else integral(num_bins)
            if wanted is None:
                raise ValueError(f"num_bins is not a whole number: {short_repr(num_bins)}")
            bins = min(wanted, _MOST_BINS)
            with np.errstate(all="ignore"):
                try:
                    self.histogram, self.bins = np.histogram(data, bins=max(1, bins))
                except ValueError:  # a range that floats cannot divide, such as 1e308 to -1e308
                    self.histogram, self.bins = np.array([len(data)]), np.array([data.min(), data.max()])

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        value = {"_type": self.TYPE, "bins": self.bins.tolist(), "values": self.histogram.tolist()}
        return value | ({"non_finite": self.non_finite} if self.non_finite else {})


def as_array(value: Any) -> Any:
    """A tensor as an array on the CPU, of a type numpy has; anything else as it is."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        if getattr(value, "is_sparse", False):
            value = value.to_dense()
        if "bfloat16" in str(value.dtype) or "float8" in str(value.dtype):
            value = value.float()
        return value.numpy()
    return value


class Markdown(Rich):
    """Text in Markdown. Raises ValueError if it is no text."""

    TYPE = "trackio.markdown"

    def __init__(self, text: str = "") -> None:
        if not isinstance(text, str):
            raise ValueError("Markdown text must be a string")
        self.text = clean_text(text)

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        return inline_or_file({"_type": self.TYPE}, {"_value": self.text}, staging)
