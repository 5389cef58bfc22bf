"""Forked and spawned children: kept apart, never deadlocked, never harmful to the parent's stream."""

from __future__ import annotations

import json

import pytest
from conftest import Host, shown, wait_for


def test_a_forked_child_that_logs_is_a_worker_of_its_own(daemon: Host) -> None:
    done = daemon.run("""
import os, trackio
run = trackio.init(project="p")
trackio.log({"a": 1})
pid = os.fork()
if pid == 0:
    for i in range(100): trackio.log({"a": 1000 + i, "child": i})
    os._exit(0)
os.waitpid(pid, 0)
trackio.log({"a": 2})
trackio.finish()
""")  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 202)
    run = daemon.ended_run("p")
    assert sorted(s.role for s in run.streams) == ["rank", "worker"]
    assert [p.value for p in shown(run, "a")] == [1, 2], "no part of any reduction"
    assert run.state.state == "finished" and run.logging == 1


def test_dataloader_workers_that_log_lose_nothing(daemon: Host) -> None:
    done = daemon.run("""
import torch, trackio
trackio.init(project="p")
class Items(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, i):
        trackio.log({"worker/item": i})
        return torch.tensor(i)
seen = sum(len(b) for b in torch.utils.data.DataLoader(Items(), batch_size=8, num_workers=3))
trackio.log({"seen": seen})
""", seconds=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 65)
    run = daemon.ended_run("p")
    assert [s.role for s in run.streams].count("worker") == 3
    assert [p.value for p in shown(run, "seen")] == [64]


def test_forks_in_a_burst_of_logging_threads_never_deadlock(daemon: Host) -> None:
    """A fork inherits every lock in whatever state it is; the child starts with its own."""
    done = daemon.run("""
import os, threading, trackio
trackio.init(project="p")
stop = False
def burst():
    while not stop: trackio.log({"a": 1.0})
threads = [threading.Thread(target=burst) for _ in range(3)]
[t.start() for t in threads]
ended = 0
for i in range(40):
    pid = os.fork()
    if pid == 0:
        trackio.log({"child": i})
        os._exit(7)
    ended += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
stop = True
[t.join() for t in threads]
print(ended)
""", seconds=120)  # fmt: skip
    assert done.stdout.strip() == "40", done.stderr
    wait_for(lambda: len([s for s in daemon.the_run("p").streams if s.role == "worker" and s.state]) == 40, 60)
    run = daemon.ended_run("p")
    assert sum(s.points for s in run.streams if s.role == "worker") == 40


def test_a_fork_before_the_first_log_of_the_parent_is_fine(daemon: Host) -> None:
    done = daemon.run("""
import multiprocessing, trackio
def work(n):
    trackio.log({"w": n})
trackio.init(project="p")
with multiprocessing.get_context("fork").Pool(4) as pool:
    pool.map(work, range(20), chunksize=1)
trackio.log({"parent": 1})
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 21)


def test_a_spawned_child_without_init_is_told_to_call_it(daemon: Host, tmp_path: object) -> None:
    done = daemon.run("""
import subprocess, sys, trackio, json
trackio.init(project="p")
child = subprocess.run([sys.executable, "-c", "import trackio; trackio.log({'a': 1})"], capture_output=True, text=True)
print(json.dumps([child.returncode, child.stderr.splitlines()[-1]]))
""")  # fmt: skip
    assert json.loads(done.stdout) == [1, "RuntimeError: Call trackio.init() before trackio.log()."]


def test_the_parents_descriptors_and_mappings_do_not_live_on_in_the_child(host: Host) -> None:
    done = host.run("""
import os, trackio
trackio.init(project="p")
trackio.log({"a": 1})
pid = os.fork()
if pid == 0:
    links = [f"/proc/self/fd/{f}" for f in os.listdir("/proc/self/fd")]
    held = [os.readlink(link) for link in links if os.path.lexists(link)]
    maps = open("/proc/self/maps").read()
    os._exit(any("streams" in h for h in held) + 2 * ("/streams/" in maps))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""")  # fmt: skip
    assert done.stdout.strip() == "0"


C_FORK = """
import ctypes, os, sys, time, trackio
run = trackio.init(project="p")
for i in range(100): trackio.log({"a": i})
time.sleep(float(sys.argv[1]))
pid = ctypes.PyDLL(None).fork()  # of which Python knows nothing
if pid == 0:
    for i in range(1000): trackio.log({"child": i})
    run.config.update({"from": "child"})
    sys.exit(0)
for i in range(100, 2000): trackio.log({"a": i})
_, status = os.waitpid(pid, 0)
for i in range(2000, 2100): trackio.log({"a": i})
sys.exit(status)
"""


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_child_that_c_forked_logs_to_a_stream_of_its_own(host: Host, with_daemon: bool) -> None:
    """The two share the ring's memory; without a look at who one is, both would write to the same places."""
    if with_daemon:
        host.start()
    done = host.run(C_FORK, "0.7" if with_daemon else "0")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("internal") == done.stderr.count("disk") == 0, done.stderr
    if not with_daemon:
        host.start()
    run = host.ended_run("p")
    assert [p.value for p in shown(run, "a")] == list(range(2100)) and run.holes == []
    workers = [stream for stream in run.streams if stream.role == "worker"]
    assert [stream.points for stream in workers] == [1000]
    assert run.state.state == "finished"


def test_a_child_that_c_forked_and_never_logs_ends_nothing_of_its_parents(daemon: Host) -> None:
    done = daemon.run("""
import ctypes, os, sys, time, trackio
trackio.init(project="p")
trackio.log({"a": 1})
pid = ctypes.PyDLL(None).fork()
if pid == 0: sys.exit(0)
os.waitpid(pid, 0)
time.sleep(1)
trackio.log({"a": 2})
""")
    assert done.returncode == 0 and done.stderr.count("\n") <= 1, done.stderr
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "a")] == [1, 2] and run.holes == []
    assert [stream.role for stream in run.streams] == ["rank"] and run.state.state == "finished"
