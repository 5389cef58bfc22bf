"""What a host finds after a loss of power, at each moment: what was synced is stored, whatever became of the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing
from power_cut import Image, skip_without

from trackiod.store import schema
from trackiod.store.reader import ProjectReader

COUNT = 5000
ALONE = f"""
import os, sys, time, trackio
run = trackio.init(project="p")
for i in range({COUNT}): trackio.log({{"i": i}}, step=i)
spill = run._stream.spool.spill
while sys.argv[1] == "waits" and not (spill.held_bytes and spill.is_kept): time.sleep(0.005)
print("kept", flush=True)
if sys.argv[1] == "waits": os._exit(0)
"""


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    skip_without()
    with Image(tmp_path) as image:
        yield image


@contextmanager
def a_host_after(folder: Path, tmp_path: Path) -> Iterator[Host]:
    """A daemon that finds this, with empty shared memory."""
    spool = tmp_path / "spool-after"
    spool.mkdir()
    host = Host(folder / "data", spool)
    host.start()
    try:
        yield host
    finally:
        host.close()
        shutil.rmtree(spool, ignore_errors=True)


def stored(host: Host) -> list[int]:
    """What is stored, once nothing of it is left to store; it has no gap."""
    wait_for(lambda: not any(Path(host.places.spill).rglob("seg-*")) if Path(host.places.spill).is_dir() else True)
    wait_for(lambda: not host.status().daemon["backlog"])
    if not host.runs("p"):
        return []
    run = host.the_run("p")
    assert run.holes == []
    return [p.value for p in shown(run, "i")] if "i" in run.metric_names else []


def test_what_a_process_without_a_daemon_had_synced_is_stored_after_a_loss_of_power(
    host: Host, image: Image, tmp_path: Path
) -> None:
    """From the moment on that it is said to be kept, all of it; before, what there is of it is whole."""
    host.data = image.folder / "data"
    failing = Failing(tmp_path / "failing")
    process = host.python(ALONE, "waits", env=failing.environ)
    found = []
    for folder in image.cuts(failing, 12, lambda: process.poll() is not None):
        with a_host_after(folder, tmp_path) as after:
            found.append(len(values := stored(after)))
            assert values == list(range(len(values)))
    assert process.communicate(timeout=60 * PATIENCE)[0] == "kept\n" and found
    with image.cut() as folder, a_host_after(folder, tmp_path) as after:
        assert stored(after) == list(range(COUNT)) and not (after.data / "damaged").exists()


def test_what_a_process_left_without_a_daemon_is_stored_after_a_loss_of_power(
    host: Host, image: Image, tmp_path: Path
) -> None:
    """The end of a process waits for the disk within its second."""
    host.data = image.folder / "data"
    done = host.run(ALONE, "ends")
    with image.cut() as folder, a_host_after(folder, tmp_path) as after:
        assert done.stderr.count("\n") <= 1 and stored(after) == list(range(COUNT)), done.stderr


def test_what_a_daemon_has_acked_is_stored_after_a_loss_of_power(host: Host, image: Image, tmp_path: Path) -> None:
    """From the first start in a new folder on: what a reader has seen once is never gone again."""
    host.data = image.folder / "data"
    failing = Failing(tmp_path / "failing")
    daemon = subprocess.Popen(
        [sys.executable, "-m", "trackiod", "run"], env=host.environ(**failing.environ), stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    process = host.python("""
import time, trackio
trackio.init(project="p")
for i in range(100_000):
    trackio.log({"i": i}, step=i)
    time.sleep(0.001)
""")
    host.processes.append(daemon)
    most, cuts = 0, 0
    for folder in image.cuts(failing, 14, lambda: daemon.poll() is not None):
        seen = seen_by_a_reader(host)
        with a_host_after(folder, tmp_path) as after:
            values = stored(after)
            assert values == list(range(len(values))) and len(values) >= seen
            assert not (after.data / "damaged").exists()
        most, cuts = max(most, seen), cuts + 1
    process.kill()
    daemon.kill()
    process.communicate()
    daemon.communicate()
    assert cuts > 8 and most > 0, (cuts, most)


def seen_by_a_reader(host: Host) -> int:
    if not os.path.exists(schema.path_of(host.places.projects, "p")):
        return 0
    with ProjectReader(schema.path_of(host.places.projects, "p")) as reader:
        return sum(count for (count,) in reader._all("SELECT points FROM streams"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 32, b"\xff\xfe"])
def test_a_store_id_that_was_cut_short_is_what_the_databases_say(host: Host, damage: bytes) -> None:
    """Copies for other hosts and uploads go by it: with another id they would be another store's."""
    host.start()
    host.run("import trackio\ntrackio.init(project='p')\ntrackio.log({'i': 1})")
    host.ended_run("p")
    host.stop()
    path = host.data / "store.id"
    before = path.read_text()
    path.write_bytes(damage)
    host.start()
    assert path.read_text() == before == host.status().daemon["store"]
    assert "was damaged" in (host.data / "trackiod.log").read_text()
