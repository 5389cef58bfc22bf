"""The messages between a training process and the daemon, as frames. Pure; knows no sockets.

A message is one frame, a msgpack array `[kind, *fields]`; DATA has a second frame, the raw range of the
stream. Within a major version fields are only ever added at the end: a reader ignores fields it does not
know and gives those it misses their defaults, so every minor works with every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

VERSION = 1
OLDEST_VERSION = 1
MAX_MESSAGE_BYTES = 2 << 20
MAX_BATCH_BYTES = 1 << 20
"""A batch ends at a record border, so it is at most this and one record long: below MAX_MESSAGE_BYTES."""


class WireError(ValueError):
    """Frames that are no message of ours."""


class Hello(NamedTuple):
    """A stream introduces itself: at connect, and whenever the daemon asks. `meta` holds all its facts."""

    stream: str
    meta: dict[str, Any]
    oldest: int = 0
    head: int = 0
    versions: list[int] = [OLDEST_VERSION, VERSION]
    secrets: dict[str, Any] = {}
    """of the run's target; nobody writes them down"""


class Welcome(NamedTuple):
    """The answer to HELLO: everything up to `committed` is durable."""

    stream: str
    committed: int
    store: str = ""
    version: int = VERSION
    release: str = ""
    """the daemon's release"""
    life: str = ""
    """who started it: "autostarted", "started" or "service"; a service is not asked to hand over"""


class Data(NamedTuple):
    """The range [start, end) of a stream; `oldest` is the first byte the sender still holds."""

    stream: str
    start: int
    end: int
    oldest: int
    refused: list[int]
    body: bytes | memoryview = b""


class Ack(NamedTuple):
    """All up to `committed` is durable. `rewind` asks the sender to go on from there."""

    stream: str
    committed: int
    rewind: bool = False
    incomplete: int = 0
    """of its files, those that this daemon could not keep whole"""


class Heartbeat(NamedTuple):
    """A stream lives, has `head` bytes, and has refused these counts of records and points so far."""

    stream: str
    head: int
    refused: list[int]


class Refusal(NamedTuple):
    """The daemon cannot take this stream now; its data stay with the sender. One sentence says why."""

    stream: str
    reason: str


class Unknown(NamedTuple):
    """The daemon does not know this stream (it was restarted): say HELLO."""

    stream: str


class Find(NamedTuple):
    """Is there a run of this id or name? (`resume="allow"` and `"must"`) The steps of the asker's own `attempt`,
    which are its peers', are not what it goes on from."""

    project: str
    name: str
    attempt: str = ""


class Found(NamedTuple):
    """The run of that id, else the newest of that name: its id ("" if there is none) and its highest step."""

    project: str
    name: str
    run: str = ""
    step: int = -1


class StatusQuery(NamedTuple):
    """What is the daemon doing?"""


class StatusReport(NamedTuple):
    """The daemon's own facts and those of its live streams."""

    daemon: dict[str, Any]
    streams: list[dict[str, Any]]


class Stop(NamedTuple):
    """Finish what was received, then leave. Answered by Stopping."""

    reason: str = ""


class Stopping(NamedTuple):
    """The daemon is leaving; its lock is free once `pid` is gone."""

    pid: int


class Edit(NamedTuple):
    """Change what is stored: `action` is delete, move or rename of a `run`, or delete_project; `argument` is the other
    project's or the new name."""

    project: str
    action: str
    run: str = ""
    argument: str = ""


class Edited(NamedTuple):
    """Whether it was done; if not, one sentence says why."""

    done: bool
    sentence: str = ""


class Copy(NamedTuple):
    """Copy what is stored to where it outlives this host, as soon as can be. Answered by Edited."""


class SamplerQuery(NamedTuple):
    """A sampler, which is the owner of this stream, asks what to do; `state` says what it sees."""

    stream: str
    state: dict[str, Any]


class SamplerOrders(NamedTuple):
    """What a sampler is to do until it asks again."""

    orders: dict[str, Any]


class HostSampler(NamedTuple):
    """The daemon asks the process of this stream, which sees devices that it does not, to start a sampler."""

    stream: str


