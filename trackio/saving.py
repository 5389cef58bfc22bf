"""`save()`: files of the user's, kept with the run under their own names."""

from __future__ import annotations

import glob
import os
from typing import Any

from trackio import voice
from trackio.artifacts import clean_path
from trackio.stream import Stream
from trackio.values import Unstorable, text_of


def save(glob_str: Any, base_path: Any, project: str, stream: Stream | None) -> tuple[str, int]:
    """Hands over every file that matches; `Run.save` says the rest. Returns the folder that they come to lie in, and
    how many could not be taken. Raises ValueError without a match."""
    pattern = os.path.abspath(os.path.expanduser(os.fsdecode(glob_str)))
    found = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
    if not found:
        raise ValueError(f"No files found matching pattern: {text_of(glob_str)}")
    base = os.path.abspath(os.fsdecode(base_path)) if base_path is not None else os.getcwd()
    if stream is None:
        return "", 0
    names = [_name_of(path, base) for path in found]
    taken = stream.staging.take_all([(path, {"saved": name}) for path, name in zip(found, names, strict=True)])
    for name, staged in zip(names, taken, strict=True):
        if isinstance(staged, Unstorable):
            voice.warn_once(f"save {name}", f"{name!r} was not saved: {staged}.")
    return stream.staging.kept_in(project), sum(isinstance(staged, Unstorable) for staged in taken)


def _name_of(path: str, base: str) -> str:
    """The path below the base; the file's own name if it lies elsewhere."""
    name = os.path.relpath(path, base)
    return clean_path(os.path.basename(path) if name.startswith("..") else name)
