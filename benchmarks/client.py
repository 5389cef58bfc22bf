"""What the client costs the training process: import, init, log, finish. Each in fresh processes."""

from __future__ import annotations

import json
import statistics

from benchmarks.processes import python
from benchmarks.report import Figure

_PROCESSES = 9
_LOG_PROCESSES = 5
_LOGS = 100_000
_WIDE_LOGS = 1_000

_IMPORT = """
import time; start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1e3)
"""

_LIFE = """
import json, sys, time
import trackio
clock = time.perf_counter
out = {}
start = clock()
run = trackio.init(project="bench", name=sys.argv[1], resume=sys.argv[2])
out["init_ms"] = (clock() - start) * 1e3
for i in range(100): trackio.log({"loss": 0.5})
time.sleep(0.5)
start = clock(); trackio.finish(); out["finish_ms"] = (clock() - start) * 1e3
print(json.dumps(out))
"""

_LOG = """
import json, sys, time
import msgpack
import trackio
run = trackio.init(project="bench", name="log")
count, width = int(sys.argv[1]), int(sys.argv[2])
metrics = {f"train/metric_{i}": i * 0.5 for i in range(width)}
clock = time.perf_counter_ns
for _ in range(200): trackio.log(metrics)
times = []
for _ in range(count):
    start = clock(); trackio.log(metrics); times.append(clock() - start)
times.sort()
packer = msgpack.Packer(autoreset=True)
packs = []
for _ in range(count):
    start = clock(); packer.pack(metrics); packs.append(clock() - start)
packs.sort()
time.sleep(2)
before = time.process_time()
for _ in range(count): trackio.log(metrics)
burst = (time.process_time() - before) / count
time.sleep(2)
whole = (time.process_time() - before) / count
run._stream.deliver(30)
print(json.dumps({
    "p50": times[count // 2] / 1e3, "p99": times[count * 99 // 100] / 1e3, "p999": times[count * 999 // 1000] / 1e3,
    "pack": packs[count // 2] / 1e3, "cpu": whole * 1e6, "cpu_burst": burst * 1e6,
    "refused": run._stream.spool.refused[0], "logs": 200 + 2 * count,
}))
"""


def measure() -> list[Figure]:
    """All of the client's figures; a daemon runs."""
    return [*_imports(), *_lives(), *_logs()]


def _imports() -> list[Figure]:
    def median(module: str) -> float:
        python(_IMPORT.format(module=module))  # its bytecode is there now
        return statistics.median(float(python(_IMPORT.format(module=module))) for _ in range(_PROCESSES))

    reference = median("typing, socket, hashlib, threading, msgpack")
    return [Figure("import trackio", median("trackio"), "ms", 40, "its standard modules and msgpack alone", reference)]


def _lives() -> list[Figure]:
    found = {
        resume: [json.loads(python(_LIFE, f"life-{resume}", resume)) for _ in range(_PROCESSES)]
        for resume in ("never", "allow")
    }

    def median(resume: str, key: str) -> float:
        return statistics.median(life[key] for life in found[resume])

    return [
        Figure('init(), resume="never"', median("never", "init_ms"), "ms", 10),
        Figure('init(), resume="allow"', median("allow", "init_ms"), "ms", 60),
        Figure("finish()", median("never", "finish_ms"), "ms", 50),
    ]


def _logs() -> list[Figure]:
    ten, wide = _medians(_LOGS, 10), _medians(_WIDE_LOGS, 1000)
    pack = "msgpack.pack of the same dict"
    return [
        Figure("log() of 10 floats in a burst, median", ten["p50"], "µs", 4, pack, ten["pack"]),
        Figure("log() of 10 floats in a burst, p99", ten["p99"], "µs", 15),
        Figure("log() of 10 floats in a burst, p99.9", ten["p999"], "µs"),
        Figure("log() of 1,000 floats, median", wide["p50"], "µs", 100, pack, wide["pack"]),
        Figure("CPU per log() over all threads, shipping included", ten["cpu"], "µs", 6, pack, ten["pack"]),
        Figure(f"refused of {ten['logs']:,.0f} log() calls at full speed", ten["refused"], "records"),
    ]


def _medians(count: int, width: int) -> dict[str, float]:
    """The median over several processes of each figure: a noisy neighbour spoils one of them, not all."""
    found = [json.loads(python(_LOG, str(count), str(width))) for _ in range(_LOG_PROCESSES)]
    return {key: statistics.median(each[key] for each in found) for key in found[0]}
