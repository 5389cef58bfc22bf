"""`make bench`: a daemon in a temporary folder, all figures, and whether each bound holds."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time

from benchmarks import client, idle
from trackio import places
from trackiod import control


def main() -> int:
    """Prints every figure; exit code 1 if a bound does not hold."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="trackio-bench-") as folder:
        os.environ |= {"TRACKIO_DIR": folder, "TRACKIO_QUIET": "1", "TRACKIO_AUTOSTART": "0"}
        where = places.find(folder, "")
        pid = control.start(where).pid
        print(
            f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n", flush=True
        )
        try:
            figures = client.measure()
            for figure in figures:
                print(figure.line(), flush=True)
            control.stop(where, "benchmark")
            pid = control.start(where).pid
            time.sleep(2)
            for figure in idle.measure(pid):
                print(figure.line(), flush=True)
                figures.append(figure)
        finally:
            control.stop(where, "benchmark")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
