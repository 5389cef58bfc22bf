"""Runs that outlive their host: copied to a folder that all hosts see, and read there as one store."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, clean_environ, wait_for

from trackio import launch, mounts, places
from trackiod import elsewhere
from trackiod.sinks import directory

LOG = """
import os, sys, time, trackio
trackio.init(project="p", name=sys.argv[1], config={"host": sys.argv[1]})
rank = int(os.environ.get("RANK", "0"))
for step in range(int(sys.argv[2])):
    odd = float("nan") if step % 2 else 1.5
    trackio.log({"loss": step + rank, "nan": odd, "text": f"s{step}", "n": step}, step=step)
trackio.define_metric("n", reduce="sum")
print("logged", flush=True)
if len(sys.argv) > 3: sys.stdin.read()
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Hosts that share one folder and nothing else. Their daemons do not run yet."""
    made: list[Host] = []

    def make(name: str) -> Host:
        spool = Path(tempfile.mkdtemp(prefix="trackio-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        host = Host(tmp_path / name / "data", spool, {"TRACKIO_SHARED_DIR": str(tmp_path / "shared")})
        host.data.mkdir(parents=True)
        made.append(host)
        return host

    yield make
    for host in made:
        host.close()


def run_facts(host: Host, run: str, *options: str) -> Any:
    return host.cli("get", "run", "--project", "p", "--run", run, *options)


def points_of(host: Host) -> int:
    return sum(run.points for run in host.runs("p"))


def values(host: Host, run: str, metric: str, *options: str) -> list[Any]:
    done = host.cli("get", "metric", "--project", "p", "--run", run, "--metric", metric, *options)
    return [point["value"] for point in done["values"]]


def test_a_run_of_two_hosts_is_one_on_every_host(hosts: Callable[[str], Host]) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    one.start()
    two.start()
    for rank in range(4):
        host = one if rank < 2 else two
        env = {"TRACKIO_RUN_ID": "job", "RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank % 2)}
        assert host.run(LOG, f"r{rank}", "500", env=env).returncode == 0
    one.ended_run("p")
    two.ended_run("p")
    for reader in (login, one, two):  # the hosts' own store and the other's copy are read as one
        facts = wait_for(
            lambda reader=reader: (
                "p" in reader.cli("list", "projects")["projects"]
                and (f := run_facts(reader, "job"))["logging"] == 4 and f["state"] == "finished" and f
            ), 30, f"all ranks on {reader.data}",
        )  # fmt: skip
        assert facts["run"] == "r0" and facts["attempts"] == 1 and facts["points"] == 8000
        assert [rank["rank"] for rank in facts["ranks"]] == [0, 1, 2, 3]
        assert values(reader, "job", "loss") == [step + 1.5 for step in range(500)]
        assert values(reader, "job", "n") == [4 * step for step in range(500)]
        assert values(reader, "job", "loss", "--rank", "3") == [step + 3 for step in range(500)]
        assert values(reader, "job", "nan", "--rank", "2") == [1.5, "NaN"] * 250
        assert facts["config_differences"]["host"] == {str(n): f"r{n}" for n in range(4)}
        assert reader.cli("list", "runs", "--project", "p")["runs"] == ["r0"]
    status = login.cli("status")
    assert [run["run"] for run in status["runs"]] == ["r0"] and status["runs"][0]["logging"] == 4


def test_a_host_that_dies_with_its_memory_loses_a_minute_and_its_runs_end(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    training = node.python(LOG, "r", "1000", "stay", stdin=-1)
    assert training.stdout.readline() == "logged\n"
    wait_for(lambda: points_of(node) == 4000, 20, "the points in the host's own store")
    directory.copy_out(node.places)  # as its daemon does every minute
    os.kill(node.status().daemon["pid"], signal.SIGKILL)
    training.kill()
    training.wait()
    shutil.rmtree(node.data)
    shutil.rmtree(node.spool)
    facts = run_facts(login, "r")
    assert facts["state"] == "running" and values(login, "r", "loss") == list(range(1000))
    (alive,) = Path(node.extra["TRACKIO_SHARED_DIR"]).glob("*/*/alive")
    os.utime(alive, (time.time() - 600,) * 2)
    facts = run_facts(login, "r")
    assert facts["state"] == "lost" and "nothing was heard of" in facts["cause"]
    assert values(login, "r", "loss") == list(range(1000))
    os.utime(alive)  # it was the file server that was away
    assert run_facts(login, "r")["state"] == "running"


def test_a_daemon_that_is_told_to_stop_copies_what_it_has(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "r", "300").returncode == 0
    pid = node.status().daemon["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 20, "the daemon's end")
    assert values(login, "r", "text") == [f"s{step}" for step in range(300)]
    shutil.rmtree(node.data)  # the job's own folder goes with the job
    assert values(login, "r", "loss") == list(range(300))


def test_a_run_is_copied_soon_after_its_end_and_only_what_changed_is_copied(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "first", "10").returncode == 0
    wait_for(lambda: "p" in login.cli("list", "projects")["projects"], 20, "the first run")
    wait_for(lambda: run_facts(login, "first")["state"] == "finished", 20, "its end")
    shared = Path(node.extra["TRACKIO_SHARED_DIR"])
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*.db")}
    assert len(before) == 1
    assert node.run(LOG, "second", "10").returncode == 0
    wait_for(
        lambda: {*login.cli("list", "runs", "--project", "p")["runs"]} == {"first", "second"}, 20, "the second run"
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    facts = node.status().daemon["copies"]
    assert facts["folder"] == str(shared) and facts["problem"] == ""


@pytest.mark.parametrize("part_bytes", [1, 8 << 20])
def test_parts_hold_every_value_once_however_they_are_cut(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(directory, "_PART_BYTES", part_bytes)
    node, login = hosts("node"), hosts("login")
    node.start()
    code = """
