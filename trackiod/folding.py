"""When batches are folded into columns: as they are committed, where one alone makes good columns; else later, in
slices, while nothing waits to be committed. Belongs to the commit thread, the only one that writes.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from trackio.names import HOST
from trackiod.databases import Databases
from trackiod.errors import StoreError
from trackiod.store import removal
from trackiod.store.batch import Contents, read
from trackiod.store.digest import digest_of
from trackiod.store.project import ProjectStore

if TYPE_CHECKING:  # numpy: an idle daemon does without
    from trackiod.store.fold import Folded

log = logging.getLogger("trackiod.folding")

_SLICE_SECONDS = 0.02
_LOOK_SECONDS = 0.5
_BEHIND_BYTES = 32 << 20
_AGAIN_SECONDS = 30.0
_KEPT_FREE_PAGES = 512
_PAGES_A_SLICE = 128
_AXES_A_SLICE = 16
_GOOD_RECORDS = 1024
"""so many in one batch make columns that need not be made anew"""


class Stored(NamedTuple):
    """How a batch was stored: bytes that are raw, the (number, facts) of files it speaks of, and whether of alerts."""

    raw_bytes: int
    files: list[tuple[int, dict[str, Any]]]
    has_alerts: bool


class Folding:
    """Knows which projects have something to fold, and has at most one fold in hand."""

    def __init__(self, databases: Databases, most_sample_bytes: int | None = None) -> None:
        """`most_sample_bytes`: the oldest samples of the node go when they take more."""
        self._databases = databases
        self._most_sample_bytes = most_sample_bytes
        self._due: dict[str, float] = {}
        self._touched: dict[str, dict[str, None]] = {}
        self._job: Generator[None, None, None] | None = None
        self._project = self._stream = ""
        self._raw_bytes = 0

    def note(self, project: str, streams: Iterable[str], raw_bytes: int = 0) -> None:
        """Something was stored in these streams of a project, or they ended."""
        self._touched.setdefault(project, {}).update(dict.fromkeys(streams))
        self._due.setdefault(project, time.monotonic() + _LOOK_SECONDS)
        self._raw_bytes += raw_bytes

    def store_batch(self, store: ProjectStore, stream: str, start: int, data: bytes) -> Stored:
        """Stores a batch that begins at the committed offset, in a transaction of the caller's: raw, or in columns at
        once, which spares writing it twice. Raises sqlite3.Error."""
        contents = read(data, start)
        said = digest_of(contents)
        beside = ([(file.number, file.facts) for file in said.files], bool(said.alerts))
        raw = store.raw_beside(stream) if said.records >= _GOOD_RECORDS else None
        folded = None if raw is None else _fold_at_once([*(read(body, offset) for offset, body in raw), contents])
        if raw is None or folded is None:
            store.append(stream, start, data, said)
            return Stored(len(data), *beside)
        store.append_folded(stream, start + len(data), said, folded, batches=len(raw))
        if (self._project, self._stream) == (store.project, stream):
            self._job = None  # what it has in hand is folded now
        self._raw_bytes = max(0, self._raw_bytes - sum(len(body) for _, body in raw))
        return Stored(0, *beside)

    def is_due(self) -> bool:
        """Whether `step` has something to do now."""
        return self._job is not None or self._next() is not None

    def slices_beside_ingest(self) -> int:
        """How many slices to do after a commit though more waits to be committed: the more, the more is raw."""
        return self._raw_bytes // _BEHIND_BYTES if self.is_due() else 0

    def seconds_until_due(self) -> float | None:
        """How long nothing is to be done; None for ever."""
        if self._job is not None:
            return 0.0
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def step(self) -> None:
        """A slice of work. Never raises: what cannot be folded stays raw, and is read all the same."""
        deadline = time.monotonic() + _SLICE_SECONDS
        try:
            if self._job is None:
                self._project = self._next() or ""
                self._job = self._begin(self._project) if self._project else None
            while self._job is not None:
                next(self._job)
                if time.monotonic() >= deadline:
                    break
        except StopIteration:
            self._job = None
        except (StoreError, sqlite3.Error, OSError) as error:
            self._give_up(error)
        except Exception as error:  # the border of the commit thread: raw batches are read as well as folded ones
            log.exception("internal error while folding")
            self._give_up(error)

    def _next(self) -> str | None:
        now = time.monotonic()
        return next((project for project, at in self._due.items() if at <= now), None)

    def _give_up(self, error: Exception) -> None:
        self._job = None
        log.warning("stream %r of project %r is not folded now: %s", self._stream, self._project, error)
        self._touched.get(self._project, {}).pop(self._stream, None)  # what it logs next brings it back
        self._due[self._project] = time.monotonic() + _AGAIN_SECONDS

    def _begin(self, project: str) -> Generator[None, None, None] | None:
        touched = self._touched.setdefault(project, {})
        if not touched or not self._databases.has(project):
            self._forget(project)
            return None
        self._stream = next(reversed(touched))
        store = self._databases.get(project)
        if store.is_ripe(self._stream):
            return self._fold(store, self._stream)
        del touched[self._stream]
        if project == HOST and self._has_too_much(store):
            return self._drop_oldest(store)
        if not touched and store.is_idle() and store.free_pages() > _KEPT_FREE_PAGES:
            return self._give_back(store)
        return None

    def _forget(self, project: str) -> None:
        """Nothing of a project is to be folded until something is stored in it."""
        del self._due[project], self._touched[project]
        if not self._due:
            self._raw_bytes = 0  # what is raw now is to stay so
        if self._databases.has(project) and self._databases.get(project).is_idle():
            self._databases.close(project)

    def _fold(self, store: ProjectStore, stream: str) -> Generator[None, None, None]:
        from trackiod.store.fold import fold  # numpy: an idle daemon does without

        raw = store.raw(stream)
        yield
        folded = yield from fold(read(data, start) for start, data in raw)
        yield
        with store.transaction():
            store.replace_raw(stream, raw[-1][0], folded, batches=len(raw))
        self._raw_bytes = max(0, self._raw_bytes - sum(len(data) for _, data in raw))

    def _has_too_much(self, store: ProjectStore) -> bool:
        return self._most_sample_bytes is not None and removal.used_bytes(store.connection) > self._most_sample_bytes

    def _drop_oldest(self, store: ProjectStore) -> Generator[None, None, None]:
        """Until a tenth of what the samples may take is free."""
        assert self._most_sample_bytes is not None
        dropped = 0
        while removal.used_bytes(store.connection) > 0.9 * self._most_sample_bytes:
            with store.transaction():
                axes = removal.drop_oldest(store.connection, _AXES_A_SLICE)
            dropped += axes
            yield
            if axes < _AXES_A_SLICE:
                break
        if dropped:
            log.info("samples take all they may: the oldest %d stretches were removed", dropped)
            yield from self._give_back(store)

    @staticmethod
    def _give_back(store: ProjectStore) -> Generator[None, None, None]:
        free = store.free_pages()
        while free:
            store.give_back(_PAGES_A_SLICE)
            yield
            before, free = free, store.free_pages()
            if free >= before:
                return


def _fold_at_once(batches: Iterable[Contents]) -> list[Folded] | None:
    """The columns of these batches; None if they cannot be folded."""
    try:
        from trackiod.store.fold import at_once, fold
    except (ImportError, OSError):  # numpy cannot be loaded now (no descriptors, no memory)
        return None
    try:
        return at_once(fold(batches))
    except Exception:  # the border of the commit thread: raw batches are read as well as folded ones
        log.exception("internal error while folding")
        return None
