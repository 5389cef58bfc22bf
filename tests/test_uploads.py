"""Uploads: the real `huggingface_hub` and `datasets` against a server that speaks the Hub's API (`hub`)."""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, clean_environ, wait_for
from hub import Fault, Hold, Hub
from hypothesis import given, settings
from hypothesis import strategies as st
from uploads import (
    LOG,
    REPO,
    URL,
    hub_environ,
    killed_at,
    loaded,
    local,
    logged,
    parquet_rows,
    remote,
    target,
    upload,
    upload_alone,
)

from trackio import targets, wire
from trackiod.sinks import open_sink
from trackiod.store import schema
from trackiod.uploading import Uploading
from trackiod.uploads import pacing
from trackiod.uploads.purse import Purse
from trackiod.uploads.target import Folder, Target


@pytest.mark.parametrize("environment", ["", "transformers-4", "oldest-hub"])
def test_what_is_loaded_from_the_hub_is_what_is_stored_here(host: Host, server: Hub, environment: str) -> None:
    """With the newest library of the Hub, the last before 1.0, and the oldest."""
    python = str(Path(sys.prefix) / environment / "bin" / "python")
    host.start()
    assert host.run(LOG, "one", "40").returncode == 0
    host.ended_runs("p")
    folder = target(host, server)
    status = upload_alone(host, server, folder, python=python)
    assert (status.problem, status.parked, status.rows_waiting) == ("", "", 0)
    assert remote(loaded(host, server, python=python)) == local(host)
    (repo,) = server.repos.values()
    assert repo.private and len(repo.commits) == 2
    alerts, runs, system = (loaded(host, server, kind, python) for kind in ("alerts", "runs", "system"))
    assert [(row["title"], row["text"], row["level"]) for row in alerts] == [("high", "too high", "warn")]
    assert [(row["run"], row["state"], json.loads(row["config"])["lr"], row["host"]) for row in runs] == [
        ("one", "finished", 0.1, None)
    ]
    assert [(row["metric"], row["value"]) for row in system] == [("fan", 7.0)]
    assert upload_alone(host, server, folder, python=python).commits == status.commits, "nothing waits, nothing is sent"


def sync_facts(host: Host, server: Hub) -> Any:
    (facts,) = json.loads(host.command("trackio", "sync", "--json", **hub_environ(server, host)).stdout)["targets"]
    return facts


def test_a_run_that_names_a_dataset_is_uploaded_without_its_process_waiting(host: Host, server: Hub) -> None:
    """The token is only in the trainer's environment. What failed is tried again soon, not at the next turn."""
    host.start()
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",')
    assert host.run(code, "one", "40", env=hub_environ(server, host, HF_TOKEN="hf_test")).returncode == 0
    host.ended_runs("p")
    facts = wait_for(lambda: (f := sync_facts(host, server))["state"] == "up to date" and f, 60, "the upload")
    assert (facts["target"], facts["projects"], facts["problem"]) == (URL, ["p"], "")
    assert remote(loaded(host, server)) == local(host)
    assert REPO in host.command("trackio", "status").stdout
    assert host.run(LOG.replace('project="p"', 'project="q"'), "one", "4").returncode == 0
    host.ended_runs("q")
    assert sync_facts(host, server)["state"] == "up to date", "what others log is nothing to it"
    server.faults.append(Fault(COMMIT, 503))
    assert host.run(code, "two", "5", env=hub_environ(server, host)).returncode == 0, "the daemon knows the token"
    wait_for(lambda: server.faults[0].times == 0, 60, "the failure")
    wait_for(lambda: len(server.repos[REPO].commits) > 2 and sync_facts(host, server)["state"] == "up to date", 60)
    assert remote(loaded(host, server)) == local(host)
    secret = b"hf_test"
    for folder in (host.data, host.spool):
        for path in folder.rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path
    pid = host.status().daemon["pid"]
    assert secret not in Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_uploader_that_finds_another_at_work_says_that_it_sent_nothing(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    with open(os.path.join(folder.path, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path), "rows"], input="{}", text=True,
            env=host.environ(**hub_environ(server, host)),
        )  # fmt: skip
    assert done.returncode == 1 and not server.log


def test_an_offline_run_is_not_uploaded(host: Host, server: Hub) -> None:
    host.start()
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}", mode="offline",')
    assert host.run(code, "one", "4", env=hub_environ(server, host, HF_TOKEN="hf_test")).returncode == 0
    host.ended_runs("p")
    assert host.status().daemon["uploads"] == []


def test_a_project_is_uploaded_afterwards(host: Host, server: Hub) -> None:
    host.start()
    assert host.run(LOG, "one", "40").returncode == 0
    host.ended_runs("p")
    environ = hub_environ(server, host, HF_TOKEN="hf_test")
    done = host.command("trackio", "sync", "--project", "p", **environ)
    assert done.returncode == 1 and "has no target" in done.stderr
    done = host.command("trackio", "sync", "--project", "p", "--to", "hf://datasets/no good", **environ)
    assert done.returncode == 1 and "is no name of a dataset" in done.stderr and done.stderr.count("\n") == 1
    done = host.command("trackio", "sync", "--project", "p", "--to", URL, "--wait", "--timeout", "60", **environ)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout and remote(loaded(host, server)) == local(host)