import sys, trackio
trackio.init(project="p", name="r")
for turn in range(3):
    for i in range(6000):
        trackio.log({"v": i / 3, "w": -i if i % 7 else "seven"}, step=i - turn * 100)
    print("turn", flush=True); sys.stdin.readline()
"""
    training = node.python(code, stdin=-1)
    for turn in range(3):
        assert training.stdout.readline() == "turn\n"
        wait_for(lambda turn=turn: points_of(node) == 12_000 * (turn + 1), 30, "the points")
        time.sleep(1)  # some of it is folded
        directory.copy_out(node.places)
        elsewhere.refresh(login.places)
        for metric in ("v", "w"):
            assert values(login, "r", metric) == values(node, "r", metric)
            assert values(login, "r", metric, "--all") == values(node, "r", metric, "--all")
        training.stdin.write("\n")
        training.stdin.flush()
    training.wait()
    node.ended_run("p")
    node.stop()
    parts = list(Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("*.db"))
    assert (len(parts) > 1) == (part_bytes == 1)
    for metric in ("v", "w"):
        assert values(login, "r", metric, "--all") == values(node, "r", metric, "--all")
    buckets = ("get", "metric", "--project", "p", "--run", "r", "--metric", "v", "--buckets", "10")
    assert login.cli(*buckets) == node.cli(*buckets)
    assert run_facts(login, "r")["summary"] == run_facts(node, "r")["summary"]


def test_what_is_deleted_or_renamed_on_its_host_is_so_everywhere(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    for name in ("goes", "stays"):
        assert node.run(LOG, name, "10").returncode == 0
    node.ended_runs("p")
    directory.copy_out(node.places)
    assert {*login.cli("list", "runs", "--project", "p")["runs"]} == {"goes", "stays"}
    code = """
