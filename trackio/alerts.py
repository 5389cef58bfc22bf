"""Alerts: their levels, and what of one is stored. Pure; the daemon sends them (`trackiod.webhooks`)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from trackio.interrupts import hand_on
from trackio.values import short_repr, text_of

MOST_CHARS = 20_000
"""of a title or text; more is cut"""


class AlertLevel(StrEnum):
    """How grave an alert is. Equal to its word."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"

    @property
    def _rank(self) -> int:
        return _ORDER.index(self)

    def __ge__(self, other: str) -> bool:
        return self._rank >= level_of(other)._rank

    def __gt__(self, other: str) -> bool:
        return self._rank > level_of(other)._rank

    def __le__(self, other: str) -> bool:
        return self._rank <= level_of(other)._rank

    def __lt__(self, other: str) -> bool:
        return self._rank < level_of(other)._rank


_ORDER = list(AlertLevel)
_OTHER_WORDS = {"warning": "warn", "critical": "error", "fatal": "error", "debug": "info"}


class Webhook(NamedTuple):
    """Where a run's alerts go, from which level on."""

    url: str | None = None
    least: AlertLevel = AlertLevel.INFO


NO_WEBHOOK = Webhook()


def level_of(level: Any) -> AlertLevel:
    """The level of that name, in any case; wandb's and logging's words too. Raises ValueError."""
    if isinstance(level, AlertLevel):
        return level
    try:
        word = text_of(getattr(level, "value", level)).strip().lower()
    except Exception as error:  # noqa: BLE001 the user's type
        hand_on(error)
        word = text_of(level)
    try:
        return AlertLevel(_OTHER_WORDS.get(word, word))
    except ValueError:
        raise ValueError(f"Invalid alert level {short_repr(level)}. Expected one of: info, warn, error.") from None


def facts(level: AlertLevel, title: Any, text: Any, step: int | None, webhook: str | None) -> dict[str, Any]:
    """What a record of an alert holds."""
    return {
        "level": level.value,
        "title": text_of(title)[:MOST_CHARS],
        "text": None if text is None else text_of(text)[:MOST_CHARS],
        "step": step,
        "webhook": None if webhook is None else text_of(webhook)[:MOST_CHARS],
    }


def line(alert: dict[str, Any]) -> str:
    """An alert in one line."""
    said = alert["title"] if alert["text"] is None else f"{alert['title']}: {alert['text']}"
    at = "" if alert["step"] is None else f" (step {alert['step']})"
    return f"{alert['level'].upper()} {' '.join(said.split())[:500]}{at}"
