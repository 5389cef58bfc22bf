"""`trackio query` and `trackio export`: what is stored, as rows."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import Host, wait_for
from pyarrow import parquet
from uploads import LOG, local, parquet_rows, remote

from trackio import imports
from trackiod import querying
from trackiod.errors import TrackiodError
from trackiod.store import schema
from trackiod.uploads import card, names, tables
from trackiod.uploads.rows import Points


def ask(host: Host, sql: str, *options: str) -> list[list[Any]]:
    shown = host.cli("query", "project", "--project", "p", "--sql", sql, *options)
    assert shown["row_count"] == len(shown["rows"])
    return [list(row.values()) for row in shown["rows"]]


@pytest.fixture
def logged(daemon: Host) -> Host:
    """Two runs, the second in two attempts."""
    assert daemon.run(LOG, "one", "30").returncode == 0
    again = """
import os, trackio
trackio.init(project="p", name="two", resume="allow")
for i in range(int(os.environ["FIRST"]), 40): trackio.log({"loss": i + float(os.environ["RANK"])}, step=i)
"""
    for first in ("0", "20"):
        for rank in ("0", "1"):
            env = {"RANK": rank, "WORLD_SIZE": "2", "TRACKIO_RUN_ID": "two", "FIRST": first}
            assert daemon.run(again, env=env).returncode == 0
        daemon.ended_runs("p")
    return daemon


def test_a_query_sees_every_value_that_is_stored(logged: Host) -> None:
    rows = ask(logged, "SELECT run_id, rank, metric, step, value, value_text FROM metrics")
    found = []
    for run, rank, metric, step, value, text in rows:
        found.append((run, rank, metric, step, value if text is None else text))
    assert sorted(found, key=str) == local(logged)


def test_the_card_s_sql_is_the_curve_that_get_metric_shows(logged: Host) -> None:
    (sql,) = re.findall(r"```sql\n(.*?);\n```", card.card("parquet", "x"), re.DOTALL)
    rows = [row for row in ask(logged, sql, "--run", "two") if row[1] == "loss"]
    shown = logged.cli("get", "metric", "--project", "p", "--run", "two", "--metric", "loss")["values"]
    assert [(step, value) for _, _, step, value, _ in rows] == [(p["step"], p["value"]) for p in shown]
    assert {ranks for *_, ranks in rows} == {2}


def test_a_query_joins_runs_alerts_and_what_was_logged_of_the_system(logged: Host) -> None:
    assert ask(logged, "SELECT run, state, points FROM runs ORDER BY run") == [
        ["one", "finished", 30 * 7], ["two", "finished", 40 + 40 + 20 + 20],
    ]  # fmt: skip
    sql = (
        "SELECT r.run, a.title, s.metric, s.value FROM alerts a JOIN runs r USING (run_id) JOIN system s USING (run_id)"
    )
    assert ask(logged, sql) == [["one", "high", "fan", 7.0]]
    assert ask(logged, "SELECT count(*) FROM metrics", "--run", "one") == [[210]]
    assert ask(logged, "SELECT 1 + 1") == [[2]]
    counted = (
        "WITH c AS (SELECT 1 AS x UNION SELECT step FROM metrics) SELECT (SELECT count(*) FROM c) > 1, count(*) > 1"
    )
    assert ask(logged, f"{counted} FROM (SELECT * FROM metrics) m, json_each('[1]')") == [[1, 1]]


REFUSED = {
    "DROP TABLE metrics": "Only a SELECT",
    "ATTACH '/tmp/x.db' AS x": "Only a SELECT",
    "PRAGMA journal_mode = WAL": "Only a SELECT",
    "VACUUM INTO 'vacuum.db'": "Only a SELECT",
    "SELECT lossy FROM metrics": "no such column: lossy. There are: metrics(project, run_id",
    "SELECT * FROM loss": "no such table: loss. There are: metrics",
    "SELECT 1; SELECT 2": "one statement at a time",
    "SELECT": "incomplete input",
    " -- ": "incomplete input",
    "": "incomplete input",
    "EXPLAIN SELECT 1": "syntax error",
    "SELECT a.rank FROM metrics a, metrics b, metrics c": "more than 100,000 rows",
    "SELECT abs(-9223372036854775808)": "integer overflow",
}


def test_a_statement_that_cannot_be_is_one_sentence(logged: Host) -> None:
    for sql, said in REFUSED.items():
        done = logged.command("trackio", "query", "project", "--project", "p", "--sql", sql)
        assert (done.returncode, done.stdout) == (1, ""), sql
        assert said in done.stderr and done.stderr.count("\n") == 1


DENIED = {
    "VACUUM INTO '{}'": "Only a SELECT",
    "VACUUM": "Only a SELECT",
    "ATTACH '{}' AS x": "Only a SELECT",
    "/* SELECT */ ATTACH '{}' AS x": "Only a SELECT",
    "SELECT 1 -- \n; ATTACH '{}' AS x": "one statement at a time",
    "QUERY PLAN SELECT 1": "syntax error",
    "EXPLAIN VACUUM INTO '{}'": "syntax error",
    "PRAGMA temp_store_directory = '{}'": "Only a SELECT",
    "PRAGMA writable_schema = 1": "Only a SELECT",
    "PRAGMA query_only = 0": "Only a SELECT",
    "BEGIN": "Only a SELECT",
    "CREATE TEMP TABLE x AS SELECT 1": "Only a SELECT",
    "CREATE VIRTUAL TABLE x USING fts5(a)": "Only a SELECT",
    "CREATE VIRTUAL TABLE temp.x USING csv(filename='{}')": "Only a SELECT",
    "WITH a AS (SELECT 1) INSERT INTO metrics(run) SELECT * FROM a": "Only a SELECT",
    "REPLACE INTO metrics(run) VALUES ('x') RETURNING run": "Only a SELECT",
    "DELETE FROM metrics RETURNING run": "Only a SELECT",
    "SELECT load_extension('{}')": "load_extension() cannot be used",
    "SELECT LOAD_EXTENSION('{}')": "cannot be used",
    "SELECT writefile('{}', 'x')": "no such function",
    "SELECT readfile('/etc/passwd')": "no such function",
    "SELECT sqlite_log(1, 'x')": "sqlite_log() cannot be used",
    "SELECT fts3_tokenizer('simple')": "fts3_tokenizer() cannot be used",
    "SELECT rtreecheck('metrics')": "rtreecheck() cannot be used",
    "SELECT * FROM pragma_database_list": "Only a SELECT",
    "SELECT * FROM pragma_function_list": "Only a SELECT",
    "SELECT count(*) FROM pragma_function_list": "Only a SELECT",
    "SELECT count(*) FROM sqlite_schema": "Only a SELECT",
    "SELECT sql FROM sqlite_schema": "Only a SELECT",
    "SELECT * FROM sqlite_temp_master": "Only a SELECT",
    "SELECT length(randomblob(1000000000))": "more than 16 MiB",
    "SELECT length(replace(hex(zeroblob(4000000)), '0', 'xxxxxxxx'))": "more than 16 MiB",
    "SELECT length(group_concat(hex(zeroblob(80000)))) FROM metrics": "more than 16 MiB",
    "SELECT \0 1": "null",
    "SELECT '\udcff'": "cannot be understood",
}


def test_a_statement_can_neither_write_attach_load_nor_read_files(logged: Host, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [*logged.data.rglob("*.db"), *tmp_path.rglob("*.db")]}
    target = tmp_path / "written"
    for sql, said in DENIED.items():
        try:
            answer: object = querying.query(logged.places, "p", "", sql.replace("{}", str(target)), 100)
        except TrackiodError as error:
            answer = str(error)
        assert isinstance(answer, str) and said in answer, (sql, answer)
        assert not target.exists()
    assert before == {path: path.stat().st_mtime_ns for path in before}


WRITES = ["VACUUM INTO 'x'", "ATTACH 'x' AS x", "CREATE TABLE x (a)", "DELETE FROM metrics", "PRAGMA query_only = 0"]


def test_what_runs_is_watched_while_it_runs() -> None:
    """Whatever got past the first look is denied by SQLite as it runs."""
    for sql in WRITES:
        with querying._empty(tempfile.mkdtemp()) as database:
            querying._lock(database)
            with pytest.raises(sqlite3.Error):
                database.execute(sql).fetchall()
            assert not os.path.exists("x") and database.execute("SELECT upper('a')").fetchone() == ("A",)


def test_a_project_or_run_that_is_not_there_is_one_sentence(logged: Host) -> None:
    for options in (("--project", "q"), ("--project", "p", "--run", "three")):
        for command in (("query", "project", "--sql", "SELECT 1"), ("export", "--to", "out")):
            done = logged.command("trackio", *command, *options)
            assert done.returncode == 1 and "not found" in done.stderr and done.stderr.count("\n") == 1
    assert not os.path.exists("out")


def test_an_export_holds_every_value_and_is_loaded_like_an_upload(logged: Host, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    shown = logged.cli("export", "--project", "p", "--to", str(out))
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert remote(parquet_rows(files)) == local(logged)
    assert (shown["runs"], shown["rows"]) == (2, len(local(logged)))
    modes = {path.stat().st_mode & 0o077 for path in (out, *out.rglob("*.parquet"))}
    assert modes == {0o055, 0o044}, "readable as other files are"
    loaded = datasets.load_dataset(str(out), "metrics", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.num_rows == shown["rows"]
    assert [row["title"] for row in parquet_rows(files, "alerts")] == ["high"]
    done = logged.command("trackio", "export", "--project", "p", "--to", str(out))
    assert done.returncode == 1 and "is there already" in done.stderr


def test_an_export_as_text_holds_the_same(logged: Host, tmp_path: Path) -> None:
    logged.cli("export", "--project", "p", "--to", str(tmp_path / "csv"), "--format", "csv")
    logged.cli("export", "--project", "p", "--to", str(tmp_path / "jsonl"), "--format", "jsonl")
    found = {}
    lines = [
        line for path in (tmp_path / "jsonl").glob("metrics/*/*/*.jsonl") for line in path.read_text().splitlines()
    ]
    rows = [json.loads(line, parse_constant=lambda token: pytest.fail(f"{token} is no JSON")) for line in lines]
    found["jsonl"] = [
        (r["run_id"], r["rank"], r["metric"], r["step"], r["value"] if r["value_text"] is None else r["value_text"])
        for r in rows
    ]
    assert sorted(found["jsonl"], key=str) == local(logged)
    values = []
    for path in (tmp_path / "csv").glob("metrics/*/*/*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                number = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(row["value"], row["value"])
                value = row["value_text"] or (number if not re.match(r"-?\d", number) else float(number))
                values.append((row["run_id"], int(row["rank"]), row["metric"], int(row["step"]), value))
    assert sorted(values, key=str) == local(logged)


def test_no_cell_of_a_csv_is_a_formula_and_what_is_quoted_is_read_back_equal(daemon: Host, tmp_path: Path) -> None:
    odd = [
        "=1+1",
        "+cmd|'/c calc'!A1",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "'=1",
        "''@x",
        "\uff1d1",
        "plain",
        "'quoted'",
        "a=1",
    ]
    code = """
