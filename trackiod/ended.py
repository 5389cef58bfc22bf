"""Streams whose processes are gone, until all that they left is stored and removed.

What cannot be read or stored now is tried again at growing intervals, and nothing of it is removed. It is in nobody's
way: the loop asks, the commit thread works, and other streams, projects and the end of the daemon wait for none.
Belongs to the loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from trackio import folder, wire
from trackio.lookup import sentence_of
from trackio.places import STREAM_META, Places
from trackiod import orphans, streams
from trackiod.exits import Exit
from trackiod.moments import timestamp
from trackiod.streams import LiveStream
from trackiod.work import Drain, Drained, MoveAside, MovedAside, NotDrained, Trouble, Work, trouble_of

log = logging.getLogger("trackiod.ended")

_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 600.0
_MOST_POISONED_TRIES = 3
"""After so many tries that all failed in a way that lasts, a stream is set aside."""
_SURE_LOOKS = 2
"""A folder is called damaged when so many looks in a row find it so: one may meet it while it is removed."""
DAMAGED_META = "what it says of itself is damaged"


@dataclass(slots=True)
class _Ending:
    """One stream. `stream` owns descriptors of what its process left, if we held some while it lived."""

    id: str
    stream: LiveStream
    exit: Exit
    is_in_hand: bool = False
    """the commit thread works on it"""
    tries: int = 0
    poisoned: int = 0
    due: float = 0.0
    trouble: Trouble | None = None
    asker: Any = None
    """who asked for it to be set aside, and waits for the answer"""


class Ended:
    """Has what dead processes left stored. `close` lets go of descriptors."""

    def __init__(self, places: Places, submit: Callable[[Work], None]) -> None:
        """`submit` hands work to the commit thread."""
        self.count = 0
        """streams that have ended so far"""
        self._places = places
        self._submit = submit
        self._endings: dict[str, _Ending] = {}
        self._unreadable: dict[str, _Ending] = {}
        """streams of which not even the facts can be read, and folders of streams that cannot be listed"""
        self._open_streams: list[tuple[str, str, dict[str, Any]]] = []
        """of which it is not known yet whether their processes live"""
        self._looks: dict[str, int] = {}
        """how often in a row folders were found damaged, or holding nothing"""

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._endings

    @property
    def is_busy(self) -> bool:
        """Whether something is being stored, or is to be soon; what is tried again keeps no daemon from leaving."""
        return any(ending.trouble is None for ending in self._endings.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to be stored."""
        return not self._endings

    def close(self) -> None:
        """Let go of all descriptors. What is not stored yet stays where it is."""
        for ending in self._endings.values():
            ending.stream.close()
        self._endings.clear()

    # -- beginning ---------------------------------------------------------------------------------------------

    def add(self, stream: LiveStream, exit: Exit) -> None:
        """Take over a stream whose process is gone."""
        self._endings[stream.id] = ending = _Ending(stream.id, stream, exit)
        self._try(ending, time.monotonic())

    def give_back(self, stream_id: str) -> bool:
        """Forget a stream whose process speaks after all. False if the commit thread works on it now."""
        ending = self._endings.get(stream_id)
        if ending is not None and not ending.is_in_hand:
            self._endings.pop(stream_id).stream.close()
        return stream_id not in self._endings

    def look(self, known: Collection[str]) -> None:
        """Find streams of dead processes that we never met, or met in a former life. `known`: those that live."""
        if self._open_streams:
            streams_without_end, self._open_streams = self._open_streams, []
            self.end_lost(streams_without_end, known)
        now = time.monotonic()
        waiting = {name for name, ending in self._unreadable.items() if ending.due > now}
        scan = orphans.scan(self._places, but={*known, *self._endings, *waiting})
        for name in self._unreadable.keys() - scan.unreadable.keys() - waiting:
            del self._unreadable[name]
        for name, error in scan.unreadable.items():
            self._postpone(self._unreadable.setdefault(name, _nobody(name)), trouble_of(error), now)
        damaged = {found.id: (found.folders, found.cause) for found in scan.damaged}
        for found in scan.found:
            if found.is_held:
                continue
            if problem := streams.problem_in(found.meta):
                damaged[found.id] = (found.folders, f"{STREAM_META}: {problem}")
                continue
            log.info("draining orphan %s", found.id)
            self.add(LiveStream(found.id, streams.usable(found.meta), folders=list(found.folders)), Exit())
        self._look_at_damaged(damaged, scan.remnants)

    def _look_at_damaged(
        self, damaged: dict[str, tuple[tuple[str, ...], str]], remnants: dict[str, tuple[str, ...]]
    ) -> None:
        self._looks = {name: self._looks.get(name, 0) + 1 for name in (*damaged, *remnants)}
        for name, folders in remnants.items():
            if self._looks[name] >= _SURE_LOOKS:
                for path in folders:
                    folder.remove(path)
        for name, (folders, cause) in damaged.items():
            if self._looks[name] >= _SURE_LOOKS:
                self._endings[name] = _nobody(name)
                self._move_aside(self._endings[name], folders, f"{DAMAGED_META} ({cause})")

    def end_lost(self, open_streams: list[tuple[str, str, dict[str, Any]]], known: Collection[str] = ()) -> None:
        """Streams without an end that the store knows of. One whose process lives says HELLO again; of one whose own
        facts are damaged the store's are taken. Where not all folders can be read it is tried again by `look`."""
        scan = orphans.scan(self._places)
        if any(os.sep in name for name in scan.unreadable):
            self._open_streams += open_streams
            return
        there = {*(found.id for found in scan.found), *scan.unreadable, *scan.nameless, *known, *self._endings}
        for project, stream_id, meta in open_streams:
            if stream_id not in there and not streams.problem_in(meta):
                self.add(LiveStream(stream_id, {**streams.usable(meta), "project": project}), Exit())

    # -- trying ------------------------------------------------------------------------------------------------

    def retry(self, now: float) -> None:
        """Try again what is due."""
        for ending in list(self._endings.values()):
            if not ending.is_in_hand and ending.due <= now:
                self._try(ending, now)

    def _try(self, ending: _Ending, now: float) -> None:
        stream = ending.stream
        try:
            found = orphans.folders_of(self._places, ending.id)
        except OSError as error:
            self._postpone(ending, trouble_of(error), now)
            return
        stream.folders = folders = list(dict.fromkeys((*stream.folders, *found)))
        if ending.poisoned >= _MOST_POISONED_TRIES and ending.trouble is not None:
            self._move_aside(ending, tuple(folders), ending.trouble.sentence)
            return
        if not stream.meta:
            self._move_aside(ending, tuple(folders), DAMAGED_META)
            return
        ending.is_in_hand = True
        self._submit(Drain(stream.project, ending.id, stream.meta, tuple(folders), stream.sources, ending.exit))

    def _postpone(self, ending: _Ending, trouble: Trouble, now: float) -> None:
        pause = min(_RETRY_SECONDS * 2 ** min(ending.tries, 16), _LONGEST_RETRY_SECONDS) * random.uniform(0.7, 1.0)
        if ending.trouble is None or ending.trouble.sentence != trouble.sentence:
            log.warning("what stream %s left waits: %s; it is tried again", ending.id, trouble.sentence)
        ending.tries, ending.due, ending.trouble, ending.is_in_hand = ending.tries + 1, now + pause, trouble, False
        ending.poisoned = ending.poisoned + 1 if trouble.lasts else 0

    def _move_aside(self, ending: _Ending, folders: tuple[str, ...], cause: str) -> None:
        stream = ending.stream
        meta = stream.meta if stream.meta and not streams.problem_in(stream.meta) else None
        project = stream.project if meta else ""
        ending.is_in_hand = True
        self._submit(MoveAside(project, ending.id, folders, cause, meta, stream.head, ending.exit))

    # -- what came of it ---------------------------------------------------------------------------------------

    def on_drained(self, outcome: Drained) -> None:
        """All that a stream left is stored, and its folders are gone."""
        self.count += 1
        self._forget(outcome.stream)

    def on_not_drained(self, outcome: NotDrained) -> None:
        """It could not be read or stored."""
        if (ending := self._endings.get(outcome.stream)) is not None:
            self._postpone(ending, outcome.trouble, time.monotonic())

    def on_moved_aside(self, outcome: MovedAside) -> tuple[Any, wire.Edited] | None:
        """Its folders were moved, or could not be. Return who asked for that and the answer, if anybody did."""
        ending = self._endings.get(outcome.stream)
        if ending is None:
            return None
        asker, ending.asker = ending.asker, None
        if outcome.trouble is not None:
            self._postpone(ending, outcome.trouble, time.monotonic())
            answer = wire.Edited(False, f"Stream {outcome.stream} cannot be set aside: {outcome.trouble.sentence}.")
        else:
            self.count += 1
            self._forget(outcome.stream)
            where = f"its files are kept as {', '.join(outcome.paths)}" if outcome.paths else "it left no files"
            answer = wire.Edited(True, f"Stream {outcome.stream} was set aside; {where}.")
        return None if asker is None else (asker, answer)

    def _forget(self, stream_id: str) -> None:
        ending = self._endings.pop(stream_id, None)
        if ending is not None:
            ending.stream.close()

    # -- by hand -----------------------------------------------------------------------------------------------

    def set_aside(self, stream_id: str, asker: Any) -> wire.Edited | None:
        """Have a stream that cannot be stored moved out of the way, as somebody asks for. Return the answer, or None if
        it comes later."""
        try:
            folders = orphans.folders_of(self._places, stream_id)
        except OSError as error:
            return wire.Edited(False, f"Stream {stream_id} cannot be set aside: {sentence_of(error)}.")
        ending = self._endings.get(stream_id)
        if ending is None and not folders:
            return wire.Edited(False, f"There is no stream {stream_id!r} that waits to be stored on this host.")
        if ending is None:
            if _is_held(folders):
                return wire.Edited(False, f"The process of stream {stream_id} lives.")
            ending = self._endings[stream_id] = _nobody(stream_id)
            if (unreadable := self._unreadable.pop(stream_id, None)) is not None:
                ending.trouble = unreadable.trouble
            ending.stream.meta = _meta_in(folders)
        elif ending.is_in_hand:
            return wire.Edited(False, f"Stream {stream_id} is being stored now; look at: trackiod status")
        ending.asker = asker
        paths = tuple(dict.fromkeys((*ending.stream.folders, *folders)))
        cause = ending.trouble.sentence if ending.trouble else "somebody asked for it"
        self._move_aside(ending, paths, f"set aside by hand ({cause})")
        return None

    # -- status ------------------------------------------------------------------------------------------------

    def report(self) -> list[dict[str, Any]]:
        """What `status` shows of what cannot be stored now."""
        wall, now = time.time_ns(), time.monotonic()
        return [
            {
                "stream": "" if os.sep in ending.id else ending.id,
                "project": ending.stream.meta.get("project"),
                "run": ending.stream.meta.get("run"),
                "path": ending.trouble.path,
                "error": ending.trouble.error,
                "sentence": ending.trouble.sentence,
                "tries": ending.tries,
                "next_try_at": timestamp(wall + int(max(0.0, ending.due - now) * 1e9)),
            }
            for ending in (*self._endings.values(), *self._unreadable.values())
            if ending.trouble is not None
        ]


def _is_held(folders: tuple[str, ...]) -> bool:
    """Whether a process is known to hold one of these folders."""
    try:
        return orphans.is_any_held(folders)
    except OSError:
        return False


def _meta_in(folders: tuple[str, ...]) -> dict[str, Any]:
    """What one of these folders says of its stream; nothing if none can be read."""
    for path in folders:
        with contextlib.suppress(OSError, folder.DamagedMeta):
            if meta := folder.read_meta(path):
                return streams.usable(meta)
    return {}


def _nobody(stream_id: str) -> _Ending:
    """A stream of which nothing is known but its name."""
    return _Ending(stream_id, LiveStream(stream_id, {}), Exit())
