"""Runs that outlive their host: copied to a folder that all hosts see, and read there as one store."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from conftest import Host, clean_environ, database, wait_for

from trackio import inquiry, launch, mounts, places, wire
from trackiod import elsewhere
from trackiod.sinks import directory
from trackiod.store import parts as store_parts
from trackiod.store import schema

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


def copied_by_hand(node: Host) -> None:
    """Starts its daemon, which copies nothing."""
    shared = node.extra["TRACKIO_SHARED_DIR"]
    node.extra["TRACKIO_SHARED_DIR"] = "off"
    node.start()
    node.extra["TRACKIO_SHARED_DIR"] = shared


def run_facts(host: Host, run: str, *options: str) -> Any:
    return host.cli_here("get", "run", "--project", "p", "--run", run, *options)


def points_of(host: Host) -> int:
    return sum(run.points for run in host.runs("p"))


def values(host: Host, run: str, metric: str, *options: str) -> list[Any]:
    done = host.cli_here("get", "metric", "--project", "p", "--run", run, "--metric", metric, *options)
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
        sql = "SELECT rank, count(*) AS points, sum(value) AS total FROM metrics WHERE metric = 'loss' GROUP BY rank"
        rows = reader.cli("query", "project", "--project", "p", "--sql", sql)["rows"]
        assert rows == [{"rank": n, "points": 500, "total": 124750 + 500 * n} for n in range(4)]
        out = reader.data.parent / "out"
        exported = reader.cli("export", "--project", "p", "--to", str(out))
        assert (exported["runs"], exported["rows"]) == (1, 8000)
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


def test_a_copy_that_is_asked_for_while_another_one_runs_is_made_at_once(hosts: Callable[[str], Host]) -> None:
    node = hosts("node")
    daemon = psutil.Process(node.start())
    with open(Path(node.places.live) / "copy.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert node.run(LOG, "first", "10").returncode == 0
        (copy,) = wait_for(lambda: [c for c in daemon.children() if "copy" in c.cmdline()], 20, "a copy that waits")
        assert node.run(LOG, "second", "10").returncode == 0
        node.ended_runs("p")
        wait_for(lambda: time.time() - copy.create_time() > 2, 20, "a copy that takes long, after which comes a pause")
        assert node.status().daemon["copies"]["is_behind"]
        assert isinstance(inquiry.ask(node.places, wire.Copy(), 10), wire.Edited)
    wait_for(lambda: not node.status().daemon["copies"]["is_behind"], 30, "the copy")


def hidden_chunks(folder: Path) -> set[tuple[Any, ...]]:
    """Those whose sums do not hold."""
    (path,) = (path for path in folder.glob("*.db") if path.stem != "host")
    with database(path) as connection:
        return {*connection.execute(
            "SELECT m.name, a.first_step, a.last_step FROM chunks c JOIN axes a ON a.id = c.axis JOIN series m"
            " ON m.id = c.series WHERE overlapped").fetchall()}  # fmt: skip


@pytest.mark.parametrize("part_bytes", [1, 8 << 20])
def test_parts_hold_every_value_once_however_they_are_cut(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(store_parts, "FULL_BYTES", part_bytes)
    node, login = hosts("node"), hosts("login")
    copied_by_hand(node)
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
    directory.copy_out(node.places)
    found = list(Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("*.db"))
    assert (len(found) > 1) == (part_bytes == 1)
    for metric in ("v", "w"):
        assert values(login, "r", metric, "--all") == values(node, "r", metric, "--all")
    buckets = ("get", "metric", "--project", "p", "--run", "r", "--metric", "v", "--buckets", "10")
    assert login.cli(*buckets) == node.cli(*buckets)
    assert hidden_chunks(node.data / "projects") <= hidden_chunks(login.data / "elsewhere")
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
    part = next(Path(node.extra["TRACKIO_SHARED_DIR"]).glob(f"*/{(node.data / 'store.id').read_text()}/*/*.db"))
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
    url, other = "http://127.0.0.1:9/hook", "http://127.0.0.1:9/special"
    done = node.run(f"""
