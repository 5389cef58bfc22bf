"""`trackiod repair`: what is blocked or was set aside, and putting it right."""

from __future__ import annotations

import click

from trackiod import repair as repairing

from .output import here, print_json, say


@click.command()
@click.option("--set-aside", "stream", metavar="STREAM", help="Move a dead process's data out of the way.")
@click.option("--dry-run", is_flag=True, help="Only list what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def repair(stream: str | None, dry_run: bool, as_json: bool) -> None:
    """Put back databases that were set aside and are whole.

    What was stored in their place meanwhile is added to them. The daemon is stopped for that and started again. What is
    damaged or blocked is listed. --set-aside moves what a process left and cannot be stored to the folder `damaged`,
    and removes nothing; its run ends with what was stored and a counted gap.
    """
    places = here()
    if stream is not None:
        say(repairing.set_aside(places, stream))
        return
    done = [] if dry_run else repairing.put_back(places)
    found = repairing.look(places)
    if as_json:
        databases = [one._asdict() for one in found.databases]
        print_json(found._asdict() | {"databases": databases, "done": done})
        return
    say(*(done + found.lines()) or ["Nothing is blocked or was set aside."])
