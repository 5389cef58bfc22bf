"""A loss of power: a real ext4 in an image, and copies of the image as it was right before each sync.

    with Image(tmp_path) as image:
        host.data = image.folder / "data"
        ... processes run with `failing.environ` ...
        for folder in image.cuts(failing, 12, lambda: process.poll() is not None):
            ... `folder` is what a host finds that lost its power just then; what lay in shared memory is gone

ext4 commits its journal here by itself every five minutes only, and its own writing back takes 30 seconds, so what
nobody synced is not there; a file whose name alone was kept is empty, as after a real loss of power. Needs root, loop
devices and mkfs.ext4; `skip_without()` says which is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest
from conftest import PATIENCE
from failing import Failing

_IMAGE_BYTES = 96 << 20
_MOST_SECONDS = 60.0
_CALM_SECONDS = 8.0
"""without a sync: there may be none any more"""


def skip_without() -> None:
    """Skip the test where no image can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount an image")
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


class Image:
    """A mounted ext4 of one test's own; unmounted with the block."""

    def __init__(self, parent: Path) -> None:
        self._image = parent / "disk.img"
        self._copy = parent / "cut.img"
        self.folder = parent / "disk"
        self.folder.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(_IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^metadata_csum", str(self._image)], check=True)

    def __enter__(self) -> Image:
        if _mount(self._image, self.folder, "loop,commit=300") is not None:
            pytest.skip("no image can be mounted here")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _unmount(self.folder)

    @contextmanager
    def cut(self) -> Iterator[Path]:
        """What is found after a loss of power now, mounted for the block."""
        subprocess.run(["cp", "--sparse=always", str(self._image), str(self._copy)], check=True)
        folder = self._copy.with_suffix("")
        folder.mkdir(exist_ok=True)
        assert _mount(self._copy, folder, "loop") is None, "the journal cannot be replayed"
        try:
            yield folder
        finally:
            _unmount(folder)
            self._copy.unlink()

    def cuts(self, failing: Failing, count: int, is_over: Callable[[], bool]) -> Iterator[Path]:
        """Up to `count` cuts, each right before a sync in this image, until it `is_over`. The sync is held up until the
        caller asks for the next."""
        deadline = time.monotonic() + _MOST_SECONDS * PATIENCE
        for _ in range(count):
            rule = failing.hang("fsync", _MOST_SECONDS * PATIENCE, path=f"{self.folder}/")
            calm_since = time.monotonic()
            while not rule.hits:
                now = time.monotonic()
                if is_over() or now > deadline or now - calm_since > _CALM_SECONDS * PATIENCE:
                    break
                time.sleep(0.002)
            if not rule.hits:
                rule.end()
                return
            try:
                with self.cut() as folder:
                    yield folder
            finally:
                rule.end()


def _mount(image: Path, folder: Path, options: str) -> str | None:
    done = subprocess.run(["mount", "-o", options, str(image), str(folder)], capture_output=True, text=True)
    return done.stderr if done.returncode else None


def _unmount(folder: Path) -> None:
    deadline = time.monotonic() + 20 * PATIENCE
    while subprocess.run(["umount", str(folder)], capture_output=True).returncode and time.monotonic() < deadline:
        time.sleep(0.05)  # a process that was just killed may hold it for a moment
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)
