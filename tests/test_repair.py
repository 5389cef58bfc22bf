"""A database is called damaged when a child has found it so twice; what was set aside and is whole is put back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, database, shown, wait_for
from failing import Failing

from trackio import record, wire
from trackio.record import Kind
from trackiod import repair
from trackiod.committer import Committer
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader
from trackiod.suspects import ChildLook, Verdict, examine
from trackiod.work import Append, Register, Reply

LOG = """
import sys, trackio
trackio.init(project=sys.argv[1], name=sys.argv[2])
for i in range(2000): trackio.log({"i": i, "half": i / 2}, step=i)
"""


def meta(stream: str, **more: Any) -> dict[str, Any]:
    return {"stream": stream, "run": stream, "name": stream, "role": "rank", "rank": 0, "attempt": "0",
            "local_rank": 0, "world_size": 1, "started_ns": 1, "project": "p", **more}  # fmt: skip


@pytest.fixture
def committer(host: Host) -> Iterator[Committer]:
    where = Committer(host.places.projects, "0" * 32, lambda: None)
    where.open_streams()
    yield where
    where._suspects.close()
    where._databases.close_all()


def records_of(first: int, count: int, start: int, *, is_last: bool = False) -> bytes:
    data = b""
    for i in range(first, first + count):
        data += record.encode(start + len(data), record.pack(Kind.LOG, 10**18 + i, i, 0, {"i": i, "third": i / 3}))
    if is_last:
        data += record.encode(start + len(data), record.pack(Kind.FINISH, 10**18, "finished", "", True))
    return data


def send(where: Committer, project: str, stream: str, start: int, data: bytes, oldest: int | None = None) -> None:
    where.submit(Register(project, stream, meta(stream), None))
    oldest = start if oldest is None else oldest
    where.submit(Append(project, stream, wire.Data(stream, start, start + len(data), oldest, [0, 0], data), None))


def values(host: Host, project: str, stream: str) -> list[int]:
    with ProjectReader(schema.path_of(host.places.projects, project)) as reader:
        found: list[int] = points.columns(reader, stream, frozenset({"i"}))["i"].values.tolist()
        return found


def asides(host: Host) -> list[Path]:
    found = Path(host.places.projects).glob("*.db.*-*")
    return [path for path in found if not path.name.endswith(("-wal", "-shm"))]


# -- what looks damaged ------------------------------------------------------------------------------------------


def damaged(host: Host, project: str) -> tuple[Path, bytes]:
    """Spoils a closed database; returns its path and what it was."""
    path = Path(schema.path_of(host.places.projects, project))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(3900) + whole[4000:])
    return path, whole


def test_a_database_that_looks_damaged_for_a_moment_stays_where_it_is(host: Host, committer: Committer) -> None:
    first = records_of(0, 10, 0)
    for project in ("p", "q"):
        send(committer, project, "s", 0, first)
    committer.commit_all()
    committer._databases.close_all()
    path, whole = damaged(host, "p")
    for project in ("p", "q"):
        send(committer, project, "s", len(first), records_of(10, 10, len(first)))
    committer.commit_all()
    assert "looked at" in committer.problem and "'p'" in committer.problem
    assert values(host, "q", "s") == list(range(20)), "only that project waits"
    path.write_bytes(whole)  # before it is looked at a second time
    wait_for(lambda: committer.commit_all() or not committer.backlog)
    assert values(host, "p", "s") == list(range(20)) and not asides(host) and committer.problem == ""


def test_one_that_is_damaged_is_set_aside_and_named(host: Host, committer: Committer) -> None:
    send(committer, "p", "s", 0, records_of(0, 10, 0))
    committer.commit_all()
    committer._databases.close_all()
    damaged(host, "p")
    send(committer, "p", "t", 0, records_of(0, 5, 0))
    wait_for(lambda: committer.commit_all() or not committer.backlog)
    assert values(host, "p", "t") == list(range(5)) and len(asides(host)) == 1
    for words in (["list", "projects"], ["list", "runs", "--project", "p"], ["status"]):
        done = host.command("trackio", *words)
        assert str(asides(host)[0]) in done.stdout + done.stderr
    said = host.command("trackiod", "repair").stdout
    assert str(asides(host)[0]) in said and "not whole" in said
    os.unlink(schema.path_of(host.places.projects, "p"))
    assert "set aside" in host.command("trackio", "list", "runs", "--project", "p").stderr


def test_a_child_that_looks_is_ended_when_it_takes_too_long(host: Host, committer: Committer) -> None:
    send(committer, "p", "s", 0, records_of(0, 10, 0))
    committer.commit_all()
    committer._databases.close_all()
    look = ChildLook(schema.path_of(host.places.projects, "p"))
    look._deadline = 0.0
    verdict, sentence = wait_for(look.poll)
    assert verdict in (Verdict.UNKNOWN, Verdict.WHOLE) and (verdict is Verdict.WHOLE or "too long" in sentence)
    assert wait_for(ChildLook(schema.path_of(host.places.projects, "p")).poll) == (Verdict.WHOLE, "")


@pytest.mark.parametrize("after", [0, 5])
def test_an_io_error_of_a_moment_sets_no_database_aside(host: Host, tmp_path: Path, after: int) -> None:
    failing = Failing(tmp_path / "failing")
    host.extra.update(failing.environ)
    host.start()
    host.run(LOG, "p", "before")
    wait_for(lambda: host.runs("p") and host.the_run("p").state.state == "finished")
    host.stop()
    with failing.fail("read", errno.EIO, ".db", process="trackiod", after=after, count=8) as rule:
        host.start()
        host.run(LOG, "p", "after")
        wait_for(lambda: rule.hits >= 8 or len(host.runs("p")) == 2)
    wait_for(lambda: [run.state.state for run in host.runs("p")] == ["finished"] * 2, 60)
    assert not asides(host)
    for run in host.runs("p"):
        assert [p.value for p in shown(run, "i", all_points=True)] == list(range(2000))


def test_what_is_open_in_a_project_that_could_not_be_read_at_the_start_ends_later(host: Host, tmp_path: Path) -> None:
    failing = Failing(tmp_path / "failing")
    host.extra.update(failing.environ)
    where = Committer(host.places.projects, "0" * 32, lambda: None)
    where.open_streams()
    send(where, "p", "s", 0, records_of(0, 10, 0))
    where.commit_all()
    where._databases.close_all()
    with failing.fail("open", errno.EIO, ".db", process="trackiod") as rule:
        host.start()
        assert wait_for(lambda: rule.hits)
    wait_for(lambda: host.the_run("p").state.state == "lost")


# -- what SQLite cannot do -----------------------------------------------------------------------------------------


def test_work_that_sqlite_cannot_do_is_refused_alone_and_not_repeated(host: Host, committer: Committer) -> None:
    send(committer, "p", "a", 0, records_of(0, 5, 0))
    committer.submit(Register("p", "odd", meta("odd", group={"a": 1}), "its peer"))
    committer.submit(Register("p", "b", meta("b"), None))
    wait_for(lambda: committer.commit_all() or not committer.backlog)
    send(committer, "p", "b", 0, records_of(0, 5, 0))
    committer.commit_all()
    refused = [o.message for o in committer.outcomes if isinstance(o, Reply) and isinstance(o.message, wire.Refusal)]
    assert [refusal.stream for refusal in refused] == ["odd"] and "SQLite cannot store it" in refused[0].reason
    assert values(host, "p", "a") == values(host, "p", "b") == list(range(5)) and not asides(host)


def test_a_record_that_sqlite_cannot_store_is_kept_as_a_file_and_the_others_stored(
    host: Host, committer: Committer
) -> None:
    send(committer, "p", "s", 0, b"")
    committer.commit_all()
    data = records_of(0, 3, 0)
    data += record.encode(len(data), record.pack(Kind.LOG, 10**18, 3, 0, {"i": 99, "odd": 1}))
    data += records_of(3, 4, len(data))
    with database(schema.path_of(host.places.projects, "p")) as connection:  # as a limit of SQLite's would
        connection.execute(
            "CREATE TRIGGER odd BEFORE INSERT ON series WHEN NEW.name = 'odd' BEGIN SELECT RAISE(ABORT, 'too odd'); END"
        )
    send(committer, "p", "s", 0, data)
    wait_for(lambda: committer.commit_all() or not committer.backlog)
    assert values(host, "p", "s") == list(range(7))
    with ProjectReader(schema.path_of(host.places.projects, "p")) as reader:
        ((start, end, cause),) = reader._all("SELECT start, end, cause FROM holes")
    assert "too odd" in cause
    (kept,) = (host.data / "damaged").iterdir()
    assert kept.read_bytes() == data[start:end]


# -- putting back --------------------------------------------------------------------------------------------------


def set_aside(where: Committer, project: str) -> None:
    where._databases.set_aside(project, "It looked damaged.")


def test_a_whole_database_is_put_back_by_its_name(host: Host, committer: Committer) -> None:
    send(committer, "p", "s", 0, records_of(0, 10, 0))
    committer.commit_all()
    set_aside(committer, "p")
    assert "whole" in host.command("trackiod", "repair", "--dry-run").stdout and asides(host)
    done = host.command("trackiod", "repair")
    assert done.returncode == 0 and "Put back" in done.stdout
    assert values(host, "p", "s") == list(range(10)) and not asides(host)
    assert "Nothing is blocked" in host.command("trackiod", "repair").stdout


@pytest.mark.parametrize("count", [10, 3000], ids=["raw", "in columns"])
@pytest.mark.parametrize("shift", [0, 1, -1], ids=["at its end", "behind a gap", "with what is in both"])
def test_what_was_stored_meanwhile_is_added_once(host: Host, committer: Committer, count: int, shift: int) -> None:
    parts = [records_of(0, count, 0)]
    parts.append(records_of(count, 10, len(parts[0])))
    first = b"".join(parts)
    send(committer, "p", "old", 0, records_of(0, 7, 0, is_last=True))
    send(committer, "p", "goes-on", 0, parts[0])
    committer.commit_all()
    send(committer, "p", "goes-on", len(parts[0]), parts[1])
    committer.commit_all()
    set_aside(committer, "p")
    start = {0: len(first), 1: len(first) + 640, -1: len(parts[0])}[shift]
    from_step = {0: count + 10, 1: count + 30, -1: count}[shift]
    amount = 20 if shift < 0 else count
    send(committer, "p", "goes-on", start, records_of(from_step, amount, start, is_last=True))
    send(committer, "p", "new", 0, records_of(0, count, 0, is_last=True))
    committer.commit_all()
    committer._databases.close_all()
    (sentence,) = repair.put_back(host.places)
    assert "with what was stored since" in sentence and not asides(host)
    assert values(host, "p", "old") == list(range(7)) and values(host, "p", "new") == list(range(count))
    expected = [*range(count + 10), *range(max(from_step, count + 10), from_step + amount)]
    assert values(host, "p", "goes-on") == expected
    with ProjectReader(schema.path_of(host.places.projects, "p")) as reader:
        rows = dict(reader._all("SELECT id, records FROM streams"))
        assert rows == {"old": 7, "new": count, "goes-on": len(expected)}
        series = reader._all("SELECT points, last_step, total FROM series WHERE stream = 'goes-on' AND name = 'i'")
        assert series == [(len(expected), expected[-1], float(sum(expected)))]
        assert len(reader._all("SELECT 1 FROM holes")) == (1 if shift > 0 else 0)
        states = reader._all("SELECT DISTINCT state FROM streams")
        assert states == [("finished",)]
    assert examine(schema.path_of(host.places.projects, "p")) == (Verdict.WHOLE, "")
    assert repair.put_back(host.places) == []


def test_versions_of_artifacts_are_numbered_on(host: Host, committer: Committer) -> None:
    for at, names in enumerate((["a", "b"], ["b", "c"])):
        send(committer, "p", f"s{at}", 0, records_of(0, 2, 0, is_last=True))
        committer.commit_all()
        store = committer._databases.get("p")
        with store.transaction():
            for version, digest in enumerate(names):
                store.connection.execute(
                    "INSERT INTO versions (name, version, created_ns, type, digest, size, facts, manifest)"
                    " VALUES ('m', ?, 1, 'model', ?, 1, x'80', x'90')", (version, digest),
                )  # fmt: skip
                store.connection.execute(
                    "INSERT INTO artifacts (stream, number, time_ns, role, name, facts, version)"
                    " VALUES (?, ?, 1, 'output', 'm', x'80', ?)", (f"s{at}", version, version),
                )  # fmt: skip
            store.connection.execute("INSERT OR REPLACE INTO aliases (name, alias, version) VALUES ('m', 'latest', 1)")
        if at == 0:
            set_aside(committer, "p")
    committer._databases.close_all()
    repair.put_back(host.places)
    with ProjectReader(schema.path_of(host.places.projects, "p")) as reader:
        assert reader._all("SELECT version, digest FROM versions ORDER BY 1") == [(0, "a"), (1, "b"), (2, "c")]
        logged = reader._all("SELECT stream, number, version FROM artifacts ORDER BY 1, 2")
        assert logged == [("s0", 0, 0), ("s0", 1, 1), ("s1", 0, 1), ("s1", 1, 2)]
        assert reader._all("SELECT version FROM aliases") == [(2,)]


def test_a_running_daemon_is_stopped_for_it_and_started_again(host: Host) -> None:
    host.start()
    host.run(LOG, "p", "one")
    host.ended_run("p")
    pid = host.status().daemon["pid"]
    host.stop()
    path = Path(schema.path_of(host.places.projects, "p"))
    path.rename(f"{path}.damaged-1")
    host.start()
    host.run(LOG, "p", "two")
    host.ended_run("p")
    while host.readers:
        host.readers.pop().close()
    assert host.command("trackiod", "repair").returncode == 0
    assert host.status().daemon["pid"] != pid
    assert sorted(run.name for run in host.runs("p")) == ["one", "two"]
    for run in host.runs("p"):
        assert [p.value for p in shown(run, "i", all_points=True)] == list(range(2000))
