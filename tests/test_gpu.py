"""The sampler on a real NVIDIA GPU, beside `nvidia-smi`; skipped where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import PIL.Image
import pytest
from conftest import Host, wait_for
from test_sampler import names, rows, values

pytestmark = pytest.mark.skipif(
    shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU; tests/test_sampler.py runs over a stand-in"
)


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("needs a torch that knows CUDA")


HOLDER = """
import sys, torch
held = torch.zeros(1 << 28, device="cuda")
print("ready", flush=True)
sys.stdin.read()
"""
VALUES = """
import time, torch, trackio
run = trackio.init(project="p", name="r")
net = torch.nn.Linear(8, 4, device="cuda", dtype=torch.bfloat16)
trackio.watch(net, log="all", log_freq=1)
loss = net(torch.ones(2, 8, device="cuda", dtype=torch.bfloat16)).square().mean()
loss.backward()
trackio.log({
    "loss": torch.tensor(0.1, device="cuda"), "half": torch.tensor(0.5, device="cuda", dtype=torch.bfloat16),
    "tokens": torch.tensor(1 << 40, device="cuda"), "graph": loss,
    "spread": trackio.Histogram(torch.arange(100.0, device="cuda")),
    "picture": trackio.Image(torch.full((3, 4, 5), 0.5, device="cuda")),
})
print(loss.item())
for _ in range(100):
    sample = trackio.log_gpu()
    if "gpu/0/power" in sample: break
    time.sleep(0.1)
print(sample["gpu/0/total_memory"])
trackio.finish()
"""
STEPS = """
import os, sys, time, torch, trackio
run = trackio.init(project="p", name="r")
layer = torch.nn.Linear(4096, 4096, device="cuda")
optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
batch = torch.randn(1024, 4096, device="cuda")
print("ready", flush=True)
started = time.monotonic()
while time.monotonic() - started < 20:
    loss = layer(batch).square().mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    trackio.log({"loss": loss.item()})
print(torch.cuda.max_memory_allocated(), flush=True)
"""
ASKED = {
    "memory.total": "gpu/0/total_memory",
    "power.limit": "gpu/0/power_limit",
    "clocks.max.sm": "gpu/0/max_sm_clock",
    "clocks.max.memory": "gpu/0/max_memory_clock",
    "ecc.errors.uncorrected.volatile.total": "gpu/0/uncorrected_memory_errors",
    "temperature.gpu": "gpu/0/temp",
    "memory.used": "gpu/0/allocated_memory",
}


def smi() -> dict[str, Any]:
    """What nvidia-smi says of the first GPU, numbers only, in our units."""
    done = subprocess.run(
        ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = dict(zip(ASKED, (word.strip() for word in done.stdout.split(",")), strict=True))
    found = {name: float(word) for name, word in said.items() if word.replace(".", "", 1).isdigit()}
    return {name: value / 1024 if name.startswith("memory.") else value for name, value in found.items()}


def test_two_ranks_that_train_on_one_gpu_are_seen_as_nvidia_smi_sees_them(host: Host) -> None:
    host.extra.update(TRACKIO_SAMPLING="1", TRACKIO_SAMPLE_SECONDS="0.5")
    host.start()
    launcher = {"WORLD_SIZE": "2", "TRACKIO_RUN_ID": "one", "CUDA_VISIBLE_DEVICES": "0"}
    ranks = [host.python(STEPS, env={**launcher, "RANK": str(n), "LOCAL_RANK": str(n)}) for n in range(2)]
    assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 2
    wait_for(lambda: len(rows(host, "r", "gpu/0/power")) > 10, 60, "samples of the GPU")
    told = smi()
    ours = {name: values(host, "r", metric)[-1] for name, metric in ASKED.items() if metric in names(host, "r")}
    for name, value in told.items():
        if name in ours:
            assert ours[name] == pytest.approx(value, rel=0.1, abs=3), name
    assert {row.rank for row in rows(host, "r", "gpu/0/process_memory")} == {0, 1}
    allocated = [int(rank.stdout.readline()) / (1 << 30) for rank in ranks]
    for number, least in enumerate(allocated):
        used = [row.metrics["gpu/0/process_memory"] for row in rows(host, "r", "gpu/0/process_memory")
                if row.rank == number]  # fmt: skip
        assert max(used) >= least
    assert max(values(host, "r", "gpu/0/utilization")) > 50
    host.ended_run("p")
    energy = host.cli("get", "run", "--project", "p", "--run", "r")["energy_joules"]
    watts = values(host, "r", "gpu/0/power")
    seconds = (rows(host, "r", "gpu/0/power")[-1].time_ns - rows(host, "r", "gpu/0/power")[0].time_ns) / 1e9
    assert energy == pytest.approx(sum(watts) / len(watts) * seconds, rel=0.3)


def test_values_that_lie_on_the_gpu_come_back_as_they_were(host: Host) -> None:
    host.extra.update(TRACKIO_SAMPLING="1", TRACKIO_SAMPLE_SECONDS="0.5")
    host.start()
    done = host.run(VALUES, seconds=120)
    assert done.returncode == 0, done.stderr
    graph, memory = map(float, done.stdout.split())
    assert memory == pytest.approx(smi()["memory.total"])
    host.ended_run("p")

    def last(metric: str) -> Any:
        command = ("get", "metric", "--project", "p", "--run", "r", "--metric", metric)
        return host.cli(*command)["values"][-1]["value"]

    assert (last("loss"), last("half"), last("tokens")) == (pytest.approx(0.1, rel=1e-6), 0.5, 1 << 40)
    assert last("graph") == graph
    assert sum(last("spread")["values"]) == 100
    assert sum(last("gradients/weight")["values"]) == sum(last("parameters/weight")["values"]) == 32
    found = wait_for(lambda: "not kept yet" not in str(v := last("picture")) and v, what="the picture")
    with PIL.Image.open(found["file_path"]) as picture:
        assert picture.size == (5, 4) and picture.getextrema() == ((128, 128),) * 3


def test_a_stranger_on_the_gpu_counts_and_is_nobody_s_and_the_sampler_holds_none_of_it(host: Host) -> None:
    host.extra.update(TRACKIO_SAMPLING="1", TRACKIO_SAMPLE_SECONDS="0.5")
    host.start()
    stranger = host.python(HOLDER, stdin=subprocess.PIPE)
    ours = host.python("import trackio; trackio.init(project='p', name='r')" + HOLDER, stdin=subprocess.PIPE)
    assert stranger.stdout.readline() == ours.stdout.readline() == "ready\n"
    many = wait_for(lambda: [n for n in values(host, "r", "gpu/0/processes") if n >= 2][3:], 60, "samples of both")
    assert many[-1] == len(running())
    used = rows(host, "r", "gpu/0/process_memory")
    assert 1.0 <= used[-1].metrics["gpu/0/process_memory"] < 2.0  # its tensor of a GiB and not the other's
    report = host.status()
    assert report is not None
    samplers = report.daemon["sampler"]["pids"]
    assert not running() & {report.daemon["pid"], *samplers}
    assert any(device_files(pid) for pid in samplers if pid)
    for process in (ours, stranger):
        process.communicate()
    wait_for(lambda: not any(device_files(pid) for pid in samplers if pid), 60, "the driver to be let go")


def running() -> set[int]:
    """The processes that compute on a GPU, as nvidia-smi has them."""
    done = subprocess.run(
        ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return {int(word) for word in done.stdout.split()}


def device_files(pid: int) -> list[str]:
    """The GPU's device files that a process holds open."""
    try:
        files = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []
    return [name for name in files if name.startswith("/dev/nvidia")]
