"""How a process may end, again and again: it is gone soon, leaves nobody behind, and its end is told as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for

ENDINGS = {
    "return": ("", 0, {"finished"}),
    "finish": ("trackio.finish()", 0, {"finished"}),
    "raise": ("raise KeyError('x')", 1, {"failed"}),
    "exit": ("sys.exit(3)", 3, {"failed"}),
    "_exit": ("os._exit(0)", 0, {"finished", "lost"}),
    "term": ("os.kill(os.getpid(), 15)", -15, {"killed", "lost"}),
    "kill": ("os.kill(os.getpid(), 9)", -9, {"killed", "lost"}),
    "interrupt": ("os.kill(os.getpid(), 2); time.sleep(5)", -2, {"failed"}),
    "thread": ("threading.Thread(target=time.sleep, args=(0.05,)).start()", 0, {"finished"}),
    "fork": ("pid = os.fork() or (trackio.log({'a': 2}), os._exit(0)); os.waitpid(pid, 0)", 0, {"finished"}),
}  # fmt: skip
SCRIPT = """
import os, sys, threading, time, trackio
trackio.init(project="p", name={name!r})
for i in range(200): trackio.log({{"a": 1}}, step=i)
os.write(1, repr(time.time()).encode())
{ending}
"""


def processes_with(environ_value: str) -> list[int]:
    """Processes that have this text in their environment: ours, whatever they became."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if environ_value.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_hundred_processes_end_in_every_way_and_nobody_is_left(host: Host, with_daemon: bool) -> None:
    """Each is gone within a second of its last line, and with its own exit code."""
    if with_daemon:
        host.start()
    names = list(ENDINGS) * 5
    slow = []
    for number, name in enumerate(names):
        ending, code, _ = ENDINGS[name]
        done = host.run(SCRIPT.format(name=f"{name}-{number}", ending=ending))
        took = time.time() - float(done.stdout)
        assert done.returncode == code, (name, done.stderr)
        if took > 1.0 * PATIENCE:
            slow.append((name, took))
    assert not slow
    daemon = [host.status().daemon["pid"]] if with_daemon else []
    assert set(processes_with(f"TRACKIO_DIR={host.data}")) - {os.getpid()} == set(daemon)
    if not with_daemon:
        host.start()
    wait_for(lambda: len(host.runs("p")) == len(names), 30, "all runs")
    wait_for(lambda: all(r.state.state != "running" for r in host.runs("p")), 30, "all ends")
    for run in host.runs("p"):
        wanted = ENDINGS[run.name.split("-")[0]][2]
        told = run.state.state
        if not with_daemon:  # nobody saw the exit code: Python's atexit is not told what sys.exit() was
            wanted = wanted | {"lost"} | ({"finished"} if "sys.exit" in ENDINGS[run.name.split("-")[0]][0] else set())
        assert told in wanted, (run.name, run.state)
        assert len(shown(run, "a")) == 200 and run.holes == []


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_of_every_start_method_log_to_a_run_of_the_users_choice(
    daemon: Host, tmp_path: Path, method: str
) -> None:
    """Forked ones log to their parent's run; the others are processes of their own and open what they want."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, trackio
def work(n):
    if {method!r} != "fork": trackio.init(project="children", name=f"child {{n}}")
    for i in range(50): trackio.log({{"child": n}})
    if {method!r} != "fork": trackio.finish()
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    trackio.init(project="p")
    trackio.log({{"a": 1}})
    children = [context.Process(target=work, args=(n,)) for n in range(4)]
    [child.start() for child in children]
    [child.join() for child in children]
    assert [child.exitcode for child in children] == [0] * 4
    trackio.log({{"a": 2}})
""")
    done = subprocess.run([sys.executable, str(script)], env=daemon.environ(), capture_output=True, text=True,
                          timeout=120 * PATIENCE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = daemon.ended_run("p", 30)
    assert [p.value for p in shown(run, "a")] == [1, 2] and run.state.state == "finished"
    if method == "fork":
        wait_for(lambda: sum(s.points for s in daemon.the_run("p").streams if s.role == "worker") == 200)
    else:
        wait_for(lambda: len(daemon.runs("children")) == 4)
        wait_for(lambda: {r.state.state for r in daemon.runs("children")} == {"finished"})
        assert [r.points for r in daemon.runs("children")] == [50] * 4


def test_an_orphan_that_waited_long_is_drained_by_the_daemon_that_comes_at_last(host: Host) -> None:
    """As after an hour, a reboot or a holiday: its files look old, and a process still runs and waits."""
    host.run(SCRIPT.format(name="spilled", ending=""))
    host.run(SCRIPT.format(name="in the spool", ending="os.kill(os.getpid(), 9)"))
    waiting = host.python(SCRIPT.format(name="waiting", ending="sys.stdin.read()"), stdin=subprocess.PIPE)
    wait_for(lambda: len(list(host.spool.rglob("stream.meta"))) >= 2)
    old = time.time() - 30 * 86400
    for folder in (host.spool, host.data):
        for path in folder.rglob("*"):
            os.utime(path, (old, old))
    host.start()
    wait_for(
        lambda: {r.name: r.points for r in host.runs("p")} == dict.fromkeys(("spilled", "in the spool", "waiting"), 200)
    )
    assert {r.name: r.state.state for r in host.runs("p")}["waiting"] == "running"
    waiting.communicate()
    wait_for(lambda: sorted(r.state.state for r in host.runs("p")) == ["finished", "finished", "lost"])


def test_a_float_that_logs_while_it_is_logged_keeps_both(daemon: Host) -> None:
    done = daemon.run("""
import trackio
trackio.init(project="p")
class Odd:
    def __float__(self):
        trackio.log({"inner": 1.0})
        return 2.0
    def __del__(self): trackio.log({"last": 3.0})
for i in range(100): trackio.log({"outer": Odd()})
""")
    assert done.returncode == 0, done.stderr
    run = daemon.ended_run("p")
    assert {name: len(shown(run, name, all_points=True)) for name in run.metric_names} == {
        "inner": 100, "outer": 100, "last": 100,
    }  # fmt: skip


# -- what others see --------------------------------------------------------------------------------------------


def database(host: Host) -> Path:
    (path,) = Path(host.places.projects).glob("*.db")
    return path


def test_a_reader_that_is_paused_does_not_make_the_log_of_changes_grow(daemon: Host) -> None:
    """`trackio get | less` and Ctrl-Z: what is printed was fetched, and no transaction is open meanwhile."""
    daemon.run("import trackio\ntrackio.init(project='p', name='r')\n[trackio.log({'i': i}) for i in range(30_000)]")
    daemon.ended_run("p")
    program = str(Path(sys.executable).with_name("trackio"))
    reader = subprocess.Popen(
        [program, "get", "metric", "--project", "p", "--run", "r", "--metric", "i", "--json"],
        env=daemon.environ(), stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert reader.stdout is not None and reader.stdout.read(1000)  # it prints, and nobody reads on
        daemon.run("import random, trackio\ntrackio.init(project='p', name='next')\nfor i in range(60_000):"
                   " trackio.log({f'k{n}': random.random() for n in range(10)})\n", seconds=120)  # fmt: skip
        wait_for(lambda: sum(r.records for r in daemon.runs("p")) == 90_000, 60)
        assert reader.poll() is None, "it still prints"
        wal = database(daemon).with_name(database(daemon).name + "-wal")
        assert wal.stat().st_size < 70 << 20, "journal_size_limit is 64 MiB"
    finally:
        reader.kill()
        reader.communicate()


@pytest.mark.parametrize("how", ["restored", "replaced"])
def test_a_store_that_goes_back_leaves_a_counted_hole_and_goes_on(daemon: Host, how: str) -> None:
    """A backup put back under a running job, or another project's history in its place."""
    process = daemon.python("""
import sys, time, trackio
trackio.init(project="p")
for i in range(20_000):
    trackio.log({"i": i}, step=i)
    if i % 20 == 0: time.sleep(0.005)
sys.stdin.read()
""", stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").records > 1000)
    daemon.stop()
    backup = daemon.data.parent / "backup"
    shutil.copytree(daemon.places.projects, backup)
    first = daemon.the_run("p").records
    daemon.start()
    wait_for(lambda: daemon.the_run("p").records > first + 8000)
    daemon.stop()
    shutil.rmtree(daemon.places.projects)
    if how == "restored":
        shutil.copytree(backup, daemon.places.projects)
    daemon.start()
    wait_for(lambda: daemon.runs("p") and 19_999 in last_values(daemon), 60, "the end")
    process.communicate()
    run = daemon.ended_run("p")
    values = [p.value for p in shown(run, "i")]
    missing = sorted(set(range(20_000)) - set(values))
    assert values == sorted(set(values)), "nothing twice"
    assert [hole.cause for hole in run.holes] == ["the store was replaced"]
    assert missing == list(range(missing[0], missing[-1] + 1)), "one hole, that the run tells of"
    assert (values[0] == 0) == (how == "restored")
    assert daemon.cli("status")["runs"][0]["holes"] == 1


def last_values(host: Host) -> list[Any]:
    run = host.the_run("p")
    return [p.value for p in shown(run, "i")[-1:]] if "i" in run.metric_names else []


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which .ci/run installs")
def test_a_training_process_connects_to_the_daemon_alone_and_never_waits_for_a_disk(daemon: Host) -> None:
    """Over its whole life and all of its threads: no fsync, no connection but to the daemon's socket, no port."""
    trace = daemon.data.parent / "trace"
    code = """
import time, trackio
trackio.init(project="p")
for i in range(20_000):
    trackio.log({"a": 0.5, "b": i})
    if i % 100 == 0: time.sleep(0.001)
trackio.finish()
"""
    watched = "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync,connect,bind,listen,socket"
    command = ["strace", "-f", "-e", watched, "-o", str(trace), sys.executable, "-c", code]
    done = subprocess.run(command, env=daemon.environ(), capture_output=True, text=True, timeout=120 * PATIENCE)
    assert done.returncode == 0, done.stderr
    calls = [line.split(None, 1)[1] for line in trace.read_text().splitlines() if "(" in line]
    calls = [call for call in calls if not call.startswith(("<...", "+++", "---"))]
    path = daemon.status().daemon["socket"]
    connects = [call for call in calls if call.startswith("connect(")]
    assert connects and all(f'sun_path="{path}"' in call for call in connects), connects
    others = {call.split("(")[0] for call in calls} - {"connect", "socket"}
    assert not others, others
    assert all("AF_UNIX" in call for call in calls if call.startswith("socket("))
    run = daemon.ended_run("p")
    assert run.records == 20_000 and run.refused_records == 0


MANY = """
import os, sys, trackio
runs = [trackio.init(project="p", name=f"{sys.argv[1]}{i}", reinit="create_new") for i in range(int(sys.argv[2]))]
for run in runs: run.log({"a": 1})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which .ci/run installs")
def test_the_end_of_a_stream_looks_at_its_own_folders_only(host: Host, tmp_path: Path) -> None:
    """However many others are open: what is looked at does not grow with them."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=openat", sys.executable, "-m", "trackiod", "run"]
    daemon = subprocess.Popen(command, env=host.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(host.status)
        others, ending = (host.python(MANY, name, str(n), stdin=subprocess.PIPE) for name, n in (("o", 10), ("e", 20)))
        wait_for(lambda: len(host.status().streams) == 30, 60)
        opened = {stream["stream"] for stream in host.status().streams if stream["pid"] == others.pid}
        ending.kill()
        wait_for(lambda: sum(run.state.state != "running" for run in host.runs("p")) == 20, 60)
        others.kill()
    finally:
        host.stop()
        daemon.wait(20 * PATIENCE)
    metas = [line for line in trace.read_text().splitlines() if "stream.meta" in line]
    assert len(opened) == 10
    assert len([line for line in metas if any(stream in line for stream in opened)]) < 20, "each end looked at all"
