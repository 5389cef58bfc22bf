"""The daemon's life: start, stop, restart, status, logs, autostart, environment, idle, peers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from conftest import PATIENCE, Host, shown, wait_for

from trackio import inquiry, launch, places, wire
from trackiod.server import Server


def test_start_returns_when_it_is_ready_and_is_safe_to_call_twice(host: Host) -> None:
    first = host.command("trackiod", "start")
    assert first.returncode == 0 and host.status() is not None
    second = host.command("trackiod", "start")
    assert second.returncode == 0 and "already runs" in second.stdout
    assert first.stdout.split("pid ")[1] == second.stdout.split("pid ")[1]


def test_64_starts_at_once_make_one_daemon(host: Host) -> None:
    code = """
import sys
from trackio import places
from trackiod import control
print(control.start(places.find(sys.argv[1], sys.argv[2]), 120).pid)
"""
    starters = [host.python(code, str(host.data), str(host.spool)) for _ in range(64)]
    outs = [s.communicate(timeout=150 * PATIENCE) for s in starters]
    assert all(s.returncode == 0 for s in starters), [e for _, e in outs if e][:2]
    pids = {out.strip() for out, _ in outs}
    assert len(pids) == 1
    assert (host.data / "trackiod.log").read_text().count("is ready") == 1


def test_stop_commits_what_was_received_and_leaves_nothing_behind(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i}) for i in range(1000)]")
    done = daemon.command("trackiod", "stop")
    assert done.stdout == "trackiod stopped.\n"
    assert daemon.status() is None and not os.path.exists(daemon.places.endpoint)
    assert not list(daemon.spool.rglob("*.sock"))
    assert daemon.command("trackiod", "stop").stdout == "trackiod does not run.\n"


def test_restart_is_another_process_and_loses_nothing(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    process = daemon.python("""
import trackio, time
trackio.init(project="p")
for i in range(300):
    trackio.log({"a": i}); time.sleep(0.005)
""")  # fmt: skip
    wait_for(lambda: daemon.runs("p"))
    assert daemon.command("trackiod", "restart").returncode == 0
    assert daemon.status().daemon["pid"] != pid
    process.communicate()
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "a")] == list(range(300)) and run.holes == []


def test_status_tells_the_daemon_and_its_streams_and_exits_3_without_one(daemon: Host) -> None:
    process = daemon.python("import trackio, sys\ntrackio.init(project='p')\ntrackio.log({'a': 1})\nsys.stdin.read()",
                            stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: daemon.status().streams)
    text = daemon.command("trackiod", "status").stdout
    assert f"pid {daemon.status().daemon['pid']}" in text and "p " in text and f"pid {process.pid}" in text
    process.communicate()
    daemon.stop()
    assert daemon.command("trackiod", "status").returncode == 3


def test_a_daemon_that_does_not_answer_is_told_from_one_that_is_not_there(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for program in ("trackio", "trackiod"):
            assert "runs but does not answer" in daemon.command(program, "status").stdout
    finally:
        os.kill(pid, signal.SIGCONT)


def test_logs_show_the_daemons_own_log(daemon: Host) -> None:
    assert "is ready" in daemon.command("trackiod", "logs").stdout
    assert daemon.command("trackiod", "logs", "-n", "0").stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_in_the_foreground_ends_well_on_a_signal(host: Host, number: signal.Signals) -> None:
    process = host.python("from trackiod.daemon import run; raise SystemExit(run())")
    wait_for(host.status)
    process.send_signal(number)
    _, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 0 and f"stopping: {number.name}" in err


def test_a_second_daemon_on_the_folder_says_so_and_leaves_the_socket_alone(daemon: Host) -> None:
    done = daemon.run("from trackiod.daemon import run; raise SystemExit(run())")
    assert done.returncode == 3 and "already runs" in done.stderr
    assert daemon.status() is not None


def test_a_training_process_starts_a_daemon_that_outlives_it(host: Host) -> None:
    code = "import trackio, time\ntrackio.init(project='p')\ntrackio.log({'a': 1})\ntime.sleep(1)"
    done = host.run(code, env={"TRACKIO_AUTOSTART": "1"})
    assert done.returncode == 0
    report = wait_for(host.status)
    assert report.daemon["life"] == "autostarted"
    assert host.ended_run("p").points == 1


def test_a_short_script_is_stored_by_the_daemon_it_started(host: Host) -> None:
    host.run("import trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})", env={"TRACKIO_AUTOSTART": "1"})
    if host.status() is None:
        host.start()  # the script may end before its shipper's first turn
    assert host.ended_run("p").points == 1


def test_autostart_can_be_turned_off(host: Host) -> None:
    host.run("import trackio, time\ntrackio.init(project='p')\ntrackio.log({'a': 1})\ntime.sleep(0.5)")
    assert host.status() is None and not launch.is_running(host.places)


def test_an_autostarted_daemon_leaves_when_idle(host: Host) -> None:
    env = {"TRACKIO_AUTOSTART": "1", "TRACKIO_IDLE_SECONDS": "1"}
    host.run("import trackio, time\ntrackio.init(project='p')\ntrackio.log({'a': 1})\ntime.sleep(1)", env=env)
    wait_for(lambda: not launch.is_running(host.places), 30, "the idle end")
    assert "stopping: idle" in (host.data / "trackiod.log").read_text()
    assert host.the_run("p").points == 1


def test_the_daemon_inherits_nothing_of_the_job(host: Host, tmp_path: Path) -> None:
    """No launcher, CUDA or token variables; cwd `/`, where no `datasets/` shadows imports; stdio closed to
    the job; a session of its own; not the rank's one CPU."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "click.py").write_text("raise RuntimeError('shadowed')")
    env = {
        "TRACKIO_AUTOSTART": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x",
        "CUDA_VISIBLE_DEVICES": "0", "HF_TOKEN": "SECRET", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "", "HTTPS_PROXY": "http://proxy.invalid",
    }  # fmt: skip
    code = "import os; os.sched_setaffinity(0, {0})\nimport trackio, time\ntrackio.init(project='p')\ntime.sleep(1)"
    start = time.monotonic()
    shell = subprocess.run(
        [sys.executable, "-c", code], env=host.environ(**env), cwd=tmp_path, capture_output=True, text=True
    )
    assert shell.returncode == 0 and time.monotonic() - start < 20 * PATIENCE, "a pipe held open would hang here"
    pid = wait_for(host.status).daemon["pid"]
    environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    names = {item.partition("=")[0] for item in environ if item}
    assert not names & {*env} - {"TRACKIO_AUTOSTART", "HTTPS_PROXY"} and "TRACKIO_PARENT" not in names
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    assert os.getsid(pid) != os.getsid(0) and os.getsid(pid) != shell.returncode
    assert len(os.sched_getaffinity(pid)) == os.cpu_count()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "300"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 5


