"""`trackiod doctor`: what is wrong here, or will be, and what to do about it."""

from __future__ import annotations

import sys

import click

from trackio import places, settings
from trackiod import doctor as examination
from trackiod import facts
from trackiod.doctor import PROBLEM, WARNING, Check

from .output import print_json, say

EXIT_PROBLEM = 1
_COLOURS = {PROBLEM: "red", WARNING: "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def doctor(as_json: bool) -> None:
    """What is wrong here or will be, each with its fix. Changes nothing. Exit code 1 if there is a problem."""
    ours, misunderstood = settings.of_this_process()
    where = places.of(ours)
    checks = examination.examine(
        facts.gather(where, autostart=ours.autostart, settings=tuple(misunderstood), group=ours.shared_group)
    )
    if as_json:
        print_json({"data": where.data, "checks": [check._asdict() for check in checks]})
    else:
        _print(checks)
    if any(check.verdict == PROBLEM for check in checks):
        sys.exit(EXIT_PROBLEM)


def _print(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = f"{check.verdict:<8}"
        say(verdict, nl=False, colour=_COLOURS.get(check.verdict))
        say(f"  {check.name:<{width}}  {check.sentence}")
        if check.fix:
            say(f"{'':8}  {'':{width}}  fix: {check.fix}")
    troubled = [check for check in checks if check.verdict in (PROBLEM, WARNING)]
    if not troubled:
        say("Nothing is wrong.")
