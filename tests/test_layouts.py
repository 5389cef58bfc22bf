"""Layouts of the store (decision 15): what another release added, what it migrated, and a kept store of each layout."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, database, wait_for
from hub import Hub
from uploads import REPO, parquet_rows, target, upload

from trackiod import blobs
from trackiod.errors import StoreDamaged
from trackiod.store import additions, layout, schema

FIXTURES = Path(__file__).parent / "fixtures"

LOG = """
import sys, trackio
trackio.init(project=sys.argv[1], name=sys.argv[2])
for step in range(int(sys.argv[3])):
    trackio.log({"loss": step / 3, "n": step}, step=step)
trackio.alert("hot", text="41")
trackio.log_system({"heat": 41.5})
"""
FOREIGN = """
ALTER TABLE runs ADD COLUMN colour TEXT;
ALTER TABLE streams ADD COLUMN "odd name" INTEGER NOT NULL DEFAULT 7;
ALTER TABLE axes ADD COLUMN extra;
ALTER TABLE versions ADD COLUMN extra;
ALTER TABLE aliases ADD COLUMN extra;
ALTER TABLE files ADD COLUMN extra;
ALTER TABLE holes ADD COLUMN extra;
ALTER TABLE alerts ADD COLUMN extra;
ALTER TABLE system ADD COLUMN extra;
ALTER TABLE clocks ADD COLUMN extra;
ALTER TABLE meta ADD COLUMN extra;
CREATE TABLE notes (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE marks (run TEXT NOT NULL, mark TEXT NOT NULL, PRIMARY KEY (run, mark)) WITHOUT ROWID;
CREATE TABLE unrelated (a, b);
CREATE INDEX alerts_by_level ON alerts (level);
CREATE VIEW newest AS SELECT id FROM runs ORDER BY created_ns DESC LIMIT 1;
CREATE TRIGGER quiet AFTER INSERT ON unrelated BEGIN SELECT 1; END;
UPDATE runs SET colour = 'red';
INSERT INTO notes (stream, text) SELECT id, 'kept' FROM streams;
INSERT INTO marks SELECT id, 'kept' FROM runs;
"""


def path_of(host: Host, project: str) -> str:
    return schema.path_of(host.places.projects, project)


def values(host: Host, project: str, run: str) -> list[Any]:
    done = host.cli_here("get", "metric", "--project", project, "--run", run, "--metric", "n", "--all")
    return [point["value"] for point in done["values"]]


@pytest.fixture
def hosts(tmp_path: Path, in_memory: Path) -> Iterator[Callable[[str], Host]]:
    """Hosts that share one folder and nothing else."""
    made: list[Host] = []

    def make(name: str) -> Host:
        (in_memory / name).mkdir()
        host = Host(tmp_path / name / "data", in_memory / name, {"TRACKIO_SHARED_DIR": str(tmp_path / "shared")})
        host.data.mkdir(parents=True)
        made.append(host)
        return host

    yield make
    for host in made:
        host.close()


def test_what_only_other_releases_know_is_left_alone_and_in_nobodys_way(hosts: Callable[[str], Host]) -> None:
    one, two = hosts("one"), hosts("two")
    one.start()
    one.run(LOG, "p", "before", "1500")
    one.ended_run("p")
    one.stop()
    with closing(sqlite3.connect(path_of(one, "p"))) as connection:
        connection.executescript(FOREIGN)
    one.start()
    one.run(LOG, "p", "after", "20")
    one.ended_runs("p")
    for host in (one, two):
        wait_for(lambda host=host: set(host.cli_here("list", "runs", "--project", "p")["runs"]) == {"before", "after"})
        assert (values(host, "p", "before"), values(host, "p", "after")) == ([*range(1500)], [*range(20)])
        assert len(host.cli_here("get", "alerts", "--project", "p")["alerts"]) == 2
        assert host.cli_here("export", "--project", "p", "--to", str(host.data / "out"))["rows"] == 3040
    assert not list(Path(one.places.projects).glob("*.damaged-*"))
    done = one.run("import trackio; api = trackio.Api()\n"
                   "assert api.run('p', 'before').move('q') and api.run('p', 'after').delete()")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert values(one, "q", "before") == [*range(1500)]
    rows = {}
    for project in ("p", "q"):
        with database(path_of(one, project)) as connection:
            sql = "SELECT (SELECT group_concat(text) FROM notes), (SELECT group_concat(mark) FROM marks),"
            rows[project] = connection.execute(f"{sql} (SELECT group_concat(colour) FROM runs)").fetchone()
    assert rows == {"p": (None, None, None), "q": ("kept", "kept", "red")}, "it goes along, and goes with its run"


# -- what is damage ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = str(tmp_path / "p.db")
    schema.open_for_writing(path, "p", "s").close()
    return path


DAMAGES = {
    "a table": "DROP TABLE clocks",
    "a column": "ALTER TABLE clocks DROP COLUMN monotonic_ns",
    "a type": "DROP TABLE clocks; CREATE TABLE clocks (stream TEXT NOT NULL, time_ns TEXT NOT NULL, monotonic_ns"
              " INTEGER NOT NULL)",
    "not null": "DROP TABLE clocks; CREATE TABLE clocks (stream TEXT, time_ns INTEGER NOT NULL, monotonic_ns"
                " INTEGER NOT NULL)",
    "a key": "DROP TABLE configs; CREATE TABLE configs (stream TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
             " PRIMARY KEY (stream)) WITHOUT ROWID",
    "an index": "DROP INDEX runs_by_time; CREATE INDEX runs_by_time ON runs (id)",
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_ours_and_not_as_the_layout_says_is_damage(store: str, what: str) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.executescript(DAMAGES[what])
    with pytest.raises(StoreDamaged, match="is damaged"):
        schema.open_for_writing(store, "p", "s")


def test_an_index_that_somebody_dropped_is_made_again(store: str) -> None:
    with database(store) as connection:
        connection.execute("DROP INDEX runs_by_time")
    schema.open_for_writing(store, "p", "s").close()
    with database(store) as connection:
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs_by_time'").fetchone()


def test_every_table_has_its_place_when_runs_are_copied_joined_and_deleted() -> None:
    known = {"meta", "runs", "streams", "chunks", "definitions", "versions", "aliases", *layout.IN_STREAMS}
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(layout.TABLES)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert tables == known
        for table in tables:
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            first = layout.FIRST.get(table, "").split()
            for _, name, _, is_required, default, key in columns if first else ():
                assert name in first or (not key and (default is not None or not is_required)), (table, name)
            assert first or {"stream", "run"} & {column[1] for column in columns}, table
            for _, index, is_unique, origin, _ in connection.execute(f"PRAGMA index_list({table})"):
                assert origin != "c" or not is_unique or index in ("batches_by_stream", "series_by_stream",
                                                                   "chunks_by_series"), index  # fmt: skip
    assert layout.VERSION == 3 and additions.known() == "", "a new column or table: add it to this test, not to FIRST"


# -- a kept store of each layout -------------------------------------------------------------------------------------------

LAYOUTS = sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("layout-*.tar.xz"))
WHAT = {
    "metrics": ("run_id", "rank", "attempt", "seq", "step", "time", "metric", "value", "value_text"),
    "system": ("run_id", "rank", "time", "metric", "value", "value_text"),
    "alerts": ("run_id", "rank", "attempt", "step", "time", "level", "title", "text"),
    "runs": ("run_id", "run", "state", "points", "config", "summary"),
}


@pytest.fixture(params=LAYOUTS)
def kept(request: pytest.FixtureRequest, hosts: Callable[[str], Host]) -> tuple[Host, Host, dict[str, Any]]:
    """The host of a kept store, another host that sees what it copied, and what that release exported."""
    one, two = hosts("one"), hosts("two")
    root = one.data.parent
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
        archive.extractall(root, filter="data")
    shutil.move(root / "shared", two.extra["TRACKIO_SHARED_DIR"])
    return one, two, json.loads((root / "rows.json").read_text())


def exported(host: Host, project: str = "p") -> dict[str, list[dict[str, Any]]]:
    folder = host.data / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    host.cli_here("export", "--project", project, "--to", str(folder), "--format", "jsonl")
    return {
        kind: [json.loads(line) for path in (folder / kind).rglob("*.jsonl") for line in path.read_text().splitlines()]
        for kind in WHAT
    }


def chosen(rows: dict[str, list[dict[str, Any]]], *kinds: str, runs: set[str] | None = None) -> dict[str, list[Any]]:
    """What every release says of the runs, in one order."""
    return {
        kind: sorted(
            (tuple(row[name] for name in WHAT[kind]) for row in rows[kind] if runs is None or row["run_id"] in runs),
            key=repr,
        )
        for kind in kinds or WHAT
    }


def test_there_is_a_kept_store_of_our_layout() -> None:
    assert f"layout-{layout.VERSION}" in LAYOUTS
    assert all((FIXTURES / f"{name}.tar.xz").stat().st_size < 300_000 for name in LAYOUTS)


def test_a_kept_store_is_read_whole_here_and_on_other_hosts(kept: tuple[Host, Host, dict[str, Any]]) -> None:
    one, two, rows = kept
    assert chosen(exported(one)) == chosen(rows)
    assert chosen(exported(two)) == chosen(rows), "of its copies"
    assert one.status() is None
    for host in (one, two):
        assert values(host, "p", "long") == [*range(1500)]
        facts = host.cli_here("get", "artifact", "--project", "p", "--name", "model:best")
        assert [entry["path"] for entry in facts["manifest"]] == ["config.json", "weights.bin"]
        folder = blobs.folder_of(host.places.blobs, "p")
        for entry in facts["manifest"]:
            content = Path(blobs.kept_in(folder, entry["digest"], entry["suffix"])).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["digest"]


def test_a_kept_store_goes_on_is_copied_and_uploaded(kept: tuple[Host, Host, dict[str, Any]], server: Hub) -> None:
    one, two, rows = kept
    one.start()
    more = "import trackio; r = trackio.init(project='p', name='long', resume='must')\n"
    one.run(more + "for step in range(1500, 1520): trackio.log({'n': step, 'new': 1}, step=step)")
    one.run(LOG, "p", "another", "40")
    wait_for(lambda: [r.state.state for r in one.runs("p")] == ["finished"] * 4, what="the ends")
    one.stop()
    before = {row["run_id"] for row in rows["runs"]}
    now = exported(one)
    for kind in ("metrics", "alerts"):
        was = {*chosen(rows, kind)[kind]}
        assert was < {*chosen(now, kind)[kind]}, kind
    assert len(now["metrics"]) == len(rows["metrics"]) + 40 + 80
    assert before < {row["run_id"] for row in now["runs"]}
    wait_for(lambda: chosen(exported(two), "metrics", "alerts") == chosen(now, "metrics", "alerts"), 30, "the copies")
    assert upload(one, server, target(one, server)).problem == ""
    uploaded = parquet_rows(server.repos[REPO].tree)
    wanted = [(row["run_id"], row["seq"], row["metric"]) for row in now["metrics"]]
    assert sorted((row["run_id"], row["seq"], row["metric"]) for row in uploaded) == sorted(wanted)
