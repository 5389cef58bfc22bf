"""What the tests of trainers share: real trainings in processes of their own.

A training reports what it itself kept (`state.log_history`, what its profiler measured) into `report.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from conftest import Host
from reading import Points

SECONDS = 180.0
_BECOME = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
NEVER_LOGGED = frozenset("train_runtime train_samples_per_second train_steps_per_second train_loss total_flos".split())
"""What the callbacks of transformers leave out of every record."""


def train(host: Host, code: str, *arguments: str, python: Path = Path(sys.executable)) -> Any:
    """Runs a training, which is given its folder and `arguments`, to its end; returns its report."""
    folder = host.data.parent
    done = host.run(_BECOME, str(python), "-c", code, str(folder), *arguments, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


def kept(history: list[dict[str, Any]], key: str) -> list[tuple[int, Any]]:
    """(global step, value) as the trainer itself remembers them."""
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def logged(history: list[dict[str, Any]]) -> Points:
    """All the trainer remembers, under the names its callback gives: for each step the last."""
    last: dict[str, dict[int, Any]] = {}
    for entry in history:
        for key, value in {**entry, "global_step": entry["step"]}.items():
            if key != "step" and key not in NEVER_LOGGED and value is not None:
                name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
                last.setdefault(name, {})[entry["step"]] = value
    return {name: list(steps.items()) for name, steps in last.items()}
