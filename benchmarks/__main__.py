"""`make bench`: a daemon in a temporary folder, all figures, and whether each bound holds.

`python -m benchmarks client idle folding at_rest reading` measures those named; the last one makes 100 million
points first, which takes some minutes and half a gigabyte.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable

from benchmarks import (
    artifacts,
    at_rest,
    client,
    commits,
    ends,
    folding,
    idle,
    ingest,
    media,
    peers,
    reading,
    sampling,
    training,
    uploads,
)
from benchmarks.report import Figure
from trackio import places
from trackio.places import Places
from trackiod import control

_PARTS: dict[str, Callable[[Places, int], Iterable[Figure]]] = {
    "client": lambda where, pid: client.measure(),
    "media": media.measure,
    "artifacts": artifacts.measure,
    "idle": lambda where, pid: idle.measure(_restarted(where)),
    "folding": folding.measure,
    "ends": ends.measure,
    "commits": commits.measure,
    "ingest": ingest.measure,
    "peers": peers.measure,
    "sampling": lambda where, pid: sampling.measure(where),
    "training": lambda where, pid: training.measure(where),
    "uploads": uploads.measure,
    "at_rest": lambda where, pid: at_rest.measure(),
    "reading": lambda where, pid: reading.measure(where),
}


def main(parts: list[str]) -> int:
    """Prints every figure; exit code 1 if a bound does not hold."""
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        print(f"There is no {unknown[0]!r}; there are {', '.join(_PARTS)}.", file=sys.stderr)
        return 2
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True)
    holds = True
    for part in parts or _PARTS:
        with tempfile.TemporaryDirectory(prefix="trackio-bench-") as folder:
            os.environ |= {"TRACKIO_DIR": folder, "TRACKIO_QUIET": "1", "TRACKIO_AUTOSTART": "0"}
            where = places.find(folder, "")
            try:
                for figure in _PARTS[part](where, control.start(where).pid):
                    print(figure.line(), flush=True)
                    holds = holds and figure.holds
            finally:
                control.stop(where, "benchmark")
    return 0 if holds else 1


def _restarted(where: Places) -> int:
    """The pid of a daemon that has done nothing yet."""
    control.stop(where, "benchmark")
    pid = control.start(where).pid
    time.sleep(2)
    return pid


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
