"""What tracking costs a training on a real GPU, and what sampling it costs: needs PyTorch with CUDA, and a device.

The same training in fresh processes, in turns: without a tracker, with one, and with a sampler that looks ten times a
second. Every step ends in `loss.item()`, as trainers do where they log each step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

import psutil

from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control

_ROUNDS = 3
_SECONDS = 2.0
_IDLE_SECONDS = 20

_STEPS = """
import json, os, sys, time, torch
way, width, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
if way != "none":
    import trackio
    trackio.init(project="bench", name=way)
torch.manual_seed(0)
net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4))).cuda()
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
batch = torch.randn(256, width, device="cuda")
def step():
    loss = net(batch).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss
for _ in range(200): step().item()
torch.cuda.synchronize()
times, begun = [], time.perf_counter()
while time.perf_counter() - begun < seconds:
    start = time.perf_counter()
    loss = step()
    if way == "tensor":
        trackio.log({"loss": loss, **{f"m{i}": i * 0.5 for i in range(9)}})
    else:
        value = loss.item()
        if way != "none":
            trackio.log({"loss": value, **{f"m{i}": i * 0.5 for i in range(9)}})
    times.append(time.perf_counter() - start)
if way != "none":
    trackio.finish()
times.sort()
print(json.dumps({"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}))
"""

_SAMPLED = """
import sys, torch, trackio
trackio.init(project="bench", name="idle")
torch.zeros(1, device="cuda")
print("ready", flush=True)
sys.stdin.read()
"""


def measure(where: Places) -> list[Figure]:
    """Starts daemons of its own. Raises RuntimeError where there is no GPU for PyTorch."""
    if subprocess.run(
        [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"], capture_output=True
    ).returncode:
        raise RuntimeError("The part gpu needs PyTorch with CUDA, and a device.")
    return [*_steps(where, 256, "a step of four layers of 256"), *_steps(where, 4096, "a step of four layers of 4,096"),
            *_sampler(where)]  # fmt: skip


def _steps(where: Places, width: int, what: str) -> list[Figure]:
    ways = {"none": "0", "floats": "0", "tensor": "0", "sampled": "0.1"}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, interval in ways.items():
            _restart(where, interval)
            arguments = [way if way != "sampled" else "floats", str(width), str(_SECONDS)]
            done = subprocess.run(
                [sys.executable, "-c", _STEPS, *arguments], capture_output=True, text=True, check=True
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))

    def median(way: str, key: str) -> float:
        return statistics.median(one[key] for one in found[way])

    named = {
        "none": "no tracker", "floats": "log() of 10 floats", "tensor": "log() with the loss on the GPU",
        "sampled": "log() of 10 floats, sampled every 0.1 s",
    }  # fmt: skip
    return [
        Figure(f"{what}, {named[way]}, {name}", median(way, key), "µs", None, "no tracker", median("none", key))
        for key, name in (("p50", "median"), ("p99", "p99"))
        for way in ways
    ]


def _sampler(where: Places) -> list[Figure]:
    """The sampler's CPU over one GPU that a process holds."""
    found = []
    for interval in ("5", "0.5"):
        _restart(where, interval)
        trainer = subprocess.Popen(
            [sys.executable, "-c", _SAMPLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert trainer.stdout is not None
        trainer.stdout.readline()
        sampler = _process(where)
        time.sleep(5)
        before = sum(sampler.cpu_times()[:2])
        time.sleep(_IDLE_SECONDS)
        used = sum(sampler.cpu_times()[:2]) - before
        found.append(
            Figure(f"one GPU every {interval} s: the sampler's CPU", 100 * used / _IDLE_SECONDS, "% of a core")
        )
        found.append(Figure(f"one GPU every {interval} s: its memory", sampler.memory_info().rss / 1e6, "MB"))
        trainer.communicate()
    return found


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def _restart(where: Places, interval: str) -> None:
    control.stop(where, "benchmark")
    os.environ |= {"TRACKIO_SAMPLING": "0" if interval == "0" else "1", "TRACKIO_SAMPLE_SECONDS": interval}
    if interval == "0":
        del os.environ["TRACKIO_SAMPLE_SECONDS"]
    control.start(where)


def _process(where: Places) -> psutil.Process:
    while True:
        report = control.status(where)
        facts = report.daemon["sampler"] if report else None
        if facts and facts["pids"] and facts["pids"][0]:
            return psutil.Process(facts["pids"][0])
        time.sleep(0.1)
