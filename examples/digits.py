"""A small network that learns scikit-learn's handwritten digits, one process a rank, all of them logging.

    torchrun --nproc-per-node 4 examples/digits.py

With torch the ranks train one model together (DDP over gloo); without it each rank trains its own on its
share of the data, with numpy. Either way every rank calls trackio.log(), and trackio shows one run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from sklearn.datasets import load_digits

import trackio

STEPS = int(os.environ.get("DIGITS_STEPS", "1500"))
BATCH = 32
HIDDEN = 256
RATE = 0.2
CLASSES = 10


def my_share(rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """This rank's images, 64 floats in [0, 1] each, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return (images[rank::world_size] / 16).astype(np.float32), labels[rank::world_size]


def batches(images: np.ndarray, labels: np.ndarray, rank: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(rank)
    for _ in range(STEPS):
        chosen = random.integers(0, len(images), BATCH)
        yield images[chosen], labels[chosen]


def train_with_torch(rank: int, world_size: int) -> None:
    import torch
    from torch import distributed, nn

    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    model = nn.parallel.DistributedDataParallel(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    share = my_share(rank, world_size)
    mine, truth = map(torch.from_numpy, share)
    for step, (images, labels) in enumerate(batches(*share, rank)):
        logits = model(torch.from_numpy(images))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            accuracy = (model.module(mine).argmax(1) == truth).float().mean()
        trackio.log({"train/loss": loss, "train/accuracy": accuracy, "train/samples": BATCH}, step=step)
    distributed.destroy_process_group()


def train_with_numpy(rank: int, world_size: int) -> None:
    random = np.random.default_rng(0)
    first = random.normal(0, 0.2, (64, HIDDEN))
    second = random.normal(0, 0.2, (HIDDEN, CLASSES))
    mine, truth = my_share(rank, world_size)
    for step, (images, labels) in enumerate(batches(mine, truth, rank)):
        hidden = np.maximum(images @ first, 0)
        logits = hidden @ second
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        loss = -np.log(chances[np.arange(BATCH), labels] + 1e-9).mean()
        error = (chances - np.eye(CLASSES)[labels]) / BATCH
        back = (error @ second.T) * (hidden > 0)
        second -= RATE * hidden.T @ error
        first -= RATE * images.T @ back
        accuracy = ((np.maximum(mine @ first, 0) @ second).argmax(1) == truth).mean()
        trackio.log({"train/loss": loss, "train/accuracy": accuracy, "train/samples": BATCH}, step=step)


def main() -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        import torch  # noqa: F401

        train, library = train_with_torch, "torch"
    except ImportError:
        train, library = train_with_numpy, "numpy"
    trackio.init(project="digits", config={"rate": RATE, "batch": BATCH, "hidden": HIDDEN, "library": library})
    trackio.define_metric("train/samples", reduce="sum")
    train(rank, world_size)
    trackio.finish()


if __name__ == "__main__":
    main()
