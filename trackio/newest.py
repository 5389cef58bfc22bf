"""The newest sample of each sampler on this host, a small file beside the spools: read without asking anybody."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

import msgpack

from trackio import trust
from trackio.places import Places, make_private, replace

_FOLDER = "samples"
_MOST_BYTES = 4 << 20
_STALE_SECONDS = 10.0
_FORGOTTEN_SECONDS = 300.0
_RANK_FIELDS = 6


class Sample(NamedTuple):
    """What a sampler read last."""

    stream: str
    time_ns: int
    interval: float
    """seconds from sample to sample"""
    devices: list[dict[str, str]]
    """uuid, label (the index), name and parent of each"""
    ranks: list[list[Any]]
    """stream, project, run id, run name, rank, pid of each rank's process here"""
    values: dict[str, Any]
    """metrics by the names they are stored under, see `trackiod.sampler.table`"""
    trouble: str = ""
    """why GPUs cannot be read, or empty"""
    started_ns: int = 0
    """when the sampler began"""
    cgroup: str = ""
    """its control groups, as `/proc/<pid>/cgroup` has them"""


class Board:
    """Where one sampler writes its newest sample."""

    def __init__(self, places: Places, stream: str) -> None:
        self._folder = _folder_for(places)
        self._path = os.path.join(self._folder, stream)

    def write(self, sample: Sample) -> None:
        """Replaces what is there; whoever reads finds the one or the other whole. Never raises."""
        try:
            make_private(self._folder)
            replace(self._path, msgpack.packb(list(sample)))
        except (OSError, ValueError):
            pass  # the spool's folder is gone or full; what is stored is stored

    def clear(self) -> None:
        """Takes it away, and what samplers left that were killed."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            return
        for name in names:
            path = os.path.join(self._folder, name)
            try:
                if path.startswith(self._path) or time.time() - os.stat(path).st_mtime > _FORGOTTEN_SECONDS:
                    os.unlink(path)
            except OSError:
                continue


def _folder_for(places: Places) -> str:
    """Where samples of this data folder go; "" if nowhere."""
    for root in places.roots:
        try:
            return os.path.join(places.make_root(root), _FOLDER)
        except OSError:
            continue
    return ""


def samples(places: Places) -> list[Sample]:
    """The newest sample of every sampler that still samples, the oldest sampler first. Never raises."""
    found = []
    try:
        roots = places.own_roots()
    except OSError:
        return []
    for root in roots:
        folder = os.path.join(root, _FOLDER)
        try:
            names = [name for name in os.listdir(folder) if "." not in name]
        except OSError:
            continue
        found += [sample for name in names if (sample := _read(os.path.join(folder, name))) is not None]
    return sorted(found, key=lambda sample: (sample.started_ns, sample.stream))


def _read(path: str) -> Sample | None:
    try:
        fields = msgpack.unpackb(trust.read_file(path, _MOST_BYTES))
        sample = Sample(*fields[: len(Sample._fields)])
        age = (time.time_ns() - sample.time_ns) / 1e9
        is_new = age <= 3 * sample.interval + _STALE_SECONDS
        is_known = _is_known(sample)
    except Exception:  # noqa: BLE001 absent, another release's or not msgpack
        return None
    return sample if is_new and is_known else None


def _is_known(sample: Sample) -> bool:
    """Whether everything in it is of its type: another release may have written it. May raise."""
    facts = [device[fact] for device in sample.devices for fact in ("uuid", "label", "name", "parent")]
    texts = [sample.stream, sample.cgroup, *sample.values, *facts]
    ranks = all(isinstance(rank, list) and len(rank) == _RANK_FIELDS for rank in sample.ranks)
    return ranks and isinstance(sample.started_ns, int) and all(isinstance(text, str) for text in texts)
