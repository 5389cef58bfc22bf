"""Takes from other users what earlier releases, under an open umask, let them read of a data folder.

What this release writes is its owner's alone from the beginning: the daemon and its children have a umask of 077, and
other processes name the mode. Never follows a link, and touches no file that has another name outside: that one is the
user's own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from trackio.places import Places

_MOST_ENTRIES = 20_000
_OURS = frozenset(
    (
        "projects elsewhere spill incoming blobs uploads webhooks deleted damaged places hosts store.id endpoint "
        "trackiod.lock trackiod.start trackiod.log copy.lock .part"
    ).split()
)
_OURS_BEGIN = ("trackiod.log.", "endpoint.", "store.id.", "places-", ".part")


def narrow(places: Places) -> None:
    """Makes what we have in the live folder its owner's alone: 0600 and 0700. Never raises.

    The folder itself too, if nothing else lies in it: then nobody else was meant to look into it. Folders come before
    what lies in them, so whatever is beyond the bound cannot be reached any more either.
    """
    shared = os.path.realpath(places.shared) if places.shared else ""
    try:
        names = os.listdir(places.live)
    except OSError:
        return
    ours = [name for name in names if name in _OURS or name.startswith(_OURS_BEGIN)]
    if len(ours) == len(names) and not shared.startswith(os.path.join(places.live, "")):
        _narrow(places.live)
    left = _MOST_ENTRIES
    for name in ours:
        for path in _walk(os.path.join(places.live, name), shared):
            _narrow(path)
            left -= 1
            if not left:
                return


def _walk(path: str, but: str) -> Iterator[str]:
    """`path` and, if it is a folder, all in it; level by level, and nothing of the folder `but`."""
    level = [path]
    while level:
        deeper: list[str] = []
        for each in level:
            if each == but:
                continue
            yield each
            if os.path.isdir(each) and not os.path.islink(each):
                try:
                    deeper += [entry.path for entry in os.scandir(each)]
                except OSError:
                    continue
        level = deeper


def _narrow(path: str) -> None:
    try:
        info = os.lstat(path)
        is_folder = stat.S_ISDIR(info.st_mode)
        is_ours = info.st_uid == os.geteuid() and (is_folder or (stat.S_ISREG(info.st_mode) and info.st_nlink == 1))
        if is_ours and info.st_mode & 0o077:
            os.chmod(path, stat.S_IMODE(info.st_mode) & (0o700 if is_folder else 0o600))
    except OSError:
        return
