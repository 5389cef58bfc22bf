"""`trackio query` and `trackio export`: what is stored, as rows."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import Host
from uploads import LOG, local, parquet_rows, remote

from trackiod.uploads import card


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
    (sql,) = re.findall(r"```sql\n(.*?);\n```", card.card("folder", "x"), re.DOTALL)
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


REFUSED = {
    "DROP TABLE metrics": "Only a SELECT",
    "ATTACH '/tmp/x.db' AS x": "Only a SELECT",
    "PRAGMA journal_mode = WAL": "Only a SELECT",
    "SELECT load_extension('x')": "Only a SELECT",
    "SELECT lossy FROM metrics": "no such column: lossy. There are: metrics(project, run_id",
    "SELECT * FROM loss": "no such table: loss. There are: metrics",
    "SELECT 1; SELECT 2": "one statement at a time",
    "SELECT": "incomplete input",
    " -- ": "There is no statement",
    "SELECT a.rank FROM metrics a, metrics b, metrics c": "more than 100,000 rows",
    "SELECT abs(-9223372036854775808)": "integer overflow",
}


def test_a_statement_that_cannot_be_is_one_sentence(logged: Host) -> None:
    for sql, said in REFUSED.items():
        done = logged.command("trackio", "query", "project", "--project", "p", "--sql", sql)
        assert (done.returncode, done.stdout) == (1, ""), sql
        assert said in done.stderr and done.stderr.count("\n") == 1


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
