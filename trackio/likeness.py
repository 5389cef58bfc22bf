"""What wandb's and upstream's runs have beside logging: a name that can be given anew, tags, `save`, `watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trackio import voice
from trackio.border import never_raises, raises_only
from trackio.names import MAX_NAME_CHARS
from trackio.record import Kind
from trackio.values import is_given, key_text

if TYPE_CHECKING:
    from trackio.steps import Steps
    from trackio.stream import Stream


class Settings:
    """wandb's settings: takes any keyword. `init(settings=)` heeds `mode`, `project`, `run_name` and `run_id`."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Likeness:
    """The part of `Run` that scripts written for others read."""

    project: str
    url: str | None
    _name: str
    _facts: dict[str, Any]
    _steps: Steps
    _goes_on: bool
    refused_files: int

    def _note(self, kind: Kind, *fields: Any) -> None:
        raise NotImplementedError

    def _open(self) -> Stream | None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The run's name; another may be given while it runs."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = key_text(name)[:MAX_NAME_CHARS]
        self._note(Kind.NAME, self._name)

    @property
    def step(self) -> int:
        """The highest step so far; 0 before the first."""
        return max(0, self._steps.highest)

    @property
    def tags(self) -> tuple[str, ...]:
        tags = self._facts.get("tags") or ()
        return tuple(tags) if isinstance(tags, (list, tuple)) else (str(tags),)

    @property
    def notes(self) -> str | None:
        return self._facts.get("notes")

    @property
    def job_type(self) -> str | None:
        return self._facts.get("job_type")

    @property
    def resumed(self) -> bool:
        """Whether it goes on with a run that was there."""
        return self._goes_on

    @property
    def dir(self) -> str:
        """The data folder: nothing is written beside the script."""
        return str(self._facts.get("data", ""))

    def get_url(self) -> str | None:
        return self.url

    def project_name(self) -> str:
        return self.project

    @never_raises(None, RuntimeError)
    def watch(self, models: Any, **options: Any) -> None:
        """As `trackio.watch`, for this run."""
        from trackio.watching import watch

        watch(models, **options)

    @never_raises(None)
    def unwatch(self, models: Any = None) -> None:
        from trackio.watching import unwatch

        unwatch(models)

    @raises_only(ValueError, RuntimeError)
    def log_artifact(
        self, artifact_or_path: Any, name: str | None = None, type: str | None = None, aliases: Any = None,
        overwrite: bool = False, **unused: Any,
    ) -> Any:  # fmt: skip
        """Logs an `Artifact`, or a file or folder as one, as this run's output; returns it at once, while the daemon
        takes its files over. `aliases` go to its version beside `latest`; `overwrite` removes all others.
        Raises ValueError or RuntimeError for what cannot be logged."""
        from trackio import artifacts

        artifact = artifacts.made_of(artifact_or_path, name, type)
        artifact._check_open()
        wanted = artifacts.checked_aliases(aliases)
        if not artifact._files and not artifact._references:
            raise ValueError(f"Artifact {artifact.name!r} has no files or references; call add_file first.")
        stream = self._open()
        if stream is not None:
            problems, lost = artifact._hand_over(stream, self.dir, self.project, wanted, overwrite=is_given(overwrite))
            self.refused_files += lost
            for problem in problems:
                voice.warn_once(problem, problem)
        return artifact

    @raises_only(ValueError, RuntimeError, TimeoutError)
    def use_artifact(self, artifact_or_name: Any, type: str | None = None, **unused: Any) -> Any:
        """A logged artifact by `name` (its latest version), `name:alias` or `name:v3`, also of another project as
        `project/name:v3`; notes that this run used it. Raises ValueError if there is none, or of another type."""
        from trackio import artifacts

        artifact = artifacts.used(self.dir, self.project, artifact_or_name, type)
        stream = self._open()
        if stream is not None:
            stream.note_artifact(stream.next_artifact(), "input", artifact.name, dict(artifacts.use_facts(artifact)))
        return artifact

    @raises_only(ValueError)
    def save(self, glob_str: Any, base_path: Any = None, policy: str | None = None) -> str:
        """Keeps the files that a path or a pattern (`**` too) names, each under its path below `base_path`, else below
        the working folder; as they are now, whatever `policy` says. Returns the folder they come to lie in. Raises
        ValueError if there is none."""
        from trackio import saving

        folder, lost = saving.save(glob_str, base_path, self.project, self._open())
        self.refused_files += lost
        return folder
