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
def timed(call, count=100, pause=0.0):
    call(count)
    times = []
    for n in range(count):
        start = clock(); call(n); times.append(clock() - start)
        time.sleep(pause)
    times.sort()
    return times[count // 2], times[count * 99 // 100]
pixels = np.random.randint(0, 255, (512, 512, 3), dtype=np.uint8)
gradients = np.random.randn(100_000).astype(np.float32)
rows = [[n, f"prompt {n} " * 5, f"completion {n} " * 10, n / 7] for n in range(1000)]
frame = pd.DataFrame(rows, columns=["step", "prompt", "completion", "reward"])
path = os.path.join(folder, "checkpoint.bin")
def plain(n):
    with open(os.path.join(folder, f"plain{n}"), "wb") as file: file.write(pixels.data)
gray = pixels[:, :, 0].copy()
found = {
    "plain": timed(plain),
    "image": timed(lambda n: trackio.log({"img": trackio.Image(pixels)})),
    "gray": timed(lambda n: trackio.log({"img": trackio.Image(gray)})),
    "plain_paced": timed(plain, 100, 0.03),
    "paced": timed(lambda n: trackio.log({"img": trackio.Image(pixels)}), 100, 0.03),
    "table": timed(lambda n: trackio.log({"t": trackio.Table(columns=list("abcd"), data=rows)}), 50),
    "frame": timed(lambda n: trackio.log({"t": trackio.Table(dataframe=frame)}), 50),
    "histogram": timed(lambda n: trackio.log({"h": trackio.Histogram(gradients)}), 50),
}
with open(path, "wb") as file:
    for _ in range(64): file.write(os.urandom(1 << 24))
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
    for name, key, reference, bound in (
        ("an Image of 512 x 512 x 3 in a burst", "image", "plain", 300),
        ("an Image of 512 x 512 in a burst", "gray", "", 300),
        ("an Image of 512 x 512 x 3, 30 a second", "paced", "plain_paced", None),
    ):
        plain = found[reference][0] * 1e6 if reference else None
        yield Figure(f"log() of {name}, median", found[key][0] * 1e6, "us", bound, "a file of these bytes", plain)
        yield Figure(f"log() of {name}, p99", found[key][1] * 1e6, "us")
    yield Figure("log() of a Table of 1,000 rows of 4, median", found["table"][0] * 1e3, "ms", 2)
    yield Figure("log() of a Table of a data frame of 1,000 rows, median", found["frame"][0] * 1e3, "ms", 2)
    yield Figure("log() of a Histogram of 100,000 floats, median", found["histogram"][0] * 1e3, "ms")
    yield Figure("log_artifact() of a file of 1 GiB, median", found["artifact"][0] * 1e3, "ms")
