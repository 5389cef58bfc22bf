"""What a call costs that logs a picture, a table, a histogram or an artifact; and what it is beside a plain copy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Figure
from trackio.places import Places

_CALLS = """
import json, os, sys, time
import numpy as np, pandas as pd
import trackio
trackio.init(project="bench", name="media")
folder = sys.argv[1]
clock = time.perf_counter
def timed(call, count=200):
    call(0)
    times = []
    for n in range(count):
        start = clock(); call(n); times.append(clock() - start)
        time.sleep(0.005)
    times.sort()
    return times[count // 2], times[count * 99 // 100]
pixels = np.random.randint(0, 255, (512, 512, 3), dtype=np.uint8)
gradients = np.random.randn(100_000).astype(np.float32)
rows = [[n, f"prompt {n} " * 5, f"completion {n} " * 10, n / 7] for n in range(1000)]
frame = pd.DataFrame(rows, columns=["step", "prompt", "completion", "reward"])
size = 1 << 30
path = os.path.join(folder, "checkpoint.bin")
with open(path, "wb") as file:
    for _ in range(size >> 24): file.write(os.urandom(1 << 24))
def plain(n):
    with open(os.path.join(folder, f"plain{n}"), "wb") as file: file.write(pixels.data)
found = {
    "plain": timed(plain),
    "image": timed(lambda n: trackio.log({"img": trackio.Image(pixels)})),
    "table": timed(lambda n: trackio.log({"t": trackio.Table(columns=list("abcd"), data=rows)}), 50),
    "frame": timed(lambda n: trackio.log({"t": trackio.Table(dataframe=frame)}), 50),
    "histogram": timed(lambda n: trackio.log({"h": trackio.Histogram(gradients)}), 50),
}
def artifact(n):
    os.link(path, f"{path}-{n}")
    trackio.log_artifact(f"{path}-{n}", name=f"a{n}")
found["artifact"] = timed(artifact, 3)
print(json.dumps(found))
"""


def measure(where: Places, pid: int) -> Iterator[Figure]:
    """All of these, in one process; a daemon keeps the files beside it."""
    folder = Path(where.data) / "sources"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", _CALLS, str(folder)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    plain = found["plain"][0] * 1e6
    write = "a file of these bytes"
    yield Figure("log() of an Image of 512 x 512 x 3, median", found["image"][0] * 1e6, "us", 300, write, plain)
    yield Figure("log() of an Image of 512 x 512 x 3, p99", found["image"][1] * 1e6, "us")
    yield Figure("log() of a Table of 1,000 rows of 4, median", found["table"][0] * 1e3, "ms", 2)
    yield Figure("log() of a Table of a data frame of 1,000 rows, median", found["frame"][0] * 1e3, "ms", 2)
    yield Figure("log() of a Histogram of 100,000 floats, median", found["histogram"][0] * 1e3, "ms")
    yield Figure("log_artifact() of a file of 1 GiB, median", found["artifact"][0] * 1e3, "ms")
