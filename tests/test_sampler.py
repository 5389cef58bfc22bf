"""The sampler, with the real pynvml over a stand-in of the driver's library and the real psutil over this host."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import standin
from conftest import Host, wait_for
from test_alerts import Hook
from test_alerts import hook as hook
from test_limits import cgroup

from trackio.names import HOST
from trackiod import node
from trackiod.sampler import table
from trackiod.store import points
from trackiod.store.reader import ProjectReader
from trackiod.store.schema import path_of

pytestmark = pytest.mark.skipif(standin.compiler() is None, reason="needs a C compiler for the driver's stand-in")

TRAINING = """
import os, sys, time, trackio
run = trackio.init(project=sys.argv[1], name=sys.argv[2], **eval(sys.argv[3]))
print(os.getpid(), flush=True)
started = time.monotonic()
while time.monotonic() - started < float(sys.argv[4]):
    trackio.log({"loss": 1.0})
    time.sleep(0.05)
trackio.finish()
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the driver's stand-in."""
    return standin.build(tmp_path_factory.mktemp("nvml")).parent


@pytest.fixture
def script(host: Host, library: Path, tmp_path: Path) -> standin.Script:
    """A host whose daemon samples ten times a second, with eight GPUs."""
    script = standin.Script(tmp_path / "script")
    host.extra.update(
        TRACKIO_SAMPLING="1",
        TRACKIO_SAMPLE_SECONDS="0.1",
        TRACKIO_STANDIN_NVML=str(script.path),
        LD_LIBRARY_PATH=str(library),
    )
    host.start()
    return script


