"""Faults with real processes: kills, stops, vanishing folders, no daemon. What log() accepted is stored once."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, shown, wait_for

from trackio import places
from trackiod import curves
from trackiod.overview import Overview
from trackiod.store import schema
from trackiod.store.reader import ProjectReader

BURST = """
import trackio, sys, time
run = trackio.init(project="p")
progress = open(sys.argv[1], "w", buffering=1) if len(sys.argv) > 1 else None
count = int(sys.argv[2]) if len(sys.argv) > 2 else 10**9
pause = float(sys.argv[3]) if len(sys.argv) > 3 else 0
for i in range(count):
    trackio.log({"i": i, "half": i / 2}, step=i)
    if progress and i % 50 == 0: progress.write(f"{i}\\n")
    if pause and i % 10 == 0: time.sleep(pause)
"""


def logged(path: object) -> int:
    """The last step the process wrote down as logged."""
    try:
        lines = Path(str(path)).read_text().split("\n")[:-1]
    except OSError:
        return -1
    return int(lines[-1]) if lines else -1


def all_in(host: Host, at_least: int) -> None:
    """Everything up to `at_least` is stored, once, and what is missing was counted as refused."""
    wait_for(lambda: host.runs("p") and host.the_run("p").state.state != "running", 60, "the end of the run")
    run = host.the_run("p")
    values = [p.value for p in shown(run, "i", all_points=True)]
    assert len(values) == len(set(values)), "doubled"
    assert run.holes == []
    missing = set(range(max(values) + 1)) - set(values)
    assert len(missing) == run.refused_records, "lost without being counted"
    assert max(values) >= at_least - len(missing)


@pytest.mark.parametrize("seed", range(3))
def test_a_rank_killed_in_full_speed_loses_nothing(daemon: Host, seed: int) -> None:
    progress = daemon.data / "progress"
    process = daemon.python(BURST, str(progress))
    wait_for(lambda: logged(progress) > 100 and daemon.status().streams)
    time.sleep(random.Random(seed).random() * 0.5)
    process.kill()
    process.communicate()
    at_least = logged(progress)
    all_in(daemon, at_least)
    assert daemon.the_run("p").state.state == "killed"
    assert not list(daemon.spool.rglob("seg-*"))


@pytest.mark.parametrize("seed", range(2))
def test_a_daemon_killed_again_and_again_under_logging_ranks_loses_nothing(daemon: Host, seed: int) -> None:
    chance = random.Random(seed)
    process = daemon.python(BURST, str(daemon.data / "progress"), "12000", "0.002")
    for _ in range(4):
        time.sleep(0.2 + chance.random() * 0.4)
        if (report := daemon.status()) is not None:
            os.kill(report.daemon["pid"], signal.SIGKILL)
        daemon.start()
    process.communicate(timeout=60 * PATIENCE)
    all_in(daemon, 11_999)
    run = daemon.the_run("p")
    assert run.state.state == "finished" and run.refused_records == 0 and run.records == 12_000


def test_both_killed_at_once_lose_nothing(daemon: Host) -> None:
    progress = daemon.data / "progress"
    process = daemon.python(BURST, str(progress), "1000000000", "0.001")
    wait_for(lambda: logged(progress) > 1000)
    os.kill(daemon.status().daemon["pid"], signal.SIGKILL)
    process.kill()
    process.communicate()
    daemon.start()
    all_in(daemon, logged(progress))
    assert daemon.the_run("p").state.state == "lost", "no daemon was there to see how it ended"


def test_a_daemon_stopped_for_a_while_costs_nothing(daemon: Host) -> None:
    """SIGSTOP: the ring fills, what nobody takes goes to disk; afterwards everything arrives, once."""
    pid = daemon.status().daemon["pid"]
    progress = daemon.data / "progress"
    process = daemon.python(BURST, str(progress), "60000", "0.001")
    wait_for(lambda: logged(progress) > 500)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    assert list((daemon.data / "spill").rglob("seg-*"))
    os.kill(pid, signal.SIGCONT)
    process.communicate(timeout=120 * PATIENCE)
    all_in(daemon, 59_999)
    assert daemon.the_run("p").refused_records == 0


def test_a_daemon_that_was_never_started_finds_everything_later(host: Host) -> None:
    done = host.run(BURST, str(host.data / "progress"), "5000")
    assert done.returncode == 0
    assert list((host.data / "spill").rglob("seg-*")), "unacked data are on disk when the process has ended"
    shutil.rmtree(host.spool)  # a reboot
    host.spool.mkdir()
    host.start()
    all_in(host, 4999)
    assert host.the_run("p").state.state == "finished"
    wait_for(lambda: not list((host.data / "spill").iterdir()))


def test_a_spool_deleted_under_a_job_without_a_daemon_loses_nothing(host: Host) -> None:
    """A logout empties /dev/shm; an epilog removes the folder."""
    process = host.python(BURST, str(host.data / "progress"), "20000", "0.003")
    wait_for(lambda: logged(host.data / "progress") > 500)
    for folder in host.spool.rglob("streams/*"):
        shutil.rmtree(folder)
    _, err = process.communicate(timeout=60 * PATIENCE)
    assert err.count("was removed by somebody") == 1
    host.start()
    all_in(host, 19_999)
    assert host.the_run("p").state.state == "finished"


def test_a_spool_deleted_and_a_rank_killed_are_survived_by_a_daemon(daemon: Host) -> None:
    """The daemon holds the segments' descriptors since HELLO."""
    process = daemon.python("""
import trackio, sys
trackio.init(project="p")
trackio.log({"i": 0}, step=0)
sys.stdin.readline()
for i in range(1, 200): trackio.log({"i": i}, step=i)
print("logged", flush=True)
sys.stdin.readline()
""", stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 1)
    time.sleep(1)  # the daemon looks at the folder twice a second
    os.kill(daemon.status().daemon["pid"], signal.SIGSTOP)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "logged\n"
    for folder in daemon.spool.rglob("streams/*"):
        shutil.rmtree(folder)
    process.kill()
    process.communicate()
    pid = places.read_endpoint(daemon.places.endpoint).pid
    os.kill(pid, signal.SIGCONT)
    all_in(daemon, 199)