import trackio
trackio.init(project='p', webhook_url='{url}')
trackio.log({{'a': {math.pi}}})
trackio.alert("bad", "worse")
trackio.alert("good", webhook_url='{other}')
""")
    assert done.returncode == 0
    node.ended_run("p")
    kept = [path.read_text() for path in Path(node.places.live, "webhooks").rglob("*") if path.is_file()]
    assert any(other in text for text in kept), "it is to be sent yet"
    node.stop()
    (part,) = Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("*.db")
    with database(part) as connection:
        assert connection.execute("SELECT count(*) FROM series").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM alerts").fetchone() == (2,)
    assert url.encode() not in part.read_bytes() and other.encode() not in part.read_bytes()
    assert oct(part.parent.stat().st_mode)[-3:] == "700"


def test_a_run_sees_the_samples_of_the_nodes_it_ran_on(hosts: Callable[[str], Host]) -> None:
    """Two nodes: one machine here, so that each is told another boot."""
    one, two, other, login = hosts("one"), hosts("two"), hosts("other"), hosts("login")
    sampled = {"TRACKIO_SAMPLING": "1", "TRACKIO_SAMPLE_SECONDS": "0.2"}
    for number, node in ((0, one), (2, other), (1, two)):  # the other run lies between the two ranks of the first
        node.extra.update(sampled)
        node.start()
        env = {"RANK": str(number), "WORLD_SIZE": "2", "TRACKIO_RUN_ID": "job" if node is not other else "alone"}
        code = "import time, trackio; trackio.init(project='p', name='r'); trackio.log({'a': 1}); time.sleep(3)"
        assert node.run(code, env=env).returncode == 0
        node.ended_run("p")
        node.stop()
        for project in ("p", "\0host"):
            with database(schema.path_of(node.places.projects, project)) as connection:
                for stream, meta in connection.execute("SELECT id, meta FROM streams").fetchall():
                    packed = msgpack.packb(
                        {**msgpack.unpackb(meta), "boot_id": f"boot {number}", "host": f"node{number}"}
                    )
                    connection.execute("UPDATE streams SET meta = ? WHERE id = ?", (packed, stream))
        shutil.rmtree(node.data.parent.parent / "shared" / os.uname().nodename / directory.store_id(node.places))
        assert directory.copy_out(node.places) == []

    def metrics(reader: Host, run: str) -> list[str]:
        found: list[str] = reader.cli("list", "system-metrics", "--project", "p", "--run", run)["system_metrics"]
        return found

    for reader in (login, one):
        names = metrics(reader, "job")
        assert {"node0/cpu/utilization", "node1/cpu/utilization"} <= {*names}, names
        assert {name.split("/")[0] for name in names} == {"node0", "node1"}
        assert "cpu/utilization" in metrics(reader, "alone") and not any("node" in n for n in metrics(reader, "alone"))
        rows = reader.cli("get", "system-metric", "--project", "p", "--run", "job")["system_metrics"]
        assert {row["rank"] for row in rows} == {None, 0, 1}


def test_what_this_host_cannot_read_any_more_stays_copied(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "first", "10").returncode == 0
    node.ended_runs("p")
    node.stop()
    path = Path(schema.path_of(node.places.projects, "p"))
    path.write_bytes(b"no database any more" * 1000)
    assert any("cannot be copied" in problem for problem in directory.copy_out(node.places))
    assert values(login, "first", "loss") == list(range(10))
    node.start()  # it sets the damaged file aside and begins another
    assert node.run(LOG, "second", "10").returncode == 0
    node.ended_runs("p")
    node.stop()
    assert {*login.cli("list", "runs", "--project", "p")["runs"]} == {"first", "second"}
    assert values(login, "first", "loss") == values(login, "second", "loss") == list(range(10))


def test_a_store_that_is_put_back_to_an_earlier_state_is_copied_anew(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_parts, "FULL_BYTES", 1)
    node, login = hosts("node"), hosts("login")
    code = """
