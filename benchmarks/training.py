"""What tracking costs a training's steps, and what sampling its GPU costs: with PyTorch, on a GPU where there is one.

Four linear layers, in steps that end in `loss.item()` as trainers' do where they log each. Stretches of steps with and
without `log()` alternate within one process, since two processes of the same code differ by more than a tracker costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks import processes
from benchmarks.processes import python
from benchmarks.report import Figure
from trackio.places import Places
from trackiod import control

_PROCESSES = 3
_SECONDS = 12.0
_IDLE_SECONDS = 20

_STEPS = """
import json, random, sys, time, torch, trackio
width, seconds = int(sys.argv[1]), float(sys.argv[2])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(1)
trackio.init(project="bench", name="steps")
net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(4))).to(device)
optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
batch = torch.randn(64, width, device=device)
rest = {f"m{i}": i * 0.5 for i in range(9)}
def step():
    loss = net(batch).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss
def plain(): metrics = {"loss": step().item(), **rest}
def number(): trackio.log({"loss": step().item(), **rest})
def tensor(): trackio.log({"loss": step(), **rest})
ways = {"plain": plain, "number": number, "tensor": tensor}
means = {way: [] for way in ways}
clock = time.perf_counter
for _ in range(300): step().item()
end = clock() + seconds
while clock() < end:
    for way in random.sample([*ways], len(ways)):
        time.sleep(0.2)  # what was logged is shipped
        run = ways[way]
        for _ in range(20): run()
        times = []
        for _ in range(100):
            start = clock(); run(); times.append(clock() - start)
        means[way].append(sum(times) / len(times))
trackio.finish()
more = {way: [a - b for a, b in zip(means[way], means["plain"])] for way in ways}
median = lambda values: sorted(values)[len(values) // 2] * 1e6
print(json.dumps({"device": device, **{way: median(means[way]) for way in ways},
    **{f"more_{way}": median(more[way]) for way in ("number", "tensor")}}))
"""

_SAMPLED = """
import sys, torch, trackio
trackio.init(project="bench", name="idle")
torch.zeros(1, device="cuda")
print("ready", flush=True)
sys.stdin.read()
"""

_DRIVER = """
import cProfile, json, pstats, time, pynvml
from trackiod.sampler import nvml
from trackiod.sampler.gpus import Gpus
gpus = Gpus()
device = gpus.devices[0]
def read(): gpus.read(device, time.monotonic()); gpus.uses(device)
read()
profile = cProfile.Profile()
for _ in range(50):
    time.sleep(0.1)
    profile.runcall(read)
found = {name: seconds / 50 * 1e3 for (_, _, name), (_, _, _, seconds, _) in pstats.Stats(profile).stats.items()
         if name.startswith("nvmlDevice") or name == "read"}
for name, (field, _) in nvml.FIELDS.items():
    if name not in device.never:
        begun = time.perf_counter()
        for _ in range(20): pynvml.nvmlDeviceGetFieldValues(device.handle, [(field, 0)])
        found["field " + name] = (time.perf_counter() - begun) / 20 * 1e3
print(json.dumps(found))
"""
_MOST_CALLS = 12


def measure(where: Places) -> list[Figure]:
    """Starts daemons of its own; what samples GPUs is measured where PyTorch has one."""
    found = [*_steps(where, 256), *_steps(where, 1024)]
    return [*found, *((*_sampler(where), *_driver()) if _has_gpu() else ())]


def _has_gpu() -> bool:
    return python("import torch; print(torch.cuda.is_available())") == "True"


def _steps(where: Places, width: int) -> list[Figure]:
    _restart(where, None)
    found = [json.loads(python(_STEPS, str(width), str(_SECONDS))) for _ in range(_PROCESSES)]

    def median(key: str) -> float:
        return statistics.median(one[key] for one in found)

    what = f"layers of {width}, {found[0]['device']}"
    plain = ("the step without it", median("plain"))
    return [
        Figure(f"{what}: a step with log() of 10 floats", median("number"), "µs", None, *plain),
        Figure(f"{what}: what log() adds to it", median("more_number"), "µs"),
        Figure(f"{what}: a step with log() of the loss as a tensor", median("tensor"), "µs", None, *plain),
        Figure(f"{what}: what that adds to it", median("more_tensor"), "µs"),
    ]


def _sampler(where: Places) -> list[Figure]:
    """The sampler's CPU and memory over one GPU that a process holds."""
    found = []
    for interval in ("5", "0.5"):
        _restart(where, interval)
        trainer = subprocess.Popen(
            [sys.executable, "-c", _SAMPLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert trainer.stdout is not None
        trainer.stdout.readline()
        sampler = processes.sampler(where)
        time.sleep(5)
        before = processes.cpu_seconds(sampler.pid)
        time.sleep(_IDLE_SECONDS)
        used = processes.cpu_seconds(sampler.pid) - before
        found += [
            Figure(f"one GPU every {interval} s: the sampler's CPU", 100 * used / _IDLE_SECONDS, "% of a core"),
            Figure(f"one GPU every {interval} s: its memory", sampler.memory_info().rss / 1e6, "MB"),
        ]
        trainer.communicate()
    return found


def _driver() -> list[Figure]:
    """The driver's calls and fields that take the longest, for one device."""
    found = sorted(json.loads(python(_DRIVER)).items(), key=lambda pair: -pair[1])
    return [Figure(f"one sample of a device: {name}", ms, "ms") for name, ms in found[:_MOST_CALLS]]


def _restart(where: Places, interval: str | None) -> None:
    """A new daemon, that samples so often."""
    control.stop(where, "benchmark")
    its_own = {"TRACKIO_SAMPLING": "0"} if interval is None else {"TRACKIO_SAMPLE_SECONDS": interval}
    os.environ |= its_own
    try:
        control.start(where)
    finally:
        for name in its_own:
            del os.environ[name]
