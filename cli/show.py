"""`trackio show`, `trackio.show()`: there is no dashboard yet, so what `status` shows, and a sentence that says so."""

from __future__ import annotations

from typing import Any

import click

from trackiod import catalog

from .output import say, where
from .status import status_facts, text

_NO_DASHBOARD = "There is no dashboard yet; this is what `trackio status` shows."
_RUNS = 10


@click.command("show")
@click.option("--project", help="Only this project's runs.")
def show_command(project: str | None) -> None:
    """The runs in the terminal: there is no dashboard yet."""
    if project is not None:
        catalog.open_project(where().projects, project).close()
    show(project)


class _Silent(tuple[None, None, None, None]):
    """Four things that are not there, which a notebook does not print."""

    def __repr__(self) -> str:
        return ""


def show(project: str | None = None, **unused: Any) -> tuple[None, None, None, None]:
    """Prints the runs as `trackio status` does; returns (app, url, share_url, full_url), as upstream's: all None, since
    there is no dashboard yet."""
    facts = status_facts(where(), _RUNS)
    if project is not None:
        facts["runs"] = [run for run in facts["runs"] if run["project"] == project]
    say(_NO_DASHBOARD)
    say(text(facts))
    return _Silent((None, None, None, None))
