"""What the loop gives the commit thread to do, and what it gets back. Pure values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from trackio import wire
from trackio.lookup import name_of, sentence_of
from trackio.record import records
from trackiod.exits import Exit
from trackiod.recovery import Source

_MOST_JOINED_BYTES = 4 << 20


class Register(NamedTuple):
    """A stream introduced itself."""

    project: str
    stream: str
    meta: dict[str, Any]
    peer: Any


class Append(NamedTuple):
    """A batch arrived."""

    project: str
    stream: str
    data: wire.Data
    peer: Any

    def halves(self) -> tuple[Append, Append] | None:
        """Return the batch as two; None if it has one record, or none that is whole."""
        ends = [record.end for record in records(bytes(self.data.body), self.data.start)]
        if not ends or ends[-1] != self.data.end or len(ends) < 2:
            return None
        middle = ends[len(ends) // 2 - 1]
        cut = middle - self.data.start
        first = self.data._replace(end=middle, body=self.data.body[:cut])
        second = self.data._replace(start=middle, body=self.data.body[cut:])
        return self._replace(data=first), self._replace(data=second)


class Refused(NamedTuple):
    """A process told how much it had no room for."""

    project: str
    stream: str
    records: int
    points: int


class Drain(NamedTuple):
    """A process is gone: store what it left in these folders and segments, then end its stream."""

    project: str
    stream: str
    meta: dict[str, Any]
    folders: tuple[str, ...]
    sources: Callable[[], list[Source]]
    exit: Exit


class Find(NamedTuple):
    """Somebody looks for a run by name."""

    project: str
    name: str
    attempt: str
    peer: Any


class TakeUp(NamedTuple):
    """A project could not be opened when the daemon started: what is open in it is taken up as soon as it can be."""

    project: str


class FileKept(NamedTuple):
    """What became of a staged file: `state` is kept or incomplete, for the `cause` given."""

    project: str
    stream: str
    file: str
    state: str
    digest: str | None = None
    size: int | None = None
    suffix: str = ""
    cause: str = ""


class FileWaits(NamedTuple):
    """A staged file could not be kept yet, and is tried again: what was logged later does not wait for it."""

    project: str
    stream: str
    file: str


class AlertSent(NamedTuple):
    """An alert was sent, or given up for the reason in `sent`."""

    project: str
    stream: str
    start: int
    sent: str


class Raise(NamedTuple):
    """The daemon itself raises an alert, in the newest run of a project."""

    project: str
    facts: dict[str, Any]


class Edit(NamedTuple):
    """Somebody wants something deleted, moved or renamed (`wire.Edit`)."""

    project: str
    action: str
    run: str
    argument: str
    peer: Any


class MoveAside(NamedTuple):
    """Move the folders of a stream out of the way, for the cause given. `project` is empty where none is known."""

    project: str
    stream: str
    folders: tuple[str, ...]
    cause: str
    meta: dict[str, Any] | None = None
    """of a stream that is to end with a counted gap then"""
    head: int = 0
    """how far it was logged, as far as is known"""
    exit: Exit = Exit()


OfStream = Register | Append | Refused | Drain | FileKept | FileWaits | AlertSent
InCommit = OfStream | Find | Raise | TakeUp
"""what is done in a project's transaction"""
Work = InCommit | Edit | MoveAside
Settled = FileKept | AlertSent
"""what came of an errand"""


class Reply(NamedTuple):
    """An answer for a peer."""

    peer: Any
    message: wire.Message


class Trouble(NamedTuple):
    """Why something cannot be read, moved or stored."""

    sentence: str
    path: str = ""
    error: str = ""
    """the name of the errno"""
    lasts: bool = False
    """whether trying again gives the same"""


def trouble_of(error: OSError) -> Trouble:
    """Return why the system refuses something."""
    path = error.filename if isinstance(error.filename, str) else ""
    return Trouble(sentence_of(error), path, name_of(error))


class NotDrained(NamedTuple):
    """What a dead process left could not be stored now: its folders stay, and it is tried again."""

    stream: str
    trouble: Trouble


class MovedAside(NamedTuple):
    """The folders of a stream were moved to `paths`, and nothing of them was removed."""

    stream: str
    paths: tuple[str, ...]
    trouble: Trouble | None = None
    """why not, if they were not"""


class Drained(NamedTuple):
    """A dead process's stream is stored whole and its folders are gone."""

    stream: str


class Deleted(NamedTuple):
    """A project is gone."""

    project: str


class TakenUp(NamedTuple):
    """(project, stream, meta) of the streams of a project that no end is known of."""

    open_streams: list[tuple[str, str, dict[str, Any]]]


class Failing(NamedTuple):
    """A project cannot be committed now: batches of it are not taken until it can."""

    project: str


class ToKeep(NamedTuple):
    """A file waits to be kept."""

    project: str
    file: str
    facts: dict[str, Any]


class ToSend(NamedTuple):
    """An alert waits to be sent."""

    project: str
    stream: str
    facts: dict[str, Any]


Errand = ToKeep | ToSend
"""What is to be done beside storing, since it may hang; its end comes back as work."""


def joined(items: Iterable[InCommit]) -> list[InCommit]:
    """The same work, with batches of a stream that go on where the one before ended as one: they make better columns
    and are acked together."""
    done: list[InCommit] = []
    last: dict[str, int] = {}
    parts: dict[int, list[Append]] = {}
    for work in items:
        place = last.get(work.stream) if isinstance(work, Append) else None
        if place is not None and isinstance(work, Append) and _goes_on(parts[place], work):
            parts[place].append(work)
            continue
        if isinstance(work, Append):
            last[work.stream] = len(done)
            parts[len(done)] = [work]
        elif isinstance(work, OfStream):
            last.pop(work.stream, None)
        done.append(work)
    for place, appends in parts.items():
        if len(appends) > 1:
            body = b"".join(append.data.body for append in appends)
            done[place] = appends[-1]._replace(data=appends[-1].data._replace(start=appends[0].data.start, body=body))
    return done


def _goes_on(appends: list[Append], following: Append) -> bool:
    """Whether a batch can be joined to these; a range that is not as long as it says is left to be found out."""
    first, last, data = appends[0].data, appends[-1].data, following.data
    is_whole = len(last.body) == last.end - last.start and len(data.body) == data.end - data.start
    return is_whole and data.start == last.end and data.end - first.start <= _MOST_JOINED_BYTES
