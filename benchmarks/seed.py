"""The project that reading is measured on: 1,000 runs, 100 million points, made by a generator.

Written through the store as the commit thread writes: registered, appended in batches, folded. Most runs are of
one rank and ten metrics; one has a series of a million points, one eight ranks, one a second attempt.
`python -m benchmarks.seed FOLDER` makes it; `scale` makes a smaller one of the same shape.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack
import numpy as np

from trackio import record
from trackio.record import Kind, Origin
from trackiod.store.batch import read
from trackiod.store.digest import End, digest
from trackiod.store.fold import at_once, fold
from trackiod.store.project import ProjectStore

PROJECT = "seed"
LONG_RUN = "long"
_START_NS = 1_767_225_600_000_000_000
_STEP_NS = 100_000_000
_METRICS = [f"train/{name}" for name in (
    "loss", "grad_norm", "learning_rate", "epoch", "accuracy", "tokens", "seconds", "entropy", "kl", "reward"
)]  # fmt: skip
_BATCH_BYTES = 1 << 20


class Shape(NamedTuple):
    """A run to make."""

    name: str
    ranks: int
    steps: int
    metrics: int
    attempts: int = 1


def shapes(scale: float) -> list[Shape]:
    """1,000 runs that make 100 M points at scale 1."""
    steps = int(9_000 * scale)
    runs = [Shape(f"run-{i}", 1, steps, 10) for i in range(997)]
    runs.append(Shape("ranks", 8, int(16_000 * scale), 10))
    runs.append(Shape("resumed", 1, int(50_000 * scale), 10, 2))
    runs.append(Shape(LONG_RUN, 1, int(1_000_000 * scale), 8))
    return runs


def losses(rng: np.random.Generator, steps: int, column: int) -> Any:
    """Like what a model logs: float32, noise around something that falls; one column of ints, one rounded."""
    t = np.arange(steps)
    curve = (2.5 + column) * np.exp(-t / (steps / 3 + 1)) + 0.2 + 0.05 * rng.standard_normal(steps)
    if column == 3:
        return np.round(t * 0.001, 4)
    if column == 5:
        return t * 4096
    return curve.astype(np.float32).astype(np.float64)


def batches(rng: np.random.Generator, shape: Shape, first_step: int) -> Iterator[tuple[int, bytes]]:
    """(start, bytes) of what a rank of this shape sends: steps at 10 Hz, with the jitter of a busy host."""
    names = _METRICS[: shape.metrics]
    columns = [losses(rng, shape.steps, i).tolist() for i in range(shape.metrics)]
    times = _START_NS + np.cumsum(_STEP_NS + rng.exponential(60_000, shape.steps)).astype(np.int64)
    start, parts, size = 0, [], 0
    packer = msgpack.Packer(autoreset=True)
    for i, (time_ns, row) in enumerate(zip(times.tolist(), zip(*columns, strict=True), strict=True)):
        fields = (int(Kind.LOG), time_ns, first_step + i, int(Origin.EXPLICIT), dict(zip(names, row, strict=True)))
        data = record.encode(start + size, packer.pack(fields))
        parts.append(data)
        size += len(data)
        if size >= _BATCH_BYTES:
            yield start, b"".join(parts)
            start, parts, size = start + size, [], 0
    if parts:
        yield start, b"".join(parts)


def make(projects: str, scale: float = 1.0) -> int:
    """Makes the project in a folder of databases; returns its points."""
    store = ProjectStore(projects, PROJECT, "seed")
    rng = np.random.default_rng(7)
    points = 0
    for number, shape in enumerate(shapes(scale)):
        for attempt in range(shape.attempts):
            for rank in range(shape.ranks):
                points += _stream(store, rng, shape, number, attempt, rank)
        if number % 100 == 0:
            print(f"  {number} runs, {points:,} points", file=sys.stderr, flush=True)
    store.vacuum()
    store.close()
    return points


def _stream(store: ProjectStore, rng: np.random.Generator, shape: Shape, number: int, attempt: int, rank: int) -> int:
    stream = f"{shape.name}-{attempt}-{rank}"
    started_ns = _START_NS + number * 10_000_000_000 + attempt * 1_000_000_000
    meta = {"run": f"id-{shape.name}", "name": shape.name, "role": "rank", "rank": rank, "attempt": str(attempt),
            "started_ns": started_ns, "world_size": shape.ranks}  # fmt: skip
    with store.transaction():
        store.register(stream, meta)
    points = 0
    for start, data in batches(rng, shape, attempt * shape.steps // 2):
        said = digest(data, start)
        points += said.points
        with store.transaction():
            store.append(stream, start, data, said)
        fold_ripe(store, stream)
    with store.transaction():
        store.end(stream, End("finished", "", explicit=True, time_ns=started_ns + 1_000_000_000))
    fold_ripe(store, stream)
    return points


def fold_ripe(store: ProjectStore, stream: str) -> None:
    """Folds as the daemon does when it has the time."""
    while store.is_ripe(stream):
        raw = store.raw(stream)
        folded = at_once(fold(read(data, start) for start, data in raw))
        with store.transaction():
            store.replace_raw(stream, raw[-1][0], folded, batches=len(raw))


if __name__ == "__main__":
    began = time.perf_counter()
    made = make(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
    print(f"{made:,} points in {time.perf_counter() - began:.0f} s")
