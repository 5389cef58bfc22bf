"""Flipped, cut and zeroed bytes in spools and databases: the bad part is named, the rest is kept, others untouched."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from conftest import Host, shown, wait_for
from conftest import database as opened

from trackio import folder, record, segment, wire
from trackio.places import Places
from trackio.record import Kind
from trackiod import orphans, suspects
from trackiod.committer import Committer
from trackiod.ended import Ended
from trackiod.exits import Exit
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader, project_names
from trackiod.suspects import Suspects
from trackiod.work import Append, Drain, Drained, MovedAside, NotDrained, Register

COUNT = 6000
LOG = f"""
import os, sys, trackio
trackio.init(project=sys.argv[1], name=sys.argv[2])
for i in range({COUNT}): trackio.log({{"i": i, "third": i / 3, "name": f"n{{i}}"}}, step=i)
"""
FEW = LOG.replace(f"range({COUNT})", "range(20)")


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Somewhere in the file, but for its first page: without that it is no database, which is tested elsewhere."""
    data = bytearray(path.read_bytes())
    position = chance.randrange(min(4096, len(data) // 2), len(data))
    if how == "flip":
        for _ in range(3):
            data[chance.randrange(position, len(data))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[position:]
    else:
        data[position : position + 4096] = bytes(len(data[position : position + 4096]))
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["flip", "cut", "zero"])
def test_a_damaged_database_costs_what_is_damaged_and_the_daemon_goes_on(host: Host, how: str, seed: int) -> None:
    chance = random.Random(f"{how} {seed}")
    host.start()
    for project in ("hit", "well"):
        host.run(LOG, project, "before")
        host.run(FEW, project, "few")
        wait_for(lambda project=project: [r.state.state for r in host.runs(project)] == ["finished"] * 2)
    pid = host.status().daemon["pid"]
    host.stop()
    damage(Path(schema.path_of(host.places.projects, "hit")), how, chance)
    host.start()
    for project in ("hit", "well"):
        host.run(LOG, project, "after")
    wait_for(lambda: "well" in project_names(host.places.projects)[0] and ended(host, "well", "after"), 30)
    assert host.status().daemon["pid"] != pid and Path(f"/proc/{host.status().daemon['pid']}").exists()
    assert values(host, "well", "before") == list(range(COUNT)), "the other project is untouched"
    wait_for(lambda: ended(host, "hit", "after"), 30, "the damaged project goes on")
    assert values(host, "hit", "after") == list(range(COUNT))
    aside = list(Path(host.places.projects).glob("*.damaged-*"))
    kept = values(host, "hit", "before")
    assert set(kept) <= set(range(COUNT)) and kept == sorted(set(kept)), "nothing that was not logged"
    if len(kept) < COUNT:
        told = host.command("trackio", "get", "metric", "--project", "hit", "--run", "before", "--metric", "i").stderr
        told += (host.data / "trackiod.log").read_text()
        assert aside or "damaged" in told or "cannot be read" in told, "what is missing is named"
    if aside:
        assert any(str(path) in (host.data / "trackiod.log").read_text() for path in aside), "where it is kept is said"


def ended(host: Host, project: str, name: str) -> bool:
    if project not in project_names(host.places.projects)[0]:
        return False
    return any(r.name == name and r.state.state == "finished" and r.records == COUNT for r in host.runs(project))


def values(host: Host, project: str, name: str) -> list[int]:
    """The values that can be read."""
    run = next((r for r in host.runs(project) if r.name == name), None)
    return [] if run is None else [p.value for p in shown(run, "i", all_points=True)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("how", ["flip", "cut", "zero"])
@pytest.mark.parametrize("where", ["spool", "spill"])
def test_a_damaged_spool_costs_what_is_damaged_and_no_other_project(
    host: Host, where: str, how: str, seed: int
) -> None:
    chance = random.Random(f"{where} {how} {seed}")
    end = "os.kill(os.getpid(), 9)" if where == "spool" else ""
    for project in ("hit", "well"):
        host.run(LOG + end, project, "r")
    root = host.spool if where == "spool" else host.data / "spill"
    if where == "spill":
        shutil.rmtree(host.spool)  # a reboot
        host.spool.mkdir()
    segments = [path for path in root.rglob("seg-*") if b"\xa3hit" in (path.parent / "stream.meta").read_bytes()]
    largest = max(segments, key=lambda path: path.stat().st_size)
    damage(largest, how, chance)
    host.start()
    for project in ("hit", "well"):
        host.ended_run(project, 30)
    assert values(host, "well", "r") == list(range(COUNT))
    run = host.the_run("hit")
    kept = values(host, "hit", "r")
    assert kept == sorted(set(kept)) and set(kept) <= set(range(COUNT))
    assert len(kept) == run.records
    missing = set(range(max(kept, default=-1) + 1)) - set(kept)
    assert not missing or run.holes, "what is missing in between is named"
    if how == "flip":
        assert len(kept) >= COUNT - 3
    aside = list((host.data / "damaged").glob("*/seg-*"))
    assert bool(aside) == bool(run.holes)
    assert not aside or str(host.data / "damaged") in (host.data / "trackiod.log").read_text(), "where it is, is said"
    wait_for(lambda: not list(root.rglob("seg-*")), 20, "what was stored is removed")


# -- what a stream says of itself, by the committer alone -----------------------------------------------------------


@pytest.fixture
def facts(host: Host) -> dict[str, Any]:
    """What a real process said of itself."""
    host.run("import os, trackio\ntrackio.init(project='p', group='g').log({'a': 1})\nos.kill(os.getpid(), 9)")
    (found,) = orphans.find(host.places)
    return found.meta


def leave(where: Places, stream: str, meta: bytes, data: bytes) -> None:
    """A stream's folder as a dead process leaves it."""
    path = Path(where.stream_folders[0], stream)
    path.mkdir(parents=True)
    (path / "stream.meta").write_bytes(meta)
    (path / "seg-000001").write_bytes(segment.header(0) + data)


def drain_all(where: Places, committer: Committer) -> None:
    """What the loop does about the dead, until nothing is left to do at once."""
    ended = Ended(where, committer.submit)
    for _ in range(3):
        ended.look(())
        committer.commit_all()
        while committer.outcomes:
            outcome = committer.outcomes.popleft()
            if isinstance(outcome, Drained):
                ended.on_drained(outcome)
            elif isinstance(outcome, NotDrained):
                ended.on_not_drained(outcome)
            elif isinstance(outcome, MovedAside):
                ended.on_moved_aside(outcome)
    ended.close()


@pytest.mark.parametrize("has_checksum", [True, False], ids=["with its checksum", "as the first release wrote it"])
def test_a_flipped_bit_in_what_a_stream_says_of_itself_costs_that_stream_only(
    facts: dict[str, Any], tmp_path: Path, has_checksum: bool
) -> None:
    where = Places(str(tmp_path / "d"), str(tmp_path / "d"), "", (str(tmp_path / "spool"),))
    committer = Committer(where.projects, "store", lambda: None)
    committer.open_streams()
    data = b"".join(record.encode(i * 48, record.pack(Kind.LOG, 10**18 + i, i, 0, {"i": i})) for i in range(1))
    pack = folder.packed_meta if has_checksum else msgpack.packb
    whole = [f"{i:016x}" for i in range(3)]
    for stream in whole:
        leave(where, stream, pack({**facts, "stream": stream, "run": stream}), data)
    chance = random.Random(1)
    size = len(pack(facts))
    for spot in range(size):
        stream = f"{spot + 100:016x}"
        flipped = bytearray(pack({**facts, "stream": stream}))
        flipped[spot] ^= 1 << chance.randrange(8)
        leave(where, stream, bytes(flipped), data)
    drain_all(where, committer)
    assert committer.backlog == 0 and committer.problem == ""
    left, aside = os.listdir(where.stream_folders[0]), os.listdir(tmp_path / "d" / "damaged")
    assert left == [], "tried again and again"
    stored = 0
    for name in project_names(where.projects)[0]:
        with ProjectReader(schema.path_of(where.projects, name)) as reader:
            streams = {row[0] for row in reader._all("SELECT id FROM streams WHERE records = 1")}
            stored += len(streams)
            assert name != "p" or streams >= {*whole}
    assert len(aside) + stored == size + len(whole), "all is stored or kept"
    assert len(aside) >= (size - 12 if has_checksum else size // 4)
    committer._databases.close_all()


@pytest.mark.parametrize("has_value", [True, False])
def test_facts_of_any_type_or_size_stop_no_project(facts: dict[str, Any], tmp_path: Path, has_value: bool) -> None:
    where = Places(str(tmp_path / "d"), str(tmp_path / "d"), "", (str(tmp_path / "spool"),))
    committer = Committer(where.projects, "store", lambda: None)
    committer.open_streams()
    number = 0
    for field in (*facts, "process", "more"):
        for value in ({"a": 1}, [1], (1 << 64) - 1, -1, "x" * 5000, b"x", 1.5, None, True, "", "\0"):
            number += 1
            stream = f"{number:016x}"
            changed = {**facts, "stream": stream, field: value}
            if not has_value:
                del changed[field]
            leave(where, stream, folder.packed_meta(changed), b"")
    drain_all(where, committer)
    assert committer.backlog == 0 and committer.problem == ""
    assert os.listdir(where.stream_folders[0]) == []
    committer._databases.close_all()


# -- bits of a spool ---------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_in_a_segment_costs_one_record_at_most_and_is_named(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    where = Places(str(tmp_path / "d"), str(tmp_path / "d"), "", (str(tmp_path / "spool"),))
    committer = Committer(where.projects, "store", lambda: None)
    committer.open_streams()
    data = b""
    for i in range(4):
        data += record.encode(len(data), record.pack(Kind.LOG, 10**18 + i, i, 0, {"i": i}))
    size = segment.HEADER_BYTES + len(data)
    chance = random.Random(2)
    for spot in range(size):
        stream = f"{spot:016x}"
        leave(where, stream, folder.packed_meta({**facts, "stream": stream, "run": stream}), data)
        path = Path(where.stream_folders[0], stream, "seg-000001")
        flipped = bytearray(path.read_bytes())
        flipped[spot] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
    drain_all(where, committer)
    with ProjectReader(schema.path_of(where.projects, "p")) as reader:
        rows = {row[0]: row[1:] for row in reader._all(
            "SELECT s.id, s.records, (SELECT count(*) FROM holes h WHERE h.stream = s.id) FROM streams s")}  # fmt: skip
    for spot in range(size):
        records, holes = rows[f"{spot:016x}"]
        in_last_word = size - len(data) // 4 <= spot < size - len(data) // 4 + 8  # as if it had not been logged whole
        assert (records, holes) in [(4, 0), (3, 0 if in_last_word else 1)], spot
        assert spot >= segment.HEADER_BYTES or (records, holes) == (4, 0), spot
    aside = {name[:16] for name in os.listdir(tmp_path / "d" / "damaged")}
    assert aside == {stream for stream, (_, holes) in rows.items() if holes}
    committer._databases.close_all()


# -- a database, by the committer alone: many damages in little time ----------------------------------------------


def meta(stream: str) -> dict[str, Any]:
    return {"stream": stream, "project": "p", "run": stream, "name": stream, "role": "rank", "rank": 0, "attempt": "0",
            "local_rank": 0, "world_size": 1, "started_ns": 1}  # fmt: skip


def feed(where: Committer, stream: str, count: int) -> None:
    """A stream of so many records and, but for the one called open, its end."""
    payloads = [
        record.pack(Kind.LOG, 10**18 + i, i, 0, {"i": i, "third": i / 3, "name": f"n{i}"}) for i in range(count)
    ]
    if stream != "open":
        payloads.append(record.pack(Kind.FINISH, 10**18 + count, "finished", "", True))
    data = b""
    for payload in payloads:
        data += record.encode(len(data), payload)
    where.submit(Register("p", stream, meta(stream), None))
    where.submit(Append("p", stream, wire.Data(stream, 0, len(data), 0, [0, 0], data), None))


def work_off(where: Committer) -> None:
    for _ in range(20):
        if where.backlog:
            where.commit_all()
    where._folding._due = dict.fromkeys(where._folding._due, 0.0)
    for _ in range(30):
        where._folding.step()


class HereLook:
    """A look without a child, for many in little time."""

    def __init__(self, path: str) -> None:
        self.poll = lambda: suspects.examine(path)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    projects = str(tmp_path_factory.mktemp("projects"))
    where = Committer(projects, "store", lambda: None)
    where.open_streams()
    for stream, count in (("folded", 6000), ("raw", 20), ("open", 300)):
        feed(where, stream, count)
    work_off(where)
    where._databases.close_all()
    return Path(schema.path_of(projects, "p")).read_bytes()


def test_what_the_layout_says_in_comments_may_change(database: bytes, tmp_path: Path) -> None:
    path = Path(schema.path_of(str(tmp_path), "p"))
    path.write_bytes(database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        changed = connection.execute("UPDATE sqlite_master SET sql = replace(sql, '  -- ', '-- it is ')").rowcount
        connection.commit()
    assert changed > 5
    schema.open_for_writing(str(path), "p", "store").close()


@pytest.mark.parametrize("seed", range(150))
def test_wherever_a_database_is_damaged_its_project_goes_on(database: bytes, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = Path(schema.path_of(str(tmp_path), "p"))
    path.write_bytes(database)
    damage(path, chance.choice(["flip", "cut", "zero"]), chance)
    where = Committer(str(tmp_path), "store", lambda: None, suspects=Suspects(str(tmp_path), HereLook, 0))
    where.open_streams()
    where.submit(Drain("p", "open", meta("open"), (), list, Exit()))
    feed(where, "new", 3000)
    work_off(where)
    where._databases.close_all()
    assert not where.backlog and where.problem == ""
    with ProjectReader(str(path)) as reader:
        assert points.columns(reader, "new", frozenset({"i"}))["i"].values.tolist() == list(range(3000))


def test_a_chunk_that_an_index_names_and_no_page_holds_costs_itself_only(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i, 'b': i}) for i in range(5000)]")
    daemon.ended_run("p")
    path = schema.path_of(daemon.places.projects, "p")
    wait_for(lambda: _count(path, "chunks"), 30, "columns")
    daemon.stop()
    index = "name = 'chunks_by_series'"
    with opened(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        (row,) = connection.execute(f"SELECT * FROM sqlite_master WHERE {index}").fetchall()
        connection.execute(f"DELETE FROM sqlite_master WHERE {index}")
    with opened(path) as connection:  # which does not know of the index
        connection.execute("DELETE FROM chunks WHERE series = (SELECT id FROM series WHERE name = 'a')")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row)
    (run,) = daemon.runs("p")
    assert [p.value for p in shown(run, "b", all_points=True)] == list(range(5000))
    assert len(list(shown(run, "a", all_points=True))) < 5000
    assert "is missing; the rest is shown" in " ".join(run.reader.problems)


def _count(path: str, table: str) -> int:
    with opened(path) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