import sys, trackio
trackio.init(project="p", name="r", id="one", resume="allow")
for i in range(6000): trackio.log({"v": float(i) * float(sys.argv[1])})
"""

    def train(factor: str) -> None:
        copied_by_hand(node)
        assert node.run(code, factor).returncode == 0
        node.ended_runs("p")
        node.stop()
        assert directory.copy_out(node.places) == []

    path = Path(schema.path_of(node.places.projects, "p"))
    train("1")
    backup = path.read_bytes()
    train("2")
    assert values(login, "r", "v", "--all") == values(node, "r", "v", "--all")
    path.write_bytes(backup)
    train("3")
    assert values(login, "r", "v", "--all") == values(node, "r", "v", "--all")
    assert run_facts(login, "r")["attempts"] == 2 and values(login, "r", "v")[-1] == 5999.0 * 3


def test_a_copy_that_is_killed_at_any_moment_is_made_whole_by_the_next(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    training = node.python("""
import time, trackio
trackio.init(project="p", name="r")
for i in range(10**9):
    trackio.log({f"m{j}": i * j for j in range(50)})
    if i % 100 == 0: time.sleep(0.01)
""")
    wait_for(lambda: points_of(node) > 10_000, 20, "some points")
    copy = [sys.executable, "-m", "trackiod", "copy"]
    for turn in range(25):
        child = subprocess.Popen(copy, env=node.environ(), stderr=subprocess.PIPE)
        time.sleep(0.1 + turn * 0.01)
        child.kill()
        child.communicate()
        elsewhere.refresh(login.places)
    training.kill()
    node.ended_run("p")
    node.stop()
    assert values(login, "r", "m7") == values(node, "r", "m7")
    assert run_facts(login, "r")["state"] == run_facts(node, "r")["state"]
    named = {part["name"] for index in Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("parts.json")
             for run in json.loads(index.read_text())["runs"].values() for part in run["parts"]}  # fmt: skip
    assert {path.name for path in Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("*.db*")} == named


def test_a_host_that_gets_another_name_is_not_two(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    node.stop()
    shared = Path(node.extra["TRACKIO_SHARED_DIR"])
    (before,) = [path for path in shared.iterdir() if path.is_dir()]
    shutil.copytree(before, shared / "zzz")
    node.start()
    assert node.run(LOG, "second", "10").returncode == 0
    node.ended_runs("p")
    node.stop()
    for host in (login, node):
        assert sorted(host.cli("list", "runs", "--project", "p")["runs"]) == ["r", "second"]
        assert values(host, "r", "loss") == list(range(10)) and run_facts(host, "r")["logging"] == 1


@pytest.mark.parametrize("name", ["a#b", "a b", "a%20b", "a?b", "ä"])
def test_any_name_of_a_folder_will_do(hosts: Callable[[str], Host], name: str) -> None:
    node, login = hosts("node" + name), hosts("login" + name)
    for host in (node, login):
        host.extra["TRACKIO_SHARED_DIR"] = str(node.data.parent / name)
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    node.stop()
    assert values(login, "r", "loss") == list(range(10))


def test_what_was_taken_in_is_made_anew_if_it_is_damaged(hosts: Callable[[str], Host]) -> None:
    node, third, login = hosts("node"), hosts("third"), hosts("login")
    for host, name in ((node, "far"), (third, "farther"), (login, "near")):
        host.start()
        assert host.run(LOG, name, "10").returncode == 0
        host.ended_run("p")
        host.stop()
    assert values(login, "far", "loss") == list(range(10))
    (taken,) = (login.data / "elsewhere").glob("*.db")
    taken.write_bytes(b"nothing that means anything" * 1000)
    assert "made anew" in login.command("trackio", "list", "projects").stderr
    for name in ("near", "far", "farther"):
        assert values(login, name, "loss") == list(range(10))


def test_drain_waits_for_files_that_are_not_kept_yet_and_needs_nothing_where_nothing_was(
    hosts: Callable[[str], Host],
) -> None:
    node, login, unused = hosts("node"), hosts("login"), hosts("unused")
    assert unused.command("trackio", "drain").returncode == 0
    node.start()
    picture = """
