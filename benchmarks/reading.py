"""How fast answers come from a project of 100 million points, and what a point takes on disk.

Reading is measured inside a process (a reader opened, one question, closed), `trackio status` with Python's start.
The reference is numpy's own work on as many bytes: a million float64 decompressed by zlib.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import seed
from benchmarks.report import Figure
from trackio.places import Places
from trackiod import catalog, curves
from trackiod.overview import Overview
from trackiod.store import schema

_TIMES = 9


def measure(where: Places) -> list[Figure]:
    """Makes the project in this data folder, and asks."""
    points = seed.make(where.projects)
    path = schema.path_of(where.projects, seed.PROJECT)
    return [*answers(where), Figure(f"{points:,} points at rest", os.path.getsize(path) / points, "B/point", 6)]


def answers(where: Places) -> list[Figure]:
    """How long the answers take; the project is there."""
    long = _in_project(where, seed.LONG_RUN)
    ranks, resumed = _in_project(where, "ranks"), _in_project(where, "resumed")
    reference = _reference()
    name = "inflating a million shuffled float32"
    return [
        Figure("1 M points of one series", long(lambda v: curves.series(v, "train/loss")), "ms", 100, name, reference),
        Figure("its 1,000 buckets", long(lambda v: curves.bucketed(v, "train/loss", 1000)), "ms", 10, name, reference),
        Figure("128,000 points reduced over 8 ranks", ranks(lambda v: curves.series(v, "train/loss")), "ms"),
        Figure("list runs (1,000)", _median(lambda: _list_runs(where)), "ms", 50),
        Figure("get run, 8 M points in one rank", long(_get_run), "ms", 50),
        Figure("get run, 8 ranks", ranks(_get_run), "ms", 50),
        Figure("get run, 2 attempts", resumed(_get_run), "ms", 50),
        Figure("trackio status, Python's start included", _status(where), "ms", 250, "python -c 'import click'",
               _process([sys.executable, "-c", "import click"], dict(os.environ))),
    ]  # fmt: skip


def _in_project(where: Places, run: str) -> Callable[[Callable[[Any], Any]], float]:
    def timed(ask: Callable[[Any], Any]) -> float:
        def once() -> None:
            with catalog.open_project(where.projects, seed.PROJECT) as reader:
                ask(catalog.find_run(reader, run))

        return _median(once)

    return timed


def _list_runs(where: Places) -> None:
    with catalog.open_project(where.projects, seed.PROJECT) as reader:
        views = catalog.runs(reader)
        assert len([view.state.state for view in views]) == 1000


def _get_run(view: Any) -> None:
    overview = Overview(view)
    facts = (view.state, view.steps, view.config(), view.metas, view.holes, overview.hidden)
    assert facts and all(overview.summary(name) for name in overview.metrics)


def _median(act: Callable[[], Any]) -> float:
    act()
    return statistics.median(_milliseconds(act) for _ in range(_TIMES))


def _milliseconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def _status(where: Places) -> float:
    environ = os.environ | {"TRACKIO_DIR": where.data}
    return _process([os.path.join(os.path.dirname(sys.executable), "trackio"), "status"], environ)


def _process(command: list[str], environ: dict[str, str]) -> float:
    return _median(lambda: subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL))


def _reference() -> float:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    data = zlib.compress(values.view(np.uint8).reshape(-1, 4).T.tobytes(), 2)
    return _median(lambda: zlib.decompress(data))