import json, sys, trackio
odd = json.loads(sys.argv[1])
trackio.init(project=odd[0], name=odd[1], group=odd[2], tags=odd, notes=odd[3], job_type=odd[4])
for step, text in enumerate(odd):
    trackio.log({text: text, "number": -1.5 * step, "whole": -(2**60) - 1, "low": float("-inf")}, step=step)
    trackio.alert(text, text)
"""
    assert daemon.run(code, json.dumps(odd)).returncode == 0
    daemon.ended_run(odd[0])
    out = str(tmp_path / "out")
    assert daemon.command("trackio", "export", "--project", odd[0], "--to", out, "--format", "csv").returncode == 0
    formula = "[=+@\t\r\n\uff1d]|-(?!\\d+(\\.\\d*)?(e[+-]?\\d+)?$|inf)"
    values: dict[str, set[Any]] = {}
    for path in (tmp_path / "out").glob("*/*/*/*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for column, cell in row.items():
                    assert not re.match(formula, cell), (path, column, cell)
                values.setdefault(row.get("metric") or "", set()).add(row.get("value_text") or row.get("value"))
                assert imports._unquoted(row["project"]) == odd[0] and imports._unquoted(row["run"]) == odd[1]
    assert {imports._unquoted(name) for name in values} >= {*odd}
    assert {imports._unquoted(text) for name in values for text in values[name] if text} >= {
        *odd,
        "-1.5",
        str(-(2**60) - 1),
    }
    (tmp_path / "in.csv").write_text("step,'=a,b,'quoted'\n0,1,'-2,3\n", newline="")
    done = daemon.run(f"import trackio\ntrackio.import_csv({str(tmp_path / 'in.csv')!r}, project='in')")
    assert done.returncode == 0 and daemon.ended_run("in").metric_names == ["'quoted'", "=a", "b"], done.stderr


def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(logged: Host, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from cli.main import trackio; trackio(sys.argv[1:])", "export"]
    for turn in range(4):
        out = tmp_path / f"out{turn}"
        child = subprocess.Popen([*command, "--project", "p", "--to", str(out)], env=logged.environ())
        time.sleep(0.3 + 0.2 * turn)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if out.exists():
            files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
            assert remote(parquet_rows(files)) == local(logged)


# -- what a review found -----------------------------------------------------------------------------------------------


def test_joins_by_equal_names_see_every_row(logged: Host) -> None:
    """SQLite does not tell which columns these compare, nor that it reads a table only for them."""
    by_id = ask(logged, "SELECT count(*) FROM metrics m JOIN runs r ON m.run_id = r.run_id")
    for join in ("JOIN runs USING (run_id)", "JOIN Runs r USING(run_id, run)", "NATURAL JOIN runs"):
        (found,) = ask(logged, f"SELECT count(*) FROM metrics {join}")
        assert found == ([0] if "NATURAL" in join else by_id[0]), join
    assert len(ask(logged, "SELECT state FROM runs JOIN alerts USING (run_id)")) == 1


def test_values_of_json_are_asked_and_columns_of_one_name_told_apart(daemon: Host) -> None:
    code = """