import os, signal, numpy, trackio
trackio.init(project="p", name="r")
for i in range(30): trackio.log({"img": trackio.Image(numpy.full((500, 500, 3), i, numpy.uint8))})
trackio.finish()
"""
    pid = node.status().daemon["pid"]
    assert node.run(picture).returncode == 0
    os.kill(pid, signal.SIGKILL)  # in the middle of keeping them
    assert node.command("trackio", "drain").returncode == 0
    shutil.rmtree(node.data)
    assert all(os.path.exists(image["file_path"]) for image in values(login, "r", "img"))


def test_a_stream_that_two_databases_hold_is_read_from_the_one_that_has_more(hosts: Callable[[str], Host]) -> None:
    """A database is damaged while a process logs: it is begun anew, and the process sends what it still holds."""
    node, login = hosts("node"), hosts("login")
    copied_by_hand(node)
    goes_on = "sys.stdin.readline(); [trackio.log({'loss': float(step)}, step=step) for step in range(500, 700)]"
    training = node.python(LOG.replace("sys.stdin.read()", goes_on), "r", "500", "stay", stdin=-1)
    assert training.stdout.readline() == "logged\n"
    wait_for(lambda: points_of(node) == 2000, 20, "the points")
    assert directory.copy_out(node.places) == []
    node.stop()
    Path(schema.path_of(node.places.projects, "p")).write_bytes(b"no database any more" * 1000)
    copied_by_hand(node)
    training.communicate("\n")
    node.ended_run("p")
    assert directory.copy_out(node.places) == []
    node.stop()
    expected = values(node, "r", "loss", "--all")
    assert expected[-1] == 699.0
    moved = hosts("moved")  # the same database in another store
    shutil.copytree(node.data / "projects", moved.data / "projects")
    for name, reader in {"login": login, "node": node, "moved": moved, "first": hosts("x"), "last": hosts("y")}.items():
        if name in ("first", "last"):  # whichever is taken in first
            folders = sorted(Path(node.extra["TRACKIO_SHARED_DIR"]).glob("*/*/*/parts.json"), key=os.path.getmtime)
            for number, index in enumerate(folders if name == "first" else folders[::-1]):
                index.parent.rename(index.parent.with_name(f"{name}-{number}"))
        assert values(reader, "r", "loss", "--all") == expected, name
        assert run_facts(reader, "r")["state"] == run_facts(node, "r")["state"] != "running"


def test_a_folder_that_is_away_for_a_while_takes_nothing_with_it(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    node.stop()
    assert values(login, "r", "loss") == list(range(10))
    shared = Path(node.extra["TRACKIO_SHARED_DIR"])
    shared.rename(shared.with_name("away"))
    shared.mkdir()  # the mount point
    assert "shows no other host" in login.command("trackio", "list", "projects").stderr
    assert values(login, "r", "loss") == list(range(10))


def test_a_file_server_that_hangs_costs_a_command_seconds_and_a_drain_nothing(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    login.start()
    assert login.run(LOG, "near", "10").returncode == 0
    login.ended_run("p")
    login.stop()
    hanging = Path(node.extra["TRACKIO_SHARED_DIR"]) / "far" / "store" / "alive"
    hanging.parent.mkdir(parents=True)
    os.mkfifo(hanging)  # nobody ever writes to it
    done = login.command("trackio", "list", "runs", "--project", "p")
    assert done.returncode == 0 and "near" in done.stdout and "does not answer" in done.stderr
    assert login.command("trackio", "drain").returncode == 0


def test_a_run_of_another_host_is_changed_there(hosts: Callable[[str], Host]) -> None:
    one, two = hosts("one"), hosts("two")
    for rank, host in enumerate((one, two)):
        host.start()
        env = {"TRACKIO_RUN_ID": "job", "RANK": str(rank), "WORLD_SIZE": "2"}
        assert host.run(LOG, "r", "10", env=env).returncode == 0
        host.ended_run("p")
        directory.copy_out(host.places)
    done = one.run("import trackio; (run,) = trackio.Api().runs('p'); run.rename('new')")
    assert "also ran on another host" in done.stdout + done.stderr
    assert one.cli("list", "runs", "--project", "p")["runs"] == ["r"]


def test_drain_waits_for_what_is_there_and_not_for_what_is_logged_meanwhile(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    training = node.python("""
import time, trackio
trackio.init(project="p", name="r")
trackio.log({"loss": 0.5})
print("logged", flush=True)
for i in range(10**6): trackio.log({"loss": float(i)}); time.sleep(0.05)
""")
    assert training.stdout.readline() == "logged\n"
    assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    training.kill()
    assert values(login, "r", "loss")[0] == 0.5


def test_a_job_that_is_requeued_to_another_host_is_shown_as_one_run(hosts: Callable[[str], Host]) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    code = """
import sys, trackio
trackio.init(project="p", name="job", resume="allow")
for step in range(*map(int, sys.argv[1:])): trackio.log({"loss": float(step)}, step=step)
"""
    for host, first, last in ((one, "0", "50"), (two, "40", "100")):
        host.start()
        assert host.run(code, first, last).returncode == 0
        host.ended_run("p")
        host.stop()
    for reader in (login, two):
        assert reader.cli("list", "runs", "--project", "p")["runs"] == ["job"]
        facts = run_facts(reader, "job")
        assert (facts["attempts"], facts["points"], facts["hidden_points"]) == (2, 110, 10)
        assert values(reader, "job", "loss") == [float(step) for step in range(100)]


@pytest.mark.parametrize("resume", ["allow", "must"])
def test_a_requeued_process_goes_on_with_the_steps_of_another_host(hosts: Callable[[str], Host], resume: str) -> None:
    """Its host never saw the run, and has no daemon yet."""
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    code = """
import sys, trackio
run = trackio.init(project="p", name="job", resume=sys.argv[1])
for _ in range(5): trackio.log({"loss": 0.5})
print(run.id)
"""
    one.start()
    ids = [one.run(code, "never").stdout]
    one.ended_run("p")
    assert one.command("trackio", "drain", "--timeout", "30").returncode == 0
    two.extra["TRACKIO_AUTOSTART"] = "1"
    ids += [two.run(code, resume).stdout for _ in range(2)]
    assert ids[0] and {*ids} == {ids[0]}
    two.ended_runs("p")
    two.stop()
    facts = run_facts(login, "job")
    assert (facts["attempts"], facts["points"], facts["hidden_points"], facts["last_step"]) == (3, 15, 0, 14)


def test_a_file_server_that_hangs_costs_a_process_that_goes_on_seconds(hosts: Callable[[str], Host]) -> None:
    node = hosts("node")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    hanging = Path(node.extra["TRACKIO_SHARED_DIR"]) / "far" / "store" / "alive"
    hanging.parent.mkdir(parents=True)
    os.mkfifo(hanging)  # nobody ever writes to it
    code = "import trackio; run = trackio.init(project='p', name='r', resume='must'); trackio.log({'loss': 1.0})"
    done = node.run(code + "; print(run.id)")
    assert "did not say" not in done.stderr
    assert node.the_run("p").id == done.stdout.strip(), "what this host knows is known"


def test_a_script_sees_runs_of_other_hosts_too(hosts: Callable[[str], Host]) -> None:
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    node.stop()
    done = login.run("import trackio; print([run.name for run in trackio.Api().runs('p')])")
    assert done.stdout == "['r']\n", done.stderr


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


def test_drain_knows_nothing_of_what_a_daemon_before_copied(hosts: Callable[[str], Host]) -> None:
    node = hosts("node")
    copied_by_hand(node)
    assert node.run(LOG, "r", "10").returncode == 0
    node.ended_run("p")
    node.stop()
    Path(node.extra["TRACKIO_SHARED_DIR"]).write_text("a file")
    done = node.command("trackio", "drain", "--timeout", "3")
    assert done.returncode == 1 and "cannot be written" in done.stderr


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
        wait_for(lambda: len(list(shared.glob("node*/*/*/parts.json"))) == 2, 90, "both hosts' copies")
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


def test_what_other_hosts_stored_is_not_said_to_be_uploaded_to_a_bucket(hosts: Callable[[str], Host]) -> None:
    """It takes changes in part, so no two hosts can send the same rows to it."""
    node, login = hosts("node"), hosts("login")
    node.start()
    assert node.run(LOG, "r", "10").returncode == 0
    assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    to = ("--to", "hf://buckets/user/runs")
    done = login.command("trackio", "sync", "--project", "p", *to, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and "is uploaded by these: run trackio sync there" in done.stderr
    done = login.command("trackio", "sync", "--project", "pp", *to)
    assert done.returncode == 1 and "Project 'pp' not found. Did you mean 'p'?" in done.stderr
    login.stop()


# -- artifacts ---------------------------------------------------------------------------------------------------------

ARTIFACT = """
import os, pathlib, sys, trackio
trackio.init(project="p", name=sys.argv[1])
for text in sys.argv[2:]:
    pathlib.Path("model.bin").write_text(text)
    trackio.log_artifact("model.bin", name="model", type="weights", aliases=["best"] if "best" in text else None).wait()