def test_without_a_token_the_target_is_parked_until_there_is_one(host: Host, server: Hub) -> None:
    host.start()
    assert host.run(LOG, "one", "40").returncode == 0
    host.ended_runs("p")
    command = ("trackio", "sync", "--project", "p", "--to", URL, "--wait")
    done = host.command(*command, **hub_environ(server, host))
    assert done.returncode == 1 and "401" in done.stderr and "HF_TOKEN" in done.stderr
    assert not server.repos
    assert "parked" in host.command("trackio", "status").stdout
    done = host.command(*command, "--retry", **hub_environ(server, host, HF_TOKEN="hf_test"))
    assert done.returncode == 0, done.stderr
    assert remote(loaded(host, server)) == local(host)


# -- exactly once ------------------------------------------------------------------------------------------------------


COMMIT = "POST .*/commit/"


@pytest.mark.parametrize(
    "fault",
    [
        Fault(COMMIT, is_after=True),  # it was taken; the answer is lost
        Fault(COMMIT),
        Fault(COMMIT, 500, is_after=True),
        Fault(COMMIT, 503),
        Fault(COMMIT, 429),
        Fault(COMMIT, 429, headers={"Retry-After": "0"}),
        Fault(COMMIT, 412),
        Fault(COMMIT, 413),
        Fault("PUT /lfs/"),
        Fault("PUT /lfs/", 400),
        Fault(".*/objects/batch", 500),
        Fault("POST .*/preupload/"),
        Fault("GET .*/cursors/", 500),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.status} {'after' if fault.is_after else ''} {len(fault.headers)}",
)
def test_rows_are_there_once_whatever_the_hub_answers(host: Host, server: Hub, fault: Fault) -> None:
    logged(host, "one")
    folder = target(host, server)
    server.faults.append(fault)
    status = upload(host, server, folder)
    assert fault.times == 0, "it has happened"
    if fault.pattern == COMMIT and fault.status not in (412, 413):
        assert status.failures == 1 and status.problem and not status.parked
        assert status.next_at > time.time() - 1
    if status.failures:
        status = upload(host, server, folder)
    assert (status.problem, status.failures) == ("", 0)
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)


def test_rows_are_there_once_when_the_uploader_is_killed_at_any_request(host: Host, server: Hub) -> None:
    """Of the first, only the request is lost; of the second, it is taken; and so on."""
    logged(host, "one", "two")
    folder = target(host, server)
    for turn in range(12):
        hold = killed_at(host, server, folder, "POST|PUT", turn // 2)
        if hold:
            hold.end(is_taken=turn % 2 == 1)
        if turn == 5:
            logged(host, "three")
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)


