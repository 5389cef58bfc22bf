"""What can go wrong in the daemon and in reading its store; each message is the sentence a user reads.

TrackiodError
├── AlreadyRunning      another daemon holds the data folder
├── FolderUnusable      the data folder cannot be made or written
├── CannotStart         the system refuses what a daemon needs: room on the disk, threads, descriptors
├── Failed              a thread of the daemon ended too early
├── SocketUnusable      what systemd passed is no socket we could answer on
├── StoreError
│   ├── StoreTooNew     written by a newer trackio
│   ├── StoreTooOld     of an earlier layout, which the daemon brings to ours
│   └── StoreDamaged    SQLite cannot read it
└── NotFound            no such project, run, metric, rank, attempt or artifact
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 3
"""How a daemon process ends, for whoever started it."""


class TrackiodError(Exception):
    """Any of them."""


class AlreadyRunning(TrackiodError):
    """Another daemon holds the data folder."""


class FolderUnusable(TrackiodError):
    """The data folder cannot be made or written."""


class CannotStart(TrackiodError):
    """The system refuses what a daemon needs."""


class Failed(TrackiodError):
    """A thread of the daemon ended too early."""


class SocketUnusable(TrackiodError):
    """What systemd passed is no socket we could answer on."""


class StoreError(TrackiodError):
    """A project's database cannot be used."""


class StoreTooNew(StoreError):
    """The database was written by a newer trackio."""


class StoreTooOld(StoreError):
    """The database is of an earlier layout; the daemon brings it to ours."""


class StoreDamaged(StoreError):
    """SQLite cannot read the database."""


class NotFound(TrackiodError):
    """What was asked for is not there; the message names the nearest that is."""

    def __init__(self, what: str, name: str, where: str, known: Iterable[str]) -> None:
        self.what = what
        nearest = get_close_matches(name, list(known), n=1, cutoff=0.4)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        super().__init__(f"{what} '{name}' not found{where}.{hint}")
