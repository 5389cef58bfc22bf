"""What processes staged and the store knows of by now: removed, and a stream's folder with its last file."""

from __future__ import annotations

import contextlib
import os


def remove(live: str, file: str) -> None:
    """Removes a staged file of that id; one that is gone is no error."""
    path = os.path.join(live, "incoming", file)
    for unlink, each in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
        with contextlib.suppress(OSError):
            unlink(each)


def remove_strays(live: str, stream: str, known: set[str]) -> None:
    """Of a stream whose process is gone: what it staged and never spoke of is nobody's."""
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(live, "incoming", stream)):
            if f"{stream}/{name}" not in known:
                remove(live, f"{stream}/{name}")
