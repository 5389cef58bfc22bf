"""Reading what a dead process left: its spool and its spill, put back in order. Pure over file contents.

Segments of an earlier lap, copies in spool and spill of the same range, a torn last record and files that
somebody deleted are all normal here. What is missing between two readable ranges is a hole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from trackio.record import Damage, salvage
from trackio.segment import PREFIX, Content, read_file
from trackio.wire import MAX_BATCH_BYTES


class Batch(NamedTuple):
    """Whole records from `start` on; what lies between the previous batch's end and `start` is lost."""

    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def batches(contents: Iterable[Content], committed: int) -> Iterator[Batch]:
    """The unstored records in these segments, each once, in order."""
    spans = sorted(_spans(contents), key=lambda span: span.start)
    position = committed
    pending: Batch | None = None
    for span in spans:
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


def read_folder(path: str) -> list[Content]:
    """The segments in a stream's folder; those that cannot be read are left out."""
    contents = []
    try:
        names = os.listdir(path)
    except OSError:
        return []
    for name in names:
        if name.startswith(PREFIX):
            content = read_path(os.path.join(path, name))
            if content is not None:
                contents.append(content)
    return contents


def read_path(path: str) -> Content | None:
    """One segment file, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return read_file(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


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
