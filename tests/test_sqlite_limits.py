"""SQLite's limits: no statement grows with the data, and one that SQLite cannot run is not a damaged database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, database

from trackio import record, wire
from trackio.record import Kind
from trackiod.committer import Committer
from trackiod.store import schema
from trackiod.work import Append, Edit, Find, Register, Reply

MANY = 520
LIMITS = {
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 510,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
}
"""as the strictest builds have them, and below what the tests store"""


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection of this process is to a SQLite that was built with small limits."""
    connect = sqlite3.connect

    def connect_limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        for limit, value in LIMITS.items():
            connection.setlimit(limit, value)
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_limited)


def meta(run: str, **more: Any) -> dict[str, Any]:
    return {"stream": run, "project": "p", "run": run, "name": "x", "role": "rank", "rank": 0, "attempt": run,
            "local_rank": 0, "world_size": 1, "started_ns": 10**18 + int(run[1:]), "resume": "allow", "named": True,
            **more}  # fmt: skip


@pytest.fixture
def chain(host: Host) -> Iterator[Committer]:
    """A run that was gone on with so many times, each time in a run of its own; the last one has as many metrics."""
    where = Committer(host.places.projects, "0" * 32, lambda: None)
    where.open_streams()
    (host.data / "store.id").write_text("0" * 32)
    for number in range(MANY):
        metrics = {"n": number} | ({f"m{i}": i for i in range(MANY)} if number == MANY - 1 else {})
        payloads = [record.pack(Kind.LOG, 10**18 + number, number, 0, metrics),
                    record.pack(Kind.FINISH, 10**18 + number, "finished", "", True)]  # fmt: skip
        data = b""
        for payload in payloads:
            data += record.encode(len(data), payload)
        where.submit(Register("p", f"s{number}", meta(f"s{number}"), None))
        where.submit(Append("p", f"s{number}", wire.Data(f"s{number}", 0, len(data), 0, [0, 0], data), None))
    work_off(where)
    yield where
    where._databases.close_all()


def work_off(where: Committer) -> list[Any]:
    """What came of all work."""
    where.commit_all()
    assert not where.backlog and where.problem == ""
    found = [outcome.message for outcome in where.outcomes if isinstance(outcome, Reply)]
    where.outcomes.clear()
    return found


def asked(where: Committer, work: Any) -> Any:
    where.submit(work)
    return work_off(where)[-1]


@pytest.mark.usefixtures("limited")
def test_no_statement_grows_with_the_data(chain: Committer, host: Host, tmp_path: Path) -> None:
    assert asked(chain, Find("p", "x", "", None)) == wire.Found("p", "x", "s0", MANY - 1)
    host.extra["TRACKIO_SHARED_DIR"] = str(tmp_path / "shared")
    facts = host.cli_here("get", "run", "--project", "p", "--run", "x")
    assert facts["points"] == 2 * MANY
    assert (
        len(host.cli_here("get", "metric", "--project", "p", "--run", "x", "--metric", "n", "--all")["values"]) == MANY
    )
    assert len(host.cli_here("list", "metrics", "--project", "p", "--run", "x")["metrics"]) == MANY + 1
    assert host.cli_here("list", "runs", "--project", "p")["runs"] == ["x"]
    assert host.cli_here("get", "alerts", "--project", "p", "--run", "x")["alerts"] == []
    assert host.cli_here("status")["runs"][0]["points"] == 2 * MANY
    sql = "SELECT count(*) AS n FROM metrics"
    rows = host.cli_here("query", "project", "--project", "p", "--run", "x", "--sql", sql)["rows"]
    assert rows == [{"n": 2 * MANY}]
    assert asked(chain, Edit("p", "rename", "x", "y", None)) == wire.Edited(True)
    assert asked(chain, Edit("p", "move", "y", "q", None)) == wire.Edited(True)
    assert host.cli_here("get", "run", "--project", "q", "--run", "y")["points"] == 2 * MANY
    assert asked(chain, Edit("q", "delete", "y", "", None)) == wire.Edited(True)
    with database(schema.path_of(host.places.projects, "q")) as connection:
        assert connection.execute("SELECT count(*) FROM streams").fetchone() == (0,)


def test_a_statement_that_sqlite_cannot_run_is_not_damage(chain: Committer, host: Host) -> None:
    """Whatever the next one is: the project's work waits, is named, and its database stays where it is."""
    path = Path(schema.path_of(host.places.projects, "p"))
    chain._databases.get("p").connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 1)
    chain.submit(Find("p", "x", "", None))
    chain.commit_all()
    assert "project 'p' cannot be written" in chain.problem and "too many SQL variables" in chain.problem
    assert path.exists() and not list(path.parent.glob("*.damaged-*"))
    (found,) = work_off(chain)  # by a new connection
    assert found == wire.Found("p", "x", "s0", MANY - 1)
