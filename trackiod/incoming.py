"""What processes staged and the store knows of by now: removed, and a stream's folder with its last file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable


def staged(live: str) -> list[str]:
    """The ids of all files that lie there."""
    folder = os.path.join(live, "incoming")
    with contextlib.suppress(OSError):
        return [
            f"{stream}/{name}" for stream in os.listdir(folder) for name in os.listdir(os.path.join(folder, stream))
        ]
    return []


def streams(live: str) -> list[str]:
    """The streams that have a folder there: until their process is gone, also without a file."""
    with contextlib.suppress(OSError):
        return os.listdir(os.path.join(live, "incoming"))
    return []


def remove(live: str, *files: str) -> None:
    """Removes staged files of these ids; one that is gone is no error."""
    for file in files:
        path = os.path.join(live, "incoming", file)
        for unlink, each in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
            with contextlib.suppress(OSError):
                unlink(each)


def remove_strays(live: str, stream: str, waiting_of: Callable[[str], set[str] | None]) -> None:
    """Of a stream whose process is gone: what it staged and never spoke of is nobody's. `waiting_of` tells which of its
    files are to be kept yet, or None if it cannot."""
    with contextlib.suppress(OSError):
        names = os.listdir(os.path.join(live, "incoming", stream))
        if (waiting := waiting_of(stream)) is not None:
            remove(live, *(file for name in names if (file := f"{stream}/{name}") not in waiting))
