"""Bad input: one clear sentence each, nothing else lost, never a traceback out of training."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import Host, database, shown, wait_for

from trackio import mounts, places
from trackiod.store import layout


def run_well(host: Host, code: str, **env: str) -> list[str]:
    """Runs `code` after an init(); it must end well. Returns what was said on stderr besides the first line."""
    done = host.run("import trackio\nrun = trackio.init(project='p', name='r')\n" + code, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if "see it with" not in line]


def test_odd_keys_and_values_cost_no_other_key(daemon: Host) -> None:
    said = run_well(daemon, r"""
import numpy as np, torch
for _ in range(3):
    trackio.log({"ok": 1, 5: 2, ("t",): 3, "none": None, "bad": object(), "arr": torch.zeros(3), "big": 2**70,
                 "sur\ud800": "\ud800", "np": np.float32(.5), "t": torch.tensor(.25), "nest": {"a": {"b": 1}},
                 "nan": float("nan"), "inf": float("inf"), "ninf": -float("inf"), "i64": 2**63, "neg": -2**63})
trackio.log({})
""")  # fmt: skip
    assert [s for s in said if "'bad'" in s] == [
        "trackio: 'bad' was left out: a value of type object cannot be stored as a metric."
    ]
    assert sum("'arr'" in s and "Tensor" in s for s in said) == 1
    assert said[2:] == ["trackio: 4 more values were left out like those named above."], "the exit line"
    run = daemon.ended_run("p")
    stored = {name: shown(run, name)[0].value for name in run.metric_names}
    assert math.isnan(stored.pop("nan"))
    assert stored == {
        "ok": 1, "5": 2, "('t',)": 3, "big": float(2**70), "sur\\ud800": "\\ud800", "np": 0.5, "t": 0.25,
        "nest/a/b": 1, "inf": math.inf, "ninf": -math.inf, "i64": 2**63, "neg": -(2**63),
    }  # fmt: skip
    assert all(len(shown(run, name)) == 3 for name in stored)
    assert run.num_logs == 4, "an empty dict is a record, as upstream has it"


def test_steps_may_be_negative_go_back_or_be_whole_floats(daemon: Host) -> None:
    said = run_well(daemon, """
for step in (5, -3, 2, 4.0, 1.5, "x", None):
    trackio.log({"a": str(step)}, step=step)
""")  # fmt: skip
    assert len(said) == 1 and "step=1.5 is no whole number" in said[0]
    stored = {p.step: p.value for p in shown(daemon.ended_run("p"), "a")}
    assert stored == {5: "5", -3: "-3", 2: "2", 4: "4.0", 6: "1.5", 7: "x", 8: "None"}


def test_a_call_larger_than_a_segment_is_stored_whole(daemon: Host) -> None:
    said = run_well(daemon, "trackio.log({f'metric/{i}': i / 7 for i in range(60_000)}, step=3)")
    assert said == []
    run = daemon.ended_run("p")
    assert run.points == 60_000 and run.refused_points == 0
    assert [(p.step, p.value) for p in shown(run, "metric/59999")] == [(3, 59999 / 7)]


def test_one_value_too_large_is_named_and_the_others_kept(daemon: Host) -> None:
    said = run_well(daemon, "trackio.log({'small': 1, 'huge': 'x' * (3 << 20)})")
    assert len(said) == 1 and "'huge'" in said[0]
    run = daemon.ended_run("p")
    assert run.metric_names == ["small"] and run.points == 1


def test_a_very_large_config_is_bounded_and_holds_nothing_up(daemon: Host) -> None:
    said = run_well(daemon, """
run.config.update({"files": [f"/data/file-{i}" for i in range(200_000)], "lr": 0.1})
trackio.log({"a": 1})
""")  # fmt: skip
    assert len(said) == 1 and "'files'" in said[0]
    run = daemon.ended_run("p")
    assert run.config()["lr"] == 0.1 and len(run.config()["files"]) < 2000 and run.points == 1


def test_what_is_left_out_of_a_large_call_is_a_few_lines(daemon: Host) -> None:
    """As `log(model.state_dict())` is: what cannot be stored is counted once ten of its kind are named, and what is
    beyond the most keys costs no other."""
    said = run_well(daemon, """
