"""Reading what a dead process left: its spool and its spill, put back in order.

Segments of an earlier lap, copies in spool and spill of the same range, a torn last record and files that
somebody deleted are all normal here. What is missing between two readable ranges is a hole. `batches` is pure but for
calling the readers it is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from trackio.record import Damage, salvage
from trackio.segment import PREFIX, Content, range_of, read_file
from trackio.wire import MAX_BATCH_BYTES

T = TypeVar("T")


class Source(NamedTuple):
    """A segment that is not read yet: the range of the stream it may hold, and how to read it."""

    base: int
    end: int
    read: Callable[[], Content | None]


class Batch(NamedTuple):
    """Whole records from `start` on; what lies between the previous batch's end and `start` is lost."""

    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def batches(sources: Iterable[Source], committed: int) -> Iterator[Batch]:
    """The unstored records in these segments, each once, in order. Segments that overlap are read together, the
    others one after the other: a long spill is never in memory whole."""
    position = committed
    pending: Batch | None = None
    for group in _groups(sources, committed):
        contents = [content for source in group if (content := source.read()) is not None]
        for span in sorted(_spans(contents), key=lambda span: span.start):
            if span.end <= position:
                continue
            cut = max(0, position - span.start)
            batch = Batch(span.start + cut, span.data[cut:])
            if pending is not None and pending.end == batch.start and len(pending.data) < MAX_BATCH_BYTES:
                pending = Batch(pending.start, pending.data + batch.data)
            else:
                if pending is not None:
                    yield pending
                pending = batch
            position = batch.end
    if pending is not None:
        yield pending


def _groups(sources: Iterable[Source], committed: int) -> Iterator[list[Source]]:
    """Segments that reach beyond what is committed, in order, those together that overlap."""
    group: list[Source] = []
    for source in sorted(sources, key=lambda source: source.base):
        if source.end <= committed:
            continue
        if group and source.base >= max(member.end for member in group):
            yield group
            group = []
        group.append(source)
    if group:
        yield group


def _spans(contents: Iterable[Content]) -> Iterator[Batch]:
    """Runs of whole records; cut at a border every MAX_BATCH_BYTES."""
    for content in contents:
        start = end = -1
        for item in salvage(content.data, content.base):
            broken = isinstance(item, Damage)
            if start >= 0 and (broken or end - start >= MAX_BATCH_BYTES):
                yield _span(content, start, end)
                start = -1
            if not broken:
                start = item.start if start < 0 else start
                end = item.end
        if start >= 0:
            yield _span(content, start, end)


def _span(content: Content, start: int, end: int) -> Batch:
    return Batch(start, content.data[start - content.base : end - content.base])


def held(fd: int) -> Source | None:
    """The segment behind a descriptor, which stays open; None if it holds nothing or cannot be read."""
    try:
        found = range_of(fd)
    except OSError:
        return None
    return None if found is None else Source(*found, lambda: _read(fd))


def read_folder(path: str) -> list[Source]:
    """The segments in a stream's folder; those that cannot be read are left out."""
    try:
        names = os.listdir(path)
    except OSError:
        return []
    paths = [os.path.join(path, name) for name in names if name.startswith(PREFIX)]
    return [source for segment in paths if (source := _on_disk(segment)) is not None]


def _on_disk(path: str) -> Source | None:
    found = _with_open(path, range_of)
    return None if found is None else Source(*found, lambda: _with_open(path, read_file))


def _with_open(path: str, read: Callable[[int], T | None]) -> T | None:
    """What `read` finds in a file of ours; None if it cannot be opened or read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _read(fd: int) -> Content | None:
    try:
        return read_file(fd)
    except OSError:
        return None


def read_counters(path: str) -> tuple[int, int]:
    """Records and points the process refused, from its counters file; zeros if there is none."""
    try:
        with open(path, "rb") as file:
            data = file.read(16)
    except OSError:
        return 0, 0
    if len(data) < 16:
        return 0, 0
    return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
