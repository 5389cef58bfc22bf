"""Who else may read what is copied into the shared folder: nobody, or a group (TRACKIO_SHARED_GROUP).

Files are 0600 and folders 0700, or 0640 and 2750 with that group. In a folder that several users share, each writes to
folders of its own, and owns them: by its owner a reader knows whose a copy is.
"""

from __future__ import annotations

import grp
import os
import stat
from typing import NamedTuple

NOBODY = -1
_SETGID = stat.S_ISGID


class Access(NamedTuple):
    """The group that may read, or `NOBODY`."""

    gid: int = NOBODY

    def make_folder(self, path: str, above: str) -> None:
        """Create a folder of ours and its parents, below `above`, which is made if it is missing. Raises OSError."""
        if os.path.isdir(path) and self._is_right(path, is_folder=True):
            return
        parent = os.path.dirname(path)
        if path != above and len(parent) >= len(above):
            self.make_folder(parent, above)
        elif not os.path.isdir(parent):
            os.makedirs(parent, 0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            info = os.lstat(path)
            if path == above and os.path.isdir(path):
                return  # the shared folder itself, which the user named: it may be anybody's
            if not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError(20, "it is not a folder", path) from None
            if info.st_uid != os.geteuid():
                raise PermissionError(1, "it belongs to somebody else", path) from None
        self.apply(path, is_folder=True)

    def apply(self, path: str, *, is_folder: bool = False) -> None:
        """Give what we made the mode and group. Raises OSError."""
        if self._is_right(path, is_folder=is_folder):
            return
        if self.gid != NOBODY and os.lstat(path).st_gid != self.gid:
            os.chown(path, -1, self.gid, follow_symlinks=False)
        mode = self._mode(is_folder=is_folder)
        try:
            os.chmod(path, mode)
        except PermissionError:
            if not mode & _SETGID:
                raise
            os.chmod(path, mode & ~_SETGID)  # a unit with RestrictSUIDSGID=; each file gets its group by itself

    def apply_to_all(self, folder: str) -> None:
        """The same for all that is there, where it was made for others. The folder itself comes last: it tells that
        this is done. Raises OSError."""
        if not os.path.isdir(folder) or self._is_right(folder, is_folder=True):
            return
        for parent, folders, files in os.walk(folder):
            for name in files:
                self.apply(os.path.join(parent, name))
            for name in folders:
                self.apply(os.path.join(parent, name), is_folder=True)
        self.apply(folder, is_folder=True)

    @property
    def file_mode(self) -> int:
        return self._mode(is_folder=False)

    def _mode(self, *, is_folder: bool) -> int:
        if self.gid == NOBODY:
            return 0o700 if is_folder else 0o600
        return 0o750 | _SETGID if is_folder else 0o640

    def _is_right(self, path: str, *, is_folder: bool) -> bool:
        info = os.lstat(path)
        has_mode = stat.S_IMODE(info.st_mode) & ~_SETGID == self._mode(is_folder=is_folder) & ~_SETGID
        return has_mode and (self.gid == NOBODY or info.st_gid == self.gid)


def of_group(name: str) -> tuple[Access, str]:
    """The access for a group, by name or number, and a sentence if nobody gets any because of what is wrong with it."""
    if not name:
        return Access(), ""
    try:
        gid = int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        return (
            Access(),
            f"TRACKIO_SHARED_GROUP={name!r} is not a group of this system; copies are readable by you alone.",
        )
    if os.geteuid() and gid not in (os.getegid(), *os.getgroups()):
        return Access(), f"You are not in the group TRACKIO_SHARED_GROUP={name!r}; copies are readable by you alone."
    return Access(gid), ""