trackio.log({f"bad{i}": object() for i in range(2000)} | {"a": 1})
trackio.log({f"map{i}": {"x": i} for i in range(60_000)})
trackio.log({"list": [0] * 200_000, "b": 2})
""")  # fmt: skip
    assert sum("'bad" in line for line in said) == 10 and len(said) == 13, said
    assert "1,990 more values were left out" in said[-1] and "'map50000' was left out" in said[-3]
    run = daemon.ended_run("p")
    assert len(run.metric_names) == 50_000 + 2 and run.points == 50_002


def test_text_that_is_no_utf_8_switches_nothing_off(daemon: Host) -> None:
    code = "import trackio\ntrackio.init(config={'lr': 1, '\\udcff': 2})\ntrackio.log({'a': 1})"
    done = daemon.run(code, env={"TRACKIO_PROJECT": "caf\udce9"})
    assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    wait_for(lambda: daemon.cli("list", "projects")["projects"] == ["caf\\udce9"])
    assert daemon.ended_run("caf\\udce9").config() == {"lr": 1, "\\udcff": 2}


def test_paths_that_are_no_utf_8_lose_nothing(host: Host, tmp_path: Path) -> None:
    """The data folder, the spool, what the environment says of names and devices."""
    odd = {name: str(tmp_path / f"{name}\udcff") for name in ("TRACKIO_DIR", "TRACKIO_SPOOL_DIR")}
    host.extra |= odd | {"TRACKIO_RUN_NAME": "r\udcff", "CUDA_VISIBLE_DEVICES": "\udcff"}
    assert host.command("trackiod", "start").returncode == 0
    try:
        code = "import trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})"
        done = host.run(code + "\ntrackio.finish(wait='stored', timeout=60)")
        assert done.returncode == 0 and "not everything" not in done.stderr, done.stderr
        for command in (["trackio", "status"], ["trackiod", "status"], ["trackiod", "doctor"], ["trackiod", "repair"]):
            said = host.command(*command)
            assert "Traceback" not in said.stderr and "does not answer" not in said.stdout, said
        found = host.cli("get", "metric", "--project", "p", "--run", "r\\udcff", "--metric", "a")
        assert [value["value"] for value in found["values"]] == [1]
    finally:
        assert host.command("trackiod", "stop").returncode == 0


def test_an_unwritable_data_folder_is_one_sentence_and_training_goes_on(host: Host) -> None:
    no_folder = host.data / "file"
    no_folder.touch()
    said = run_well(host, "trackio.log({'a': 1})", TRACKIO_DIR=str(no_folder / "data"), TRACKIO_AUTOSTART="1")
    assert any("cannot be written" in s and "TRACKIO_DIR" in s for s in said)
    assert len(said) <= 3


def test_start_says_why_it_cannot_use_the_folder(host: Host) -> None:
    host.data.rmdir()
    host.data.write_text("a file")
    done = host.command("trackiod", "start")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"Error: The data folder {host.data} cannot be used") and "\n" not in done.stderr[:-1]


def test_upstreams_databases_are_left_alone(host: Host) -> None:
    theirs = host.data / "demo.db"
    with database(theirs) as connection:
        connection.execute("CREATE TABLE metrics (id INTEGER)")
    before = theirs.read_bytes()
    host.start()
    run_well(host, "trackio.log({'a': 1})")
    assert host.ended_run("p").points == 1
    host.stop()
    assert theirs.read_bytes() == before and host.cli("list", "projects") == {"projects": ["p"]}


def test_a_store_of_a_newer_layout_is_refused_and_the_data_are_kept(daemon: Host) -> None:
    run_well(daemon, "trackio.log({'a': 1})")
    daemon.ended_run("p")
    daemon.stop()
    path = next(Path(daemon.places.projects).glob("*.db"))
    with database(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    daemon.start()
    said = run_well(daemon, "import time\ntrackio.log({'b': 2})\ntime.sleep(1)")
    assert len(said) == 1 and "newer trackio" in said[0] and "kept" in said[0]
    assert list((daemon.data / "spill").rglob("seg-*"))
    done = daemon.command("trackio", "list", "runs", "--project", "p")
    assert done.returncode == 1 and "upgrade trackio" in done.stderr
    daemon.stop()
    with database(path) as connection:
        connection.execute(f"PRAGMA user_version = {layout.VERSION}")
    daemon.start()
    wait_for(lambda: len(daemon.runs("p")) == 2 and all(r.state.state == "finished" for r in daemon.runs("p")))
    assert [p.value for p in shown(daemon.runs("p")[1], "b")] == [2]


def test_a_damaged_store_is_set_aside_and_named_and_the_project_goes_on(daemon: Host) -> None:
    run_well(daemon, "trackio.log({'a': 1})")
    daemon.ended_run("p")
    daemon.stop()
    path = next(Path(daemon.places.projects).glob("*.db"))
    path.write_bytes(b"this is no database" * 1000)
    daemon.start()
    run_well(daemon, "trackio.log({'b': 2})")
    assert daemon.ended_run("p").metric_names == ["b"]
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    assert "is damaged" in (daemon.data / "trackiod.log").read_text()


def test_a_project_that_cannot_be_written_does_not_hold_up_the_others(daemon: Host) -> None:
    """Another process holds the write lock of one project's database."""
    run_well(daemon, "trackio.log({'a': 1})")
    daemon.ended_run("p")
    path = next(Path(daemon.places.projects).glob("*.db"))
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    held = daemon.python("import trackio, sys\ntrackio.init(project='p')\ntrackio.log({'b': 1})\nsys.stdin.read()",
                         stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: daemon.status().streams)
    daemon.run("import trackio\ntrackio.init(project='q')\ntrackio.log({'c': 1})")
    wait_for(lambda: daemon.runs("q") and daemon.the_run("q").points == 1, 60)
    blocker.execute("ROLLBACK")
    blocker.close()
    held.communicate()
    wait_for(lambda: sum(r.points for r in daemon.runs("p")) == 2, 60)