def test_no_port_is_ever_opened_and_the_socket_is_private(daemon: Host) -> None:
    import psutil

    process = psutil.Process(daemon.status().daemon["pid"])
    assert process.net_connections(kind="inet") == []
    path = daemon.status().daemon["socket"]
    assert os.stat(path).st_mode & 0o777 == 0o600 and os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_process_is_refused(daemon: Host) -> None:
    path = daemon.status().daemon["socket"]
    for parent in Path(path).parents:
        if str(parent).startswith(str(daemon.spool)):
            parent.chmod(0o755)
    os.chmod(path, 0o777)
    code = f"""
import os, zmq
from trackio import wire
os.setgid(65534); os.setuid(65534)
s = zmq.Context().socket(zmq.DEALER); s.setsockopt(zmq.RCVTIMEO, 1000); s.setsockopt(zmq.LINGER, 0)
s.connect("ipc://{path}")
s.send_multipart(wire.encode(wire.StatusQuery()))
try: s.recv_multipart(); print("answered")
except zmq.Again: print("silence")
"""
    assert daemon.run(code).stdout.strip() == "silence"
    assert "uid 65534" in (daemon.data / "trackiod.log").read_text()


def test_a_peer_that_sends_nonsense_costs_nothing(daemon: Host) -> None:
    path = daemon.status().daemon["socket"]
    for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 100, b"\xff" * 64):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(path)
            stranger.sendall(junk)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 200)
    dealer.connect(f"ipc://{path}")
    hello = wire.Hello("s", {"run": 7, "rank": "x"})
    for frames in ([b""], [b"\xc1"], [b"a", b"b", b"c"], wire.encode(hello), wire.encode(wire.Ack("s", 3)),
                   wire.encode(wire.Data("nobody", 0, 5, 0, [0, 0], b"12345"))):  # fmt: skip
        dealer.send_multipart(frames)
    dealer.setsockopt(zmq.RCVTIMEO, int(5000 * PATIENCE))
    answers = [wire.decode(dealer.recv_multipart()) for _ in range(2)]
    dealer.close()
    context.term()
    assert isinstance(answers[0], wire.Refusal) and answers[1] == wire.Unknown("nobody")
    daemon.run("import trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})")
    assert daemon.ended_run("p").points == 1


def test_another_protocol_version_is_told(daemon: Host) -> None:
    meta = {"project": "p", "run": "r", "name": "n", "role": "rank", "attempt": "a", "rank": 0, "local_rank": 0,
            "world_size": 1, "started_ns": 1}  # fmt: skip
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, int(5000 * PATIENCE))
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(f"ipc://{daemon.status().daemon['socket']}")
    dealer.send_multipart(wire.encode(wire.Hello("s", meta, 0, 0, [77, 78])))
    answer = wire.decode(dealer.recv_multipart())
    dealer.close()
    context.term()
    assert isinstance(answer, wire.Refusal) and "version" in answer.reason


def test_two_folders_at_once_are_two_daemons(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.spool)
    try:
        assert host.start() != other.start()
        assert host.places.roots[0] != other.places.roots[0]
        for each, name in ((host, "a"), (other, "b")):
            each.run(f"import trackio\ntrackio.init(project='{name}')\ntrackio.log({{'x': 1}})")
            assert each.ended_run(name).points == 1
        assert host.cli("list", "projects") == {"projects": ["a"]}
    finally:
        other.stop()


def test_every_path_to_a_folder_is_the_same_daemon(daemon: Host, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(daemon.data)
    through = places.find(str(link), str(daemon.spool))
    assert through.data == daemon.places.data
    assert inquiry.ask(through, wire.StatusQuery(), 5) is not None


def test_the_server_holds_no_wait_for_the_disk() -> None:
    """The loop's code never opens a database: only the committer does."""
    import trackiod.server as module

    source = Path(module.__file__).read_text()
    assert "sqlite3" not in source and "ProjectStore" not in source and Server is not None


def test_stop_stops_one_that_is_still_starting(host: Host) -> None:
    process = host.python("from trackiod.daemon import run; raise SystemExit(run())")
    wait_for(lambda: launch.is_running(host.places))
    assert host.command("trackiod", "stop").returncode == 0
    process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 0 and not launch.is_running(host.places)
