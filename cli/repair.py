"""`trackiod repair`: what is blocked or was set aside, and putting it right."""

from __future__ import annotations

import click

from trackiod import repair as repairing

from .output import here, print_json, say


@click.command()
@click.option("--set-aside", "stream", metavar="STREAM", help="Move a dead process's data out of the way.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def repair(stream: str | None, as_json: bool) -> None:
    """List what is blocked or was set aside.

    --set-aside moves what a process left and cannot be stored to the folder `damaged`, and removes nothing. Its run
    ends with what was stored and a counted gap.
    """
    places = here()
    if stream is not None:
        say(repairing.set_aside(places, stream))
        return
    found = repairing.look(places)
    if as_json:
        print_json(found._asdict())
        return
    say(*found.lines() or ["Nothing is blocked or was set aside."])