def test_a_stale_socket_endpoint_and_lock_do_no_harm(host: Host) -> None:
    pid = host.start()
    os.kill(pid, 9)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
    assert places.read_endpoint(host.places.endpoint) is not None
    assert host.status() is None
    host.start()
    run_well(host, "trackio.log({'a': 1})")
    assert host.ended_run("p").points == 1


def test_an_endpoint_file_of_nonsense_is_no_daemon(host: Host) -> None:
    for text in ("", "x", "socket /nope\npid x\n", "\x00" * 100):
        Path(host.places.endpoint).write_text(text)
        assert host.status() is None


@pytest.mark.parametrize("free", range(13))
def test_any_number_of_free_descriptors_is_survived(daemon: Host, free: int) -> None:
    """2 free descriptors abort a process that uses libzmq; ours logs on, and nothing is lost."""
    code = f"""
import os, resource
import json, select, socket, numpy
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
while True:
    try: held.append(os.dup(2))
    except OSError: break
for fd in held[:{free}]: os.close(fd)
import trackio
run = trackio.init(project="p")
for i in range(100): trackio.log({{"a": i}})
for fd in held[{free}:]: os.close(fd)
trackio.log({{"a": 100}})
trackio.finish()
"""
    code = "import trackio\nfrom trackio import opening\n" + code
    done = daemon.run(code)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    daemon.ended_run("p")
    assert daemon.values("p", "a") == list(range(101))


def test_no_thread_can_be_started_and_nothing_is_lost(daemon: Host) -> None:
    """RLIMIT_NPROC reached: the data wait, and the daemon takes what is left when the process has gone."""
    code = """
import threading
start = threading.Thread.start
def refuse(self): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
import trackio
trackio.init(project="p")
for i in range(300_000): trackio.log({"a": i})
"""
    done = daemon.run(code)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("no thread can be started") == 1
    run = daemon.ended_run("p", 60)
    assert run.points + run.refused_points == 300_000 and run.refused_points == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user with a process limit")
def test_rlimit_nproc_reached_aborts_nothing(host: Host) -> None:
    """The real limit, as another user: root is exempt from it."""
    for folder in (host.data, host.spool):
        os.chown(folder, 65534, 65534)
    for parent in host.data.parents:
        if parent == Path("/"):
            break
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    code = """
import os, resource, trackio
os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
trackio.init(project="p")
for i in range(1000): trackio.log({"a": i})
trackio.finish()
"""
    done = host.run(code, env={"HOME": "/nonexistent"})
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "process limit" in done.stderr
    subprocess.run(["chown", "-R", "0:0", str(host.data), str(host.spool)], check=True)
    host.start()
    assert host.ended_run("p").points == 1000


