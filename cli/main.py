"""`trackio`: reads runs back."""

from __future__ import annotations

import click

from trackio.version import __version__

from .alerts import alerts
from .artifacts import get_artifact, list_artifacts
from .drain import drain
from .export import export_command
from .get import get
from .gpu import gpu
from .list import list_
from .output import SpokenErrors
from .query import query
from .show import show_command
from .status import status
from .sync import sync
from .system import get_system_metric, list_system_metrics


@click.group(cls=SpokenErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trackio", message="%(prog)s %(version)s")
def trackio() -> None:
    """Experiment tracking for distributed training. What reads needs no daemon; `sync` and `drain` start one."""


trackio.add_command(status)
trackio.add_command(list_)
trackio.add_command(get)
trackio.add_command(query)
trackio.add_command(export_command)
trackio.add_command(show_command)
trackio.add_command(gpu)
trackio.add_command(drain)
trackio.add_command(sync)
list_.add_command(alerts)
get.add_command(alerts)
list_.add_command(list_artifacts)
list_.add_command(list_system_metrics)
get.add_command(get_system_metric)
get.add_command(get_artifact)
