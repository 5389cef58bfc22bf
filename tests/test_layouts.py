"""Layouts of the store (decision 15): what another release added, what it migrated, and a kept store of each layout."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, database, wait_for
from hub import Hub
from releases import ask, make_release, python, replacing, run, trackio, trackiod
from test_versions import TRAINER, daemon_of, end_and_check, wait_for_more
from uploads import REPO, parquet_rows, target, upload

from trackiod import blobs
from trackiod.errors import StoreDamaged
from trackiod.store import additions, layout, schema
from trackiod.uploads.cursor import Cursor, File, Place, from_json
from trackiod.uploads.doubts import Doubt
from trackiod.uploads.target import Folder, RunState, Status, Target

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
ALTER TABLE axes ADD COLUMN computed AS (last_step - first_step);
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


# -- what is damage ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("is_shared", [False, True], ids=["ours alone", "with what others added"])
def test_a_flipped_bit_in_the_description_of_the_tables_is_told_or_harmless(store: str, is_shared: bool) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("INSERT INTO clocks (stream, time_ns, monotonic_ns) VALUES ('s', 1, 2)")
        connection.executescript(FOREIGN if is_shared else "PRAGMA user_version = 3")
    chance, good, told = random.Random(7), Path(store).read_bytes(), 0
    texts = [found.start() for found in re.finditer(b"CREATE (TABLE|INDEX|UNIQUE)", good)]
    for _ in range(300):
        data = bytearray(good)
        data[min(chance.choice(texts) + chance.randrange(-40, 300), len(data) - 1)] ^= 1 << chance.randrange(8)
        Path(store).write_bytes(data)
        try:
            connection = schema.open_for_writing(store, "p", "s")
        except StoreDamaged:
            told += 1
            continue
        with closing(connection), suppress(sqlite3.DatabaseError):  # which is told when it is met
            assert connection.execute("SELECT time_ns, monotonic_ns FROM clocks").fetchall() == [(1, 2)]
    assert told > 20


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


# -- a kept store of each layout ---------------------------------------------------------------------------------------

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
    return read_rows(folder)


def read_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What an export holds."""
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


# -- two releases of one layout number ---------------------------------------------------------------------------------

