"""What the versions of an artifact are called where several hosts gave their own numbers. Pure.

The same content is the same version, whoever logged it. A number that two hosts gave to different content is this
host's, else that of the content that was logged first; the other is called by number and digest, as each may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_NAME = re.compile(r"v(\d{1,18})(?:-([0-9a-f]{8}))?")

Label = int | str
"""3, or 3-1a2b3c4d"""


class Known(NamedTuple):
    """A version as one host numbered it."""

    stored: Label
    """a number if it is this host's, else number and digest"""
    created_ns: int
    digest: str

    @property
    def number(self) -> int:
        return number_of(self.stored)

    @property
    def is_ours(self) -> bool:
        return isinstance(self.stored, int)


def number_of(label: Label) -> int:
    """The number in a label."""
    return int(str(label).partition("-")[0])


def is_kept(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a manifest is a file of which the content was kept."""
    return "ref" not in entry and "incomplete" not in entry


def missing_in(manifest: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Path and cause of each entry of which the content was not kept whole."""
    return [
        {"path": str(entry.get("path")), "cause": str(entry["incomplete"])}
        for entry in manifest
        if "incomplete" in entry
    ]


def full_label(number: int, digest: str) -> str:
    """What a version is called on every host."""
    return f"{number}-{digest[:8]}"


def labels(known: Iterable[Known]) -> dict[str, Label]:
    """What each content is called, by digest, in the order of numbers."""
    by_digest: dict[str, Known] = {}
    for each in sorted(known, key=lambda one: (not one.is_ours, one.created_ns, one.number)):
        by_digest.setdefault(each.digest, each)
    found: dict[str, Label] = {}
    taken: set[int] = set()
    for each in by_digest.values():
        found[each.digest] = full_label(each.number, each.digest) if each.number in taken else each.number
        taken.add(each.number)
    order = {digest: (by_digest[digest].number, isinstance(label, str)) for digest, label in found.items()}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def meant(which: str, known: Iterable[Known]) -> str | None:
    """The digest of the version that `v3` or `v3-1a2b3c4d` means; None if it means none."""
    match = _NAME.fullmatch(which)
    if not match:
        return None
    known = list(known)
    if match[2]:
        full = f"{int(match[1])}-{match[2]}"
        return next((each.digest for each in known if full_label(each.number, each.digest) == full), None)
    return next((digest for digest, label in labels(known).items() if label == int(match[1])), None)