import trackio
runs = {run.name: run for run in trackio.Api().runs("p")}
runs["goes"].delete(); runs["stays"].rename("new")
"""
    assert node.run(code).returncode == 0
    directory.copy_out(node.places)
    assert login.cli("list", "runs", "--project", "p")["runs"] == ["new"]
    assert values(login, "new", "loss") == list(range(10))
    assert node.run("import trackio; trackio.delete_project('p', force=True)").returncode == 0
    directory.copy_out(node.places)
    assert login.cli("list", "projects")["projects"] == []


def test_a_damaged_part_is_one_sentence_and_the_others_are_read(hosts: Callable[[str], Host]) -> None:
    node, other, login = hosts("node"), hosts("other"), hosts("login")
    for host, name in ((node, "a"), (other, "b")):
        host.start()
        assert host.run(LOG, name, "10").returncode == 0
        host.ended_run("p")
        host.stop()
    part = next(Path(node.extra["TRACKIO_SHARED_DIR"]).glob(f"*/{(node.data / 'store.id').read_text()}/*/*/*.db"))
    part.write_bytes(b"no database at all" * 100)
    done = login.command("trackio", "list", "runs", "--project", "p")
    assert done.returncode == 0 and "b" in done.stdout
    assert done.stderr.count("Warning") == 1 and "cannot be read" in done.stderr
    shutil.rmtree(login.data / "elsewhere")  # it can be made anew
    assert values(login, "b", "loss") == list(range(10))


def test_a_shared_folder_that_cannot_be_written_is_said_and_costs_nothing_else(hosts: Callable[[str], Host]) -> None:
    node = hosts("node")
    Path(node.extra["TRACKIO_SHARED_DIR"]).write_text("a file")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    wait_for(lambda: node.status().daemon["copies"]["problem"], 20, "the problem")
    assert "cannot be written" in node.command("trackio", "status").stdout
    assert values(node, "r", "loss") == list(range(10))


def test_a_part_is_a_database_of_the_layout_and_holds_no_secret(hosts: Callable[[str], Host]) -> None:
    node = hosts("node")
    node.start()
    url = "http://127.0.0.1:9/hook"
    done = node.run(f"import trackio; trackio.init(project='p', webhook_url='{url}'); trackio.log({{'a': {math.pi}}})")
    assert done.returncode == 0
    node.ended_run("p")
    node.stop()
    (part,) = Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("*.db")
    assert sqlite3.connect(part).execute("SELECT count(*) FROM series").fetchone() == (1,)
    assert url.encode() not in part.read_bytes()
    assert oct(part.parent.stat().st_mode)[-3:] == "700"


def test_pictures_and_tables_are_seen_on_other_hosts(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    code = """
import numpy, trackio
trackio.init(project="p", name="r")
trackio.log({"img": trackio.Image(numpy.zeros((8, 8, 3), numpy.uint8), caption="c"),
             "rows": trackio.Table(columns=["a"], data=[[i] for i in range(2000)])})