NEXT, LATER, THIS = "98.1.0", "99.1.0", "0.9.7"
"""the next release adds to the layout; a later one has another layout; this one, as one that is older than both"""
ADDS = {
    "trackiod/store/layout.py": replacing(
        r"^    name_rank INTEGER NOT NULL,", "    colour TEXT DEFAULT 'none',\n    name_rank INTEGER NOT NULL,",
        r"^    run TEXT NOT NULL,\n    role", "    run TEXT NOT NULL,\n    beats INTEGER NOT NULL DEFAULT 3,\n    role",
        r"^    count INTEGER NOT NULL,(.*)$", r"    remark TEXT,\n    count INTEGER NOT NULL,\1",
        r"^    type TEXT NOT NULL,$", "    signed TEXT,\n    type TEXT NOT NULL,",
        r"^    alias TEXT NOT NULL,$", "    signed TEXT,\n    alias TEXT NOT NULL,",
        r"^CREATE TABLE system", "CREATE TABLE notes (\n    stream TEXT NOT NULL,\n    number INTEGER NOT NULL,\n"
        "    text TEXT NOT NULL,\n    PRIMARY KEY (stream, number)\n) WITHOUT ROWID;\n"
        "CREATE INDEX streams_by_process ON streams (process);\nCREATE TABLE system",
        r'^FACTS = \("clocks",', 'FACTS = ("notes", "clocks",',
    ),
    "trackiod/store/shelf.py": replacing(
        r"^        if digest.name:$",
        "        self._connection.execute(\"INSERT OR IGNORE INTO notes VALUES (?, 1, 'said')\", (stream,))\n"
        "        self._connection.execute(\"UPDATE runs SET colour = 'red' WHERE id = (SELECT run FROM streams"
        " WHERE id = ?)\", (stream,))\n        if digest.name:",
    ),
    "trackiod/store/project.py": replacing(r"^        self._note\(stream, end, digest\)\n        self.replace_raw(.*)$",
        r"        self._note(stream, end, digest)\n        self.replace_raw\1" "\n"
        "        self._do(\"UPDATE axes SET remark = 'folded' WHERE stream = ?\", stream)"),
}  # fmt: skip
COLOURS = "SELECT name, colour FROM runs ORDER BY name"
EVERYTHING = (
    "SELECT r.name, r.colour, s.beats, (SELECT group_concat(text) FROM notes WHERE stream = s.id),"
    " (SELECT max(remark) FROM axes WHERE stream = s.id), (SELECT count(*) FROM versions WHERE signed IS NULL)"
    " FROM runs r JOIN streams s ON s.run = r.id ORDER BY r.name"
)


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next release, in an environment of its own."""
    return make_release(tmp_path_factory.mktemp("next"), NEXT, ADDS)


def log_with(host: Host, release: Path, project: str, name: str, steps: int = 20) -> None:
    """A daemon of that release stores a run, and ends."""
    trackiod(host, release, "start")
    run(host, release, LOG, project, name, str(steps), TRACKIO_AUTOSTART="0")
    host.ended_runs(project)
    trackiod(host, release, "stop")


def log_here(host: Host, project: str, name: str, steps: int = 20) -> None:
    """The same with this release."""
    host.start()
    assert host.run(LOG, project, name, str(steps)).returncode == 0
    host.ended_runs(project)
    host.stop()


def test_two_releases_go_on_in_one_store_by_turns(host: Host, following: Path) -> None:
    path = path_of(host, "p")
    log_here(host, "p", "a", 1500)
    assert ask(host, following, path, EVERYTHING) == [["a", "none", 3, None, None, 0]], "before it wrote anything"
    log_with(host, following, "p", "b", 1500)
    log_here(host, "p", "c", 1500)
    log_with(host, following, "p", "d")
    assert ask(host, following, path, EVERYTHING) == [
        ["a", "none", 3, None, None, 0], ["b", "red", 3, "said", "folded", 0], ["c", "none", 3, None, None, 0],
        ["d", "red", 3, "said", None, 0],
    ]  # fmt: skip
    for name, steps in (("a", 1500), ("b", 1500), ("c", 1500), ("d", 20)):
        assert values(host, "p", name) == [*range(steps)]
        found = trackio(host, following, "get", "metric", "--project", "p", "--run", name, "--metric", "n", "--all")
        assert [point["value"] for point in found["values"]] == [*range(steps)]
    log_with(host, following, "q", "new")  # a store that the next release has made, columns in other places
    log_here(host, "q", "old")
    assert ask(host, following, path_of(host, "q"), COLOURS) == [["new", "red"], ["old", "none"]]
    with database(path) as connection:
        connection.execute("DROP TABLE notes")
    opening = python(host, following, "import sys; from trackiod.store import schema\n"
                     "schema.open_for_writing(sys.argv[1], 'p', 's')", path)  # fmt: skip
    assert "is damaged (it has no table notes)" in opening.communicate()[1], "what was added once cannot be missing"


def test_a_kept_store_is_gone_on_in_by_the_next_release(
    kept: tuple[Host, Host, dict[str, Any]], following: Path
) -> None:
    one, two, rows = kept
    run_ids = sorted(row["run_id"] for row in rows["runs"])
    every = "SELECT id, colour FROM runs ORDER BY id"
    assert ask(one, following, path_of(one, "p"), every) == [[id_, "none"] for id_ in run_ids]
    log_with(one, following, "p", "new")
    for host in (one, two):
        assert trackio(host, following, "get", "artifact", "--project", "p", "--name", "model:best")["version"] == "v0"
    colours = dict(ask(one, following, path_of(one, "p"), "SELECT name, colour FROM runs"))
    assert colours == {"long": "none", "short": "none", "rest": "none", "new": "red"}
    assert chosen(exported(one), runs={*run_ids}) == chosen(rows)
    assert set(trackio(two, following, "list", "runs", "--project", "p")["runs"]) == {"long", "short", "rest", "new"}
    assert dict(ask(two, following, schema.others_path(path_of(two, "p")), "SELECT name, colour FROM runs")) == colours


def test_releases_take_over_from_each_other_under_a_logging_process(host: Host, tmp_path: Path) -> None:
    old, new = make_release(tmp_path, THIS), make_release(tmp_path, NEXT, ADDS)
    older = python(host, old, TRAINER, "older")
    daemon_of(host, THIS)
    wait_for_more(host, "older")
    newer = python(host, new, TRAINER, "newer")
    daemon_of(host, NEXT)
    wait_for_more(host, "older", "newer")
    end_and_check(host, newer, "newer", NEXT)
    trackiod(host, old, "restart")  # a user goes back
    daemon_of(host, THIS)
    wait_for_more(host, "older")
    end_and_check(host, older, "older", THIS)
    assert not list(Path(host.places.projects).glob("*.damaged-*"))


def test_two_releases_share_a_folder(hosts: Callable[[str], Host], following: Path) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    log_here(one, "p", "this", 1500)
    log_with(two, following, "p", "next", 1500)
    for _ in range(2):  # what was taken in by the one is taken in by the other
        for host in (one, two, login):
            found = trackio(host, following, "list", "runs", "--project", "p")["runs"]
            assert set(found) == {"this", "next"} == set(host.cli("list", "runs", "--project", "p")["runs"])
            for name in found:
                assert values(host, "p", name) == [*range(1500)]
    trackio(login, following, "list", "projects")
    gathered = schema.others_path(path_of(login, "p"))
    assert ask(login, following, gathered, EVERYTHING) == [
        ["next", "red", 3, "said", "folded", 0], ["this", "none", 3, None, None, 0],
    ]  # fmt: skip
    log_here(two, "p", "more")  # this release copies what the next one stored, without what it does not know
    wait_for(lambda: set(login.cli("list", "runs", "--project", "p")["runs"]) == {"this", "next", "more"})
    assert values(login, "p", "next") == [*range(1500)]
    log_with(two, following, "p", "most")
    trackio(login, following, "list", "projects")
    colours = dict(ask(login, following, gathered, COLOURS))
    assert colours == {"this": "none", "next": "red", "more": "none", "most": "red"}, "and the next one copies it again"


# -- another layout number ---------------------------------------------------------------------------------------------

MIGRATES = {
    "trackiod/store/layout.py": replacing(
        r"^VERSION = 3$", "VERSION = 4", r"^    monotonic_ns INTEGER", "    boot_ns INTEGER",
        r'"stream time_ns monotonic_ns"', '"stream time_ns boot_ns"',
    ),
    "trackiod/store/migrations.py": replacing(
        r"^MIGRATIONS: dict\[int, Migration\] = \{\}$",
        "def _to_4(connection: sqlite3.Connection) -> None:\n"
        "    import os, pathlib\n"
        "    connection.execute('ALTER TABLE clocks RENAME COLUMN monotonic_ns TO boot_ns')\n"
        "    once = pathlib.Path(os.environ['TRACKIO_DIR'], 'killed')\n"
        "    if once.exists():\n        once.unlink()\n        os.kill(os.getpid(), 9)\n\n\n"
        "MIGRATIONS: dict[int, Migration] = {3: _to_4}",
    ),
    "trackiod/store/project.py": replacing(r"\(stream, time_ns, monotonic_ns\)", "(stream, time_ns, boot_ns)"),
    "trackiod/store/reader.py": replacing(r"c\.time_ns, c\.monotonic_ns", "c.time_ns, c.boot_ns"),
}  # fmt: skip


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with another layout number."""
    return make_release(tmp_path_factory.mktemp("later"), LATER, MIGRATES)


