"""Processes that benchmarks start and look at."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from trackio.places import Places
from trackiod import control


def python(code: str, *arguments: str) -> str:
    """The last line that a new process says which runs `code`."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def sampler(where: Places) -> psutil.Process:
    """The daemon's sampler, once there is one."""
    while True:
        report = control.status(where)
        facts = report.daemon["sampler"] if report else None
        if facts and facts["pids"] and facts["pids"][0]:
            return psutil.Process(facts["pids"][0])
        time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """Seconds that a process has run, all threads, to the nanosecond."""
    folder = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in folder.iterdir()) / 1e9
