"""`trackiod`: runs the daemon of a data folder."""

from __future__ import annotations

import os
import sys
import time

import click

from trackio import launch
from trackio.version import __version__
from trackiod import control, daemon, lock

from .doctor import doctor
from .output import Block, SpokenErrors, clean, duration, here, print_json, say, size
from .repair import repair
from .status import blocked_line

EXIT_NOT_RUNNING = 3


@click.group(cls=SpokenErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trackiod", message="%(prog)s %(version)s")
def trackiod() -> None:
    """The daemon that stores what training processes log. One per user and data folder (TRACKIO_DIR)."""


@trackiod.command()
def start() -> None:
    """Start the daemon; returns when it is ready. Safe to call twice."""
    started = control.start(here())
    say(f"trackiod {'started' if started.is_new else 'already runs'} (pid {started.pid}).")


@trackiod.command()
def stop() -> None:
    """Stop the daemon, after it has stored what it received. Training goes on."""
    stopped = control.stop(here(), "trackiod stop")
    say("trackiod stopped." if stopped else "trackiod does not run.")


@trackiod.command()
def restart() -> None:
    """Stop and start it; nothing is lost in between."""
    places = here()
    control.stop(places, "trackiod restart")
    say(f"trackiod restarted (pid {control.start(places).pid}).")


@trackiod.command()
@click.option("--detach", is_flag=True, help="Go to the background when ready.")
@click.option("--autostarted", is_flag=True, help="Leave after ten idle minutes (TRACKIO_IDLE_SECONDS).")
def run(detach: bool, autostarted: bool) -> None:
    """Run the daemon in the foreground (for systemd and for looking at it)."""
    sys.exit(daemon.run(detach=detach, autostarted=autostarted))


@trackiod.command()
@click.argument("socket", type=click.Path(path_type=str))
def publish(socket: str) -> None:
    """Tell training processes that systemd listens on SOCKET for the daemon (trackiod.socket runs this). A daemon
    that runs already stops, so that the next connection starts systemd's."""
    places = here()
    control.stop(places, "systemd listens for the daemon from now on")
    lock.publish(places, os.path.abspath(socket))


@trackiod.command()
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def status(as_json: bool) -> None:
    """Whether the daemon runs, and its live streams. Exit code 3 if it does not."""
    places = here()
    report = control.status(places)
    if as_json:
        print_json({"daemon": report.daemon if report else None, "streams": report.streams if report else []})
    elif report is None:
        silent = launch.is_running(places)
        say(f"trackiod {'runs but does not answer' if silent else 'does not run'} for {places.data}.")
    else:
        facts = report.daemon
        say(f"trackiod {facts['version']} runs (pid {facts['pid']}, up {duration(facts['uptime_seconds'])}).")
        say(f"data: {facts['live']}", f"socket: {facts['socket']}", f"log: {places.log}")
        if facts["problem"]:
            say(f"problem: {facts['problem']}")
        for blocked in facts.get("blocked", []):
            say(blocked_line(blocked))
        for s in report.streams:
            say(
                f"  {s['project']} {s['run']} {s['role']} {s['rank']} (pid {s['pid']}): lag {size(s['lag_bytes'])},"
                f" {s['refused_points']} points refused"
            )
    if report is None:
        sys.exit(EXIT_NOT_RUNNING)


@trackiod.command()
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
def logs(lines: int, follow: bool) -> None:
    """The daemon's own log."""
    path = here().log
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            kept = file.readlines()[-lines:] if lines else []
            say(Block(clean("".join(kept))), nl=False)
            position = file.tell()
    except FileNotFoundError:
        say("There is no log yet.")
        position = 0
    while follow:
        time.sleep(0.5)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            if os.path.getsize(path) < position:
                position = 0  # it was rotated
            file.seek(position)
            say(Block(clean(file.read())), nl=False)
            position = file.tell()


trackiod.add_command(doctor)
trackiod.add_command(repair)
