"""The current run and where its data go, as context variables; `transformers` and TRL read them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackio.runs import Run

current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)
current_project: ContextVar[str | None] = ContextVar("current_project", default=None)
current_server: ContextVar[Any] = ContextVar("current_server", default=None)
current_space_id: ContextVar[str | None] = ContextVar("current_space_id", default=None)
current_server_write_token: ContextVar[str | None] = ContextVar("current_server_write_token", default=None)
