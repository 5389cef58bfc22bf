"""`trackio export`."""

from __future__ import annotations

import os

import click

from .output import ending_cleanly, print_json, say, warn, where


@click.command("export")
@click.option("--project", required=True)
@click.option("--to", "folder", required=True, help="A new folder, or an empty one.")
@click.option("--run", default="", help="A run's id, or the newest of a name: only this one. Default: all.")
@click.option(
    "--format", "form", type=click.Choice(["parquet", "csv", "jsonl"]), default="parquet", show_default=True,
    help="Of the rows: Parquet, CSV, or JSON lines.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def export_command(project: str, folder: str, run: str, form: str, as_json: bool) -> None:
    """Write the rows of a project to a new folder: metrics, system, runs and alerts, and the files of their media. A
    README there says what the columns mean and how to load them. Artifacts are got by `Artifact.download()`."""
    from trackiod.exporting import export

    with ending_cleanly():
        done = export(where(), project, run, folder, form)
    warn(done.problems)
    if as_json:
        print_json(
            {
                "project": project,
                "to": os.path.realpath(folder),
                "runs": done.runs,
                "rows": done.rows,
                "files": done.files,
            }
        )
    else:
        say(f"{done.rows:,} rows of {done.runs} run{'s' * (done.runs != 1)} in {folder}")