import trackio
run = trackio.init(project="p", name="r", config={"lr": 0.1, "odd": [float("nan"), float("inf")]})
trackio.log({"list": [1, float("nan"), -float("inf")], "low": -2**63})
run.summary["best"] = 0.9
"""
    assert daemon.run(code).returncode == 0
    daemon.ended_run("p")
    sql = "SELECT j.key, j.value FROM runs, json_each(runs.config) j WHERE j.type <> 'array'"
    assert ["lr", 0.1] in ask(daemon, sql)
    sql = "SELECT json_extract(config, '$.odd[1]'), json_extract(summary, '$.best') FROM runs"
    assert ask(daemon, sql) == [["Infinity", 0.9]]
    assert ask(daemon, "SELECT value_text FROM metrics WHERE metric = 'list'") == [['[1, "NaN", "-Infinity"]']]
    assert ask(daemon, "SELECT value_text FROM metrics WHERE metric = 'low'") == [[str(-(2**63))]]
    shown = daemon.cli("query", "project", "--project", "p", "--sql", "SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a")
    assert shown["rows"] == [{"a": 1, "a_2": 2, "a_2_2": 3, "a_3": 4}]


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c, metrics"
SLOW = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(hex(randomblob(8000000))) FROM c"


@pytest.mark.parametrize(
    ("sql", "ending"),
    [(ENDLESS, signal.SIGINT), (ENDLESS, signal.SIGTERM), (ENDLESS, signal.SIGHUP), (SLOW, signal.SIGINT)],
)
def test_a_statement_that_never_ends_is_ended_by_a_signal(logged: Host, tmp_path: Path, sql: str, ending: int) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = subprocess.Popen(
        [str(Path(sys.executable).with_name("trackio")), "query", "project", "--project", "p", "--sql", sql],
        env=logged.environ(TMPDIR=str(scratch)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    wait_for(lambda: list(scratch.glob("trackio-query-*")), what="the scratch folder")
    time.sleep(1.5)
    assert not list(scratch.rglob("rows.db")), "what holds the rows has no name"
    child.send_signal(ending)
    out, said = child.communicate(timeout=20)
    assert (child.returncode, out, said) == (130 if ending == signal.SIGINT else 128 + ending, "", "")
    assert not list(scratch.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_full_disk_and_a_system_without_time_zones_are_no_tracebacks(logged: Host, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(small)], check=True)
    try:
        command = ("trackio", "query", "project", "--project", "p", "--sql", "SELECT * FROM metrics")
        done = logged.command(*command, TMPDIR=str(small))
        assert done.returncode == 1 and f"no room for the rows in {small}/" in done.stderr
        for form in ("parquet", "csv", "jsonl"):
            to = str(small / "out")
            done = logged.command("trackio", "export", "--project", "p", "--to", to, "--format", form)
            assert done.returncode == 1 and f"{to} cannot be written: No space left" in done.stderr, form
            assert done.stderr.count("\n") == 1 and not list(small.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    hidden = 'mount -t tmpfs none /usr/share/zoneinfo || exit 99; exec "$@"'
    to = ["--to", str(tmp_path / "out"), "--format", "csv"]
    for what in (["query", "project", "--sql", "SELECT time FROM metrics LIMIT 1"], ["export", *to]):
        program = str(Path(sys.executable).with_name("trackio"))
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden, "sh", program, *what, "--project", "p"],
            env=logged.environ(), capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_the_rest_of_a_damaged_project_is_shown_and_exported(daemon: Host, tmp_path: Path) -> None:
    code = """
