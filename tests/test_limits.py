"""What a job shares with others: memory and process limits, shared memory, a pause from outside, many ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
CGROUPS = Path("/sys/fs/cgroup")

LOG = """
import os, sys, time, trackio
trackio.init(project="p")
print("ready", flush=True); sys.stdin.readline()
for i in range(int(sys.argv[1])):
    trackio.log({"i": i, "half": i / 2}, step=i)
    if i % 100 == 0: time.sleep(float(sys.argv[2]))
print("logged", flush=True)
sys.stdin.read()
"""


@contextmanager
def cgroup(controller: str) -> Iterator[Path]:
    """A new cgroup with this controller, below the one we are in; of either version, or the test is skipped."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    old = next((path for _, names, path in lines if controller in names.split(",")), None)
    base = CGROUPS / controller / old.lstrip("/") if old is not None else CGROUPS
    folder = base / f"trackio-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no {controller} cgroup can be made here ({error})")
    try:
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: was_removed(folder), 20, "an empty cgroup")


def was_removed(folder: Path) -> bool:
    """Removes a cgroup, if its processes have gone; the kernel holds it a moment longer than it names them."""
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def write_one_of(folder: Path, choices: dict[str, str]) -> None:
    for name, value in choices.items():
        if (folder / name).exists():
            (folder / name).write_text(value)
            return
    pytest.skip(f"this cgroup has none of {', '.join(choices)}")


@needs_root
def test_a_memory_cgroup_at_its_limit_kills_nobody(daemon: Host) -> None:
    """fallocate under such a limit brings the OOM killer, not an error: the ring must keep to a part of what is left,
    and what does not fit there goes to disk."""
    fill = """
held, limit, left = [], int(sys.argv[4]), 12 << 20
while limit - int(open(sys.argv[3]).read()) > left: held.append(bytearray(b"x") * (1 << 20))
"""
    with cgroup("memory") as group:
        limit = 160 << 20
        write_one_of(group, {"memory.max": str(limit), "memory.limit_in_bytes": str(limit)})
        usage = next(group / n for n in ("memory.current", "memory.usage_in_bytes") if (group / n).exists())
        enter = f"import os, sys\nopen({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        process = daemon.python(enter + fill + LOG, "100000", "0.002", str(usage), str(limit), stdin=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n", process.communicate()
        pid = daemon.status().daemon["pid"]
        os.kill(pid, signal.SIGSTOP)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "logged\n", (process.wait(), process.communicate())
        assert spool_bytes(daemon) <= 6 << 20, "16 MiB is what it takes where there is room"
        os.kill(pid, signal.SIGCONT)
        process.communicate()
        assert process.returncode == 0
    run = daemon.ended_run("p", 60)
    wait_for(lambda: daemon.the_run("p").records + daemon.the_run("p").refused_records == 100_000, 60, "all records")
    assert daemon.the_run("p").refused_records == 0 and run.state.state == "finished"


def spool_bytes(host: Host) -> int:
    return sum(path.stat().st_size for path in host.spool.rglob("seg-*"))


@needs_root
def test_a_paused_container_is_not_declared_dead(daemon: Host) -> None:
    with cgroup("freezer") as group:
        process = daemon.python(LOG, "2000", "0.01", stdin=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"
        (group / "cgroup.procs").write_text(str(process.pid))
        process.stdin.write("\n")
        process.stdin.flush()
        wait_for(lambda: daemon.runs("p") and daemon.the_run("p").records > 100)
        write_one_of(group, {"cgroup.freeze": "1", "freezer.state": "FROZEN"})
        time.sleep(4)
        assert daemon.the_run("p").state.state == "running"
        write_one_of(group, {"cgroup.freeze": "0", "freezer.state": "THAWED"})
        process.communicate(timeout=60 * PATIENCE)
    run = daemon.ended_run("p")
    assert run.state.state == "finished" and run.records == 2000 and run.holes == []


@needs_root
@pytest.mark.trainers
def test_a_64_mib_dev_shm_is_left_to_the_dataloader(daemon: Host, tmp_path: Path) -> None:
    """What docker and kubernetes give. A mapping that grows without asking takes what a DataLoader has mapped and not
    yet touched, and it dies of SIGBUS."""
    code = """
import threading, time, torch, trackio
class Items(torch.utils.data.Dataset):
    def __len__(self): return 48
    def __getitem__(self, i): return torch.full((1 << 18,), i, dtype=torch.float32)  # a MiB
runs = []
stop = False
def burst():
    i = 0
    while not stop:
        trackio.log({"i": i, "half": i / 2}, step=i); i += 1
        if i % 500 == 0: time.sleep(0.001)
    print(i)
trackio.init(project="p")
thread = threading.Thread(target=burst); thread.start()
for epoch in range(2):
    for batch in torch.utils.data.DataLoader(Items(), batch_size=4, num_workers=2, prefetch_factor=2):
        assert batch.shape == (4, 1 << 18)
stop = True; thread.join()
"""
    # the daemon sees the same folder: its tmpfs is mounted where all see it, and over /dev/shm for the job alone
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(daemon.spool)], check=True)
    try:
        environ = daemon.environ(TRACKIO_SPOOL_DIR=str(daemon.spool))
        mounts = f"mount --bind {daemon.spool} /dev/shm && mkdir -p {daemon.spool} "
        mounts += f"&& mount --bind /dev/shm {daemon.spool}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{mounts} && exec {sys.executable} -c "$CODE"'],
            env={**environ, "CODE": code}, capture_output=True, text=True, timeout=120 * PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run = daemon.ended_run("p", 60)
        assert run.records + run.refused_records == int(done.stdout.split()[-1])
        values = [p.value for p in shown(run, "i", all_points=True)]
        assert values == sorted(set(values)) and len(values) == run.records
        daemon.stop()
    finally:
        subprocess.run(["umount", "-l", str(daemon.spool)], check=True)


