"""`trackio query project`."""

from __future__ import annotations

import click

from .output import print_json, say, table, warn, where

_MOST_ROWS = 100_000


@click.group()
def query() -> None:
    """Ask with SQL."""


@query.command("project")
@click.option("--project", required=True)
@click.option("--sql", required=True, help="One SELECT over the tables metrics, system, runs and alerts.")
@click.option("--run", default="", help="A run's id, or its name: only its rows. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def query_project(project: str, sql: str, run: str, as_json: bool) -> None:
    """Run a SELECT over everything that is stored of a project, as an upload or an export has it: a row in `metrics` is
    one value of one metric, logged by one rank."""
    from trackiod.querying import query as ask

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