"""
USE = """
import os, sys, trackio
trackio.init(project="p", name="reader")
for which in sys.argv[1:]:
    artifact = trackio.use_artifact(which)
    try: print(artifact.qualified_name, open(os.path.join(artifact.download("got"), "model.bin")).read())
    except RuntimeError as error: print(error)
"""


def artifacts(host: Host) -> dict[str, Any]:
    return {each["version"]: each for each in host.cli_here("list", "artifacts", "--project", "p")["artifacts"]}


def test_artifacts_of_all_hosts_are_one_store(hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    monkeypatch.chdir(one.data.parent)
    for node, texts in ((one, ("a", "b best")), (two, ("c", "a", "d" * 3000))):
        node.extra["TRACKIO_SHARED_FILE_MIB"] = "0.001"
        node.start()
        assert node.run(ARTIFACT, f"of {node.data.parent.name}", *texts).returncode == 0
        assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    shown = artifacts(login)
    assert [*shown] == ["v0", shown_c(shown), "v1", "v2"]
    first = shown["v0"]
    assert first["logged_by"] == ["of one", "of two"], "the same content is one version"
    assert shown["v1"]["aliases"] == ["best"] and shown["v2"]["aliases"] == ["latest"], "what was logged last"
    assert shown["v2"]["logged_by"] == ["of two"]
    said = login.run(USE, "model:v0", "model:best", f"model:{shown_c(shown)}", "model").stdout.splitlines()
    assert said[:3] == ["p/model:v0 a", "p/model:v1 b best", f"p/model:{shown_c(shown)} c"]
    assert "only on the host that logged it" in said[3]
    login.stop()

    here = artifacts(two)  # its own numbers stay
    assert here["v0"]["logged_by"] == ["of two"] and here["v1"]["logged_by"] == ["of one", "of two"]
    assert two.run(USE, "model:best", "model:v0").stdout.splitlines() == [
        f"p/model:v1-{shown['v1']['digest'][:8]} b best", "p/model:v0 c",
    ]  # fmt: skip
    assert two.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert "reader" in artifacts(one)["v1"]["used_by"], "who used it is known where it was logged"

    assert one.run("import trackio; trackio.delete_project('p', force=True)").returncode == 0
    assert one.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert {each["size"] for each in artifacts(login).values()} == {1, 3000}
    assert "best" not in str(artifacts(login))


def shown_c(shown: dict[str, Any]) -> str:
    """What `c`, of which the other host has the number, is called."""
    (name,) = (name for name in shown if name.startswith("v0-"))
    return str(name)


def test_an_artifact_that_stays_when_its_run_goes_stays_elsewhere_too(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, login = hosts("node"), hosts("login")
    monkeypatch.chdir(node.data.parent)
    node.start()
    assert node.run(ARTIFACT, "gone", "a", "b").returncode == 0
    node.ended_runs("p")
    assert node.run("import trackio; trackio.Api().run('p', 'gone').delete()").returncode == 0
    assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert [*artifacts(login)] == ["v0", "v1"]
    overwrite = ARTIFACT.replace('type="weights"', "overwrite=True")
    assert node.run(overwrite, "new", "c").returncode == 0
    assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert [*artifacts(login)] == ["v2"]
    for edit in ("Api().run('p', 'new').delete()", "delete_project('p', force=True)"):
        assert node.run(f"import trackio; trackio.{edit}").returncode == 0
        assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
        known = login.command("trackio", "list", "artifacts", "--project", "p")
        assert (known.returncode == 0 and "model:v2" in known.stdout) == ("Api" in edit), known.stdout


def test_latest_is_the_same_on_every_host(hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that was logged first and last, and other content in between."""
    a, b, d, login = hosts("a"), hosts("b"), hosts("d"), hosts("login")
    monkeypatch.chdir(a.data.parent)
    for host, text in ((a, "x"), (d, "y"), (b, "x")):
        host.start()
        assert host.run(ARTIFACT, "r", text).returncode == 0
        assert host.command("trackio", "drain", "--timeout", "30").returncode == 0
    found = {
        each["digest"] for host in (a, b, d, login) for each in artifacts(host).values() if "latest" in each["aliases"]
    }
    assert len(found) == 1


