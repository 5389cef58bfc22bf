"""Which `trackio` a training process of this environment imports, and what else goes by that name. Reads only.

The distribution and the import are called like upstream's, so one may lie beside, before or over the other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from importlib.machinery import PathFinder
from typing import NamedTuple

import trackio
from trackio.version import __version__

_NAME = "trackio"
_VERSION = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)


class Copy(NamedTuple):
    """A package (or module) called `trackio` that Python could import."""

    path: str
    version: str
    """empty if nothing tells"""


class Owner(NamedTuple):
    """A distribution that claims `trackio`: its name, version, and the folder its metadata lie in."""

    name: str
    version: str
    location: str


class Installation(NamedTuple):
    """What is installed here."""

    ours: Copy
    """the one this command came with"""
    python: str
    imported: Copy | None
    """what `import trackio` finds; None: nothing"""
    in_cwd: Copy | None
    """what a script or notebook in the current folder would find there instead"""
    hidden: tuple[Copy, ...]
    """others on the path, behind the one that is imported"""
    owners: tuple[Owner, ...]
    strangers: tuple[str, ...]
    """modules in our folder that our distribution did not bring"""


def look() -> Installation:
    """What is installed in this process's environment. Never raises; what cannot be read is left out."""
    ours = Copy(_folder_of(trackio.__file__ or ""), __version__)
    owners = _owners()
    imported = _imported(owners)
    seen = {ours.path, imported.path if imported else ""}
    hidden = []
    for entry in sys.path:
        copy = _copy_in(entry, owners)
        if copy is not None and copy.path not in seen:
            seen.add(copy.path)
            hidden.append(copy)
    in_cwd = _copy_in(_cwd(), owners)
    if in_cwd is not None and in_cwd.path == ours.path:
        in_cwd = None
    return Installation(ours, sys.executable, imported, in_cwd, tuple(hidden), owners, _strangers(ours.path))


def _imported(owners: tuple[Owner, ...]) -> Copy | None:
    """Asks the finders as `import` does; what this process has imported already does not count."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(_NAME, None)
        except Exception:  # noqa: BLE001 somebody else's finder
            continue
        if spec is not None:
            return _copy(spec.origin or "", list(spec.submodule_search_locations or ()), owners)
    return None


def _copy_in(entry: str, owners: tuple[Owner, ...]) -> Copy | None:
    try:
        spec = PathFinder.find_spec(_NAME, [entry or _cwd()])
    except (OSError, ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None  # a folder without a package counts only where nothing else is found
    return _copy(spec.origin, [], owners)


def _copy(origin: str, folders: list[str], owners: tuple[Owner, ...]) -> Copy:
    if not origin:
        return Copy(folders[0] if folders else "", "")  # a folder without an __init__.py
    path = _folder_of(origin) if os.path.basename(origin).startswith("__init__.") else os.path.realpath(origin)
    return Copy(path, _version_in(path, owners))


def _version_in(path: str, owners: tuple[Owner, ...]) -> str:
    for name in ("version.py", "__init__.py"):
        try:
            with open(os.path.join(path, name), encoding="utf-8", errors="replace") as file:
                found = _VERSION.search(file.read())
        except OSError:
            continue
        if found:
            return found.group(1)
    parent = os.path.dirname(path)
    return next((o.version for o in owners if os.path.realpath(o.location) == parent), "")


def _owners() -> tuple[Owner, ...]:
    """The distributions called trackio, or that say they brought `trackio/__init__.py`."""
    owners = []
    try:
        for found in importlib.metadata.distributions():
            name = str(found.metadata["Name"] or "")
            if name.lower() == _NAME or f"{_NAME}/__init__.py," in (found.read_text("RECORD") or ""):
                owners.append(Owner(name, found.version, str(found.locate_file(""))))
    except Exception:  # noqa: BLE001 damaged metadata of some other package
        pass
    return tuple(dict.fromkeys(owners))


def _strangers(folder: str) -> tuple[str, ...]:
    """Modules in the folder beside those its distribution lists; none where it lists none (editable)."""
    brought: set[str] = set()
    try:
        for found in importlib.metadata.distributions(path=[os.path.dirname(folder)]):
            if str(found.metadata["Name"] or "").lower() == _NAME:
                brought.update(line.split(",")[0] for line in (found.read_text("RECORD") or "").splitlines())
        if f"{_NAME}/__init__.py" not in brought:
            return ()
        modules = [os.path.join(parent, n) for parent, _, names in os.walk(folder) for n in names if n.endswith(".py")]
    except Exception:  # noqa: BLE001 damaged metadata of some other package
        return ()
    relative = (os.path.relpath(path, os.path.dirname(folder)) for path in modules)
    return tuple(sorted(path for path in relative if path not in brought))


def _folder_of(file: str) -> str:
    return os.path.dirname(os.path.realpath(file))


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"