def test_a_store_that_has_forgotten_its_cursors_finds_them_at_the_target(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    upload(host, server, folder)
    shutil.rmtree(folder.path)
    logged(host, "two")
    upload(host, server, target(host, server))
    assert remote(loaded(host, server)) == local(host)
    server.repos.clear()  # and a target that has lost everything gets it again
    upload(host, server, folder)
    shutil.rmtree(host.data.parent / "hf")  # what `datasets` has kept
    shutil.rmtree(host.data.parent / "cache")
    assert remote(loaded(host, server)) == local(host)


def test_two_hosts_push_to_one_repository(host: Host, server: Hub, tmp_path: Path) -> None:
    other = Host(tmp_path / "other" / "data", host.spool / "other")
    other.data.mkdir(parents=True)
    other.spool.mkdir()
    for rank, one in enumerate((host, other)):
        one.start()
        env = {"TRACKIO_RUN_ID": "job", "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        env |= {"TRACKIO_DATASET_ID": REPO, "HF_ENDPOINT": "http://127.0.0.1:9"}  # its daemon reaches nobody
        assert one.run(LOG, "r", "40", env=env).returncode == 0
        one.ended_runs("p")
        one.stop()
        assert upload(one, server, target(one, server)).problem == ""
    rows = loaded(host, server)
    assert remote(rows) == sorted(local(host) + local(other), key=str)
    assert {(row["rank"], row["node"]) for row in rows} == {(0, 0), (1, 1)}
    assert len(loaded(host, server, "runs")) == 2
    other.close()


def test_a_host_that_sees_the_copies_uploads_what_others_stored(host: Host, server: Hub, tmp_path: Path) -> None:
    """Nodes without a network, and a login node; in the end a node gets one, and doubles nothing."""
    two, login = (Host(tmp_path / name / "data", host.spool / name) for name in ("two", "login"))
    (tmp_path / "model.bin").write_bytes(b"weights")
    code = LOG + 'trackio.log_artifact(sys.argv[3], name="model").wait(); import time; time.sleep(2)'

    def log(node: Host, steps: str) -> None:
        node.start()
        env = {"TRACKIO_RUN_ID": "job", "RANK": str(int(node is two)), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        assert node.run(code, "r", steps, str(tmp_path / "model.bin"), env=env).returncode == 0
        assert node.command("trackio", "drain", "--timeout", "30").returncode == 0
        node.stop()

    for one in (host, two, login):
        one.data.mkdir(parents=True, exist_ok=True)
        one.spool.mkdir(exist_ok=True)
        one.extra["TRACKIO_SHARED_DIR"] = str(tmp_path / "shared")
        one.extra |= {"TRACKIO_SAMPLING": "1" if one is host else "0", "TRACKIO_SAMPLE_SECONDS": "0.5"}
    log(host, "20")
    log(two, "20")
    login.extra |= hub_environ(server, login, HF_TOKEN="hf_test")
    sync = ("trackio", "sync", "--project", "p", "--to", REPO, "--wait", "--timeout", "60")
    assert login.command(*sync).returncode == 0
    tree = server.repos[REPO].tree
    assert remote(parquet_rows(tree)) == local(login) == remote(loaded(host, server))
    assert {row["rank"] for row in parquet_rows(tree)} == {0, 1}
    assert sum(path.endswith("files/model.bin") for path in tree) == 1
    assert {row["run_id"] for row in parquet_rows(tree, "system") if row["metric"] != "fan"} == {"job"}
    assert {row["state"] for row in parquet_rows(tree, "runs")} == {"finished"}
    samples = len(parquet_rows(tree, "system"))

    assert upload(host, server, target(host, server)).problem == "", "it finds its rows there"
    log(two, "10")
    assert login.command(*sync).returncode == 0
    assert upload(two, server, target(two, server)).problem == ""
    tree = server.repos[REPO].tree
    assert remote(parquet_rows(tree)) == local(login)
    assert len(parquet_rows(tree, "system")) == samples + 1, "each sample once, and what the new process gave"
    assert len(parquet_rows(tree, "alerts")) == 3 and len(parquet_rows(tree, "runs")) == 2
    login.stop()
    two.close()
    login.close()


def test_what_a_process_logs_is_pushed_bit_by_bit_and_small_files_become_few(host: Host, server: Hub) -> None:
    host.start()
    folder = target(host, server)
    training = host.python("""
import sys, trackio
trackio.init(project="p", name="r")
for turn in range(6):
    for i in range(100): trackio.log({"a": turn * 100.0 + i, "b": str(i)})
    print(turn, flush=True); sys.stdin.readline()
""", stdin=-1)  # fmt: skip
    kept: list[dict[str, Any]] = []
    for turn in range(6):
        assert training.stdout.readline() == f"{turn}\n"
        wait_for(lambda turn=turn: sum(run.points for run in host.runs("p")) == 200 * (turn + 1), what="the points")
        assert upload(host, server, folder).rows_waiting == 0
        rows = sorted(loaded(host, server), key=lambda row: (row["seq"], row["metric"]))
        assert rows[: len(kept)] == kept, "a pushed row never changes"
        kept = rows
        training.stdin.write("\n")
        training.stdin.flush()
    training.wait()
    host.ended_run("p")
    paths = [path for path in server.repos[REPO].tree if path.startswith("metrics/") and "none" not in path]
    assert len(paths) == 6
    upload(host, server, folder)
    paths = [path for path in server.repos[REPO].tree if path.startswith("metrics/") and "none" not in path]
    assert len(paths) == 1
    assert sorted(loaded(host, server), key=lambda row: (row["seq"], row["metric"])) == kept
    assert remote(kept) == local(host)
    commits = len(server.repos[REPO].commits)
    upload(host, server, folder)
    assert len(server.repos[REPO].commits) == commits


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_a_token_that_expires_parks_the_target_and_a_login_resumes_it(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    upload(host, server, folder)
    logged(host, "two")
    server.tokens.clear()
    status = upload(host, server, folder)
    assert "401" in status.parked and status.rows_waiting >= 0
    before = len(server.log)
    assert upload(host, server, folder, is_retry=False).parked and len(server.log) == before, "nothing is asked again"
    server.tokens["hf_new"] = "user"
    assert upload(host, server, folder, token="hf_new").parked == ""
    server.tokens["hf_test"] = "user"
    assert remote(loaded(host, server)) == local(host)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_repository_that_may_not_be_written_is_one_sentence(host: Host, server: Hub, is_there: bool) -> None:
    logged(host, "one")
    server.tokens["hf_other"] = "somebody"
    if is_there:
        server.add(REPO, private=False)
    folder = target(host, server)
    parked = upload(host, server, folder, token="hf_other").parked
    assert "403" in parked and REPO in parked and "\n" not in parked


def test_the_hub_s_own_reason_is_told(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    server.faults.append(Fault(COMMIT, 403, said="Private repository storage limit reached"))
    assert "The Hub says: Private repository storage limit reached" in upload(host, server, folder).parked
    server.faults.append(Fault(COMMIT, 400, said="Your push was rejected: the file has no name"))
    status = upload(host, server, folder)
    assert "400" in status.problem and "the file has no name" in status.problem and not status.parked


def test_a_dataset_that_ignores_our_files_loses_none(host: Host, server: Hub) -> None:
    """The Hub's library would leave them out and say nothing."""
    repo = server.add(REPO, files={".gitignore": b"*.json\nmetrics/*\n"})
    logged(host, "one")
    folder = target(host, server)
    parked = upload(host, server, folder).parked
    assert f"The .gitignore of {URL} leaves out metrics/" in parked
    assert len(repo.commits) == 1
    server.commit(repo, "mend", {}, [".gitignore"], "")
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(repo.tree)) == local(host)


@pytest.mark.parametrize("token", ["hf_te\nst", "hf_te\x1bst", "hf_te st", "hf_tést"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(host: Host, server: Hub, token: str) -> None:
    logged(host, "one")
    folder = target(host, server)
    done = subprocess.run(
        [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path), "rows"],
        text=True, capture_output=True, input=json.dumps({"token": token}),
        env=host.environ(**hub_environ(server, host)),
    )  # fmt: skip
    status = folder.read_status()
    assert "the Hub's token is none" in status.parked and not server.log
    assert "hf_te" not in done.stderr + repr(status)
    wish = targets.wish(URL, None, None, {"HF_TOKEN": token}, (1, 0))
    assert "token" not in wish.secrets


def test_a_kept_file_that_is_gone_is_said(host: Host, server: Hub, tmp_path: Path) -> None:
    """While it is sent: it was there when the commit was made up."""
    gone = tmp_path / "gone.bin"
    gone.write_bytes(b"x")
    sink = open_sink(URL, "hf_test", server.url)
    sink.prepare(private=True)
    with pytest.raises(OSError) as error:
        gone.unlink()
        gone.read_bytes()
    assert str(gone) in sink.classify(error.value).sentence


def test_an_uploader_that_stands_still_is_ended(host: Host, server: Hub) -> None:
    """It waits for a store that never answers; hf_xet has no limit for this request."""
    logged(host, "one")
    folder = target(host, server)
    hold = Hold()
    server.faults.append(Fault("POST .*/shards", hold=hold))
    uploads = Uploading(host.places, lambda work: None, {"p": 1})
    environ = {**hub_environ(server, host), "HF_HUB_DISABLE_XET": "0"}
    facts = {"url": URL, "environ": environ}
    uploads.add("p", facts, {"token": "hf_test"}, is_whole=True)
    uploads.sync(wire.Sync("p", {}, {}))
    begun = time.monotonic()
    uploads.check(0, begun)
    wait_for(lambda: server.requests("POST .*/shards"), what="the request that is not answered")
    child = uploads._children["rows"].process
    time.sleep(2)
    uploads.check(0, begun + 10)  # what it has done until now
    time.sleep(2)
    uploads.check(0, begun + 1000)
    assert child.poll() is None, "it may take its time"
    for later in range(3000, 60000, 2000):
        uploads.check(0, begun + later)
        time.sleep(0.5)
        if child.poll() is not None:
            break
    assert child.wait() == -9
    uploads.check(0, begun + 60000)
    (shown,) = uploads.facts()
    assert "was ended" in shown["problem"]
    hold.end(is_taken=False)
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)


def test_a_project_that_is_deleted_while_it_waits_is_forgotten(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    host.start()
    wanted = folder.read_target()
    assert wanted is not None
    assert host.run("import trackio; trackio.delete_project('p', force=True)").returncode == 0
    assert folder.read_target() is None
    folder.write_target(wanted)  # as one has it that is being sent to
    assert upload(host, server, folder).problem == "" and not server.requests(COMMIT)


def test_a_full_disk_while_files_are_made_is_said_and_nothing_is_lost(host: Host, server: Hub) -> None:
    logged(host, "one", steps=3000)
    folder = target(host, server)
    command = [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path), "rows"]
    limited = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000));"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.argv = ['trackiod', *sys.argv[1:]];"
    limited += "from trackiod.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limited, *command[3:]], input='{"token": "hf_test"}', text=True, capture_output=True,
        env=host.environ(**hub_environ(server, host)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status = folder.read_status()
    assert "cannot be written" in status.problem and not status.parked
    assert upload(host, server, folder).problem == ""
    assert remote(loaded(host, server)) == local(host)


# -- a good citizen ----------------------------------------------------------------------------------------------------


def test_sixteen_hosts_share_the_commits_of_a_repository_for_a_day(in_memory: Path) -> None:
    environ = {**clean_environ(), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    script = Path(__file__).with_name("simulated_day.py")
    done = subprocess.run(
        [sys.executable, str(script), str(in_memory)], env=environ, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    day = json.loads(done.stdout)
    assert day["worst_hour"] <= pacing.COMMITS_AN_HOUR and day["refused"] == 0
    assert day["is_equal"] and day["rows"] == 2 * day["logged"] == 2 * 16 * 144
    assert day["first"] <= 60, "the first rows of each host are there within a minute"
    assert day["files"] == 16, "a run's small files become few when it ends"


@given(st.integers(1, 400), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_no_hour_has_more_commits_than_all_hosts_may_make(hosts: int, seed: int) -> None:
    """Each host commits whenever it may, or whenever it likes, and is restarted now and then."""
    likes = random.Random(seed)
    commits: list[float] = []
    for node in range(hosts):
        budget = pacing.first_budget(0.0, hosts, node)
        now = likes.uniform(0, 600) if likes.random() < 0.5 else 0.0
        while now < 3 * pacing.HOUR:
            budget = budget.refilled(now, hosts)
            pause = budget.seconds_until(1, hosts)
            if pause <= 0:
                commits.append(now)
                budget = budget._replace(tokens=budget.tokens - 1)
                now += likes.choice([0.0, 300.0, 1000.0])
            else:
                now += pause + 1e-3
    commits.sort()
    for start in commits:
        assert bisect.bisect(commits, start + pacing.HOUR) - bisect.bisect_left(commits, start) <= 121


@pytest.mark.parametrize("hosts", [1, 6, 16, 64, 150])
def test_rows_come_first_and_artifacts_get_their_share(tmp_path: Path, hosts: int) -> None:
    """Days in which both always have something to send, each asked as often as its child would."""
    now = [1e9]
    purse = Purse(str(tmp_path), hosts, hosts - 1, lambda: now[0])
    taken: list[str] = []
    rows_at = 0.0
    days = max(2.0, hosts / 16)
    while now[0] < 1e9 + days * 86400:
        if now[0] - rows_at >= 300 and purse.seconds_until_one("rows") == 0:
            purse.take("rows")
            taken.append("rows")
            rows_at = now[0]
        if purse.seconds_until_one("artifacts") == 0:
            purse.take("artifacts")
            taken.append("artifacts")
        now[0] += 300
    later = taken[len(taken) // 2 :]
    assert later.count("artifacts") >= len(later) // 6 and later.count("rows") >= min(len(later) // 3, days * 100)
    assert len(taken) <= pacing.capacity(hosts) + days * 86400 * pacing.rate(hosts) + 1
    assert taken[0] == "rows"


def test_artifacts_leave_a_commit_for_rows(tmp_path: Path) -> None:
    now = [1e9]
    purse = Purse(str(tmp_path), 16, 0, lambda: now[0])
    while purse.seconds_until_one("artifacts") == 0:
        purse.take("artifacts")
    assert purse.seconds_until_one("rows") == 0 and purse.left == 1
    again = Purse(str(tmp_path), 16, 0, lambda: now[0])  # another process, after a restart
    again.take("rows")
    assert 0 < again.seconds_until_one("rows") < again.seconds_until_one("artifacts")
    now[0] -= 1e8  # the clock was ahead
    assert again.seconds_until_one("rows") > 0
    now[0] += 3600
    assert again.seconds_until_one("rows") == 0


def test_a_target_that_fails_is_asked_more_and_more_rarely_and_as_it_wishes() -> None:
    longest = [max(pacing.pause_after(failures) for _ in range(500)) for failures in range(1, 12)]
    assert longest == sorted(longest[:8]) + longest[8:] and 800 < longest[-1] <= 900
    assert min(pacing.pause_after(20) for _ in range(500)) < 100, "full jitter"
    assert all(pacing.pause_after(1, 120.0) >= 120 for _ in range(50))


def test_what_the_hub_asks_for_is_waited_for(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server)
    for headers, seconds in (({"Retry-After": "77"}, 77), ({"RateLimit": '"api";r=0;t=55'}, 55), ({}, 600)):
        server.faults.append(Fault(COMMIT, 429, headers=headers))
        status = upload(host, server, folder)
        assert seconds - 5 <= status.next_at - time.time() <= seconds + 15 and "fewer commits" in status.problem
        assert not status.parked
    assert upload(host, server, folder).problem == ""
    assert remote(loaded(host, server)) == local(host)


def test_a_day_without_the_hub_costs_nothing_but_disk(host: Host, server: Hub) -> None:
    host.start()
    environ = {**hub_environ(server, host, HF_TOKEN="hf_test"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",')
    assert host.run(code, "one", "40", env=environ).returncode == 0
    host.ended_runs("p")
    facts = wait_for(lambda: (f := sync_facts(host, server))["problem"] and f, 60, "the problem")
    assert facts["state"] == "waiting" and facts["rows_waiting"] == 40 * 7 and "cannot be reached" in facts["problem"]
    shown = host.command("trackio", "status").stdout
    assert "cannot be reached" in shown and "to keep" not in shown
    assert host.cli("get", "run", "--project", "p", "--run", "one")["points"] == 40 * 7
    done = host.command("trackio", "drain", "--timeout", "30")
    assert done.returncode == 0, "what waits for the Hub is stored"


def test_finish_waits_for_the_upload_if_it_is_asked_to(host: Host, server: Hub) -> None:
    host.start()
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",')
    code += "\ntrackio.finish(wait='uploaded', timeout=60)\nprint('done')"
    done = host.run(code, "one", "40", env=hub_environ(server, host, HF_TOKEN="hf_test"))
    assert done.stdout == "done\n" and "not" not in done.stderr, done.stderr
    assert remote(loaded(host, server)) == local(host)
    server.tokens.clear()
    done = host.run(code, "two", "4", env=hub_environ(server, host, HF_TOKEN="hf_test"))
    assert done.stdout == "done\n" and "401" in done.stderr
    alerts = host.cli("list", "alerts", "--project", "p")["alerts"]
    assert [alert["title"] for alert in alerts if alert["level"] == "error"] == [f"Nothing is uploaded to {URL}"]


def test_pictures_lie_beside_the_rows_that_speak_of_them(host: Host, server: Hub) -> None:
    host.start()
    code = """
import numpy, trackio
trackio.init(project="p", name="r")
for i in range(3): trackio.log({"img": trackio.Image(numpy.full((4, 4, 3), i, numpy.uint8), caption="c")})
"""
    assert host.run(code).returncode == 0
    host.ended_runs("p")
    wait_for(lambda: host.status().daemon["errands"] == 0, what="the files")
    assert upload(host, server, target(host, server)).problem == ""
    rows = [json.loads(row["value_text"]) for row in loaded(host, server) if row["metric"] == "img"]
    tree = server.repos[REPO].tree
    for value in rows:
        (run,) = {row["run_id"] for row in loaded(host, server)}
        path = f"media/p/{run}/{value['file'].replace('/', '-')}.png"
        assert value["_type"] == "trackio.image" and tree[path][1:4] == b"PNG"
    assert len(rows) == 3


def test_the_node_s_samples_are_uploaded_with_the_runs_they_concern(host: Host, server: Hub) -> None:
    host.extra.update({"TRACKIO_SAMPLING": "1", "TRACKIO_SAMPLE_SECONDS": "0.2"})
    host.start()
    code = "import time, trackio; trackio.init(project='p', name='r'); trackio.log({'a': 1}); time.sleep(2)"
    assert host.run(code).returncode == 0
    run = host.ended_run("p")
    host.stop()
    upload(host, server, target(host, server))
    here = host.cli("get", "system-metric", "--project", "p", "--run", run.id, "--metric", "cpu/utilization")["values"]
    there = [row for row in loaded(host, server, "system") if row["metric"] == "cpu/utilization"]
    assert [row["value"] for row in there] == [one["cpu/utilization"] for one in here] and here
    assert {row["rank"] for row in loaded(host, server, "system")} == {None, 0}


# -- what a review found -----------------------------------------------------------------------------------------------


def test_a_commit_that_arrives_late_takes_nothing_back(host: Host, server: Hub) -> None:
    """Its uploader was killed while it sent; another one has sent more since."""
    logged(host, "one", steps=5)
    folder = target(host, server)
    hold = killed_at(host, server, folder, COMMIT, 0)
    assert hold
    logged(host, "two", steps=5)
    assert upload(host, server, folder).problem == ""
    hold.end(is_taken=True)
    assert remote(loaded(host, server)) == local(host)


def test_a_rename_changes_no_row_that_was_pushed(host: Host, server: Hub) -> None:
    host.start()
    folder = target(host, server)
    for number in range(3):
        code = "import trackio; trackio.init(project='p', name='r', id='x', resume='allow'); trackio.log({'a': 1.5})"
        assert host.run(code).returncode == 0
        host.ended_runs("p")
        if number < 2:
            server.faults.append(Fault("GET .*/tree/.*/metrics", 500))  # no merging yet
            upload(host, server, folder)
    assert host.run("import trackio; (run,) = trackio.Api().runs('p'); run.rename('new')").returncode == 0
    upload(host, server, folder)
    rows = loaded(host, server)
    assert sorted(row["run"] for row in rows) == ["new", "r", "r"]
    paths = [path for path in server.repos[REPO].tree if path.startswith("metrics/p/")]
    assert len(paths) == 2, "what was pushed under one name was merged"


def test_one_run_id_in_two_projects_is_two_runs(host: Host, server: Hub) -> None:
    host.start()
    for project in ("p", "q"):
        code = (
            f"import trackio; trackio.init(project='{project}', name='r', id='same'); trackio.log({{'{project}': 1.5}})"
        )
        assert host.run(code).returncode == 0
        host.ended_runs(project)
    wanted = Target(URL, {"p": True, "q": True}, environ={"HF_ENDPOINT": server.url})
    folder = Folder(host.places, wanted.id)
    folder.write_target(wanted)
    for _ in range(2):
        status = upload(host, server, folder)
    assert (status.commits, status.rows, status.problem) == (1, 2, "")
    rows = loaded(host, server)
    assert sorted((row["project"], row["run_id"], row["metric"]) for row in rows) == [
        ("p", "same", "p"), ("q", "same", "q"),
    ]  # fmt: skip


def test_one_database_that_cannot_be_read_does_not_keep_the_others(host: Host, server: Hub) -> None:
    logged(host, "one")
    wanted = Target(URL, {"damaged": True, "p": True}, environ={"HF_ENDPOINT": server.url})
    folder = Folder(host.places, wanted.id)
    folder.write_target(wanted)
    Path(schema.path_of(host.places.projects, "damaged")).write_bytes(b"no database at all" * 1000)
    assert "'damaged'" in upload(host, server, folder).problem
    assert remote(loaded(host, server)) == local(host)


@pytest.mark.parametrize("variables", [{"HF_TOKEN": "hf_test\n"}, {"HF_TOKEN": "hf_test", "HF_XET_ODD": b"\xff".decode(
    "utf-8", "surrogateescape")}])  # fmt: skip
def test_odd_variables_of_the_job_do_no_harm(host: Host, server: Hub, variables: dict[str, str]) -> None:
    host.start()
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",')
    code += "\ntrackio.finish(wait='uploaded', timeout=60)"
    done = host.run(code, "one", "4", env=hub_environ(server, host, **variables))
    assert done.returncode == 0 and "failed" not in done.stderr and "not everything" not in done.stderr, done.stderr
    assert remote(loaded(host, server)) == local(host)


def test_a_daemon_that_starts_again_waits_for_the_token_of_those_that_live(host: Host, server: Hub) -> None:
    host.start()
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",') + "\nsys.stdin.read()"
    training = host.python(code, "one", "4", env=hub_environ(server, host, HF_TOKEN="hf_test"), stdin=-1)
    wait_for(lambda: host.status().daemon["uploads"], what="the target")
    host.stop()
    (folder,) = Path(host.places.uploads).iterdir()
    (folder / "target.json").write_text(
        (folder / "target.json").read_text().replace("{", '{"of_a_later_release": 1, ', 1)
    )
    host.start()
    wait_for(lambda: host.status().streams, what="the process's greeting")
    training.communicate("")
    host.ended_runs("p")
    facts = wait_for(lambda: (f := sync_facts(host, server))["state"] == "up to date" and f, 60, "the upload")
    assert facts["problem"] == "" and remote(loaded(host, server)) == local(host)


def test_a_bare_name_is_one_of_the_user_s_own(host: Host, server: Hub) -> None:
    logged(host, "one")
    wanted = Target("hf://datasets/runs", {"p": True}, environ={"HF_ENDPOINT": server.url})
    folder = Folder(host.places, wanted.id)
    folder.write_target(wanted)
    assert upload(host, server, folder).problem == "" and list(server.repos) == [REPO]
    assert REPO.encode() in server.repos[REPO].tree["README.md"]


def test_finish_waits_for_its_own_rows_and_not_for_what_others_log(host: Host, server: Hub) -> None:
    host.start()
    host.python(
        "import time, trackio\ntrackio.init(project='other')\nwhile True: trackio.log({'a': 1}); time.sleep(0.05)"
    )
    code = LOG.replace('project="p",', f'project="p", dataset_id="{REPO}",')
    code += "\ntrackio.finish(wait='uploaded', timeout=45)"
    done = host.run(code, "one", "4", env=hub_environ(server, host, HF_TOKEN="hf_test"))
    assert "not everything" not in done.stderr, done.stderr


def test_the_last_samples_of_a_run_are_uploaded_too(host: Host, server: Hub) -> None:
    """They are stored some seconds after the run has ended, when its rows are uploaded already."""
    host.extra.update({"TRACKIO_SAMPLING": "1", "TRACKIO_SAMPLE_SECONDS": "1"})
    host.start()
    code = f"import time, trackio; trackio.init(project='p', name='r', dataset_id='{REPO}'); trackio.log({{'a': 1}})"
    assert host.run(code + "; time.sleep(5)", env=hub_environ(server, host, HF_TOKEN="hf_test")).returncode == 0
    run = host.ended_run("p")
    wait_for(lambda: sync_facts(host, server)["state"] == "up to date", 90, "the upload")
    command = ("get", "system-metric", "--project", "p", "--run", run.id, "--metric", "cpu/utilization")
    here = [one["cpu/utilization"] for one in host.cli(*command)["values"]]
    there = [row["value"] for row in loaded(host, server, "system") if row["metric"] == "cpu/utilization"]
    assert there == here and len(here) >= 3


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_artifacts_are_uploaded_after_the_rows_and_each_content_once(host: Host, server: Hub, tmp_path: Path) -> None:
    weights = tmp_path / "checkpoint"
    (weights / "deep").mkdir(parents=True)
    (weights / "model.bin").write_bytes(os.urandom(3 << 20))
    (weights / "deep" / "config.json").write_text("{}")
    host.start()
    code = """
import sys, trackio
trackio.init(project="p", name="r")
trackio.log({"a": 1.5})
for name in ("policy", "copy"): trackio.log_artifact(sys.argv[1], name=name, type="model").wait()
"""
    assert host.run(code, str(weights)).returncode == 0
    host.ended_runs("p")
    folder = target(host, server)
    server.faults.append(Fault(COMMIT, is_after=True, skip=1))  # the first commit of files is taken, nobody hears it
    assert upload(host, server, folder).failures == 1
    status = upload(host, server, folder)
    assert (status.problem, status.is_behind) == ("", False)
    tree = server.repos[REPO].tree
    for name in ("policy", "copy"):
        (manifest,) = [
            path for path in tree if path.startswith(f"artifacts/p/{name}/v0-") and path.endswith("manifest.json")
        ]
        base = manifest.removesuffix("manifest.json") + "files"
        assert tree[f"{base}/model.bin"] == (weights / "model.bin").read_bytes()
        assert tree[f"{base}/deep/config.json"] == b"{}"
        facts = json.loads(tree[manifest])
        assert (facts["name"], facts["version"], facts["type"]) == (name, 0, "model")
        assert [entry["path"] for entry in facts["manifest"]] == ["deep/config.json", "model.bin"]
    sent = [commit.changed for commit in server.repos[REPO].commits]
    assert any("metrics/p" in path for path in sent[1]) and not any("artifacts" in path for path in sent[1])
    puts = server.requests("PUT /lfs/")
    assert len(puts) == len(set(puts)), "equal content is sent once"
    commits = len(sent)
    upload(host, server, folder)
    shutil.rmtree(folder.path)
    upload(host, server, target(host, server))
    assert len(server.repos[REPO].commits) == commits, "what is there is not sent again"
    server.repos.clear()
    assert upload(host, server, folder).problem == ""
    tree = server.repos[REPO].tree
    assert sum(path.endswith("manifest.json") for path in tree) == 2, "a target that has lost everything gets it again"


def test_rows_do_not_wait_for_a_file_that_takes_long(host: Host, server: Hub, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "model.bin").write_bytes(content)
    hold = Hold()
    server.faults.append(Fault(f"PUT /lfs/{hashlib.sha256(content).hexdigest()}", hold=hold))
    host.extra |= hub_environ(server, host, HF_TOKEN="hf_test")
    host.start()
    training = host.python("""
import os, sys, trackio
trackio.init(project="p", name="r", dataset_id=sys.argv[2])
trackio.log({"a": 0.5})
trackio.log_artifact(sys.argv[1], name="model").wait()
for line in sys.stdin: trackio.log({"a": float(line)})
trackio.finish(wait="uploaded", timeout=60)
""", str(tmp_path / "model.bin"), REPO, stdin=-1)  # fmt: skip
    wait_for(lambda: host.cli("sync")["targets"], what="the target")
    host.cli("sync", "--project", "p")
    wait_for(lambda: server.requests("PUT /lfs/") and not server.faults[0].times, what="the file on its way")
    training.stdin.write("1.5\n2.5\n")
    training.stdin.flush()
    wait_for(lambda: sum(run.points for run in host.runs("p")) == 3, what="the points")
    host.cli("sync", "--project", "p")
    wait_for(lambda: len(parquet_rows(server.repos[REPO].tree)) == 3, what="the rows, while the file is on its way")
    assert not any(path.startswith("artifacts/") for path in server.repos[REPO].tree)
    assert host.cli("sync")["targets"][0]["state"] == "sending"
    hold.end(is_taken=True)
    _, said = training.communicate(timeout=90)
    assert training.returncode == 0, said
    assert any(path.endswith("files/model.bin") for path in server.repos[REPO].tree)
    assert [row["value"] for row in parquet_rows(server.repos[REPO].tree)] == [0.5, 1.5, 2.5]


def test_artifacts_of_a_target_that_is_parked_keep_no_daemon_and_raise_no_second_alert(
    host: Host, server: Hub, tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    host.start()
    code = "import sys, trackio; trackio.init(project='p', name='r').log_artifact(sys.argv[1], name='model').wait()"
    assert host.run(code, str(tmp_path / "model.bin")).returncode == 0
    host.ended_runs("p")
    host.stop()
    raised: list[Any] = []
    uploads = Uploading(host.places, raised.append, {"p": 1})
    uploads.add("p", {"url": URL, "environ": hub_environ(server, host)}, {"token": "hf_test"}, is_whole=True)

    def is_idle() -> bool:
        uploads.check(0, time.monotonic())
        return not uploads._children

    uploads.sync(wire.Sync("p", {}, {}))
    uploads.check(0, time.monotonic())
    wait_for(lambda: uploads._children["rows"].process.poll() is not None, 30, "the rows")
    server.tokens.clear()
    wait_for(lambda: is_idle() and raised, 30, "the parking of the artifacts")
    assert uploads.facts()[0]["state"] == "parked" and uploads.backlog == 0
    uploads.sync(wire.Sync("p", {}, {}))
    wait_for(is_idle, 30, "the parking of the rows")
    assert uploads.backlog == 0 and len(raised) == 1


def test_a_large_file_goes_up_in_parts_and_comes_again_if_one_is_refused(
    host: Host, server: Hub, tmp_path: Path
) -> None:
    server.part_bytes = 1 << 20
    weights = tmp_path / "model.bin"
    weights.write_bytes(os.urandom((5 << 20) + 17))
    host.start()
    code = """
import sys, trackio
trackio.init(project="p", name="r")
trackio.log({"a": 1.5})
trackio.log_artifact(sys.argv[1], name="policy", type="model").wait()
"""
    assert host.run(code, str(weights)).returncode == 0
    host.ended_runs("p")
    folder = target(host, server)
    server.faults.append(Fault("PUT /lfs/.*/part/4", 403))
    assert upload(host, server, folder).failures == 1
    assert remote(loaded(host, server)) == local(host), "the rows are there all the same"
    assert upload(host, server, folder).problem == ""
    assert len(server.requests("PUT /lfs/.*/part/")) == 4 + 6
    (path,) = [path for path in server.repos[REPO].tree if path.endswith("/files/model.bin")]
    assert server.repos[REPO].tree[path] == weights.read_bytes()


def test_an_artifact_whose_kept_file_was_changed_is_said(host: Host, server: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    host.start()
    code = "import sys, trackio; trackio.init(project='p'); trackio.log_artifact(sys.argv[1], name='m').wait()"
    assert host.run(code, str(tmp_path / "model.bin")).returncode == 0
    host.ended_runs("p")
    (kept,) = (path for path in Path(host.places.blobs).rglob("*") if path.is_file())
    kept.chmod(0o600)
    kept.write_bytes(b"others, and more of them")
    status = upload(host, server, target(host, server))
    assert "model.bin of artifact m v0 is damaged here" in status.problem and not status.is_behind
    (manifest,) = [data for path, data in server.repos[REPO].tree.items() if path.endswith("manifest.json")]
    assert json.loads(manifest)["manifest"][0]["incomplete"]
