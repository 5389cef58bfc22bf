"""`trackio drain`: for epilogs and stop hooks."""

from __future__ import annotations

import click

from trackiod import draining
from trackiod.errors import TrackiodError

from .output import Seconds, here, say


@click.command()
@click.option("--timeout", type=Seconds(), default=60.0, show_default=True,
              help="Seconds to wait at most; then exit code 1, and a sentence that says what still waits.")  # fmt: skip
def drain(timeout: float) -> None:
    """Wait until all that was logged on this host is stored, and copied to where it outlives the host."""
    if sentence := draining.drain(here(), timeout):
        raise TrackiodError(sentence)
    say("Everything is stored and copied.")
