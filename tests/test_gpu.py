"""The sampler on a real NVIDIA GPU, beside `nvidia-smi`; skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
from conftest import Host, wait_for
from test_sampler import names, rows, values

pytestmark = pytest.mark.skipif(
    shutil.which("nvidia-smi") is None, reason="needs an NVIDIA GPU; tests/test_sampler.py runs over a stand-in"
)

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
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a torch that knows CUDA")
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
