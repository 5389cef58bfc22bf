"""What a point takes on disk: the float32 losses of a real training, one metric logged ten times a second.

The losses are those of a softmax regression on scikit-learn's digits, batch by batch. Waiting through the hours such a
log takes is spared: its times are ten a second with the jitter that this machine shows in twenty seconds of it.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.report import Figure
from benchmarks.seed import fold_ripe
from trackio import record
from trackio.record import Kind, Origin
from trackiod.store.digest import End, digest
from trackiod.store.project import ProjectStore

_POINTS = 1_000_000
_PERIOD_NS = 100_000_000
_SAMPLES = 200
_BATCH_RECORDS = 256
_START_NS = 1_767_225_600_000_000_000
_META = {"run": "r", "name": "r", "role": "rank", "rank": 0, "attempt": "0", "started_ns": _START_NS, "world_size": 1}


def measure() -> list[Figure]:
    """Bytes per point of a vacuumed database, and what of it is the values and the times."""
    rng = np.random.default_rng(0)
    values = _losses(rng, _POINTS)
    times = _times(rng, _POINTS)
    with tempfile.TemporaryDirectory(prefix="trackio-bench-") as folder:
        store = ProjectStore(folder, "p", "bench")
        _store(store, values, times)
        store.vacuum()
        store.close()
        size = os.path.getsize(store.path)
    return [Figure("a float32 loss logged at 10 Hz, at rest", size / _POINTS, "B/point", 6)]


def _store(store: ProjectStore, values: list[float], times: list[int]) -> None:
    """As the daemon does: small batches as they come, folded when they are enough."""
    with store.transaction():
        store.register("s", _META)
    offset = 0
    for first in range(0, len(values), _BATCH_RECORDS):
        data = b""
        for step in range(first, min(first + _BATCH_RECORDS, len(values))):
            payload = record.pack(Kind.LOG, times[step], step, Origin.COUNTER, {"train/loss": values[step]})
            data += record.encode(offset + len(data), payload)
        with store.transaction():
            store.append("s", offset, data, digest(data, offset))
        offset += len(data)
        fold_ripe(store, "s")
    with store.transaction():
        store.end("s", End("finished", "", explicit=True, time_ns=times[-1]))
    fold_ripe(store, "s")


def _losses(rng: np.random.Generator, count: int) -> list[float]:
    """Losses of minibatches, as float32 makes them."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels, labels = (digits.data / 16).astype(np.float32), digits.target
    weights = np.zeros((64, 10), np.float32)
    losses = []
    for step in range(count):
        chosen = rng.integers(0, len(labels), 32)
        x, y = pixels[chosen], labels[chosen]
        logits = x @ weights
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses.append(float(-logs[np.arange(32), y].mean(dtype=np.float32)))
        slope = np.exp(logs)
        slope[np.arange(32), y] -= 1
        weights -= np.float32(0.5 / (1 + step / 500)) * (x.T @ slope / 32)
    return losses


def _times(rng: np.random.Generator, count: int) -> list[int]:
    seen = []
    for _ in range(_SAMPLES):
        start = time.time_ns()
        time.sleep(_PERIOD_NS / 1e9)
        seen.append(time.time_ns() - start)
    return (_START_NS + np.cumsum(rng.choice(np.array(seen), count))).tolist()
