"""Full devices: a small tmpfs under the store, the spool or the spill, which later has room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")

LOG = """
import random, sys, time, trackio
trackio.init(project="p")
count, burst = int(sys.argv[1]), int(sys.argv[2])
for i in range(count):
    trackio.log({"i": i, "noise": random.random()}, step=i)
    if i % burst == 0: time.sleep(0.005)
print("logged", flush=True)
sys.stdin.read()
"""


@contextmanager
def small_device(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def grow(path: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)


def fill(path: Path) -> Path:
    """Somebody else's file that leaves nothing free."""
    filler = path / "checkpoint"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096):
        with suppress(OSError):
            while True:
                os.write(fd, bytes(size))
    os.close(fd)
    return filler


def start(host: Host, count: int, burst: int) -> Any:
    return host.python(LOG, str(count), str(burst), stdin=subprocess.PIPE)


def all_is_there(host: Host, process: Any, count: int) -> None:
    """Once there is room, everything is stored that was not refused, and the refusals are counted in the run."""
    _, err = process.communicate(timeout=60 * PATIENCE)
    run = host.ended_run("p", 60)
    wait_for(lambda: host.the_run("p").records + host.the_run("p").refused_records == count, 60, "all records")
    run = host.the_run("p")
    values = [p.value for p in shown(run, "i", all_points=True)]
    assert values == sorted(set(values)) and len(values) == run.records and run.holes == []
    assert ("found no room and were dropped" in err) == (run.refused_records > 0), err


def test_a_full_store_stops_nothing_and_is_filled_when_it_has_room(host: Host, tmp_path: Path) -> None:
    with small_device(tmp_path / "small", "8m") as device:
        host.data = device / "data"
        host.start()
        process = start(host, 30_000, 100)
        wait_for(lambda: host.runs("p") and host.the_run("p").records > 1000, 20, "the first records")
        filler = fill(device)
        wait_for(lambda: "full" in host.status().daemon["problem"], 60, "a full disk")
        assert "full" in host.command("trackio", "status").stdout
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        all_is_there(host, process, 30_000)
        assert host.the_run("p").refused_records == 0
        host.stop()


def test_a_full_spool_device_is_left_alone_and_nothing_is_lost(host: Host, tmp_path: Path) -> None:
    """A DataLoader took it all. What is logged waits in a ring that cannot grow, or in memory of its own."""
    with small_device(host.spool, "64m"):
        host.start()
        process = start(host, 30_000, 100)
        wait_for(lambda: host.runs("p") and host.the_run("p").records > 500, 20, "the first records")
        filler = fill(host.spool)
        held = sum(path.stat().st_size for path in host.spool.rglob("seg-*"))
        assert process.stdout.readline() == "logged\n"
        assert sum(path.stat().st_size for path in host.spool.rglob("seg-*")) <= held, "it did not grow"
        filler.unlink()
        all_is_there(host, process, 30_000)
        assert host.the_run("p").refused_records == 0


def test_a_spool_device_that_is_full_from_the_start_is_said_and_nothing_is_lost(host: Host, tmp_path: Path) -> None:
    with small_device(host.spool, "64m"):
        host.start()
        filler = fill(host.spool)
        process = start(host, 20_000, 100)
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        all_is_there(host, process, 20_000)
        assert host.the_run("p").refused_records == 0


def test_a_full_spill_refuses_counts_and_says_so_and_takes_more_when_it_has_room(host: Host, tmp_path: Path) -> None:
    """No daemon, a ring that may not grow, and a disk with no room: now something must go, and it is counted."""
    host.extra["TRACKIO_SPOOL_MIB"] = "1"
    with small_device(tmp_path / "small", "12m") as device:
        host.data = device / "data"
        host.data.mkdir()
        filler = fill(device)
        process = start(host, 60_000, 100)
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        host.start()
        all_is_there(host, process, 60_000)
        refused = host.the_run("p").refused_records
        assert refused > 1000
        facts = host.cli("status")
        assert facts["runs"][0]["refused_points"] == 2 * refused
        assert host.cli("get", "run", "--project", "p", "--run", host.the_run("p").name)["refused_records"] == refused
        host.stop()
