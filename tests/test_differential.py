"""The same scripts and commands, run against upstream's package and ours: what differs is listed here, with its reason.

`DIFFERENCES` is what docs/compat.md shows. A difference that is not listed fails, and so does one that is listed and is
not there any more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from conftest import PATIENCE, Host, clean_environ, wait_for

UPSTREAM = Path(sys.executable).parents[1] / "upstream" / "bin"
pytestmark = pytest.mark.skipif(not UPSTREAM.exists(), reason="needs .venv/upstream (made by: make test)")

SCRIPT = """
import math, numpy as np, trackio
run = trackio.init(project="diff", name="one", group="g", config={
    "lr": 0.1, "layers": [1, 2], "nested": {"a": {"b": 1}}, "none": None, "text": "é"})
trackio.log({"loss": 1.0, "int": 3, "flag": True, "text": "x"})
trackio.log({"loss": 0.5, "int": 2**40}, step=10)
trackio.log({"loss": 0.25})
trackio.log({"loss": 0.125}, step=4)
trackio.log({"nan": math.nan, "inf": math.inf})
trackio.log({"nested": {"a": {"b": 1}}, "step": 7, "list": [1, 2.5, "z"], "none": None})
trackio.log({"neg": -1}, step=-5)
trackio.log_system({"gpu": 0.5, "fan": 3})
trackio.alert("hot", "very <b>hot</b>", level=trackio.AlertLevel.ERROR)
trackio.alert("plain")
trackio.finish()
for name, resume, base in (("two", "never", 0.0), ("two", "allow", 10.0), ("other", "allow", 20.0)):
    trackio.init(project="diff", name=name, resume=resume)
    for i in range(3):
        trackio.log({"loss": base + i})
    trackio.finish()
trackio.init(project="rich", name="media")
image = trackio.Image(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), caption="c")
trackio.log({"table": trackio.Table(columns=["a", "b"], data=[[1, "x"], [2, None]]), "image": image})
trackio.log({"cells": trackio.Table(columns=["i"], data=[[image]]), "md": trackio.Markdown("# m")})
trackio.log({"hist": trackio.Histogram([1, 2, 2, 3], num_bins=2)})
trackio.finish()
"""

ONE, TWO = ("--project", "diff", "--run", "one"), ("--project", "diff", "--run", "two")
RICH = ("--project", "rich", "--run", "media")
COMMANDS = [
    ("list", "projects"), ("list", "runs", "--project", "diff"), ("list", "metrics", *ONE),
    ("get", "project", "--project", "diff"), ("get", "run", *ONE), ("get", "run", *TWO),
    *(("get", "metric", *ONE, "--metric", name) for name in ("loss", "nan", "list")),
    ("get", "metric", *TWO, "--metric", "loss"), ("get", "snapshot", *ONE, "--step", "10"),
    ("get", "snapshot", *ONE, "--step", "13"), ("get", "snapshot", *ONE, "--around", "5", "--window", "9"),
    ("list", "system-metrics", *ONE), ("get", "system-metric", *ONE), ("get", "system-metric", *ONE, "--metric", "fan"),
    ("list", "alerts", "--project", "diff"), ("get", "alerts", *ONE, "--level", "error"),
    ("get", "snapshot", *RICH, "--around", "1", "--window", "3"),
]  # fmt: skip

DIFFERENCES = {
    "list metrics/metrics": "Nested metrics are flattened with `/`, None is skipped, `step` keeps its name.",
    "get run/metrics": "As in `list metrics`.",
    "get run/run_id": "The run's id is given; upstream prints null.",
    "get run/config/_Created": "What a user sets is all a config holds: `created_at` stands beside it.",
    "get run/config/_Group": "As `_Created`: `group` stands beside the config.",
    "get run/config/_Username": "The user's name is not recorded.",
    "get metric/values/value": "NaN and the infinities are strings, so that the output is JSON.",
    "get metric/values/step": "Values come in the order of their steps; upstream's in the order of logging.",
    "get snapshot/metrics/inf/value": "As in `get metric`.",
    "get snapshot/metrics/nan/value": "As in `get metric`.",
    "get snapshot/metrics/nested": "As in `list metrics`.",
    "get snapshot/metrics/none": "As in `list metrics`.",
    "get snapshot/metrics/__step": "As in `list metrics`.",
}
"""command/path: why it differs"""


class Side:
    """One package: its programs and a data folder."""

    def __init__(self, programs: Path, environ: dict[str, str]) -> None:
        self.programs, self.environ = programs, environ

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [str(self.programs / command[0]), *command[1:]], env=self.environ, capture_output=True, text=True,
            timeout=120 * PATIENCE, cwd=self.environ["TRACKIO_DIR"],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answer(self, command: tuple[str, ...]) -> Any:
        return json.loads(self.run("trackio", *command, "--json"))


def differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """The paths at which what upstream says is not what we say; what we say beyond it is no difference."""
    if path.endswith(("/timestamp", "/created_at")):
        assert isinstance(datetime.fromisoformat(ours), datetime) and ours.endswith("+00:00")
    elif path.endswith("/id"):
        assert isinstance(ours, str) and ours
    elif path.endswith("/file_path"):
        assert Path(ours).is_file()
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        for key in theirs:
            if key in ours:
                yield from differences(ours[key], theirs[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from differences(one, other, path)
    elif ours != theirs or type(ours) is not type(theirs):
        yield path


def test_what_differs_from_upstream_is_what_is_listed(daemon: Host, tmp_path: Path) -> None:
    folder = tmp_path / "upstream"
    folder.mkdir()
    theirs = Side(UPSTREAM, {**clean_environ(), "TRACKIO_DIR": str(folder), "HF_HOME": str(folder)})
    ours = Side(Path(sys.executable).parent, daemon.environ())
    for side in (theirs, ours):
        side.run("python", "-c", SCRIPT)
    daemon.ended_runs("rich")
    wait_for(lambda: not daemon.status().daemon["errands"], what="the files")
    found = set()
    for command in COMMANDS:
        found |= set(differences(ours.answer(command), theirs.answer(command), " ".join(command[:2])))
    assert found == set(DIFFERENCES)

    image = ("get", "metric", *RICH, "--metric", "image")
    path, other = (side.answer(image)["values"][0]["value"]["file_path"] for side in (ours, theirs))
    pictures = [PIL.Image.open(p).convert("RGB").tobytes() for p in (path, folder / "media" / other)]
    assert pictures[0] == pictures[1] == bytes(range(27))

    times = [[v["timestamp"] for v in side.answer(("get", "metric", *TWO, "--metric", "loss"))["values"]]
             for side in (ours, theirs)]  # fmt: skip
    assert len(set(times[0])) == 6, "ours are those of the log() calls"
    assert len(set(times[1])) < 6, "upstream stamps a whole flush with one"
