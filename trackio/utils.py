"""What scripts take from upstream's `trackio.utils` and wandb's `wandb.util`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from trackio import places, settings

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def generate_id(length: int = 8) -> str:
    """A random id of lower-case letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def __getattr__(name: str) -> Any:
    """`TRACKIO_DIR`: the data folder that the environment chooses now."""
    if name == "TRACKIO_DIR":
        ours, _ = settings.of_this_process()
        return Path(places.of(ours).data)
    raise AttributeError(f"module 'trackio.utils' has no attribute {name!r}")