import random, trackio
trackio.init(project="p", name="r", config={"lr": 0.1})
for i in range(60_000): trackio.log({"a": random.random(), "b": random.random()})
"""
    assert daemon.run(code).returncode == 0
    daemon.ended_run("p")
    daemon.stop()
    path = Path(schema.path_of(daemon.places.projects, "p"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = os.urandom(20_000)
    path.write_bytes(data)
    done = daemon.command(
        "trackio", "query", "project", "--project", "p", "--sql", "SELECT count(*) AS n FROM metrics", "--json"
    )
    assert done.returncode == 0 and "is damaged" in done.stderr, done.stderr
    rows = json.loads(done.stdout)["rows"][0]["n"]
    assert 0 < rows < 120_000
    done = daemon.command("trackio", "export", "--project", "p", "--to", str(tmp_path / "out"))
    assert done.returncode == 0 and "is damaged" in done.stderr, done.stderr
    files = {
        str(each.relative_to(tmp_path / "out")): each.read_bytes() for each in (tmp_path / "out").rglob("*.parquet")
    }
    assert len(parquet_rows(files)) == rows


def test_an_export_says_which_files_it_has_not(daemon: Host, tmp_path: Path) -> None:
    code = """
import numpy, trackio
trackio.init(project="p", name="r")
trackio.log({"img": trackio.Image(numpy.zeros((8, 8, 3), numpy.uint8))})
"""
    assert daemon.run(code).returncode == 0
    daemon.ended_run("p")
    wait_for(lambda: daemon.status().daemon["errands"] == 0, what="the picture")
    shutil.rmtree(daemon.places.blobs)
    done = daemon.command("trackio", "export", "--project", "p", "--to", str(tmp_path / "out"))
    assert done.returncode == 0 and "is missing: its file was removed" in done.stderr


def test_an_empty_folder_stays_what_it_is_and_gets_the_rows(logged: Host, tmp_path: Path) -> None:
    empty, link = tmp_path / "empty", tmp_path / "link"
    empty.mkdir(mode=0o2770)
    os.chmod(empty, 0o2770)
    link.symlink_to(empty)
    inode = empty.stat().st_ino
    shown = logged.cli("export", "--project", "p", "--to", str(link))
    assert shown["to"] == str(empty)
    assert (empty.stat().st_ino, empty.stat().st_mode & 0o7777) == (inode, 0o2770)
    assert not [name for name in os.listdir(empty) if name.startswith(".")]
    loaded = datasets.load_dataset(str(empty), "metrics", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.num_rows == shown["rows"]
    for to, said in (
        (tmp_path / "file" / "x", "file/x cannot be written: "),
        (tmp_path / ("n" * 300), "File name too long"),
    ):
        (tmp_path / "file").touch()
        done = logged.command("trackio", "export", "--project", "p", "--to", str(to))
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    done = logged.command("trackio", "export", "--project", "none", "--to", str(tmp_path / "made" / "too"))
    assert done.returncode == 1 and not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_an_export_s_readme_says_how_it_is_loaded(daemon: Host, tmp_path: Path, form: str) -> None:
    """Each kind, though the rows that are read first have no texts and so do not say what their columns hold."""
    first, second = sorted(("one", "two"), key=lambda run: names.folder_of("p", run))
    code = """
