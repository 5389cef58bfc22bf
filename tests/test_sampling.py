"""The rules of sampling: who samples, when, and whose process is whose."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
from conftest import Host, wait_for
from hypothesis import given
from hypothesis import strategies as st

from trackio import gauges, newest, wire
from trackio.host import covers
from trackio.newest import Board, Sample
from trackio.version import __version__
from trackiod.sampler import processes
from trackiod.sampler.cgroups import Cgroups
from trackiod.sampler.counters import Counters
from trackiod.sampler.hosts import Host as SampledHost
from trackiod.sampler.joining import joined
from trackiod.sampler.pacing import Pace
from trackiod.sampler.processes import Processes, Rank
from trackiod.sampling import LINGER_SECONDS, Sampling, wishes
from trackiod.streams import LiveStream


def test_a_counter_that_goes_back_is_unknown_once() -> None:
    counters = Counters()
    assert counters.growth("a", 100, 1.0) is None
    assert counters.growth("a", 160, 3.0) == (60, 2.0)
    assert counters.growth("a", 10, 4.0) is None  # it wrapped, or was reset
    growth = counters.growth("a", 30, 5.0)
    assert growth is not None and growth.rate == 20.0
    assert counters.growth("a", 40, 5.0) is None  # no time went by
    assert counters.growth("b", 40, 6.0) is None
    counters.forget("a")
    assert counters.growth("a", 50, 7.0) is None


@given(st.lists(st.tuples(st.integers(0, 1 << 64), st.floats(0.1, 5)), min_size=2, max_size=20))
def test_growth_is_never_negative_and_adds_up_between_resets(readings: list[tuple[int, float]]) -> None:
    counters, now, grown, rising = Counters(), 0.0, 0.0, 0
    for (before, _), (value, _) in itertools.pairwise([(readings[0][0], 0.0), *readings]):
        rising += max(0, value - before)
    for value, seconds in readings:
        now += seconds
        growth = counters.growth("x", value, now)
        if growth is not None:
            assert growth.amount >= 0 and growth.seconds > 0
            grown += growth.amount
    assert grown == pytest.approx(rising)


def test_a_slow_probe_is_read_more_rarely_and_never_makes_up_for_what_it_missed() -> None:
    pace = Pace(1.0, now=10.0)
    assert pace.is_due(10.0)
    pace.done(10.0, 10.1)
    assert not pace.is_due(10.9) and pace.due == 11.0
    pace.done(11.0, 11.5)  # half a second: a fifth of two and a half
    assert pace.due == 13.5
    pace.done(13.5, 23.5)  # ten seconds: it hung, or the host slept
    assert pace.due == 63.5
    pace.done(63.5, 63.51)
    assert pace.due == 64.5
    pace.done(70.6, 70.7)  # turns were missed, and are not made up for
    assert pace.due == 71.5
    pace.change(0.1, 70.8)
    assert pace.due == pytest.approx(70.9)


@given(st.floats(0.1, 10), st.lists(st.floats(0, 3), min_size=5, max_size=50))
def test_probes_take_a_fifth_of_the_time_at_most(interval: float, durations: list[float]) -> None:
    pace, now = Pace(interval, 0.0), 0.0
    for took in durations:
        now = due = max(now, pace.due)
        pace.done(now, now + took)
        assert pace.due >= now + took
        assert pace.due - due >= max(interval, 5 * took) - 1e-6
        now += took


def rank(number: int, pid: int) -> Rank:
    return Rank(f"s{number}", "p", "run", "r", number, pid, 0)


def test_a_pid_of_another_namespace_is_nobody_rather_than_the_wrong_one() -> None:
    ranks = [rank(0, 100), rank(1, 200)]
    inner = {100: [7], 200: [9]}
    every: dict[int, bool] = {100: True, 200: True}

    here: set[int] = set()

    def found(pids: list[int], holds: dict[int, bool], first: bool) -> dict[int, int]:
        result = joined(
            pids, ranks, lambda pid: inner.get(pid, []), lambda pid: holds.get(pid, False), lambda pid: pid in here,
            is_first_namespace=first,
        )  # fmt: skip
        return {pid: who[0].rank for pid, who in result.items()}

    assert found([100, 200, 300], {}, True) == {100: 0, 200: 1}  # the host's own pids are sure
    assert found([100, 200], {}, False) == {}  # in a container they may be the host's, of somebody else
    assert found([100, 200], {100: True}, False) == {100: 0}  # but who has the device open computes on it
    assert found([7, 9, 5], every, True) == {7: 0, 9: 1}  # the driver told the pids of inner namespaces
    assert found([7], {}, True) == {}
    here.add(7)
    assert found([7, 9], every, True) == {9: 1}  # but one that names a process here is that one
    here.clear()
    inner[200] = [100]
    assert found([100], every, False) == {}  # two could be meant
    assert found([100], every, True) == {100: 0}
    inner[100] = inner[200] = [7]
    assert found([7], every, True) == {}
    two = [rank(0, 100), rank(5, 100)]  # of two runs in one process
    both = joined([100], two, lambda _: [], lambda _: False, lambda _: True, is_first_namespace=True)
    assert both == {100: two}


def test_the_pids_of_inner_namespaces_are_read_where_the_host_allows() -> None:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    with subprocess.Popen(["unshare", "--pid", "--fork", "sleep", "30"]) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            child = int(wait_for(lambda: children.read_text().split(), 10, "the child")[0])
            assert processes.inner_pids(child) == [1]
            assert processes.inner_pids(os.getpid()) == []
            assert processes.inner_pids(1 << 22) == []
        finally:
            subprocess.run(["pkill", "-KILL", "-P", str(outer.pid)], check=False)
            outer.kill()


def test_a_process_of_a_used_again_pid_is_not_the_rank() -> None:
    known = Processes()
    known.expect([Rank("old", "p", "r", "n", 0, os.getpid(), 10**18), Rank("gone", "p", "r", "n", 1, 1 << 22, 0)])
    assert known.read(1.0) == {}
    known.expect([Rank("now", "p", "r", "n", 0, os.getpid(), time.time_ns())])
    assert known.read(1.0)["process/now/memory"] > 0
    known.expect([])
    assert known.read(2.0) == {}


def test_a_container_s_own_limits_and_use_are_read_once_for_its_ranks(tmp_path: Path) -> None:
    path = next(line[3:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::")
    group = Path(f"{tmp_path}{path}")
    group.mkdir(parents=True, exist_ok=True)
    ranks = [Rank(f"s{n}", "p", "r", "n", n, os.getpid(), 0) for n in range(2)]
    cgroups = Cgroups(str(tmp_path))
    cgroups.expect(ranks)
    assert cgroups.read(1.0) == {}  # a root without limits is the host's
    (group / "memory.max").write_text(f"{4 << 30}\n")
    (group / "memory.current").write_text(f"{1 << 30}\n")
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n")
    (group / "cpu.max").write_text("250000 100000\n")
    (group / "cpu.stat").write_text("usage_usec 1000000\nthrottled_usec 500000\n")
    cgroups.expect(ranks)
    assert cgroups.read(1.0) == {
        "process/s0/cgroup_memory": 1.0, "process/s0/cgroup_memory_limit": 4.0, "process/s0/cgroup_cpu_limit": 250.0,
        "process/s0/cgroup_oom_kills": 1,
    }  # fmt: skip
    (group / "cpu.stat").write_text("usage_usec 4000000\nthrottled_usec 700000\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("\xff nonsense\n")
    found = cgroups.read(3.0)
    assert found["process/s0/cgroup_cpu"] == 150.0 and found["process/s0/cgroup_cpu_throttled"] == 0.2
    assert "process/s0/cgroup_memory_limit" not in found and "process/s0/cgroup_memory" not in found


def test_infiniband_ports_are_read_by_card_and_port(tmp_path: Path) -> None:
    counters = tmp_path / "mlx5_0" / "ports" / "1" / "counters"
    counters.mkdir(parents=True)

    def count(sent: int, received: int, errors: int) -> None:
        for name, value in zip(
            ("port_xmit_data", "port_rcv_data", "symbol_error", "port_rcv_errors", "link_downed"),
            (sent, received, errors, 0, 1), strict=True,
        ):  # fmt: skip
            (counters / name).write_text(f"{value}\n")

    host = SampledHost(str(tmp_path), str(tmp_path))
    count(0, 1000, 0)
    first = host.read(1.0)
    assert first["infiniband/mlx5_0:1/errors"] == 1 and "infiniband/mlx5_0:1/sent_mb_per_sec" not in first
    count(1 << 20, 0, 5)  # words of four bytes; what was received was reset
    second = host.read(3.0)
    assert second["infiniband/mlx5_0:1/sent_mb_per_sec"] == 2.0 and second["infiniband/mlx5_0:1/errors"] == 6
    assert "infiniband/mlx5_0:1/recv_mb_per_sec" not in second
    (counters / "symbol_error").write_text("nonsense")
    assert not any(name.startswith("infiniband") and name.endswith("errors") for name in host.read(4.0))
    assert "memory/used" in host.read(5.0)


def test_the_smallest_interval_is_everybody_s() -> None:
    assert wishes([], 5.0) == (None, None)
    assert wishes([{}], 5.0) == (5.0, 5.0)
    assert wishes([{"gpu": False}, {"cpu": False}], 5.0) == (5.0, 5.0)
    assert wishes([{"gpu": False, "gpu_interval": 0.1, "cpu": None}], 5.0) == (None, 5.0)
    assert wishes([{"gpu_interval": 30.0}, {"gpu_interval": 0.5, "cpu_interval": 1}], 5.0) == (0.5, 1.0)
    assert wishes([{"gpu_interval": 30.0}], 5.0) == (30.0, 5.0)
    for nonsense in ("abc", 0, -1, float("nan"), float("inf"), None, [1]):
        assert wishes([{"gpu_interval": nonsense}], 5.0) == (5.0, 5.0)


def test_a_sampler_sees_what_is_allowed_in_groups_below_its_own() -> None:
    job = "4:memory:/x\n5:devices:/slurm/job_1/step_0\n0::/a\n"
    assert covers(job, job)
    assert covers("5:devices:/\n0::/other\n", job)
    assert covers("5:devices:/slurm/job_1\n", job)
    assert not covers("5:devices:/slurm/job_10\n", job)
    assert not covers("5:devices:/slurm/job_1\n", "5:devices:/slurm/job_10\n")
    assert covers("0::/job\n", "0::/job/step\n") and not covers("0::/job/step\n", "0::/job\n")


def test_cuda_s_devices_are_chosen_as_cuda_does() -> None:
    devices = [{"uuid": f"GPU-{i}aaaa", "label": str(i), "parent": ""} for i in range(3)]
    devices.append({"uuid": "MIG-1", "label": "2:1", "parent": "GPU-2aaaa"})
    assert gauges.chosen(devices, None) == ["GPU-0aaaa", "GPU-1aaaa", "MIG-1"]
    assert gauges.chosen(devices, "") == []
    assert gauges.chosen(devices, "1,0") == ["GPU-1aaaa", "GPU-0aaaa"]
    assert gauges.chosen(devices, " 1 , 9, 0") == ["GPU-1aaaa"]
    assert gauges.chosen(devices, "GPU-0aa,MIG-1") == ["GPU-0aaaa", "MIG-1"]
    assert gauges.chosen(devices, "-1") == [] and gauges.chosen(devices, "0,0") == ["GPU-0aaaa"]


def test_log_gpu_takes_the_samplers_that_see_its_devices(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def sample(stream: str, cgroup: str, started_ns: int, uuid: str, power: int) -> Sample:
        device = {"uuid": uuid, "label": "0", "name": "n", "parent": ""}
        ranks = [["own", "p", "run", "r", 0, os.getpid()]]
        values = {f"gpu/{uuid}/power": power, f"gpu/{uuid}/process/own/is_there": 1} if "mine" in uuid else {}
        values = values or {f"gpu/{uuid}/power": power}
        return Sample(stream, time.time_ns(), 5.0, [device], ranks, values, "", started_ns, cgroup)

    monkeypatch.setenv("TRACKIO_DIR", str(host.data))
    monkeypatch.setenv("TRACKIO_SPOOL_DIR", str(host.spool))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ours = Path("/proc/self/cgroup").read_text()
    Board(host.places, "other").write(sample("other", "5:devices:/job_other\n0::/job_other\n", 1, "GPU-other", 700))
    Board(host.places, "mine").write(sample("mine", ours, 2, "GPU-mine", 100))
    assert gauges.gpus()["gpu/0/power"] == 100 and gauges.gpus()["gpu/total_power"] == 100
    assert "gpu/1/power" not in gauges.gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # an index of the batch job's; the driver knows what we use
    assert gauges.gpus(0)["gpu/0/power"] == 100


def live(stream: str, role: str, **facts: Any) -> LiveStream:
    meta = {"role": role, "project": "p", "run": "r", "name": "n", "rank": 0, "started_ns": 1}
    return LiveStream(stream, {**meta, **facts}, met_at=0.0)


def test_a_sampler_leaves_30_seconds_after_the_last_stream(host: Host) -> None:
    sampling = Sampling(host.places, is_allowed=True, interval=5.0)
    sampler, training = live("s", "sampler"), live("t", "rank")
    streams = {"s": sampler, "t": training}
    now = time.monotonic() + 100
    sampling.check(streams, now)
    query = wire.SamplerQuery("s", {"release": __version__, "devices": ["a"]})
    orders = sampling.orders(query, streams, now)
    assert not orders["leave"] and orders["gpu"] and orders["host"] and orders["gpu_interval"] == 5.0
    assert [r[0] for r in orders["ranks"]] == ["t"]
    del streams["t"]
    sampling.check(streams, now + 1)
    assert not sampling.orders(query, streams, now + LINGER_SECONDS - 1)["leave"]
    assert sampling.orders(query, streams, now + LINGER_SECONDS + 1)["leave"]


def test_of_two_samplers_the_later_leaves_and_one_of_another_release_too(host: Host) -> None:
    sampling = Sampling(host.places, is_allowed=True, interval=5.0)
    streams = {
        "t": live("t", "rank"),
        "one": live("one", "sampler", started_ns=1),
        "two": live("two", "sampler", started_ns=2),
        "host": live("host", "sampler", started_ns=3, hosted=True),
        "old": live("old", "sampler", started_ns=0, hosted=True),
    }
    now = time.monotonic()
    sampling.check(streams, now)
    orders = {
        name: sampling.orders(
            wire.SamplerQuery(name, {"devices": [f"GPU-{name}"], "release": release, "hosted": hosted}), streams, now
        )
        for name, release, hosted in (
            ("old", "0.1", True), ("one", __version__, False), ("two", __version__, False), ("host", __version__, True)
        )
    }  # fmt: skip
    assert {name: found["leave"] for name, found in orders.items()} == {
        "old": True, "one": False, "two": True, "host": False
    }  # fmt: skip
    assert {"GPU-one", "GPU-two"} <= set(orders["host"]["elsewhere"])  # what elders sample is not sampled again


def test_a_driver_that_takes_long_to_open_is_waited_for(host: Host) -> None:
    sampling = Sampling(host.places, is_allowed=True, interval=5.0)
    child = subprocess.Popen(["sleep", "60"])
    try:
        streams = {"s": live("s", "sampler"), "t": live("t", "rank")}
        streams["s"].pid = child.pid
        now = time.monotonic()
        sampling.check(streams, now)
        sampling.orders(wire.SamplerQuery("s", {"release": __version__, "devices": []}), streams, now)
        sampling.check(streams, now + 55)  # eight GPUs without persistence mode
        assert child.poll() is None
        sampling.orders(wire.SamplerQuery("s", {"release": __version__, "devices": ["a"]}), streams, now + 56)
        sampling.check(streams, now + 70)
        assert child.poll() is None
        sampling.check(streams, now + 72)  # and now it hangs
        assert child.wait(10) == -9
    finally:
        child.kill()
        child.wait()


def test_after_three_failures_gpus_are_left_alone_for_a_while(host: Host) -> None:
    sampling = Sampling(host.places, is_allowed=True, interval=5.0)
    streams = {"s": live("s", "sampler"), "t": live("t", "rank")}
    now = time.monotonic()
    query = wire.SamplerQuery("s", {"release": __version__})
    for failures in range(1, 4):
        sampling.check(streams, now)
        assert sampling.orders(query, streams, now)["gpu"], failures
        sampling._fail("It ended with signal 11.", now)
    sampling.check(streams, now)
    orders = sampling.orders(query, streams, now)
    assert not orders["gpu"] and orders["host"]
    facts = sampling.facts(streams)
    assert facts is not None and facts["failures"] == 3 and "10 minutes" in facts["trouble"]
    sampling.check(streams, now + 601)
    assert sampling.orders(query, streams, now + 601)["gpu"]


def test_the_newest_sample_is_read_whole_and_a_stale_or_foreign_one_is_not(host: Host) -> None:
    board = Board(host.places, "0123")
    assert newest.samples(host.places) == []
    sample = Sample("0123", time.time_ns(), 5.0, [], [], {"memory/used": 1.5})
    board.write(sample)
    assert newest.samples(host.places) == [sample]
    Board(host.places, "4567").write(sample._replace(stream="4567", time_ns=time.time_ns() - 60 * 10**9))
    (Path(host.places.roots[0]) / "samples" / "89ab").write_bytes(b"\xc1 no msgpack")
    assert newest.samples(host.places) == [sample]
    for odd in (
        sample._replace(interval="x"), sample._replace(devices=[{"uuid": "a"}]), sample._replace(ranks=[[1, 2]]),
        sample._replace(values=None), sample._replace(values={1: 2}), sample._replace(cgroup=None), (), "text",
    ):  # fmt: skip
        (Path(host.places.roots[0]) / "samples" / "cdef").write_bytes(msgpack.packb(odd))
        assert newest.samples(host.places) == [sample]
    board.clear()
    assert newest.samples(host.places) == []
