"""`trackio export`."""

from __future__ import annotations

import click

from .output import print_json, say, warn, where


@click.command("export")
@click.option("--project", required=True)
@click.option("--to", "folder", required=True, help="A new folder.")
@click.option("--run", default="", help="A run's id, or its name: only this one. Default: all.")
@click.option(
    "--format", "form", type=click.Choice(["parquet", "csv", "jsonl"]), default="parquet", show_default=True,
    help="Of the rows: Parquet, CSV, or JSON lines.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def export_command(project: str, folder: str, run: str, form: str, as_json: bool) -> None:
    """Write everything that is stored of a project to a new folder: metrics, system, runs, alerts, and media. A README
    there says what the columns mean and how to load them."""
    from trackiod.exporting import export

    done = export(where(), project, run, folder, form)
    warn(done.problems)
    if as_json:
        print_json({"project": project, "to": folder, "runs": done.runs, "rows": done.rows, "files": done.files})
    else:
        say(f"{done.rows:,} rows of {done.runs} run{'s' * (done.runs != 1)} in {folder}")
