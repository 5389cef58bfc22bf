"""The spool on real file systems: where it lies, how it grows, spills, moves and is left behind."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Host

from trackio import folder, growth, record
from trackio.places import Places
from trackio.segment import header
from trackio.spool import Spool
from trackiod import orphans, recovery

META = {"stream": "s1", "project": "p"}


def make(where: Places, **options: Any) -> Spool:
    return Spool(where, "s1", META, **{"limit_bytes": 2 << 20, "spill_bytes": 64 << 20, **options})


def fill(spool: Spool, count: int, size: int = 1000) -> list[bytes]:
    parts = [b"%08d" % i + b"." * (size - 8) for i in range(count)]
    for part in parts:
        spool.ring.append(part, 1)
    return parts


def read_back(spool: Spool) -> list[bytes]:
    """Everything held, as the shipper reads it."""
    out, start = [], spool.oldest
    while chunk := spool.read(start):
        out += [r.payload for r in record.records(bytes(chunk), start)]
        start += len(chunk)
    return out


def recovered(spool: Spool) -> list[bytes]:
    """Everything on disk and in shared memory, as the daemon reads it after a kill."""
    contents = [c for f in (spool.path, spool.spill._path) for c in recovery.read_folder(f)]
    batches = list(recovery.batches(contents, 0))
    return [r.payload for b in batches for r in record.records(b.data, b.start)]


def test_the_folder_says_everything_about_the_stream(host: Host) -> None:
    spool = make(host.places)
    assert folder.read_meta(spool.path) == META
    assert spool.path.startswith(str(host.spool)) and not spool.weakness
    assert os.stat(spool.path).st_mode & 0o077 == 0
    spool.close()
    assert not os.path.exists(spool.path)


def test_the_bytes_of_a_segments_header_are_those_of_version_1() -> None:
    assert header(0x1122334455667788).hex() == "74726b7365670001" + "8877665544332211" + "00" * 48


def test_it_grows_to_its_limit_and_then_refuses(host: Host) -> None:
    spool = make(host.places)
    fill(spool, 4000)
    assert spool.ring.capacity_bytes == 2 << 20
    kept = read_back(spool)
    assert len(kept) + spool.refused[0] == 4000 and spool.refused[0] > 0
    spool.close()


def test_a_file_system_that_is_half_full_is_left_alone() -> None:
    room = growth.Room(total_bytes=1 << 30, free_bytes=600 << 20, ours_bytes=0)
    assert growth.may_grow(1 << 20, room)
    assert not growth.may_grow(200 << 20, room)
    assert not growth.may_grow(1 << 20, room._replace(free_bytes=500 << 20))
    assert not growth.may_grow(1 << 20, room._replace(cgroup_headroom_bytes=3 << 20))
    assert not growth.may_grow(1 << 20, room._replace(ours_bytes=128 << 20))
    small = growth.Room(total_bytes=64 << 20, free_bytes=64 << 20, ours_bytes=0)
    assert growth.may_grow(1 << 20, small) and not growth.may_grow(9 << 20, small)


def test_spilled_data_are_read_before_the_ring_and_freed_when_acked(host: Host) -> None:
    spool = make(host.places)
    parts = fill(spool, 1500)
    assert spool.spill_upto(0, spool.ring.head) == ""
    parts += fill(spool, 1500)
    assert read_back(spool) == parts and spool.refused == [0, 0]
    spool.release(spool.ring.head)
    assert not os.path.exists(spool.spill._path) and spool.spill.held_bytes == 0
    spool.close()


def test_a_full_spill_says_so_and_the_ring_refuses(host: Host) -> None:
    spool = make(host.places, spill_bytes=1 << 20)
    fill(spool, 1900)
    problem = spool.spill_upto(0, spool.ring.head)
    assert "TRACKIO_SPILL_MIB" in problem
    fill(spool, 3000)
    assert len(read_back(spool)) + spool.refused[0] == 4900
    spool.close()


def test_an_error_in_the_spill_leaves_nothing_that_hides_what_comes_after(host: Host) -> None:
    spool = make(host.places)
    parts = fill(spool, 900)
    (host.data / "spill").write_text("in the way")
    assert spool.spill_upto(0, spool.ring.head)
    (host.data / "spill").unlink()
    assert spool.spill_upto(0, spool.ring.head) == "" and spool.spill.sync() == ""
    assert read_back(spool) == parts == recovered(spool)
    spool.close()


def test_a_deleted_spill_file_moves_the_oldest_offset_on(host: Host) -> None:
    spool = make(host.places)
    fill(spool, 900)
    spool.spill_upto(0, spool.ring.head)
    fill(spool, 900)
    spool.spill_upto(0, spool.ring.head)
    shutil.rmtree(spool.spill._path)
    while spool.oldest < spool.ring.oldest and not spool.read(spool.oldest):
        pass
    assert spool.oldest == spool.ring.oldest
    spool.close()


def test_what_is_left_behind_is_recovered_each_record_once(host: Host) -> None:
    spool = make(host.places)
    parts = fill(spool, 900)
    spool.spill_upto(0, spool.ring.head)
    parts += fill(spool, 900)
    assert recovered(spool) == parts
    spool.close()


def test_a_deleted_spool_is_moved_and_loses_nothing(host: Host) -> None:
    spool = make(host.places)
    parts = fill(spool, 500)
    shutil.rmtree(spool.path)
    spool.maintain(time.monotonic() + 10)
    parts += fill(spool, 500)
    assert os.path.isdir(spool.path) and folder.read_meta(spool.path) == META
    assert read_back(spool) == parts == recovered(spool)
    spool.close()


def test_refusals_are_counted_over_a_move(host: Host) -> None:
    spool = make(host.places)
    fill(spool, 4000)
    refused = spool.refused
    shutil.rmtree(spool.path)
    spool.maintain(time.monotonic() + 10)
    assert spool.refused == refused
    assert recovery.read_counters(os.path.join(spool.path, "counters")) == tuple(refused)
    spool.close()


def test_without_any_shared_memory_the_ring_is_private_and_says_so(host: Host, tmp_path: Path) -> None:
    nowhere = host.places._replace(roots=("/proc/trackio-none",))
    spool = make(nowhere)
    parts = fill(spool, 100)
    assert "own memory" in spool.weakness and spool.path == ""
    assert read_back(spool) == parts
    assert spool.spill_upto(0, spool.ring.head) == "" and recovered(spool) == parts
    spool.close()


def test_a_folder_of_somebody_else_is_not_used(host: Host) -> None:
    root = Path(host.places.roots[0])
    root.parent.mkdir(parents=True)
    root.symlink_to("/tmp")
    spool = make(host.places._replace(roots=(str(root),)))
    assert spool.path == "" and spool.weakness
    spool.close()


def test_idle_spares_are_given_back(host: Host) -> None:
    spool = make(host.places)
    fill(spool, 1800)
    spool.release(spool.ring.head)
    grown = spool.ring.capacity_bytes
    now = time.monotonic()
    for seconds in range(0, 200, 5):
        spool.maintain(now + seconds)
    assert spool.ring.capacity_bytes < grown
    assert fill(spool, 10) == read_back(spool)[-10:]
    spool.close()


@pytest.mark.parametrize("held", [0, 256 << 10, 512 << 10, 4 << 20, 15 << 20, 16 << 20])
def test_the_spool_doubles_up_to_its_limit(held: int) -> None:
    size = growth.next_segment_bytes(held, 16 << 20, growth.FIRST_SEGMENT_BYTES)
    assert held + size <= 16 << 20
    assert size <= max(held, growth.FIRST_SEGMENT_BYTES)
    assert size > 0 or held == 16 << 20


def test_streams_may_go_while_they_are_sought(host: Host) -> None:
    """A process that ends removes its folder between two looks at it."""
    kept = make(host.places)
    passing = [os.path.join(os.path.dirname(kept.path), f"passing{i}") for i in range(8)]
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            for path in passing:
                os.mkdir(path)
                os.rmdir(path)

    process = threading.Thread(target=come_and_go)
    process.start()
    try:
        seen = [[stream.id for stream in orphans.find(host.places)] for _ in range(3000)]
    finally:
        done.set()
        process.join()
    assert seen == [["s1"]] * 3000
    kept.close()


def test_a_script_that_closes_all_descriptors_keeps_its_own_files_whole(host: Host) -> None:
    """And nothing is lost: what was to go to disk goes into another file."""
    code = """
import os, sys, time, trackio
run = trackio.init(project="p")
def log(first):
    for i in range(first, first + 3000): trackio.log({"a": i, "text": "x" * 1000})
log(0)
time.sleep(7)  # it is on disk then
os.closerange(3, 4096)
files = [open(os.path.join(sys.argv[1], f"mine{i}"), "w") for i in range(30)]
log(3000)
time.sleep(7)
for file in files: file.write("mine"); file.flush()
os._exit(0)
"""
    folder = host.data.parent
    assert host.run(code, str(folder)).returncode == 0
    assert {path.read_text() for path in folder.glob("mine*")} == {"mine"}
    host.start()
    host.ended_run("p")
    assert host.values("p", "a") == list(range(6000))