def test_a_damaged_part_of_artifacts_keeps_no_run(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, login = hosts("node"), hosts("login")
    monkeypatch.chdir(node.data.parent)
    node.start()
    assert node.run(ARTIFACT, "r", "x").returncode == 0
    assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
    (index,) = Path(node.extra["TRACKIO_SHARED_DIR"]).rglob("parts.json")
    part = index.parent / json.loads(index.read_text())["artifacts"]["name"]
    content = part.read_bytes()
    part.write_bytes(b"no database" * 1000)
    done = login.command("trackio", "list", "runs", "--project", "p")
    assert "  - r " in done.stdout and "cannot be read" in done.stderr
    part.write_bytes(content)
    assert [*artifacts(login)] == ["v0"], "it is looked at again"


def test_the_steps_of_an_older_run_of_that_name_are_not_gone_on_from(hosts: Callable[[str], Host]) -> None:
    one, two, login = hosts("one"), hosts("two"), hosts("login")
    code = """
import sys, trackio
run = trackio.init(project="p", name="job", resume=sys.argv[2])
for _ in range(int(sys.argv[1])): trackio.log({"loss": 0.5})
print(run.id)
"""
    for host, steps in ((two, "1000"), (one, "10")):
        host.start()
        newest = host.run(code, steps, "never").stdout.strip()
        host.ended_run("p")
        assert host.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert two.run(code, "1", "must").stdout.strip() == newest
    two.ended_runs("p")
    assert two.command("trackio", "drain", "--timeout", "30").returncode == 0
    assert run_facts(login, newest)["last_step"] == 10
