"""SQLite's log of a database, under readers that stay: nobody waits for them, and they are named."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from conftest import Host, wait_for

from trackiod.committer import Committer
from trackiod.store import wal
from trackiod.store.project import ProjectStore
from trackiod.work import Register

READER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
seconds = float(sys.argv[2])
while True:
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM streams").fetchall()
    print("reads", flush=True)
    time.sleep(seconds) if seconds else sys.stdin.read()
    connection.execute("ROLLBACK")
    if not seconds:
        print("done", flush=True); sys.stdin.read()
"""


def open_store(host: Host) -> ProjectStore:
    os.makedirs(host.places.projects)
    return ProjectStore(host.places.projects, "p", "store")


def commit_mebibytes(store: ProjectStore, count: int, *, cuts: bool = True) -> Iterator[int]:
    """Stores so much in commits of one MiB, as the commit thread does; yields how long the log is then."""
    for _ in range(count):
        with store.transaction():
            (number,) = store._one("SELECT count(*) FROM batches")
            values = "('s', ?, ?, 1, zeroblob(1048576))"
            store._do(f"INSERT INTO batches (stream, start, end, records, data) VALUES {values}", number, number + 1)
        if cuts:
            store.cut_log(time.monotonic())
        yield wal.size_of(store.path)


def test_a_reader_that_stays_in_a_transaction_is_named_until_it_ends(host: Host) -> None:
    store = open_store(host)
    reader = host.python(READER, store.path, "0", stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "reads\n"
    assert max(commit_mebibytes(store, 110)) > wal.LONG_BYTES
    who = f"pid {reader.pid} (python"
    problems = host.cli("status")["problems"]
    assert len(problems) == 1 and who in problems[0] and "'p'" in problems[0], problems
    checks = {
        check["name"]: check for check in json.loads(host.command("trackiod", "doctor", "--json").stdout)["checks"]
    }
    assert checks["database log"]["verdict"] == "warning" and who in checks["database log"]["sentence"]
    reader.send_signal(19)  # and one that is paused is no other
    reader.send_signal(18)
    reader.kill()
    reader.communicate()
    wait_for(lambda: min(commit_mebibytes(store, 1)) < 3 << 20, what="the cut, with a later commit")
    assert host.cli("status")["problems"] == []
    store.close()


def test_readers_that_follow_each_other_do_not_keep_the_log_from_being_cut(host: Host) -> None:
    """Somebody reads at every moment, each only for a short while: without a wait, no moment would do."""
    store = open_store(host)
    readers = [host.python(READER, store.path, seconds, stdout=subprocess.PIPE) for seconds in ("0.011", "0.017")]
    for reader in readers:
        assert reader.stdout.readline() == "reads\n"
    assert any(after < before for before, after in pairwise(commit_mebibytes(store, 500)))
    for reader in readers:
        reader.kill()
        reader.communicate()
    store.close()


def test_the_commit_thread_cuts_a_long_log(host: Host) -> None:
    where = Committer(host.places.projects, "store", lambda: None)
    where.open_streams()
    meta = {"stream": "s", "project": "p", "run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "0",
            "local_rank": 0, "world_size": 1, "started_ns": 1}  # fmt: skip
    where.submit(Register("p", "s", meta, None))
    where.commit_all()
    store = where._databases.get("p")
    reader = host.python(READER, store.path, "0", stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "reads\n"
    assert max(commit_mebibytes(store, 70, cuts=False)) > wal.MOST_BYTES
    reader.kill()
    reader.communicate()
    where.submit(Register("p", "s", meta, None))
    where.commit_all()
    assert wal.size_of(store.path) < 1 << 20
    where._databases.close_all()


def test_who_reads_is_told_by_locks_of_the_kernel(host: Host) -> None:
    store = open_store(host)
    idle = host.python(f"import sqlite3, sys\nc = sqlite3.connect({store.path!r})\nc.execute('SELECT 1 FROM meta')"
                       ".fetchall()\nprint('open', flush=True)\nsys.stdin.read()", stdin=subprocess.PIPE)  # fmt: skip
    assert idle.stdout.readline() == "open\n"
    with store.transaction():
        store._do("INSERT INTO clocks (stream, time_ns, monotonic_ns) VALUES ('s', 1, 1)")
        assert wal.readers(store.path) == (), "who writes is no reader that keeps anything"
    assert max(commit_mebibytes(store, 1)) < 2 << 20
    assert wal.readers(store.path) == () == wal.readers(str(Path(store.path).with_name("none.db")))
    reader = host.python(READER, store.path, "0", stdin=subprocess.PIPE)
    wait_for(lambda: [who.split()[0] for who in wal.readers(store.path)] == [str(reader.pid)])
    store.close()
