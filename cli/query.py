"""`trackio query project`."""

from __future__ import annotations

import click

from .output import ending_cleanly, print_json, say, table, warn, where

_MOST_ROWS = 100_000


@click.group()
def query() -> None:
    """Ask with SQL."""


@query.command("project")
@click.option("--project", required=True)
@click.option("--sql", required=True, help="One SELECT over the tables metrics, system, runs and alerts.")
@click.option("--run", default="", help="A run's id, or the newest of a name: only its rows. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def query_project(project: str, sql: str, run: str, as_json: bool) -> None:
    """Run a SELECT over the rows of a project, as an upload or an export has them: a row in `metrics` is one value of
    one metric, logged by one rank (project, run_id, run, rank, attempt, seq, node, step, time, metric, value,
    value_text). Times are text, as 2026-01-31T12:00:00.123456789Z. A NaN, which SQLite has not, is NULL with the
    value_text NaN, so sums and means leave it out. An answer has at most 100,000 rows."""
    from trackiod.querying import query as ask

    with ending_cleanly():
        answer = ask(where(), project, run, sql, _MOST_ROWS)
    warn(answer.problems)
    if as_json:
        rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        facts = {"project": project, "query": sql, "columns": answer.columns, "rows": rows, "row_count": len(rows)}
        print_json(facts)
    elif answer.rows:
        say(table(answer.columns, answer.rows))
    else:
        say("No rows.")