@pytest.mark.parametrize(
    ("ending", "state", "cause"),
    [
        ("", "finished", ""),
        ("trackio.finish()", "finished", ""),
        ("trackio.finish(exit_code=2)", "failed", "exit code 2"),
        ("raise KeyError('x')", "failed", "KeyError"),
        ("sys.exit(3)", "failed", "exit code 3"),
        ("sys.exit(0)", "finished", ""),
        ("os._exit(4)", "failed", "exit code 4"),
        ("os._exit(0)", "finished", "exit code 0 without finish()"),
        ("os.kill(os.getpid(), 15)", "killed", "SIGTERM"),
        ("os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
        ("os.kill(os.getpid(), 11)", "killed", "SIGSEGV"),
        ("os.kill(os.getpid(), 2)", "failed", "KeyboardInterrupt"),
        ("threading.Thread(target=lambda: 1/0).start()", "finished", "a thread raised ZeroDivisionError"),
    ],
)
def test_how_a_process_ended_is_told_truthfully(daemon: Host, ending: str, state: str, cause: str) -> None:
    code = "import trackio, os, sys, time, threading\ntrackio.init(project='p')\ntrackio.log({'a': 1})\n"
    daemon.run(code + "time.sleep(0.7)\n" + ending)
    run = daemon.ended_run("p")
    if state == "killed" and run.state.state == "lost":
        pytest.skip("this kernel does not tell the exit of processes that are not children (Linux 6.15 does)")
    wait_for(lambda: daemon.the_run("p").state == (state, cause), 10, f"{state} ({cause})")
    assert run.points == 1


def test_a_stopped_process_is_not_declared_dead(daemon: Host) -> None:
    process = daemon.python("""
import trackio, sys
trackio.init(project="p")
trackio.log({"a": 1})
sys.stdin.readline()
trackio.log({"a": 2})
""", stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert daemon.the_run("p").state.state == "running"
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.communicate()
    assert daemon.ended_run("p").points == 2


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_process_in_another_pid_namespace_is_watched_by_its_real_pid(daemon: Host) -> None:
    """A container: it believes to be pid 1; the owner's lock tells the daemon which process that is here."""
    code = """
import os, sys, trackio
trackio.init(project="p")
trackio.log({"pid": os.getpid()})
sys.stdin.read()
"""
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code],
        env=daemon.environ(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    daemon.processes.append(process)
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 1)
    assert daemon.values("p", "pid") == [1]
    (stream,) = daemon.status().streams
    assert stream["pid"] > 1
    assert b"trackio.init" in Path(f"/proc/{stream['pid']}/cmdline").read_bytes()
    time.sleep(2)
    assert daemon.the_run("p").state.state == "running"
    os.kill(stream["pid"], signal.SIGKILL)
    assert daemon.ended_run("p").state.state in ("killed", "lost")


def test_exit_is_quick_whatever_the_daemon_does(host: Host) -> None:
    """No daemon, and one that does not answer: the process is gone within a second of its last line."""
    code = """
import trackio, time
trackio.init(project="p")
trackio.log({"a": 1})
time.sleep(0.5)
print(time.time(), flush=True)
"""
    for stopped in (False, True):
        if stopped:
            os.kill(host.start(), signal.SIGSTOP)
        process = host.python(code)
        out, _ = process.communicate(timeout=30 * PATIENCE)
        took = time.time() - float(out)
        assert process.returncode == 0 and took < 1.0 * PATIENCE + 1.0, took
    os.kill(places.read_endpoint(host.places.endpoint).pid, signal.SIGCONT)
    wait_for(lambda: [r.points for r in host.runs("p")] == [1, 1])


def test_the_orphan_of_a_dead_attempt_drained_last_does_not_win(host: Host) -> None:
    """Attempt 0 dies with its node's daemon; attempt 1 repeats its last steps; then the orphan is drained."""
    log = "import trackio\ntrackio.init(project='p')\n[trackio.log({'i': %s}, step=s) for s in range(%d, %d)]"
    host.run(log % ("'old'", 0, 10), env={"TRACKIO_RUN_ID": "job"})
    hidden = host.spool.with_name(host.spool.name + "-hidden")
    shutil.move(host.data / "spill", hidden)
    streams = next(host.spool.rglob("streams"))
    for folder in streams.iterdir():
        shutil.rmtree(folder)
    host.start()
    host.run(log % ("'new'", 7, 12), env={"TRACKIO_RUN_ID": "job"})
    assert host.ended_run("p").points == 5
    shutil.rmtree(host.data / "spill", ignore_errors=True)
    shutil.move(hidden, host.data / "spill")
    wait_for(lambda: host.the_run("p").points == 15)
    run = host.the_run("p")
    assert run.attempts == 2
    assert [p.value for p in shown(run, "i")] == ["old"] * 7 + ["new"] * 5
    assert Overview(run).hidden == 3 and [p.value for p in shown(run, "i", attempt=0)] == ["old"] * 10


def test_damaged_bytes_of_a_spool_are_named_and_the_rest_is_kept(host: Host) -> None:
    host.run(BURST, str(host.data / "progress"), "2000")
    shutil.rmtree(host.spool)
    host.spool.mkdir()
    (segment,) = (host.data / "spill").rglob("seg-*")
    data = bytearray(segment.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100] = os.urandom(100)
    segment.write_bytes(data)
    host.start()
    wait_for(lambda: host.runs("p") and host.the_run("p").state.state != "running")
    run = host.the_run("p")
    assert 1990 < run.records < 2000
    assert [h.cause for h in run.holes] == ["the spool was damaged or deleted"]


def test_a_store_that_was_deleted_is_a_counted_hole_not_a_livelock(daemon: Host) -> None:
    process = daemon.python(BURST, str(daemon.data / "progress"), "30000", "0.002")
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").records > 12_000)
    daemon.stop()
    shutil.rmtree(daemon.data / "projects")
    daemon.start()
    process.communicate(timeout=60 * PATIENCE)
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").state.state == "finished")
    run = daemon.the_run("p")
    assert [h.cause for h in run.holes] == ["the store was replaced"]
    values = [p.value for p in shown(run, "i")]
    assert values[0] > 0 and values == list(range(values[0], 30_000))


def test_a_database_removed_under_the_daemon_is_made_anew_and_nothing_is_acked_into_the_void(daemon: Host) -> None:
    """With no command to delete a project, removing its file is how users do it."""
    process = daemon.python(BURST, str(daemon.data / "progress"), "20000", "0.002")
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").records > 500)
    for path in Path(daemon.places.projects).iterdir():
        path.unlink()
    process.communicate(timeout=60 * PATIENCE)
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").state.state == "finished")
    values = [p.value for p in shown(daemon.the_run("p"), "i")]
    assert values == list(range(values[0], 20_000))


def test_a_daemon_whose_folder_was_removed_leaves_and_another_takes_over(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    shutil.rmtree(daemon.data)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20, "the daemon's end")
    assert daemon.start() != pid
    daemon.run("import trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})")
    assert daemon.ended_run("p").points == 1


def test_what_a_signal_handler_logs_before_it_exits_is_stored(daemon: Host) -> None:
    """SLURM's `--signal`: log "preempted", finish, leave, in the middle of whatever log() was doing."""
    code = """
import os, signal, sys, threading, time, trackio
trackio.init(project="p", name=sys.argv[1])
def leave(*_):
    trackio.log({"preempted": 1}); trackio.finish(); sys.exit(0)
signal.signal(signal.SIGTERM, leave)
threading.Timer(0.3 + float(sys.argv[1]) / 1000, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True: trackio.log({"a": 1.0})
"""
    for i in range(8):
        assert daemon.run(code, str(i)).returncode == 0
    wait_for(lambda: [r.state.state for r in daemon.runs("p")] == ["finished"] * 8, 60)
    assert ["preempted" in r.metric_names for r in daemon.runs("p")] == [True] * 8


def test_waking_the_shipper_from_a_signal_handler_in_the_middle_of_waking_it_never_deadlocks(host: Host) -> None:
    """finish() in a handler wakes the shipper, which log() may be doing just then."""
    done = host.run("""
import signal
from trackio.wake import Wake
wake, hits = Wake(), 0
def handler(*_):
    global hits
    hits += 1
    wake.set()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
while hits < 3000: wake.set()
signal.setitimer(signal.ITIMER_REAL, 0)
assert wake.wait(0) and wake.is_set()
wake.clear()
assert not wake.wait(0.01)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_hundreds_of_runs_in_one_process_hold_on_to_nothing(host: Host) -> None:
    """A sweep: with a daemon, and first without one."""
    code = """
import os, resource, sys, time, trackio
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
for i in range(60):
    run = trackio.init(project="p", name=f"run{i}")
    trackio.log({"a": i})
    run.finish()
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > 60 and time.monotonic() < deadline: time.sleep(0.05)
print(len(os.listdir("/proc/self/fd")))
"""
    for turn in (1, 2):
        done = host.run(code, seconds=120)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert int(done.stdout) < 70
        host.start()
        wait_for(lambda turn=turn: sum(r.points for r in host.runs("p")) == 60 * turn, 60)
        assert all(r.state.state == "finished" for r in host.runs("p"))


def test_waiting_for_a_daemon_costs_next_to_nothing_and_it_is_met_when_it_comes(host: Host) -> None:
    process = host.python("""
import sys, time, trackio
trackio.init(project="p")
trackio.log({"a": 1})
time.sleep(6)
before = time.process_time()
time.sleep(2)
print(time.process_time() - before, flush=True)
sys.stdin.read()
""", stdin=subprocess.PIPE)  # fmt: skip
    assert float(process.stdout.readline()) < 0.4, "seconds of CPU in two seconds of waiting"
    host.start()
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 1)
    assert host.the_run("p").state.state == "running"
    process.communicate()


def test_sixteen_threads_log_scalars_and_every_value_is_right(daemon: Host) -> None:
    done = daemon.run("""
import threading, numpy as np, torch, trackio
trackio.init(project="p")
def work(n):
    for i in range(500):
        v = n * 1000 + i
        trackio.log({f"t{n}/np": np.float32(v), f"t{n}/torch": torch.tensor(float(v)), f"t{n}/f": float(v)}, step=i)
threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
[t.start() for t in threads]; [t.join() for t in threads]
""", seconds=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = daemon.ended_run("p")
    found = curves.snapshot(run)
    assert len(found) == 48
    for n in range(16):
        for kind in ("np", "torch", "f"):
            assert found[f"t{n}/{kind}"].values.tolist() == [float(n * 1000 + i) for i in range(500)]


@pytest.mark.parametrize("seed", range(3))
def test_a_daemon_killed_while_it_folds_loses_and_doubles_nothing(host: Host, seed: int) -> None:
    """4,096 records are enough to fold; each kill hits it in a batch, a fold, or between."""
    rng = random.Random(seed)
    process = host.python("""
import time, trackio
trackio.init(project="p", name="r")
for i in range(60_000):
    trackio.log({"i": i, "half": i / 2})
    if i % 20 == 0: time.sleep(0.001)
""")
    for _ in range(5):
        pid = host.start()
        time.sleep(rng.uniform(0.3, 0.9))
        os.kill(pid, signal.SIGKILL)
    host.start()
    assert process.wait(60 * PATIENCE) == 0, process.communicate()
    run = host.ended_run("p", 60)
    assert run.points == 120_000 and run.holes == [] and run.refused_points == 0
    path = schema.path_of(host.places.projects, "p")
    with ProjectReader(path) as reader:
        wait_for(lambda: not reader._all("SELECT 1 FROM batches LIMIT 1"), 30, "the last fold")
    values = [(p.step, p.value) for p in shown(host.the_run("p"), "i")]
    assert values == [(i, i) for i in range(60_000)]
    assert [p.value for p in shown(host.the_run("p"), "half")] == [i / 2 for i in range(60_000)]


def test_drops_are_counted_exactly_and_the_exit_line_says_them(host: Host) -> None:
    """A small ring, a spill that may hold next to nothing, and no daemon."""
    environ = {"TRACKIO_SPOOL_MIB": "1", "TRACKIO_SPILL_MIB": "1"}
    done = host.run(BURST, str(host.data / "progress"), "40000", env=environ)
    assert done.returncode == 0
    (line,) = (line for line in done.stderr.splitlines() if "were dropped" in line)
    calls, points = (int(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= log| points)", line))
    assert points == 2 * calls > 0
    host.start()
    run = host.ended_run("p")
    wait_for(lambda: host.the_run("p").refused_records == calls)
    run = host.the_run("p")
    assert (run.records, run.refused_points, run.holes) == (40_000 - calls, points, [])
    assert run.state.state in ("finished", "lost"), "its end may have found no room either, and says so"
    assert run.state.state == "finished" or "finish found no room" in done.stderr
    assert host.cli("status")["runs"][0]["refused_points"] == points


def test_automatic_steps_of_threads_never_collide(daemon: Host) -> None:
    daemon.run("""
import threading, trackio
trackio.init(project="p")
threads = [threading.Thread(target=lambda: [trackio.log({"a": 1}) for _ in range(2000)]) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
""")  # fmt: skip
    assert [p.step for p in shown(daemon.ended_run("p"), "a")] == list(range(16_000))


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which .ci/run installs")
def test_log_makes_no_system_call_but_futex(daemon: Host, tmp_path: object) -> None:
    trace = daemon.data.parent / "trace"
    code = """
import trackio, os, time, threading
trackio.init(project="p")
for i in range(2000): trackio.log({"a": 0.5})
time.sleep(1)
os.write(2, f"BEGIN {threading.get_native_id()}".encode())
for i in range(500): trackio.log({"a": 0.5, "b": 1})
os.write(2, b"END")
"""
    command = ["strace", "-f", "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run(command, env=daemon.environ(), capture_output=True, text=True, timeout=120 * PATIENCE)
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if '"BEGIN' in line)
    end = next(i for i, line in enumerate(lines) if '"END"' in line)
    thread = lines[begin].split()[0]
    mine = [line.split(None, 1)[1] for line in lines[begin + 1 : end] if line.split()[0] == thread]
    calls = {line.split("(")[0] for line in mine if "(" in line and not line.startswith(("<...", "+++", "---"))}
    assert calls <= {"futex", "clock_gettime"}, calls
