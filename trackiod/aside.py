"""Removing folders of streams, and moving them out of the way without losing anything. Belongs to the commit thread."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable
from functools import partial

from trackio.lookup import list_folder, unless_absent
from trackio.places import OWNER, STREAM_META, make_private, replace

log = logging.getLogger("trackiod.aside")

_DAMAGED = "damaged"


def move(live: str, stream: str, folders: Iterable[str], cause: str) -> tuple[str, ...]:
    """Move a stream's folders to `<live>/damaged/`; return where they are now. Raises OSError.

    What lies on another file system is copied, then removed. If it cannot be copied it is renamed to a folder
    `damaged` beside its own parent, where nobody looks for streams.
    """
    kept = os.path.join(live, _DAMAGED, f"{stream}-{time.time_ns()}")
    paths = tuple(_move(path, f"{kept}-{number}") for number, path in enumerate(folders))
    if paths:
        log.error("stream %s: %s; its files are kept as %s", stream, cause, ", ".join(paths))
    return paths


def keep(live: str, name: str, data: bytes) -> str:
    """Keep bytes that cannot be stored as a file in `<live>/damaged/`; return its path. Raises OSError."""
    path = os.path.join(live, _DAMAGED, f"{name}.records")
    make_private(os.path.dirname(path))
    replace(path, data)
    return path


def _move(path: str, target: str) -> str:
    make_private(os.path.dirname(target))
    try:
        os.rename(path, target)
        return target
    except OSError:
        pass  # on another file system, most likely
    part = f"{target}.part"
    try:
        shutil.copytree(path, part)
        os.rename(part, target)
    except (OSError, shutil.Error):
        shutil.rmtree(part, ignore_errors=True)
        beside = os.path.join(os.path.dirname(os.path.dirname(path)), _DAMAGED, os.path.basename(target))
        make_private(os.path.dirname(beside))
        os.rename(path, beside)
        return beside
    remove(path)
    return target


def remove(path: str) -> None:
    """Remove a stream's folder, its meta file last but for the owner file. Raises OSError."""
    for name in sorted(list_folder(path), key=lambda name: (name == OWNER, name == STREAM_META)):
        file = os.path.join(path, name)
        unless_absent(partial(os.unlink, file), file)
    unless_absent(partial(os.rmdir, path), path)