@pytest.mark.parametrize("hidden", ["/dev/shm", "/dev/shm /tmp /run"])
def test_without_shared_memory_metrics_arrive_all_the_same(host: Host, hidden: str) -> None:
    """A mount namespace in which /dev/shm, or every place for a spool, is read-only; the daemon is outside."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare to hide /dev/shm")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        host.data = Path(folder) / "data"
        host.start()
        code = "import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i}) for i in range(50)]\ntrackio.finish()"
        hide = f'for d in {hidden}; do mount --bind $d $d && mount -o remount,bind,ro $d || exit 99; done; exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", code],
            env=host.environ(TRACKIO_SPOOL_DIR="/proc/none"), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert host.ended_run("p").points == 50
        host.stop()


def test_a_network_file_system_is_told_by_its_mount() -> None:
    text = (
        "22 1 259:1 / / rw - ext4 /dev/root rw\n"
        "30 22 0:30 / /home rw shared:5 - nfs4 server:/home rw,vers=4.2\n"
        "31 22 0:31 / /home/me/fast\\040disk rw - xfs /dev/sdb rw\n"
        "32 22 0:32 / /dev/shm rw - tmpfs tmpfs rw\n"
    )
    parsed = mounts.parse(text)
    assert mounts.mount_of("/home/me/.local", parsed).is_network
    assert not mounts.mount_of("/home/me/fast disk/x", parsed).is_network
    assert mounts.mount_of("/dev/shm/x", parsed).is_memory and mounts.mount_of("/dev/shm/x", parsed).is_mappable
    assert mounts.mount_of("/homeless", parsed).type == "ext4"


def test_a_data_folder_on_a_network_file_system_is_said_and_the_store_lies_elsewhere(host: Host) -> None:
    """The process sees a mountinfo in which its data folder is NFS."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare to show another mountinfo")
    fake = host.data.parent / "mountinfo"
    real = Path("/proc/self/mountinfo").read_text()
    fake.write_text(f"{real}99 22 0:99 / {host.data} rw - nfs4 server:/home rw\n")
    code = "import trackio, os\ntrackio.init(project='p')\ntrackio.log({'a': 1})\ntrackio.finish()"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'mount --bind {fake} /proc/$$/mountinfo || exit 99; exec "$@"',
         "sh", sys.executable, "-c", code],
        env=host.environ(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    live = Path(f"/var/tmp/trackio-{os.geteuid()}") / places.folder_hash(str(host.data))
    try:
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("is on a network file system (nfs4)") == 1 and str(live) in done.stderr
        assert list((live / "spill").rglob("seg-*")) and not list(host.data.iterdir())
    finally:
        shutil.rmtree(live, ignore_errors=True)


def test_a_full_data_disk_is_said_and_nothing_is_lost(host: Host, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], check=True)
    try:
        host.data = small / "data"
        host.start()
        process = host.python("""
import random, trackio, sys
trackio.init(project="p")
for i in range(60_000): trackio.log({f"k{j}": random.random() for j in range(10)})
sys.stdin.read()
""", stdin=subprocess.PIPE)  # fmt: skip
        wait_for(lambda: (report := host.status()) and "full" in report.daemon["problem"], 60, "a full disk")
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        wait_for(lambda: host.runs("p") and host.the_run("p").points == 600_000, 60, "all points")
        process.communicate()
        run = host.ended_run("p")
        assert run.refused_points == 0 and run.holes == []
        host.stop()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_what_is_giant_or_goes_round_in_circles_costs_itself_and_a_sentence(daemon: Host) -> None:
    said = run_well(daemon, """
giant, circle, ring = "a" * (64 << 20), {}, []
circle["itself"] = circle; ring.append(ring)
class Odd:
    def __init__(self): self.self = self
    def __repr__(self): return "o" * 10**6
run.config.update({"giant": giant, "circle": circle, "ring": ring, "odd": Odd(), "lr": 1})
run.summary["giant"] = giant
trackio.log({"giant": giant, "circle": circle, "ring": ring, "odd": Odd(), "fine": 1})
trackio.log({"table": trackio.Table(data=[[ring, circle, Odd(), 2]]), "fine": 2})
trackio.log({"trace": trackio.Trace([{"role": "user", "content": circle}], metadata={"odd": Odd()}), "fine": 3})
trackio.log({"giant table": trackio.Table(data=[[giant]]), "fine": 4})
trackio.alert(giant, giant)
""", TRACKIO_SPILL_MIB="50")  # fmt: skip
    assert all(len(line) < 1000 for line in said), "no sentence quotes what is giant"
    for named in ("'giant' was left out", "'ring' was left out", "'odd' was left out", "'giant table' was left out",
                  "config 'giant' is very large", "summary 'giant' is very large", "an alert is cut"):  # fmt: skip
        assert sum(named in line for line in said) == 1, (named, said)
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "fine")] == [1, 2, 3, 4]
    config = run.config()
    assert config["lr"] == 1 and len(config["giant"]) <= 1000 and len(config["odd"]) <= 1000
    assert len(str(config)) < 100_000
    (table,) = [p.value for p in shown(run, "table")]
    assert table["rows"][0][3] == 2 and len(table["rows"][0][2]) <= 1000