class Sync(NamedTuple):
    """Upload a project to a target (empty: to those it has), now; `is_retry`: also what was given up. A target with
    `stop` is one to upload it to no more. Answered by Edited."""

    project: str
    target: dict[str, Any]
    secrets: dict[str, Any]
    is_retry: bool = False


class Protect(NamedTuple):
    """A process linked files of these numbers into this stream's folder in `incoming`: nobody is to write to them
    before they are kept. Answered by Protected."""

    stream: str
    files: list[int]


class Protected(NamedTuple):
    """The daemon holds a lease on these of them; the others are the asker's to copy."""

    stream: str
    files: list[int]


class SetAside(NamedTuple):
    """Move out of the way what a dead process left and cannot be stored; nothing is removed. Answered by Edited."""

    stream: str


Message = (
    Hello
    | Welcome
    | Data
    | Ack
    | Heartbeat
    | Refusal
    | Unknown
    | Find
    | Found
    | StatusQuery
    | StatusReport
    | Stop
    | Stopping
    | Edit
    | Edited
    | SamplerQuery
    | SamplerOrders
    | HostSampler
    | Copy
    | Sync
    | Protect
    | Protected
    | SetAside
)

_TYPES: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Data,
    4: Ack,
    5: Heartbeat,
    6: Refusal,
    7: Unknown,
    8: Find,
    9: Found,
    10: StatusQuery,
    11: StatusReport,
    12: Stop,
    13: Stopping,
    14: Edit,
    15: Edited,
    16: SamplerQuery,
    17: SamplerOrders,
    18: HostSampler,
    19: Copy,
    20: Sync,
    21: Protect,
    22: Protected,
    23: SetAside,
}
_KINDS = {kind: number for number, kind in _TYPES.items()}
_LARGEST = (1 << 63) - 1
"""msgpack has larger ones, SQLite has not"""
_PLAIN: dict[str, type] = {"str": str, "int": int, "bool": bool}


def _holds(annotation: str, value: Any) -> bool:
    if annotation in _PLAIN:
        return type(value) is _PLAIN[annotation]
    if annotation == "list[int]":
        return isinstance(value, list) and all(type(v) is int for v in value)
    if annotation == "list[dict[str, Any]]":
        return isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return isinstance(value, dict)


def encode(message: Message) -> list[bytes | memoryview]:
    """The frames of `message`; the range of a Data is passed on uncopied."""
    if isinstance(message, Data):
        return [msgpack.packb([_KINDS[Data], *message[:-1]]), message.body]
    return [msgpack.packb([_KINDS[type(message)], *message])]


def decode(frames: Sequence[bytes]) -> Message:
    """The message in `frames`. Raises WireError, with a sentence, for anything else."""
    if not frames or len(frames) > 2:
        raise WireError(f"{len(frames)} frames instead of 1 or 2")
    try:
        values = msgpack.unpackb(frames[0])
    except Exception as error:
        raise WireError(f"not msgpack: {type(error).__name__}") from error
    if not isinstance(values, list) or not values or type(values[0]) is not int or values[0] not in _TYPES:
        raise WireError("not an array that starts with a known kind")
    kind = _TYPES[values[0]]
    names = [name for name in kind._fields if name != "body"]
    given: dict[str, Any] = dict(zip(names, values[1:], strict=False))
    for name, value in given.items():
        annotation = kind.__annotations__[name]
        if not _holds(str(getattr(annotation, "__forward_arg__", annotation)), value):
            raise WireError(f"{kind.__name__}.{name} is of type {type(value).__name__}")
        if type(value) is int and value > _LARGEST:
            raise WireError(f"{kind.__name__}.{name} is larger than any offset can be")
    if kind is Data:
        if len(frames) != 2:
            raise WireError("Data without its range")
        given["body"] = frames[1]
    try:
        return kind(**given)
    except TypeError as error:
        raise WireError(f"{kind.__name__} misses a field") from error


def common_version(versions: Sequence[int]) -> int | None:
    """The highest version both sides speak, or None."""
    if len(versions) != 2:
        return None
    highest = min(VERSION, versions[1])
    return highest if highest >= max(OLDEST_VERSION, versions[0]) else None
