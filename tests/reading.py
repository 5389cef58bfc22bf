"""What was stored, read as users read it: through the command line alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from conftest import Host

Points = dict[str, list[tuple[int, Any]]]
"""(step, value) by metric, in the order in which they are shown."""


class Stored(NamedTuple):
    """A run that has ended."""

    host: Host
    facts: Any
    """what `trackio get run` says"""

    @property
    def _words(self) -> tuple[str, ...]:
        return ("--project", self.facts["project"], "--run", self.facts["run_id"])

    def points(self, *options: str) -> Points:
        """Every point that `options` (`--all`, `--attempt 0`, none) show."""
        everywhere = ("--around", "0", "--window", "1000000")
        found = self.host.cli("get", "snapshot", *self._words, *everywhere, *options)["metrics"]
        return {name: [(p["step"], p["value"]) for p in points] for name, points in found.items()}

    def metric(self, name: str, *options: str) -> Any:
        """What `trackio get metric` says."""
        return self.host.cli("get", "metric", *self._words, "--metric", name, *options)

    def series(self, name: str, *options: str) -> list[tuple[int, Any]]:
        """(step, value) of the metric's points."""
        return [(p["step"], p["value"]) for p in self.metric(name, *options)["values"]]


def ended_runs(host: Host, project: str) -> list[Stored]:
    """The project's runs, oldest first, once all that was logged is stored and all of them have ended."""
    host.ended_runs(project)
    runs = host.cli("get", "project", "--project", project)["runs"]
    return [Stored(host, host.cli("get", "run", "--project", project, "--run", run["id"])) for run in runs]


def ended_run(host: Host, project: str) -> Stored:
    """The project's one run: nothing of it is missing, and no two streams claim one place in it."""
    runs = ended_runs(host, project)
    assert len(runs) == 1, [run.facts["run"] for run in runs]
    facts = runs[0].facts
    assert (facts["refused_records"], facts["refused_points"], facts["holes"]) == (0, 0, []), facts
    assert not any(rank["twin"] for rank in facts["ranks"]), facts["ranks"]
    return runs[0]


def count(points: Points) -> int:
    return sum(map(len, points.values()))
