"""The daemon's children, for what may hang, leak or weigh much: each is this package with another word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from trackio.places import Places

PIPE = subprocess.PIPE
_NOTHING = subprocess.DEVNULL

Stream = int | IO[bytes] | None


def start(
    where: Places, *words: str, environ: Mapping[str, str] | None = None, stdin: Stream = _NOTHING,
    stdout: Stream = _NOTHING, stderr: Stream = _NOTHING,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Starts `trackiod` with these words. It finds the daemon's places, wherever that was started; `environ` is more
    for its environment. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "trackiod", *words], stdin=stdin, stdout=stdout, stderr=stderr, cwd="/",
        env={**where.environ(os.environ), **(environ or {})},
    )  # fmt: skip