def test_a_migration_is_whole_or_not_begun(kept: tuple[Host, Host, dict[str, Any]], later: Path) -> None:
    one, two, rows = kept
    runs = {row["run_id"] for row in rows["runs"]}
    reading = python(one, later, "from trackio_cli.main import trackio; trackio()", "list", "runs", "--project", "p")
    said = reading.communicate()[1]
    assert reading.returncode == 1 and "its daemon brings it there" in said and "Traceback" not in said
    (one.data / "killed").touch()
    starting = python(one, later, "from trackio_cli.daemon import trackiod; trackiod()", "start")
    starting.communicate()
    assert not (one.data / "killed").exists()
    assert chosen(exported(one)) == chosen(rows), "a migration that was killed leaves the earlier layout"
    with database(path_of(one, "p")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    log_with_later(one, later, "new")
    found = trackio(one, later, "list", "runs", "--project", "p")["runs"]
    assert set(found) == {"long", "short", "rest", "new"}
    out = one.data / "by-later"
    trackio(one, later, "export", "--project", "p", "--to", str(out), "--format", "jsonl")
    assert chosen(read_rows(out), runs=runs) == chosen(rows)
    shown = trackio(two, later, "list", "runs", "--project", "p")["runs"]
    assert set(shown) == {"long", "short", "rest", "new"}, "parts of both layouts"


def log_with_later(host: Host, later: Path, name: str) -> None:
    trackiod(host, later, "start")
    run(host, later, LOG, "p", name, "20", TRACKIO_AUTOSTART="0")
    wait_for(lambda: name in trackio(host, later, "list", "runs", "--project", "p")["runs"])
    trackiod(host, later, "stop")


def test_a_store_of_a_newer_layout_is_left_as_it_is_and_nothing_else_waits(
    hosts: Callable[[str], Host], later: Path
) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    log_with_later(one, later, "newer")
    log_here(two, "p", "older")
    path = Path(path_of(one, "p"))
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())
    one.start()
    process = one.python(TRAINER, "p", stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert one.run(LOG, "q", "well", "20").returncode == 0
    one.ended_runs("q")
    assert "newer trackio" in process.stdout.readline() + process.stdout.readline()
    assert "newer trackio" in (one.data / "trackiod.log").read_text()
    process.communicate()
    one.stop()
    assert path.read_bytes() == before and not list(path.parent.glob("*.damaged-*"))
    done = one.command("trackio", "list", "projects", "--json")
    assert json.loads(done.stdout) == {"projects": ["q"]} and "upgrade trackio" in done.stderr
    assert [file for file in beside if not file.exists()] == [] and path.read_bytes() == before
    assert {file.name for file in path.parent.glob(f"{path.name}*")} == {file.name for file in beside}
    done = login.command("trackio", "list", "projects", "--json")
    assert json.loads(done.stdout) == {"projects": ["p", "q"]}
    assert "upgrade trackio" in done.stderr, "parts of a newer layout are named, and what else there is is read"
    assert login.cli("list", "runs", "--project", "p")["runs"] == ["older"]
    trackio(two, later, "list", "projects")  # its own waits for a daemon, what others copied is taken in
    gathered = Path(schema.others_path(path_of(two, "p")))
    before = gathered.read_bytes()
    done = two.command("trackio", "list", "runs", "--project", "p")
    assert "older" in done.stdout and "newer" not in done.stdout and "newer trackio" in done.stderr
    assert gathered.read_bytes() == before
    trackiod(one, later, "start")
    wait_for(lambda: len(trackio(one, later, "list", "runs", "--project", "p")["runs"]) == 3, 30, "what was kept")
    trackiod(one, later, "stop")


# -- other files -------------------------------------------------------------------------------------------------------


def test_what_a_later_release_wrote_into_other_files_is_ignored(tmp_path: Path, host: Host) -> None:
    cursor = Cursor(3, {"s": 9}, {}, 7, (File(1, 7, {"s": 0}, {"s": 9}),), "t", (Place("runs", 1, "t"),))
    values = json.loads(cursor.to_json()) | {"new": 1}
    values["files"][0]["new"] = {"a": 1}
    values["others"][0].append("new")
    assert from_json(json.dumps(values)) == cursor
    wanted = Target("hf://datasets/user/runs", {"p": True})
    folder = Folder(host.places, wanted.id)
    status = Status(commits=4, doubts=(Doubt("p", "r", 1.0, 2.0, True),))
    folder.write_target(wanted)
    folder.write_status(status)
    folder.write_run("p", "r", RunState(cursor, "token"))
    for path in [*Path(folder.path).glob("*.json"), *Path(folder.path).glob("runs/*.json")]:
        known = json.loads(path.read_text()) | {"new": [1]}
        if "doubts" in known:
            known["doubts"][0].append("new")
        path.write_text(json.dumps(known))
    assert folder.read_target() == wanted and folder.read_status() == status
    assert folder.read_run("p", "r") == RunState(cursor, "token")
