"""Reading what a dead process left: its spool and its spill, put back in order.

Segments of an earlier lap, copies in spool and spill of the same range, a torn last record and files that
somebody deleted are all normal here. What is missing between two readable ranges is a hole. What cannot be read is
neither: it raises OSError, and nothing is removed. `batches` is pure but for calling the readers it is given.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from trackio.lookup import list_folder, named, unless_absent
from trackio.record import COMMITTED, HEADER, HEADER_BYTES, Damage, framed_bytes, salvage
from trackio.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from trackio.segment import PREFIX, Content, bases_of, read_bytes
from trackio.wire import MAX_BATCH_BYTES

T = TypeVar("T")

_MOST = (1 << 63) - 1
"""that a database can hold"""


class Source(NamedTuple):
    """A segment that is not read yet: the range of the stream it may hold, and how to read it."""

    base: int
    end: int
    read: Callable[[], Content | None]


class Batch(NamedTuple):
    """Whole records from `start` on; what lies between the previous batch's end and `start` is lost. One without
    records says that what was logged up to `start` is lost."""

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


def ranges(sources: Iterable[Source]) -> list[tuple[int, int]]:
    """The ranges of these segments, in order: what is read twice and is the same has not changed."""
    return sorted((source.base, source.end) for source in sources)


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
        if (lost := _lost_at_end(content, max(end, content.base))) is not None:
            yield lost


def _lost_at_end(content: Content, offset: int) -> Batch | None:
    """The end of a record at `offset`, behind all that can be read, that was logged whole and is damaged now: its
    commit word is written last."""
    position = offset - content.base
    if position + HEADER_BYTES > len(content.data):
        return None
    word, length, _ = HEADER.unpack_from(content.data, position)
    if word != offset | COMMITTED:
        return None
    return Batch(min(offset + framed_bytes(length), content.base + len(content.data)), b"")


def _span(content: Content, start: int, end: int) -> Batch:
    return Batch(start, content.data[start - content.base : end - content.base])


def held(fd: int, path: str) -> list[Source]:
    """The segment behind a descriptor, which stays open; none if it holds nothing. Raises OSError, about `path`."""
    return _sources(named(lambda: _head(fd), path), lambda base: named(lambda: _content(fd, base), path))


def read_folder(path: str) -> list[Source]:
    """The segments in a stream's folder, none if it is not there. Raises OSError, as do their readers."""
    found = []
    for name in sorted(list_folder(path)):
        if name.startswith(PREFIX):
            found += _on_disk(os.path.join(path, name))
    return found


def _on_disk(path: str) -> list[Source]:
    def read(base: int) -> Content | None:
        return _with_open(path, lambda fd: _content(fd, base))

    return _sources(_with_open(path, _head), read)


class _Head(NamedTuple):
    """Where a segment may begin in its stream, and the size of its file."""

    bases: list[int]
    size: int


def _sources(head: _Head | None, read: Callable[[int], Content | None]) -> list[Source]:
    if head is None:
        return []
    size = head.size - SEGMENT_HEADER_BYTES
    return [Source(base, base + size, partial(read, base)) for base in head.bases]


def _head(fd: int) -> _Head:
    return _Head(bases_of(fd), os.fstat(fd).st_size)


def _content(fd: int, base: int) -> Content:
    """The segment's records, if it begins at `base`. Raises OSError, also if it does not give all of its bytes."""
    size = os.fstat(fd).st_size
    data = read_bytes(fd, size)
    if len(data) < size and os.fstat(fd).st_size == size:
        raise OSError(errno.EIO, f"only {len(data)} of {size} bytes can be read")
    return Content(base, data[SEGMENT_HEADER_BYTES:])


def _with_open(path: str, read: Callable[[int], T]) -> T | None:
    """What `read` finds in a file of ours; None if it is not there, or is no file. Raises OSError."""
    fd = unless_absent(lambda: _open(path), path)
    if fd is None:
        return None
    try:
        mode = named(lambda: os.fstat(fd).st_mode, path)
        return named(lambda: read(fd), path) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None
    finally:
        os.close(fd)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link, which is not ours
            return None
        raise


def read_counters(path: str) -> tuple[int, int]:
    """Records and points the process refused, from its counters file; zeros if there is none. Raises OSError."""
    data = _with_open(path, lambda fd: read_bytes(fd, 16))
    if data is None or len(data) < 16:
        return 0, 0
    records, points = (min(int.from_bytes(part, "little"), _MOST) for part in (data[:8], data[8:]))
    return records, points
