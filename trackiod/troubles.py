"""Why projects cannot be committed now: for `status`, and for the log, which says it once and counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_LOG_AGAIN_SECONDS = (60.0, 600.0, 3600.0)
"""After the first time; the last of these, again and again."""
_SETTLED_SECONDS = 60.0
"""A project that fails again within this time has not recovered: it is the same trouble."""


@dataclass(slots=True)
class _Trouble:
    since: float
    sentence: str = ""
    """empty while it is over"""
    failures: int = 0
    logged: int = 0
    """how often"""
    log_at: float = 0.0
    over_at: float = 0.0


class Troubles:
    """The projects whose commits fail, each with the sentence that says why."""

    def __init__(self) -> None:
        self._of_project: dict[str, _Trouble] = {}

    def note(self, project: str, sentence: str, now: float) -> str:
        """Note that a commit failed. Return what is to be logged, or ""."""
        trouble = self._of_project.get(project)
        if trouble is None or (not trouble.sentence and now - trouble.over_at > _SETTLED_SECONDS):
            trouble = self._of_project[project] = _Trouble(since=now, log_at=now)
        trouble.sentence = sentence
        trouble.failures += 1
        if now < trouble.log_at:
            return ""
        pause = _LOG_AGAIN_SECONDS[min(trouble.logged, len(_LOG_AGAIN_SECONDS) - 1)]
        trouble.logged, trouble.log_at = trouble.logged + 1, now + pause
        if trouble.failures == 1:
            return sentence
        return f"{sentence} It has failed {trouble.failures} times in {now - trouble.since:.0f} s."

    def clear(self, project: str, now: float) -> str:
        """Note that a commit succeeded. Return what is to be logged, or ""."""
        trouble = self._of_project.get(project)
        if trouble is None or not trouble.sentence:
            return ""
        is_first = not trouble.over_at
        trouble.sentence, trouble.over_at = "", now
        self._of_project = {p: t for p, t in self._of_project.items() if t.sentence or now - t.over_at <= 3600}
        if not is_first:
            return ""  # it comes and goes: one line in an hour is enough
        return (
            f"project {project!r} is written again, after {trouble.failures} failures in {now - trouble.since:.0f} s."
        )

    @property
    def summary(self) -> str:
        """A sentence for `status`; empty if nothing fails."""
        sentences = [trouble.sentence for trouble in self._of_project.values() if trouble.sentence]
        more = f" ({len(sentences) - 1} more projects fail.)" if len(sentences) > 1 else ""
        return sentences[0] + more if sentences else ""