"""
    assert node.run(code).returncode == 0
    node.ended_run("p")
    wait_for(lambda: node.status().daemon["errands"] == 0, 20, "the files")
    node.stop()
    shutil.rmtree(node.data)
    (image,) = values(login, "r", "img")
    assert image["caption"] == "c" and Path(image["file_path"]).read_bytes()[1:4] == b"PNG"
    (rows,) = values(login, "r", "rows")
    assert len(rows["_value"]) == 2000


def test_drain_waits_until_everything_is_stored_and_copied(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    assert node.run(LOG, "r", "2000").returncode == 0  # no daemon ever ran: the data wait in the spool
    done = node.command("trackio", "drain", "--timeout", "60")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Everything is stored and copied.\n", "")
    assert node.status() is None, "a daemon that drain started is gone"
    shutil.rmtree(node.data)
    shutil.rmtree(node.spool)
    assert values(login, "r", "loss") == list(range(2000))


def test_drain_hurries_a_daemon_that_runs_and_says_what_keeps_it(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    training = node.python(LOG, "r", "500", "stay", stdin=-1)
    assert training.stdout.readline() == "logged\n"
    assert node.command("trackio", "drain").returncode == 0
    assert values(login, "r", "loss") == list(range(500))
    shared = Path(node.extra["TRACKIO_SHARED_DIR"])
    shared.rename(shared.with_name("away"))
    shared.write_text("a file")
    training.communicate("")
    node.ended_run("p")
    done = node.command("trackio", "drain", "--timeout", "3")
    assert done.returncode == 1 and "Not everything is safe yet" in done.stderr and "cannot be written" in done.stderr


def test_hosts_in_namespaces_of_their_own_share_only_the_folder(tmp_path: Path) -> None:
    """Mounts, names and networks of their own: each has a tmpfs of its own for data and spools, and one is killed."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    shared, scratch = tmp_path / "shared", tmp_path / "scratch"
    shared.mkdir()
    scratch.mkdir()
    environ = {
        **clean_environ(), "TRACKIO_DIR": str(scratch / "data"), "TRACKIO_SAMPLING": "0",
        "TRACKIO_SHARED_DIR": str(shared), "TRACKIO_RUN_ID": "job", "WORLD_SIZE": "2", "TRACKIO_QUIET": "1",
    }  # fmt: skip
    inside = f'hostname $0 && mount -t tmpfs none {scratch} && mount -t tmpfs none /dev/shm && exec "$@"'

    def on(name: str, code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        command = [
            "unshare",
            "--mount",
            "--uts",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "sh",
            "-c",
        ]
        words = [*command, inside, name, sys.executable, "-c", code, *arguments]
        return subprocess.Popen(
            words, env=environ | env, stdin=-1, stdout=-1, stderr=-1, text=True, start_new_session=True
        )

    code = (
        LOG
        + """
import subprocess
if rank == 0:
    drain = subprocess.run([os.path.join(os.path.dirname(sys.executable), "trackio"), "drain"], capture_output=True)
    print(drain.stdout, drain.stderr, flush=True)
sys.stdin.read()
"""
    )
    nodes = [on(f"node{rank}", code, f"r{rank}", "300", RANK=str(rank)) for rank in range(2)]
    try:
        for node in nodes:
            assert node.stdout is not None and node.stdout.readline() == "logged\n", node.communicate()
        assert "Everything" in nodes[0].stdout.readline()
        wait_for(lambda: len(list(shared.glob("node*/*/changed"))) == 2, 90, "both hosts' copies")
        assert sorted(path.name for path in shared.iterdir()) == ["node0", "node1"]
        login = on(
            "login",
            f"""
import subprocess, sys
words = ["get", "metric", "--project", "p", "--run", "job", "--metric", "loss", "--json"]
sys.exit(subprocess.run([{str(Path(sys.executable).with_name("trackio"))!r}, *words]).returncode)
""",
        )
        nodes[1].kill()  # and with it everything in its memory
        out, err = login.communicate(timeout=60)
        assert login.returncode == 0, err
        assert [point["value"] for point in json.loads(out)["values"]] == [step + 0.5 for step in range(300)]
    finally:
        for node in nodes:
            node.kill()
            node.communicate()


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:30 / {home} rw - nfs4 server:/home rw
3 1 0:31 / {scratch} rw - ext4 /dev/nvme0n1 rw
"""


@pytest.mark.parametrize(
    ("data", "home_is_network", "job", "configured", "shared"),
    [
        ("", True, False, "", "home/.local/share/trackio/hosts"),  # the live store lies elsewhere
        ("home/project", True, False, "", "home/project/hosts"),
        ("scratch/run", True, False, "", "home/.local/share/trackio/hosts"),  # a compute node's own disk
        ("scratch/run", False, True, "", "home/.local/share/trackio/hosts"),  # a batch job's own folder
        ("scratch/run", False, False, "", ""),  # a workstation
        ("", False, True, "", ""),  # the home outlives the job
        ("scratch/run", True, True, "off", ""),
        ("", False, False, "scratch/all", "scratch/all"),
    ],
)
def test_runs_are_copied_where_they_outlive_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, home_is_network: bool, job: bool, configured: str,
    shared: str,
) -> None:  # fmt: skip
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    text = MOUNTS.format(home=home, scratch=scratch)
    parsed = mounts.parse(text if home_is_network else text.replace("nfs4", "ext4"))
    monkeypatch.setattr(mounts, "of", lambda path: mounts.mount_of(os.path.realpath(path), parsed))
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    if configured not in ("", "off"):
        configured = str(tmp_path / configured)
    found = places.find(str(tmp_path / data) if data else "", "", configured)
    assert found.shared == (str(tmp_path / shared) if shared else "")
    for_daemon = launch.environment({"SLURM_JOB_ID": "7", "PATH": "/bin"}, found, "/nowhere")
    assert for_daemon["TRACKIO_SHARED_DIR"] == (found.shared or "off")  # it decides nothing anew