def test_64_ranks_on_one_host_are_one_run_and_lose_nothing(daemon: Host) -> None:
    code = "import trackio, os\ntrackio.init(project='p')\n[trackio.log({'i': i}, step=i) for i in range(500)]"
    ranks = [
        daemon.python(code, env={"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "64",
                                 "TRACKIO_RUN_ID": "job"}, stdout=subprocess.DEVNULL)
        for n in range(64)
    ]  # fmt: skip
    for rank in ranks:
        _, err = rank.communicate(timeout=120 * PATIENCE)
        assert rank.returncode == 0, err
    run = daemon.ended_run("p", 60)
    assert (run.state.state, run.logging, run.world_size) == ("finished", 64, 64)
    assert run.records == 64 * 500 and run.refused_records == 0 and run.holes == []
    assert [p.value for p in shown(run, "i")] == list(range(500))


def test_50000_records_a_second_through_10_s_of_a_stopped_daemon_are_all_kept(daemon: Host) -> None:
    """The ring fills, what nobody takes goes to disk; afterwards everything arrives, once."""
    process = daemon.python("""
import sys, time, trackio
trackio.init(project="p")
print("ready", flush=True); sys.stdin.readline()
metrics = {f"train/metric_{n}": n / 7 for n in range(10)}
start, i = time.perf_counter(), 0
while (spent := time.perf_counter() - start) < 12:
    while i < spent * 50_000:
        metrics["i"] = i
        trackio.log(metrics, step=i)
        i += 1
    time.sleep(0.001)
print(i, flush=True)
""", stdin=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    pid = daemon.status().daemon["pid"]
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").records > 1000)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(10)
    spilled = sum(path.stat().st_size for path in (daemon.data / "spill").rglob("seg-*"))
    os.kill(pid, signal.SIGCONT)
    assert spilled > 0, "the ring is full"
    out, err = process.communicate(timeout=120 * PATIENCE)
    count = int(out)
    run = daemon.ended_run("p", 60)
    wait_for(lambda: daemon.the_run("p").records == count, 60, "all records")
    run = daemon.the_run("p")
    assert run.refused_records == 0 and run.holes == [] and "dropped" not in err
    assert [p.value for p in shown(run, "i")] == list(range(count))


def test_a_long_spill_is_drained_in_little_memory_and_others_are_served_meanwhile(host: Host) -> None:
    done = host.run("""
import random, time, trackio
run = trackio.init(project="p", name="long")
spool = run._stream.spool
values = [random.random() for _ in range(100)]
metrics = {f"train/metric_{n}": 0.5 for n in range(100)}
for i in range(120_000):
    metrics["train/metric_0"] = i
    metrics["train/metric_1"] = values[i % 100]
    trackio.log(metrics, step=i)
    while i % 500 == 0 and spool.ring.head - spool.ring.oldest > spool.room_bytes // 2: time.sleep(0.01)
""", seconds=120)  # fmt: skip
    assert done.returncode == 0
    spilled = sum(path.stat().st_size for path in (host.data / "spill").rglob("seg-*"))
    assert spilled > 200 << 20, "it is long"
    host.start()
    host.run("import trackio\ntrackio.init(project='q')\ntrackio.log({'a': 1})")
    wait_for(lambda: host.runs("p") and host.the_run("p").state.state == "finished", 120, "the end")
    run = host.the_run("p")
    assert run.records + run.refused_records == 120_000 and run.holes == [] and run.refused_records == 0
    assert host.ended_run("q").points == 1
    status = Path(f"/proc/{host.status().daemon['pid']}/status").read_text()
    peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 200, "MB"
    wait_for(lambda: not list((host.data / "spill").rglob("seg-*")))
