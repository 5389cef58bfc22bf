"""docs/compat.md is what the code is: every name of upstream's is listed, and is there or says that it is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from compat import SUBMODULES, UPSTREAM, WANDB, WANDB_ABSENT, page
from test_differential import UPSTREAM as PROGRAMS

import trackio
from trackio import surface

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_is_known() -> None:
    assert (ROOT / "docs" / "compat.md").read_text() == page()


@pytest.mark.skipif(not PROGRAMS.exists(), reason="needs .venv/upstream (made by: make test)")
def test_every_name_of_upstream_is_listed_and_there() -> None:
    code = "import json, trackio; print(json.dumps([trackio.__all__, dir(trackio.context_vars), trackio.__version__]))"
    done = subprocess.run([str(PROGRAMS / "python"), "-P", "-c", code], capture_output=True, text=True, check=True)
    names, context_vars, version = json.loads(done.stdout)
    assert version.startswith(f"{trackio.__upstream__}.")
    absent = set(surface.ABSENT) - set(WANDB_ABSENT) - {"Registry", "Collection"}
    assert set(names) == set(UPSTREAM) | absent
    for name in names:
        assert hasattr(trackio, name) and isinstance(getattr(trackio, name), surface.Absent) == (name in absent), name
    for name in context_vars:
        assert name.startswith("__") or name in ("TYPE_CHECKING", "contextvars") or hasattr(trackio.context_vars, name)


def test_every_name_that_the_page_calls_present_is_there() -> None:
    for name in (*UPSTREAM, *WANDB):
        assert not isinstance(getattr(trackio, name), surface.Absent), name
    for path in SUBMODULES:
        found = trackio
        for part in path.split("."):
            if part in ("utils", "sqlite_storage"):
                __import__(f"trackio.{part}")
            found = getattr(found, part)
