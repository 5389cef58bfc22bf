"""`trackio.Api`: runs and alerts read from a script, and runs deleted, moved, renamed. Reads files; writes through the
daemon, which it starts if none runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from trackio import inquiry, launch, places, settings, wire
from trackio.border import never_raises, raises_only
from trackio.names import MAX_NAME_CHARS
from trackio.places import Places
from trackio.values import text_of
from trackio.voice import escaped
from trackiod import alert_list, catalog, control, elsewhere
from trackiod.answers import RunView
from trackiod.errors import NotFound, TrackiodError

_EDIT_SECONDS = 60.0
_LOOK_SECONDS = 10.0
_looked_at = -_LOOK_SECONDS


def _where() -> Places:
    """Takes in what other hosts have copied, but not at every question."""
    global _looked_at
    ours, _ = settings.of_this_process()
    found = places.of(ours)
    if found.shared and time.monotonic() - _looked_at > _LOOK_SECONDS:
        elsewhere.look(found)
        _looked_at = time.monotonic()
    return found


class Run:
    """A stored run."""

    def __init__(self, project: str, name: str, run_id: str | None = None) -> None:
        self.project = project
        self.name = name
        self.id = run_id or name

    @property
    def config(self) -> dict[str, Any] | None:
        """The run's configuration; None if it is gone."""
        config: dict[str, Any] | None = self._read(RunView.config)
        return config

    @property
    def state(self) -> str | None:
        """running, finished, failed, killed, lost or ended."""
        state: str | None = self._read(lambda view: view.state.state)
        return state

    @property
    def metrics(self) -> list[str]:
        """The names of its metrics."""
        return self._read(lambda view: view.metric_names) or []

    @raises_only(ValueError, TrackiodError)
    def alerts(self, level: str | None = None, since: str | None = None) -> list[dict[str, Any]]:
        """Its alerts, the newest first."""
        return _alerts(self.project, self.id, level, since)

    @raises_only(ValueError, TrackiodError)
    def history(self, metric: str) -> list[dict[str, Any]]:
        """A metric's values, reduced over ranks: `step`, `time` in seconds since 1970, `value`. Raises ValueError."""
        from trackiod import curves

        def read(view: RunView) -> list[dict[str, Any]]:
            points = curves.series(view, metric).curve.points()
            return [{"step": p.step, "time": p.time_ns / 1e9, "value": p.value} for p in points]

        try:
            return self._read(read) or []
        except NotFound as error:
            raise ValueError(str(error)) from None

    def delete(self) -> bool:
        """Deletes it for good. False, with a sentence printed, if that cannot be done."""
        return edit(self.project, "delete", self.id)

    def move(self, new_project: str) -> bool:
        """Moves it to another project, which is made if need be. False if that cannot be done."""
        name = text_of(new_project)[:MAX_NAME_CHARS]
        if done := edit(self.project, "move", self.id, name):
            self.project = name
        return done

    def rename(self, new_name: str) -> Run:
        """Gives it another name."""
        name = text_of(new_name)[:MAX_NAME_CHARS]
        if edit(self.project, "rename", self.id, name):
            self.name = name
        return self

    def _read(self, read: Any) -> Any:
        try:
            with catalog.open_project(_where().projects, self.project) as reader:
                view = catalog.find_run(reader, self.id)
                return read(view)
        except NotFound as error:
            if error.what in ("Project", "Run"):
                return None
            raise

    def __repr__(self) -> str:
        return f"<Run {self.name} in project {self.project}>"


class Runs:
    """A project's runs, oldest first, as they were when first looked at."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._found: list[Run] | None = None

    @property
    def _runs(self) -> list[Run]:
        if self._found is None:
            with catalog.open_project(_where().projects, self.project) as reader:
                self._found = [Run(self.project, view.name, view.id) for view in catalog.runs(reader)]
        return self._found

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def __getitem__(self, index: int) -> Run:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"<Runs project={self.project} count={len(self)}>"


class Api:
    """What is stored, for scripts. Methods raise ValueError for a project that does not exist."""

    @raises_only(ValueError, TrackiodError)
    def runs(self, project: str) -> Runs:
        """The project's runs."""
        project = text_of(project)
        _check(project)
        return Runs(project)

    @raises_only(ValueError, TrackiodError)
    def run(self, project: str, run: str) -> Run:
        """A run by id, or the newest by name. Raises ValueError."""
        project, run = text_of(project), text_of(run)
        _check(project)
        try:
            with catalog.open_project(_where().projects, project) as reader:
                view = catalog.find_run(reader, run)
                return Run(project, view.name, view.id)
        except NotFound as error:
            raise ValueError(str(error)) from None

    @raises_only(ValueError, TrackiodError)
    def alerts(
        self, project: str, run: str | None = None, level: str | None = None, since: str | None = None
    ) -> list[dict[str, Any]]:
        """The alerts of a project or run, the newest first; `since` an ISO 8601 time."""
        project = text_of(project)
        _check(project)
        return _alerts(project, None if run is None else text_of(run), level, since)


def _check(project: str) -> None:
    try:
        catalog.open_project(_where().projects, project).close()
    except NotFound:
        raise ValueError(f"Project '{project}' does not exist") from None


def _alerts(project: str, run: str | None, level: str | None, since: str | None) -> list[dict[str, Any]]:
    try:
        projects = _where().projects
        with catalog.open_project(projects, project) as reader:
            return alert_list.chosen(projects, reader, run, level, since)
    except NotFound:
        return []
    except TrackiodError as error:
        raise ValueError(str(error)) from None


def edit(project: str, action: str, run: str = "", argument: str = "") -> bool:
    """Asks the daemon; prints the sentence and returns False if it cannot be done."""
    where = _where()
    try:
        if not launch.is_running(where):
            control.start(where)
        answer = inquiry.ask(where, wire.Edit(project, action, run, argument), _EDIT_SECONDS)
    except TrackiodError as error:
        print(escaped(f"* {error}"))  # noqa: T201 upstream's way to say it, in a script somebody runs
        return False
    if isinstance(answer, wire.Edited) and answer.done:
        return True
    said = answer.sentence if isinstance(answer, wire.Edited) else "trackiod did not answer; try again."
    print(escaped(f"* {said}"))  # noqa: T201
    return False


@never_raises(False)
def delete_project(project: str, force: bool = False) -> bool:
    """Deletes a project with all its runs, files and artifacts, for good; asks first unless `force`. False if it is not
    there, is running, or the answer is no."""
    project = text_of(project)
    try:
        _check(project)
    except ValueError as error:
        print(escaped(f"* {error}."))  # noqa: T201
        return False
    if not force and input(f"Delete project {project!r} with all its runs, for good? (y/N): ").lower() not in (
        "y",
        "yes",
    ):
        return False
    return edit(project, "delete_project")