import os, trackio
trackio.init(project="p", name=os.environ["TRACKIO_RUN_ID"])
if "FIRST" in os.environ: trackio.log({"loss": 1e-17 / 3})
else: trackio.log({"loss": float("inf"), "note": os.environ["NOTE"]})
trackio.alert("high", text="too high")
"""
    note = "seven" if form == "csv" else "007"
    infinite = (None, "Infinity") if form == "jsonl" else (float("inf"), None)
    for env in ({"TRACKIO_RUN_ID": first, "FIRST": "1"}, {"TRACKIO_RUN_ID": second, "NOTE": note}):
        assert daemon.run(code, env=env).returncode == 0
        daemon.ended_runs("p")
    out = tmp_path / "out"
    assert daemon.cli("export", "--project", "p", "--to", str(out), "--format", form)["rows"] == 3
    (shown,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    code = shown.replace("path/of/this/folder", str(out))
    code += f"""
rows = [(row["run"], row["metric"], row["value"], row["value_text"], str(row["time"].tzinfo)) for row in metrics]
for kind in ("runs", "alerts"):
    rows += [(kind, run) for run in sorted(datasets.load_dataset({str(out)!r}, kind)["train"]["run"])]
print(rows)
"""
    env = daemon.environ(HF_DATASETS_CACHE=str(tmp_path / "cache"))
    for environment in ("", "oldest-hub"):
        python = str(Path(sys.prefix) / environment / "bin" / "python")
        done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ast.literal_eval(done.stdout.splitlines()[-1].replace(" inf", " 2e999")) == [
            (first, "loss", 1e-17 / 3, None, "UTC"), (second, "loss", *infinite, "UTC"),
            (second, "note", None, note, "UTC"), ("runs", "one"), ("runs", "two"), ("alerts", "one"), ("alerts", "two"),
        ]  # fmt: skip


def test_texts_are_written_a_bounded_number_of_bytes_at_once(tmp_path: Path) -> None:
    """Else a file of long texts would be in memory as a whole, when it is written and when it is read."""
    facts = tables.RowFacts("p", "id", "r", 0, "a", None)
    with tables.Writer(str(tmp_path), "metrics") as writer:
        for i in range(100):
            texts = np.array([os.urandom(8000).hex() for _ in range(100)], dtype=object)
            place = np.arange(i * 100, i * 100 + 100)
            writer.add_points(facts, Points("text", place, place, place, texts))
    with closing(parquet.ParquetFile(writer.path)) as file:
        assert file.metadata.num_row_groups >= 9
        batches = list(tables.batches(file))
        assert sum(batch.num_rows for batch in batches) == 10_000
        assert max(batch.nbytes for batch in batches) < 40 << 20