class Training:
    """A process that logs until it is ended."""

    def __init__(self, host: Host, project: str, name: str, options: dict[str, Any] | None = None, **env: str) -> None:
        self.process = host.python(TRAINING, project, name, repr(options or {}), "300", env=env)
        self.pid = int(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def train(host: Host) -> Iterator[Callable[..., Training]]:
    """Starts trainings."""
    yield lambda project="p", name="r", options=None, **env: Training(host, project, name, options, **env)


def node_reader(host: Host) -> ProjectReader | None:
    path = path_of(host.places.projects, HOST)
    if not os.path.exists(path):
        return None
    host.readers.append(ProjectReader(path))
    return host.readers[-1]


def stored(host: Host, name: str) -> list[Any]:
    """All values of a stored series, over all samplers."""
    reader = node_reader(host)
    if reader is None:
        return []
    found = []
    for stream in reader.streams(["node"]):
        found += points.columns(reader, stream.id, frozenset({name}))[name].values.tolist()
    return found


def rows(host: Host, run: str, metric: str | None = None, project: str = "p") -> list[node.Row]:
    """The system view of a run."""
    view = next((v for v in host.runs(project) if v.name == run), None)
    if view is None:
        return []
    with node.SystemView(host.places.projects, view) as system:
        return system.rows(metric)


def names(host: Host, run: str, project: str = "p") -> list[str]:
    view = next((v for v in host.runs(project) if v.name == run), None)
    if view is None:
        return []
    with node.SystemView(host.places.projects, view) as system:
        return system.names


def values(host: Host, run: str, metric: str) -> list[Any]:
    return [row.metrics[metric] for row in rows(host, run, metric)]


def sampler_pid(host: Host) -> int | None:
    report = host.status()
    facts = report.daemon["sampler"] if report else None
    return facts["pids"][0] if facts and facts["pids"] and facts["pids"][0] else None


def alerts(host: Host) -> list[str]:
    done = host.cli("list", "alerts", "--project", "p")
    return [f"{a['title']}: {a['text']}" for a in done["alerts"]]


# -- what is sampled ---------------------------------------------------------------------------------------------------


def test_every_metric_of_a_gpu_is_read_in_its_unit_and_nothing_is_stored_that_the_table_does_not_name(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(f"2 process {training.pid} {3 << 30} 33", "2 xid 79")
    view = {metric.name for room in (table.GPU, table.GPU_PROCESS, table.DERIVED) for metric in room.metrics}
    shown = {f"gpu/2/{name}" for name in view - {"is_there", "memory"}} | {"gpu/2/process_memory"}
    shown -= {f"gpu/2/{metric.name}" for metric in table.GPU_PROCESS.metrics}
    shown |= {"gpu/2/utilization", "gpu/2/process_utilization"}
    found = wait_for(
        lambda: (f := {n for n in names(host, "r") if n.startswith("gpu/")}) >= shown and f, 30, "all metrics"
    )
    assert found == shown
    last = {name: values(host, "r", name)[-1] for name in found}
    assert last["gpu/2/utilization"] == 25 and last["gpu/2/memory_utilization"] == 3
    assert last["gpu/2/allocated_memory"] == 3.0 and last["gpu/2/total_memory"] == 80.0
    assert last["gpu/2/memory_usage"] == 3 / 80
    assert last["gpu/2/power"] == 120.0 and last["gpu/2/power_limit"] == 700.0
    assert last["gpu/2/temp"] == 42 and last["gpu/2/memory_temp"] == 52
    assert last["gpu/2/sm_clock"] == 1980 and last["gpu/2/max_memory_clock"] == 2619
    assert last["gpu/2/process_memory"] == 3.0 and last["gpu/2/process_utilization"] == 33
    assert last["gpu/2/pcie_tx"] == pytest.approx(3e6 / (1 << 20), rel=0.05)
    assert last["gpu/2/nvlink_rx"] == pytest.approx(3e6 / (1 << 20), rel=0.05)
    assert last["gpu/2/xid"] == 79
    wait_for(  # a sample may come between the two
        lambda: values(host, "r", "gpu/2/energy_consumed")[-1] == pytest.approx(sum(values(host, "r", "gpu/2/energy"))),
        10, "a sum of energy that is that of its parts",
    )  # fmt: skip
    assert any(alert.startswith("Xid 79: GPU 2") for alert in alerts(host))


def test_the_host_is_read_as_psutil_has_it(host: Host, script: standin.Script, train: Callable[..., Training]) -> None:
    training = train()
    wait_for(lambda: len(values(host, "r", "process/cpu")) > 3, 30, "samples of the process")
    known = {metric.name for metric in table.HOST.metrics}
    patterns = {name for name in known if "{" in name}
    found = [n for n in names(host, "r") if not n.startswith(("process/", "cgroup/", "gpu/"))]
    for name in found:
        assert name in known or any(name.startswith(p.split("{")[0]) for p in patterns), name
    assert {"cpu/utilization", "cpu/0/utilization", "memory/used", "disk/free", "swap/total", "cpu/load_1"} <= {*found}
    assert values(host, "r", "memory/total")[-1] == pytest.approx(psutil.virtual_memory().total / (1 << 30))
    assert values(host, "r", "disk/free")[-1] == pytest.approx(psutil.disk_usage(str(host.data)).free / 2**30, rel=0.1)
    process = psutil.Process(training.pid)
    assert values(host, "r", "process/memory")[-1] == pytest.approx(process.memory_info().rss / (1 << 30), rel=0.2)
    assert values(host, "r", "process/threads")[-1] == process.num_threads()
    assert values(host, "r", "process/files")[-1] == process.num_fds()
    assert {row.rank for row in rows(host, "r", "process/memory")} == {0}
    assert all(0 <= value <= 100 for value in values(host, "r", "cpu/utilization"))


def test_the_node_is_sampled_once_whatever_the_number_of_ranks_and_runs(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    ranks = [
        train("p", "r", RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE="4", TRACKIO_RUN_ID="one", MASTER_ADDR="localhost")
        for i in range(4)
    ]
    other = train("q", "s")
    uses = [f"{i} process {rank.pid} {1 << 30} {10 * i}" for i, rank in enumerate(ranks)]
    script.set(*uses, f"0 process {other.pid} {2 << 30} 7")
    wait_for(lambda: len(rows(host, "r", "gpu/3/process_memory")) > 5, 30, "samples of all ranks")
    wait_for(lambda: len(rows(host, "s", "gpu/0/power", "q")) > 5, 30, "samples of the other run")
    reader = node_reader(host)
    assert reader is not None
    assert len(reader.streams(["node"])) == 1
    assert len(reader.names(reader.streams(["node"])[0].id)) == len(set(reader.names(reader.streams(["node"])[0].id)))
    times = [row.time_ns for row in rows(host, "r", "gpu/1/power")]
    assert len(times) == len(set(times))
    # each run sees its own: its GPUs, its ranks, and of the GPU they share what each uses
    assert {n.split("/")[1] for n in names(host, "r") if n.startswith("gpu/")} == {"0", "1", "2", "3"}
    assert {n.split("/")[1] for n in names(host, "s", "q") if n.startswith("gpu/")} == {"0"}
    memory = rows(host, "r", "gpu/0/process_memory")
    assert {(row.rank, row.metrics["gpu/0/process_memory"]) for row in memory} == {(0, 1.0)}
    assert {row.metrics["gpu/0/process_memory"] for row in rows(host, "s", "gpu/0/process_memory", "q")} == {2.0}
    assert {row.rank for row in rows(host, "r", "process/memory")} == {0, 1, 2, 3}
    assert {row.rank for row in rows(host, "s", "process/memory", "q")} == {0}


def test_a_run_that_starts_later_sees_only_its_own_time_on_its_gpu(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    first = train("p", "first")
    script.set(f"0 process {first.pid} 1 1")
    wait_for(lambda: len(rows(host, "first", "gpu/0/power")) > 3, 30, "samples of the first run")
    started_ns = time.time_ns()
    second = train("p", "second")
    wait_for(lambda: len(rows(host, "second", "process/memory")) > 3, 30, "samples of the second run's process")
    assert not any(name.startswith("gpu/") for name in names(host, "second"))
    script.set(f"0 process {first.pid} 1 1", f"0 process {second.pid} 1 1")
    wait_for(lambda: len(rows(host, "second", "gpu/0/power")) > 3, 30, "its GPU")
    assert all(row.time_ns > started_ns for row in rows(host, "second"))
    assert len(rows(host, "first", "gpu/0/power")) > len(rows(host, "second", "gpu/0/power"))
    first.end()
    last = wait_for(lambda: rows(host, "first", "gpu/0/power"), 5)[-1].time_ns
    more = len(rows(host, "second", "gpu/0/power")) + 5
    wait_for(lambda: len(rows(host, "second", "gpu/0/power")) > more, 30, "more samples")
    assert rows(host, "first", "gpu/0/power")[-1].time_ns - last < 2e9


def test_what_cannot_be_known_is_absent_and_never_0(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(
        f"1 process {training.pid} none none", "1 process 999999 5000000 90", "1 value fan none", "1 field 83 none",
        "1 field 197 none", "1 value power none", "call nvmlDeviceGetTemperature error 3",
        "call nvmlDeviceGetTemperatureV error 13", "call nvmlDeviceGetPcieThroughput error 3",
    )  # fmt: skip
    wait_for(lambda: len(values(host, "r", "gpu/1/utilization")) > 5, 30, "samples")
    # a sampler that opened the driver before these rules has read some of it; a new one has not
    os.kill(wait_for(lambda: sampler_pid(host)), signal.SIGKILL)
    last = rows(host, "r", "gpu/1/utilization")[-1].time_ns
    wait_for(lambda: len([r for r in rows(host, "r", "gpu/1/utilization") if r.time_ns > last]) > 5, 30, "new samples")
    since = {name for row in rows(host, "r") if row.time_ns > last + 1e9 for name in row.metrics}
    of_gpu = {name.removeprefix("gpu/1/") for name in since if name.startswith("gpu/1/")}
    absent = {
        "process_memory",
        "process_utilization",
        "fan_speed",
        "energy",
        "energy_consumed",
        "pcie_tx",
        "power",
        "temp",
    }
    assert not of_gpu & absent
    assert {"utilization", "memory_temp", "processes", "pcie_replays"} <= of_gpu
    assert values(host, "r", "gpu/1/processes")[-1] == 2  # the other one counts, and is nobody's


def test_slow_calls_do_not_delay_the_samples(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    script.set(*(f"{gpu} field {field} none" for gpu in range(8) for field in (197, 198)))
    training = train()
    rules = [f"{gpu} field {field} none" for gpu in range(8) for field in (197, 198)]
    script.set(*rules, f"1 process {training.pid} 1 1", f"6 process {training.pid} 1 1")
    wait_for(lambda: len(values(host, "r", "gpu/6/pcie_tx")) > 3, 40, "looks of 20 ms, one device after the other")
    assert set(values(host, "r", "gpu/6/pcie_tx")) == {1.0} and set(values(host, "r", "gpu/1/pcie_rx")) == {1.0}
    times = [row.time_ns for row in rows(host, "r", "gpu/1/power")]
    assert len(times) > 5 * len(values(host, "r", "gpu/1/pcie_tx"))  # which are looked at by turns


def test_mig_instances_stand_beside_their_gpu(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    script.set("devices 2", "0 mig 2")
    train()
    wait_for(lambda: len(host.cli("gpu")["gpus"]) == 4, 30, "the instances")
    found = {gpu["index"]: gpu for gpu in host.cli("gpu")["gpus"]}
    assert {*found} == {"0", "0:1", "0:2", "1"}
    assert found["0:1"]["uuid"].startswith("MIG-") and found["0:1"]["total_memory"] == 10.0
    assert found["0:1"]["utilization"] is None


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_gpu_that_falls_off_the_bus_costs_itself_only_and_an_alert_says_so(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    rules = [f"{i} process {training.pid} 1 1" for i in (0, 3)]
    script.set(*rules)
    wait_for(lambda: values(host, "r", "gpu/3/power"), 30, "samples")
    script.set(*rules, "3 lost")
    wait_for(lambda: any("GPU 3" in alert for alert in alerts(host)), 30, "the alert")
    count, gone = len(values(host, "r", "gpu/0/power")), len(values(host, "r", "gpu/3/power"))
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > count + 5, 30, "the others' samples")
    assert len(values(host, "r", "gpu/3/power")) == gone
    assert sum("GPU 3" in alert for alert in alerts(host)) == 1
    assert next(g for g in host.cli("gpu")["gpus"] if g["index"] == "3")["power"] is None
    script.set(*rules)  # it was reset
    wait_for(lambda: len(values(host, "r", "gpu/3/power")) > gone, 30, "its coming back")


def test_a_gpu_that_wants_a_reset_is_said_once_and_the_others_are_not_opened_anew(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: values(host, "r", "gpu/0/energy"), 30, "samples")
    script.set(f"0 process {training.pid} 1 1", "3 reset")
    wait_for(lambda: any("GPU 3" in alert for alert in alerts(host)), 30, "the alert")
    count = len(values(host, "r", "gpu/0/power"))
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > count + 40, 30, "several looks at the devices")
    assert sum("GPU 3" in alert for alert in alerts(host)) == 1
    # a counter that was begun anew would lack a reading
    assert len(values(host, "r", "gpu/0/power")) - len(values(host, "r", "gpu/0/energy")) <= 1
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: host.cli("gpu")["gpus"][3]["power"] is not None, 30, "its coming back")


def test_an_older_driver_tells_its_processes_too(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set("older", f"0 process {training.pid} {1 << 30} 7")
    wait_for(lambda: values(host, "r", "gpu/0/process_memory"), 30, "its processes")
    assert host.status().daemon["sampler"]["failures"] == 0


@pytest.mark.parametrize("fault", ["init 18", "init 9"])
def test_a_driver_that_does_not_work_leaves_the_host_sampled_and_is_tried_again(
    host: Host, script: standin.Script, train: Callable[..., Training], fault: str
) -> None:
    script.set(fault)
    training = train()
    wait_for(lambda: len(values(host, "r", "memory/used")) > 5, 30, "samples of the host")
    assert not host.cli("gpu")["gpus"]
    told = [alert for alert in alerts(host) if "GPUs are not sampled" in alert]
    assert len(told) == (fault == "init 18")  # without a driver nothing is wrong
    assert bool(host.cli("gpu")["trouble"]) == (fault == "init 18")
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: values(host, "r", "gpu/0/power"), 30, "the GPUs")
    wait_for(lambda: not host.cli("gpu")["trouble"], 10, "the end of the trouble")


def test_a_driver_that_goes_away_under_the_sampler_is_said_once(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: values(host, "r", "gpu/0/power"), 30, "samples")
    script.set("call nvmlDeviceGetUtilizationRates error 18", "init 18")
    wait_for(lambda: any("GPUs are not sampled" in alert for alert in alerts(host)), 30, "the alert")
    count = len(values(host, "r", "memory/used"))
    wait_for(lambda: len(values(host, "r", "memory/used")) > count + 20, 30, "samples of the host")
    assert len([alert for alert in alerts(host) if "GPUs are not sampled" in alert]) <= 2


def test_a_library_that_is_replaced_under_the_sampler_is_loaded_anew(
    host: Host, script: standin.Script, train: Callable[..., Training], library: Path, tmp_path: Path
) -> None:
    own = tmp_path / "driver"
    shutil.copytree(library, own)
    host.stop()
    host.extra["LD_LIBRARY_PATH"] = str(own)
    host.start()
    train()
    pid = wait_for(lambda: host.cli("gpu")["gpus"] and sampler_pid(host), 30, "the sampler")
    shutil.copy(own / "libnvidia-ml.so.1", own / "new")
    os.rename(own / "new", own / "libnvidia-ml.so.1")
    other = wait_for(lambda: (p := sampler_pid(host)) and p != pid and p, 30, "another sampler")
    maps = wait_for(lambda: (m := Path(f"/proc/{other}/maps").read_text()).count("libnvidia-ml") and m, 30)
    assert "(deleted)" not in "".join(line for line in maps.splitlines() if "libnvidia-ml" in line)


def test_a_driver_that_hangs_is_left_behind_and_ingest_does_not_notice(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > 25, 30, "samples of a while: it has told that it reads")
    pid = sampler_pid(host)
    script.set("call nvmlDeviceGetUtilizationRates hang")
    time.sleep(1)
    step = host.the_run("p").steps.highest
    wait_for(lambda: (host.the_run("p").steps.highest or 0) > (step or 0) + 20, 10, "the training's points")
    wait_for(lambda: not psutil.pid_exists(pid or 0), 40, "the sampler's end")
    script.set(f"0 process {training.pid} 1 1")
    count = len(values(host, "r", "gpu/0/power"))
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > count, 40, "samples again")
    assert any("said nothing" in alert for alert in alerts(host))


def test_a_driver_that_crashes_takes_the_sampler_and_nothing_else(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    script.set("call nvmlDeviceGetPowerUsage crash")
    training = train()
    wait_for(lambda: (f := host.status().daemon["sampler"]) and f["failures"] > 0, 30, "the crash")
    assert "signal 11" in host.status().daemon["sampler"]["trouble"]
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: values(host, "r", "gpu/0/power"), 30, "samples")
    assert any("signal 11" in alert for alert in alerts(host))


def test_processes_that_die_while_they_are_read_cost_nothing(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    stays = train("p", "stays")
    for number in range(4):
        goes = train("p", f"goes {number}")
        script.set(f"0 process {stays.pid} 1 1", f"0 process {goes.pid} 1 1")
        wait_for(lambda name=f"goes {number}": rows(host, name, "gpu/0/process_memory"), 30, "its samples")
        goes.end()
    count = len(values(host, "stays", "gpu/0/power"))
    wait_for(lambda: len(values(host, "stays", "gpu/0/power")) > count + 5, 30, "samples")
    assert host.status().daemon["sampler"]["failures"] == 0
    assert len(samplers_of(host)) == 1


def samplers_of(host: Host) -> list[str]:
    reader = node_reader(host)
    return [stream.id for stream in reader.streams(["node"])] if reader else []


def test_a_sampler_outlives_its_daemon_and_goes_on_with_the_next_one(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    training = train()
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > 3, 30, "samples")
    pid = sampler_pid(host)
    os.kill(host.status().daemon["pid"], signal.SIGKILL)
    time.sleep(1)
    host.start()
    count = len(values(host, "r", "gpu/0/power"))
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > count + 15, 30, "more samples")
    assert sampler_pid(host) == pid
    assert len(samplers_of(host)) == 1
    times = [row.time_ns for row in rows(host, "r", "gpu/0/power")]
    assert len(times) == len(set(times))
    assert max(b - a for a, b in itertools.pairwise(times)) < 3e9  # what was read meanwhile is there


def test_a_daemon_that_stops_ends_its_sampler_and_keeps_what_it_read(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    train()
    wait_for(lambda: len(values(host, "r", "memory/used")) > 3, 30, "samples")
    pid = sampler_pid(host)
    assert pid is not None
    host.stop()
    assert not psutil.pid_exists(pid)
    assert not [f for root in host.places.roots for f in Path(root, "streams").glob("*/stream.meta")
                if b"sampler" in f.read_bytes()]  # fmt: skip
    assert len(values(host, "r", "memory/used")) > 3


def test_the_sampler_finds_a_daemon_whose_folder_was_named_from_where_it_was_started(
    host: Host, train: Callable[..., Training]
) -> None:
    host.extra.update({"TRACKIO_SAMPLING": "1", "TRACKIO_SAMPLE_SECONDS": "0.2"})
    trackiod = str(Path(sys.executable).with_name("trackiod"))
    environ = host.environ(TRACKIO_DIR=host.data.name)
    host.processes.append(subprocess.Popen([trackiod, "run"], cwd=host.data.parent, env=environ, text=True))
    wait_for(host.status, 30, "the daemon")
    train()
    wait_for(lambda: len(values(host, "r", "memory/used")) > 3, 30, "samples")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="a driver is here, which this test must not find")
def test_without_a_driver_s_library_the_host_is_sampled_and_nothing_is_said(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    host.stop()
    del host.extra["LD_LIBRARY_PATH"]
    host.start()
    train()
    wait_for(lambda: len(values(host, "r", "memory/used")) > 3, 30, "samples")
    assert not alerts(host)
    done = host.command("trackio", "gpu")
    assert (done.returncode, done.stdout) == (0, "No NVIDIA GPU is to be seen on this node.\n")


def test_an_alert_of_the_node_goes_to_the_webhook_of_a_run_on_it(
    host: Host, script: standin.Script, train: Callable[..., Training], hook: Hook
) -> None:
    train("p", "r", {"webhook_url": hook.url, "webhook_min_level": "error"})
    wait_for(lambda: values(host, "r", "memory/used"), 30, "samples")
    script.set("5 xid 48")
    (body,) = wait_for(lambda: hook.bodies, 30, "the alert")
    assert (body["title"], body["level"], body["project"]) == ("Xid 48", "error", None)
    assert body["node"] == os.uname().nodename
    wait_for(lambda: host.cli("list", "alerts", "--project", "p")["alerts"][0]["webhook"] == "sent", 10, "its end")
    host.stop()
    for path in host.data.glob("projects/*.db"):
        assert hook.url.encode() not in path.read_bytes(), "the address is a secret"


# -- what users ask for ------------------------------------------------------------------------------------------------


def test_the_smallest_interval_asked_for_samples(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    host.stop()
    host.extra["TRACKIO_SAMPLE_SECONDS"] = "60"
    host.start()
    train("p", "slow")
    train("p", "fast", {"gpu_log_interval": 0.2, "cpu_log_interval": 0.3})
    wait_for(lambda: len(stored(host, f"gpu/{standin.uuid(0)}/power")) > 10, 30, "samples of GPUs")
    wait_for(lambda: len(stored(host, "memory/used")) > 5, 30, "samples of the host")
    facts = host.status().daemon["sampler"]
    assert (facts["gpu_interval"], facts["host_interval"]) == (0.2, 0.3)


def test_a_run_that_wants_no_samples_sees_none_and_others_do(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    blind = train("p", "blind", {"auto_log_gpu": False, "auto_log_cpu": False})
    half = train("p", "half", {"auto_log_gpu": False})
    sees = train("p", "sees", {"auto_log_gpu": True})
    script.set(*(f"0 process {training.pid} 1 1" for training in (blind, half, sees)))
    wait_for(lambda: len(values(host, "sees", "gpu/0/power")) > 3, 30, "samples")
    assert names(host, "blind") == []
    assert not any(name.startswith("gpu/") for name in names(host, "half"))
    assert "process/memory" in names(host, "half")


def test_where_no_run_wants_gpus_the_driver_is_left_alone(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    train("p", "r", {"auto_log_gpu": False})
    wait_for(lambda: len(values(host, "r", "memory/used")) > 5, 30, "samples of the host")
    assert "libnvidia-ml" not in Path(f"/proc/{sampler_pid(host)}/maps").read_text()


@pytest.mark.parametrize("interval", [0, -1, "abc", float("nan"), float("inf")])
def test_an_impossible_interval_is_one_sentence_and_the_default_is_used(host: Host, interval: Any) -> None:
    code = """
import sys, trackio
trackio.init(project="p", gpu_log_interval=eval(sys.argv[1], {"nan": float("nan"), "inf": float("inf")}))
trackio.log({"a": 1})
"""
    done = host.run(code, repr(interval), env={"TRACKIO_QUIET": "1"})
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "gpu_log_interval" in done.stderr and "the default is used" in done.stderr


def test_log_gpu_and_log_cpu_return_the_newest_sample_as_this_process_sees_it(
    host: Host, script: standin.Script
) -> None:
    code = """
import json, os, time, trackio
assert trackio.__all__
try:
    trackio.log_gpu()
except RuntimeError as error:
    print(json.dumps(str(error)))
trackio.init(project="p", name="r")
open(os.environ["TRACKIO_STANDIN_NVML"], "w").write(f"3 process {os.getpid()} 1073741824 44\\n")
deadline = time.monotonic() + 30
while "gpu/1/process_utilization" not in trackio.log_gpu() and time.monotonic() < deadline:
    time.sleep(0.1)
time.sleep(0.3)
print(json.dumps([trackio.log_gpu(), trackio.log_gpu(device=1), trackio.log_gpu(device=7), trackio.log_cpu()]))
"""
    done = host.run(code, env={"CUDA_VISIBLE_DEVICES": f"5,{standin.uuid(3)}"})
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert json.loads(before) == "Call trackio.init() before trackio.log_gpu()."
    both, one, none, cpu = json.loads(after)
    assert both["gpu/0/utilization"] == 55 and both["gpu/1/utilization"] == 35
    assert both["gpu/1/process_memory"] == 1.0 and both["gpu/1/process_utilization"] == 44
    assert both["gpu/mean_utilization"] == 45 and both["gpu/total_power"] == 280
    assert one == {name: one[name] for name in both if name.startswith("gpu/1/")}
    assert none == {}
    assert cpu["memory/total"] > 0 and cpu["process/memory"] > 0 and not any(name.startswith("gpu/") for name in cpu)
    host.ended_run("p")
    assert host.cli("list", "system-metrics", "--project", "p", "--run", "r")["system_metrics"]
    assert not host.the_run("p").reader.system(host.the_run("p").run_ids)  # returned, not logged again


def test_log_gpu_without_a_sampler_is_empty(host: Host) -> None:
    done = host.run("import trackio; trackio.init(project='p'); print(trackio.log_gpu(), trackio.log_cpu())")
    assert done.stdout == "{} {}\n"


def test_status_and_gpu_show_the_table(host: Host, script: standin.Script, train: Callable[..., Training]) -> None:
    training = train("mnist", "first")
    script.set("devices 2", f"1 process {training.pid} {1 << 30} 50", "1 process 999999 1 1")
    wait_for(lambda: "rank 0" in host.command("trackio", "gpu").stdout, 30, "the rank")
    text = host.command("trackio", "gpu").stdout
    assert "15 %" in text and "2.0 of 80.0 GiB" in text and "110 of 700 W" in text and "41 °C" in text
    assert "mnist/first rank 0; 1 other process" in text
    status = host.command("trackio", "status").stdout
    assert text.splitlines()[0] in status
    facts = host.cli("status")
    rank = facts["gpus"][1]["ranks"][0]
    assert (rank["project"], rank["run"], rank["rank"], rank["pid"]) == ("mnist", "first", 0, training.pid)
    assert (rank["memory"], rank["utilization"]) == (1.0, 50)
    watched = host.python(
        "import os, sys; os.execv(sys.argv[1], [sys.argv[1], 'gpu', '--watch'])",
        str(Path(sys.executable).with_name("trackio")),
    )  # fmt: skip
    tables = 0
    while tables < 2:
        tables += "NAME" in watched.stdout.readline()
    watched.send_signal(signal.SIGINT)
    watched.communicate(timeout=20)


def test_a_run_s_energy_is_its_share_of_its_gpus(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    one, two = train("p", "one"), train("p", "two")
    script.set(
        f"0 process {one.pid} 1 1", f"0 process {two.pid} 1 1", f"1 process {one.pid} 1 1", "2 process 999999 1 1"
    )
    wait_for(lambda: len(values(host, "two", "gpu/0/energy")) > 20, 30, "samples")
    script.set()
    seen = len(stored(host, "memory/used"))
    wait_for(lambda: len(stored(host, "memory/used")) > seen + 15, 30, "samples that do not see them any more")
    one.end()
    two.end()
    host.ended_runs("p")
    runs = {name: host.cli("get", "run", "--project", "p", "--run", name) for name in ("one", "two")}
    shared, alone = (sum(values(host, "one", f"gpu/{gpu}/energy")) for gpu in (0, 1))
    assert runs["one"]["energy_joules"] == pytest.approx(shared / 2 + alone, rel=0.1)
    assert runs["two"]["energy_joules"] == pytest.approx(sum(values(host, "two", "gpu/0/energy")) / 2, rel=0.1)
    steps = runs["one"]["highest_step"] + 1
    assert runs["one"]["energy_joules_per_step"] == pytest.approx(runs["one"]["energy_joules"] / steps)


def test_sampling_makes_no_system_call_in_the_training_process(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    training = train("p", "r")
    script.set(f"0 process {training.pid} 1 1")
    wait_for(lambda: len(values(host, "r", "gpu/0/power")) > 3, 30, "samples")
    os.kill(training.pid, signal.SIGSTOP)  # it does nothing, and is sampled
    trace = Path(host.data.parent, "trace")
    strace = subprocess.Popen(["strace", "-f", "-o", str(trace), "-p", str(training.pid)], stderr=subprocess.DEVNULL)
    count = len(values(host, "r", "gpu/0/process_memory"))
    wait_for(lambda: len(values(host, "r", "gpu/0/process_memory")) > count + 20, 30, "samples of a stopped process")
    strace.send_signal(signal.SIGINT)
    strace.wait()
    os.kill(training.pid, signal.SIGCONT)
    calls = [line for line in trace.read_text().splitlines() if "(" in line and "SIGSTOP" not in line]
    assert calls == []


def test_samples_take_no_more_disk_than_they_may_and_the_oldest_go_first(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    host.stop()
    host.extra["TRACKIO_SAMPLES_MIB"] = "1"
    host.start()
    training = train()
    script.set("jitter", "devices 16", *(f"{i} process {training.pid} 1 1" for i in range(16)))
    first_ns = wait_for(lambda: rows(host, "r", "gpu/0/power"), 30, "samples")[0].time_ns
    wait_for(lambda: "samples take all they may" in Path(host.places.log).read_text(), 90, "the limit")
    wait_for(lambda: len(samplers_of(host)) == 1, 10)
    times = [row.time_ns for row in rows(host, "r", "gpu/0/power")]
    assert time.time_ns() - times[-1] < 5e9 and times[0] > first_ns
    assert max(b - a for a, b in itertools.pairwise(times)) < 3e9  # what is left is whole


def test_a_daemon_confined_to_one_job_s_devices_has_a_sampler_hosted_in_the_other(
    host: Host, script: standin.Script, train: Callable[..., Training]
) -> None:
    with cgroup("devices") as one, cgroup("devices") as other:
        script.set("devices 3", f"0 hidden {one.name}", f"1 hidden {other.name}", "2 hidden nobody")
        (one / "cgroup.procs").write_text(str(host.status().daemon["pid"]))
        first = train("p", "first", TRACKIO_AUTOSTART="1")
        (one / "cgroup.procs").write_text(str(first.pid))
        wait_for(lambda: [g["power"] for g in host.cli("gpu")["gpus"]] == [100.0], 30, "the first GPU")
        second = train("p", "second", TRACKIO_AUTOSTART="1")
        (other / "cgroup.procs").write_text(str(second.pid))
        rules = [f"0 process {first.pid} 1 1", f"1 process {second.pid} 1 1"]
        script.set("devices 3", f"0 hidden {one.name}", f"1 hidden {other.name}", "2 hidden nobody", *rules)
        wait_for(lambda: values(host, "second", "gpu/1/power"), 30, "samples of the other job's GPU")
        wait_for(lambda: [g["power"] for g in host.cli("gpu")["gpus"]] == [100.0, 110.0], 10, "both GPUs")
        pids = host.status().daemon["sampler"]["pids"]
        assert len(pids) == 2 and str(pids[1]) in (other / "cgroup.procs").read_text().split()
        assert len(set(values(host, "first", "memory/total"))) == 1
        times = [row.time_ns for row in rows(host, "second", "memory/used")]
        assert min(b - a for a, b in itertools.pairwise(times)) > 5e7  # the host is sampled by one of them
        assert not any(name.startswith("gpu/1") for name in names(host, "first"))
        first.end()
        second.end()


def test_in_a_container_whose_driver_tells_the_host_s_pids_a_run_sees_the_gpus_it_may_use(
    host: Host, script: standin.Script, library: Path
) -> None:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    host.stop()
    inside = f"""
import os, subprocess, sys, time, trackio
trackiod = [{sys.executable!r}, "-P", "-m", "trackiod", "run", "--detach"]
assert subprocess.run(trackiod).returncode == 0
trackio.init(project="p", name="r")
deadline = time.monotonic() + 20
while not trackio.log_gpu() and time.monotonic() < deadline:
    trackio.log({{"a": 1}})
    time.sleep(0.1)
time.sleep(2)
subprocess.run([{str(Path(sys.executable).with_name("trackiod"))!r}, "stop"])
"""
    script.set("devices 3", "0 process 1 1 1", "1 process 1 1 1", "1 process 999999 1 1")
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*unshare, sys.executable, "-c", inside], env=host.environ(CUDA_VISIBLE_DEVICES="1"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gpus = {name.split("/")[1] for name in names(host, "r") if name.startswith("gpu/")}
    assert gpus == {"1"}
    assert values(host, "r", "gpu/1/power")[-1] == 110.0 and values(host, "r", "gpu/1/processes")[-1] == 2
    # pid 1 is our process's here, and somebody else's to the driver
    assert not any("/process_" in name for name in names(host, "r"))
    assert host.cli("get", "run", "--project", "p", "--run", "r")["energy_joules"] is None
