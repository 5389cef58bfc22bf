"""Uploads to Hugging Face buckets, which have no commits: the real `huggingface_hub`, `hf_xet` and `datasets` against a
server that speaks their API (`hub`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, wait_for
from hub import Bucket, Fault, Hold, Hub
from huggingface_hub.utils import close_session
from uploads import (
    LOG,
    REPO,
    hub_environ,
    killed_at,
    loaded,
    loaded_from_bucket,
    local,
    logged,
    parquet_rows,
    remote,
    target,
    upload,
    upload_alone,
)

from trackio import targets, waiting
from trackiod.sinks import hub as sinks_hub
from trackiod.store import schema
from trackiod.uploads import doubts
from trackiod.uploads.cursor import from_json
from trackiod.uploads.names import Names
from trackiod.uploads.target import Folder

URL = f"hf://buckets/{REPO}"
DATASET = f"hf://datasets/{REPO}"
BATCH = "POST .*/batch"


def bucket_of(server: Hub) -> Bucket:
    return server.buckets[REPO]


def test_a_run_that_names_a_bucket_is_uploaded_to_it(host: Host, server: Hub) -> None:
    environ = hub_environ(server, host, HF_TOKEN="hf_test")
    host.start()
    code = LOG.replace('project="p"', f'project="p", bucket_id="{REPO}"')
    done = host.run(code + 'trackio.finish(wait="uploaded", timeout=60)', "r", "50", env=environ)
    assert done.returncode == 0, done.stderr
    assert remote(loaded_from_bucket(host, server)) == local(host)
    assert bucket_of(server).private
    assert [row["title"] for row in loaded_from_bucket(host, server, "alerts")] == ["high"]
    assert [row["run"] for row in loaded_from_bucket(host, server, "runs")] == ["r"]
    card = server.content(REPO)["README.md"].decode()
    assert f'load_dataset("parquet", data_files="{URL}/metrics/**/*.parquet")' in card
    assert host.cli("sync")["targets"][0]["target"] == URL


def test_a_project_is_uploaded_to_a_bucket_afterwards(host: Host, server: Hub) -> None:
    logged(host, "one")
    host.extra.update(hub_environ(server, host, HF_TOKEN="hf_test"))
    host.start()
    shown = host.cli("sync", "--project", "p", "--to", URL, "--public", "--wait", "--timeout", "60")
    assert shown["targets"][0]["rows_waiting"] == 0
    assert remote(loaded_from_bucket(host, server)) == local(host)
    assert not bucket_of(server).private


def test_a_script_uploads_a_project_afterwards(host: Host, server: Hub) -> None:
    """As upstream's sync() does, within a time; a misspelt project or name is one line, and makes nothing."""
    logged(host, "one")
    host.extra.update(hub_environ(server, host, HF_TOKEN="hf_test", TRACKIO_AUTOSTART="1"))
    code = f"""
import trackio
print(trackio.sync("p", bucket_id={REPO!r}, private=False, timeout=60))
print(trackio.sync("p", bucket_id="a/b/c", hf_token=5))
print(trackio.sync("q", bucket_id={REPO!r}))
print(trackio.sync("r"))
print(trackio.sync("p", timeout=0))
"""
    done = host.run(code)  # it starts the daemon, too
    said = done.stderr.splitlines()
    assert done.stdout.split() == [URL, "None", "None", "None", "None"] and len(said) == 4, done.stderr
    parts = ("is no name of a bucket", "'q' not found", "'r' has no target", "time is over")
    assert all(part in sentence for part, sentence in zip(parts, said, strict=True)), done.stderr
    assert remote(loaded_from_bucket(host, server)) == local(host)
    assert not bucket_of(server).private
    assert [one["projects"] for one in host.cli("sync")["targets"]] == [["p"]]


def test_a_target_that_is_parked_holds_no_other_up_and_can_be_dropped(host: Host, server: Hub) -> None:
    logged(host, "one")
    host.extra.update(hub_environ(server, host, HF_TOKEN="hf_test", TRACKIO_AUTOSTART="1"))
    code = """
import trackio
print(trackio.sync("p", dataset_id="usr/runs", timeout=60))
print(trackio.sync("p", dataset_id="user/runs", bucket_id="user/runs", timeout=60))
"""
    done = host.run(code)
    assert done.stdout.split() == ["None", DATASET] and "403" in done.stderr and done.stderr.count("\n") == 1
    assert remote(loaded_from_bucket(host, server)) == remote(loaded(host, server)) == local(host)
    done = host.command("trackio", "sync", "--project", "p", "--wait", "--timeout", "60")
    assert done.returncode == 1 and "403" in done.stderr
    host.cli("sync", "--project", "p", "--to", "usr/runs", "--stop")
    done = host.command("trackio", "sync", "--project", "p", "--to", "usr/runs", "--stop")
    assert done.returncode == 1 and "is not uploaded there" in done.stderr
    assert {one["target"] for one in host.cli("sync", "--wait")["targets"]} == {DATASET, URL}
    assert host.run("import trackio\nassert trackio.delete_project('p', force=True)").returncode == 0
    assert host.cli("sync")["targets"] == [] and not os.listdir(host.places.uploads)


def test_a_script_that_waits_asks_the_next_daemon_too(host: Host, server: Hub) -> None:
    """Which knows nothing of what the one before was asked, nor the token that only the script has."""
    logged(host, "one")
    host.extra.update(hub_environ(server, host))
    server.faults.append(Fault(BATCH, 503, times=1000))
    pid = host.start()
    code = f"import trackio; print(trackio.sync('p', bucket_id={REPO!r}, hf_token='hf_test', timeout=100))"
    process = host.python(code)
    wait_for(lambda: (f := host.cli("sync")["targets"]) and f[0]["failures"], 60, "the first try's end")
    os.kill(pid, signal.SIGKILL)
    server.faults.clear()
    host.start()
    out, err = process.communicate(timeout=120)
    assert (out, err) == (URL + "\n", "")
    assert remote(loaded_from_bucket(host, server)) == local(host)


def test_a_daemon_that_stays_away_is_not_waited_for_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_GONE_SECONDS", 0.5)
    said = waiting.uploaded(host.places, "p", targets.Wish({}, {}), float("inf"))
    assert "does not answer" in said


def test_a_script_uploads_what_it_has_just_logged(host: Host, server: Hub) -> None:
    host.extra.update(hub_environ(server, host, HF_TOKEN="hf_test", TRACKIO_AUTOSTART="1"))
    code = f"""
import os, signal, sys, trackio
trackio.init(project="p")
for i in range(20_000): trackio.log({{"a": i}})
print(trackio.sync(bucket_id={REPO!r}, timeout=100))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert host.run(code).stdout.split() == [URL]
    host.stop()
    assert len(loaded_from_bucket(host, server)) == 20_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", REPO), "--to needs --project"),
        (("--project", "p", "--stop"), "--stop needs --to"),
        (("--project", "p", "--public"), "--public needs --to"),
        (("--timeout", "3"), "--timeout needs --wait"),
        (("--project", "p", "--to", "runs"), "only a token says"),
    ],
)
def test_what_sync_cannot_mean_is_one_sentence(host: Host, server: Hub, options: tuple[str, ...], said: str) -> None:
    logged(host, "one")
    host.extra.update(hub_environ(server, host))
    done = host.command("trackio", "sync", *options)
    if done.returncode == 0:
        done = host.command("trackio", "sync", *options, "--wait", "--timeout", "60")
    assert done.returncode == 1 and said in done.stderr.removeprefix("Uploading\n")
    assert done.stderr.removeprefix("Uploading\n").count("\n") == 1


def test_a_call_for_a_space_waits_for_nothing(host: Host, server: Hub) -> None:
    """transformers makes it in the middle of a training, and writes what it returns into the model's card."""
    logged(host, "one")
    call = f'sync(project="p", sdk="static", space_id="user/s", private=None, bucket_id={REPO!r}, force=True)'
    environ = hub_environ(server, host, HF_TOKEN="hf_test", TRACKIO_AUTOSTART="1") | {
        "HF_ENDPOINT": "http://127.0.0.1:9"
    }
    done = host.run(f"import trackio\nprint(trackio.{call})", env=environ)  # all is never there
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    assert host.cli("sync")["targets"][0]["target"] == URL


@pytest.mark.parametrize(
    "fault",
    [
        Fault(BATCH, 403, is_after=True),  # taken, though nobody hears it
        Fault(BATCH, 403),
        Fault("/xet-write-token", 403),
        Fault("POST /v1/xorbs/", 503, times=9),
        Fault("GET .*/tree/cursors/", 403),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.status}",
)
def test_rows_are_there_once_whatever_the_hub_answers(host: Host, server: Hub, fault: Fault) -> None:
    logged(host, "one")
    folder = target(host, server, URL)
    server.faults.append(fault)
    status = upload(host, server, folder)
    assert status.failures == 1 and status.problem
    server.faults.clear()
    logged(host, "two")
    status = upload(host, server, folder)
    assert (status.problem, status.failures) == ("", 0)
    assert remote(parquet_rows(server.content(REPO))) == local(host)


@pytest.mark.parametrize("refused", ["^cursors/", "^metrics/", "^alerts/"])
def test_rows_are_there_once_when_a_bucket_takes_only_some_of_the_files(host: Host, server: Hub, refused: str) -> None:
    bucket = server.add_bucket(REPO)
    logged(host, "one")
    folder = target(host, server, URL)
    bucket.refused = refused
    status = upload(host, server, folder)
    assert status.failures == 1 and "of the files (" in status.problem
    bucket.refused = ""
    host.start()
    training = host.run(LOG, "two", "30")  # the next try has other rows to send
    assert training.returncode == 0
    host.ended_runs("p")
    host.stop()
    upload(host, server, folder)
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    assert sorted(row["title"] for row in parquet_rows(server.content(REPO), "alerts")) == ["high", "high"]


def test_what_an_upload_left_that_was_too_much_at_once_does_not_stay(host: Host, server: Hub) -> None:
    """The next try cuts the rows into smaller files, so that one of the first try has no successor of its name."""
    bucket = server.add_bucket(REPO)
    logged(host, "one", steps=600)
    folder = target(host, server, URL)
    bucket.refused = "^cursors/"
    assert upload(host, server, folder).failures == 1
    assert len(parquet_rows(server.content(REPO), "alerts")) == 1
    bucket.refused = ""
    server.faults.append(Fault(BATCH, 413, times=5))
    assert upload(host, server, folder).problem == ""
    assert len(files_of(server, "metrics")) > 3
    assert upload(host, server, folder).problem == ""
    assert len(files_of(server, "metrics")) == 1, "the target takes more at once again"
    assert max(int(path.split("-")[-2]) for path in files_of(server, "metrics")) > 3
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    assert len(parquet_rows(server.content(REPO), "alerts")) == 1


def grown(host: Host, server: Hub, folder: Folder, turns: int) -> None:
    """A run that was uploaded in as many files."""
    host.start()
    training = host.python(f"""
import sys, trackio
trackio.init(project="p", name="long")
for turn in range({turns}):
    for i in range(50): trackio.log({{"a": turn * 100.0 + i, "b": str(i)}})
    trackio.alert(f"turn {{turn}}")
    print(turn, flush=True); sys.stdin.readline()
""", stdin=-1)  # fmt: skip
    for turn in range(turns):
        assert training.stdout.readline() == f"{turn}\n"
        wait_for(lambda turn=turn: sum(run.points for run in host.runs("p")) == 100 * (turn + 1), what="the points")
        assert upload(host, server, folder).rows_waiting == 0
        training.stdin.write("\n")
        training.stdin.flush()
    training.wait()
    host.ended_run("p")
    host.stop()


def files_of(server: Hub, kind: str) -> list[str]:
    return [path for path in bucket_of(server).files if path.startswith(f"{kind}/p/")]


@pytest.mark.parametrize(("skip", "is_after"), [(2, False), (3, False), (4, False), (2, True), (3, True)])
def test_small_files_become_few_though_one_of_three_requests_fails(
    host: Host, server: Hub, skip: int, is_after: bool
) -> None:
    """Two for the run's end, then those of the merge: the file, the cursor, and what goes."""
    folder = target(host, server, URL)
    grown(host, server, folder, 2)
    assert len(files_of(server, "metrics")) == 2
    server.faults.append(Fault(BATCH, 403, skip=skip, is_after=is_after))
    assert upload(host, server, folder).parked
    assert len(files_of(server, "metrics")) > 1
    assert upload(host, server, folder).problem == ""
    assert len(files_of(server, "metrics")) == 1
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    assert len(parquet_rows(server.content(REPO), "alerts")) == 2


def test_rows_are_there_once_when_the_uploader_is_killed_at_any_request(host: Host, server: Hub) -> None:
    folder = target(host, server, URL)
    grown(host, server, folder, 3)
    logged(host, "one")
    requests = 0
    while hold := killed_at(host, server, folder, BATCH, requests):
        hold.end(is_taken=requests % 2 == 1)
        requests += 1
        if requests == 3:
            logged(host, "two")
    assert requests > 3
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    alerts = parquet_rows(server.content(REPO), "alerts")
    assert sorted(row["title"] for row in alerts) == ["high", "high", "turn 0", "turn 1", "turn 2"]
    is_as_it_is_known(server)


def is_as_it_is_known(server: Hub) -> None:
    """Each file of a run is named by its cursor, which is one; the facts of each are there once."""
    content = server.content(REPO)
    cursors = {path: from_json(data.decode()) for path, data in content.items() if path.startswith("cursors/")}
    named = {"README.md", *(path for path in content if "/~/" in path)}
    for path, cursor in cursors.items():
        _, project, run, file = path.split("/")
        named |= {*Names(project, run, file.partition("-")[0]).paths(cursor)}
    assert {path for path in content if not path.startswith(("media/", "artifacts/"))} == named
    assert len(cursors) == len(parquet_rows(content, "runs")) == len({path.rpartition("/")[0] for path in cursors})


def test_requests_that_are_carried_out_late_change_nothing_that_counts(host: Host, server: Hub) -> None:
    """Their uploader was killed; another one has sent more since. What they leave goes when it is looked at again."""
    folder = target(host, server, URL)
    grown(host, server, folder, 2)
    files, remembered = dict(bucket_of(server).files), host.data.parent / "remembered"
    shutil.copytree(folder.path, remembered)
    for late in range(7):
        goes_on(host, "long")
        hold = killed_at(host, server, folder, BATCH, late)
        goes_on(host, "long")
        assert upload(host, server, folder).problem == ""
        if hold is None:
            break
        hold.end(is_taken=True)
        assert not upload(host, server, folder, clock=lambda: time.time() + 700).doubts
        is_as_it_is_known(server)
        shutil.rmtree(folder.path)
        assert upload(host, server, target(host, server, URL)).problem == ""
        assert remote(parquet_rows(server.content(REPO))) == local(host)
        bucket_of(server).files = dict(files)
        shutil.rmtree(folder.path)
        shutil.copytree(remembered, folder.path)
    assert late == 6, "files, cursor, what goes; and again for the merge"


def test_requests_that_are_carried_out_late_change_nothing_of_a_run_that_goes_on(host: Host, server: Hub) -> None:
    folder = target(host, server, URL)
    host.start()
    training = host.python("""
import sys, trackio
trackio.init(project="p", name="long")
for step, _ in enumerate(sys.stdin): trackio.log({"a": step / 7, "b": str(step)})
""", stdin=-1)  # fmt: skip

    def log(points: int) -> None:
        training.stdin.write("\n" * (points // 2))
        training.stdin.flush()
        before = sum(run.points for run in host.runs("p"))
        wait_for(lambda: sum(run.points for run in host.runs("p")) == before + points, what="the points")

    log(2)
    upload(host, server, folder)
    for late in range(3):
        log(10)
        hold = killed_at(host, server, folder, BATCH, late)
        assert hold
        log(6)
        assert upload(host, server, folder).problem == ""
        hold.end(is_taken=True)
        assert not upload(host, server, folder, clock=lambda: time.time() + 700).doubts
        assert remote(parquet_rows(server.content(REPO))) == local(host)
        is_as_it_is_known(server)
    training.communicate(timeout=20)


def goes_on(host: Host, run: str) -> None:
    host.start()
    assert host.run(LOG.replace("config=", "resume='must', config="), run, "3").returncode == 0
    host.ended_runs("p")
    host.stop()


def test_what_is_left_of_a_run_that_was_deleted_here_goes_too(host: Host, server: Hub) -> None:
    bucket = server.add_bucket(REPO)
    logged(host, "one", "two")
    folder = target(host, server, URL)
    bucket.refused = "^cursors/"
    assert upload(host, server, folder).failures == 1
    assert len(parquet_rows(server.content(REPO), "alerts")) == 2
    host.start()
    assert host.run("import trackio; trackio.Api().run('p', 'one').delete()").returncode == 0
    host.stop()
    bucket.refused = ""
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    is_as_it_is_known(server)


def test_a_database_that_cannot_be_read_once_doubles_nothing(host: Host, server: Hub) -> None:
    bucket = server.add_bucket(REPO)
    logged(host, "one")
    folder = target(host, server, URL)
    bucket.refused = "^cursors/"
    assert upload(host, server, folder).failures == 1
    bucket.refused = ""
    path = schema.path_of(host.places.projects, "p")
    os.rename(path, path + ".away")
    Path(path).write_bytes(b"no database" * 1000)
    assert "cannot be read" in upload(host, server, folder).problem
    os.rename(path + ".away", path)
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    is_as_it_is_known(server)


def test_a_cursor_that_is_not_found_once_sends_nothing_again(host: Host, server: Hub) -> None:
    logged(host, "one")
    folder = target(host, server, URL)
    upload(host, server, folder)
    metrics = files_of(server, "metrics")
    cursor = files_of(server, "cursors")
    del bucket_of(server).files[cursor[0]]
    upload(host, server, folder, clock=lambda: time.time() + 700)
    assert files_of(server, "cursors") == cursor, "it is written again when it is looked for"
    del bucket_of(server).files[cursor[0]]
    logged(host, "two")
    host.start()
    assert host.run("import trackio; trackio.Api().run('p', 'one').rename('uno')").returncode == 0
    host.stop()
    assert upload(host, server, folder).problem == ""
    assert set(metrics) < set(files_of(server, "metrics"))
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    is_as_it_is_known(server)


def test_a_first_change_that_is_taken_in_part_is_made_whole(host: Host, server: Hub) -> None:
    bucket = server.add_bucket(REPO)
    logged(host, "one")
    folder = target(host, server, URL)
    bucket.refused = "/~/"
    assert upload(host, server, folder).failures == 1
    assert "README.md" not in bucket.files
    bucket.refused = ""
    assert upload(host, server, folder).problem == ""
    assert sum("/~/" in path for path in bucket.files) == 4
    is_as_it_is_known(server)


@pytest.mark.parametrize(("url", "request_", "before"), [(URL, BATCH, 3), (DATASET, "POST .*/commit/", 1)])
def test_a_merge_that_is_too_much_at_once_keeps_nothing_else(
    host: Host, server: Hub, tmp_path: Path, url: str, request_: str, before: int
) -> None:
    """The small files stay, and artifacts go up."""
    (tmp_path / "model.bin").write_bytes(os.urandom(1000))
    folder = target(host, server, url)
    grown(host, server, folder, 2)
    host.start()
    code = "import sys, trackio; trackio.init(project='p', name='long').log_artifact(sys.argv[1]).wait()"
    assert host.run(code, str(tmp_path / "model.bin")).returncode == 0
    host.ended_runs("p")
    host.stop()
    server.faults.append(Fault(request_, 413, skip=before, times=7))
    assert "so much at once" in upload(host, server, folder).problem
    assert upload(host, server, folder).problem == ""
    content = server.content(REPO) if url == URL else server.repos[REPO].tree
    assert any(path.startswith("artifacts/") for path in content)
    assert sum(path.startswith("metrics/p/") for path in content) == 2
    assert remote(parquet_rows(content)) == local(host)


def test_a_server_that_is_silent_is_asked_later(host: Host, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(host, "one")
    folder = target(host, server, URL)
    monkeypatch.setattr(sinks_hub, "SILENT_SECONDS", 0.3)
    close_session()
    hold = Hold()
    server.faults.append(Fault("GET /api/buckets/[^/]+/[^/]+$", hold=hold, times=99))
    status = upload(host, server, folder)
    hold.end(is_taken=False)
    assert "cannot be reached" in status.problem and not status.parked
    server.faults.clear()
    monkeypatch.undo()
    close_session()
    assert upload(host, server, folder).problem == ""


def test_artifacts_lie_in_the_bucket_with_their_manifests_last(host: Host, server: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(os.urandom(3 << 20))
    host.start()
    code = """
import sys, trackio
trackio.init(project="p", name="r")
trackio.log({"a": 1.5})
trackio.log_artifact(sys.argv[1], name="policy", type="model").wait()
"""
    assert host.run(code, str(tmp_path / "model.bin")).returncode == 0
    host.ended_runs("p")
    folder = target(host, server, URL)
    assert upload(host, server, folder).problem == ""
    content = server.content(REPO)
    (manifest,) = [path for path in content if path.endswith("manifest.json")]
    facts: dict[str, Any] = json.loads(content[manifest])
    assert (facts["name"], facts["version"], facts["type"]) == ("policy", 0, "model")
    assert content[manifest.replace("manifest.json", "files/model.bin")] == (tmp_path / "model.bin").read_bytes()
    sent = [path for batch in bucket_of(server).batches for path in batch]
    assert sent.index(manifest) > max(i for i, path in enumerate(sent) if "/files/" in path)
    batches = len(bucket_of(server).batches)
    upload(host, server, folder)
    assert len(bucket_of(server).batches) == batches, "what is there is not sent again"


def test_a_library_without_buckets_says_so(host: Host, server: Hub) -> None:
    python = os.path.abspath(".venv/oldest-hub/bin/python")
    if not os.path.exists(python):
        pytest.skip("needs .venv/oldest-hub: .ci/venv makes it")
    logged(host, "one")
    status = upload_alone(host, server, target(host, server, URL), python=python)
    assert "knows no buckets well enough" in status.parked
    assert not server.log


# -- what a review found: a Hub that for a moment shows less than there is -------------------------------------------

LESS = {"X-Error-Code": "EntryNotFound"}


@pytest.mark.parametrize(
    ("fault", "is_forgotten"),
    [
        (Fault("GET .*/tree/cursors/", 404, headers=LESS), True),
        (Fault("GET .*/tree/metrics/", 404, headers=LESS), True),
        (Fault("GET .*/tree/runs/", 404, headers=LESS), True),
        (Fault("GET .*/tree/", 404, headers=LESS, times=6), False),
    ],
    ids=lambda value: f"{value.pattern} {value.times}" if isinstance(value, Fault) else str(value),
)
def test_a_listing_that_is_empty_once_loses_nothing(host: Host, server: Hub, fault: Fault, is_forgotten: bool) -> None:
    folder = target(host, server, URL)
    grown(host, server, folder, 3)
    goes_on(host, "long")
    if is_forgotten:
        shutil.rmtree(folder.path)
        folder = target(host, server, URL)
    server.faults.append(replace(fault))
    assert upload(host, server, folder).problem == ""
    for later in (700, 1400, 90_000):
        assert upload(host, server, folder, clock=lambda later=later: time.time() + later).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    assert len(parquet_rows(server.content(REPO), "alerts")) == 4
    is_as_it_is_known(server)


def test_a_cursor_that_is_listed_and_not_read_takes_nothing_away(host: Host, server: Hub) -> None:
    """The rows it speaks of are not here any more: this store was put back from a backup."""
    folder = target(host, server, URL)
    code = "import sys, trackio; trackio.init(project='p', name='r', id='r', resume='allow')\n"
    code += "for i in range(int(sys.argv[1])): trackio.log({'a': i / 7})"
    backup = host.data.parent / "backup"
    for steps in ("5", "50"):
        host.start()
        assert host.run(code, steps).returncode == 0
        host.ended_runs("p")
        host.stop()
        if steps == "5":
            shutil.copytree(host.data, backup, ignore=shutil.ignore_patterns("uploads"))
    assert upload(host, server, folder).problem == ""
    before = len(parquet_rows(server.content(REPO)))
    shutil.rmtree(host.data)
    shutil.copytree(backup, host.data)
    server.faults.append(Fault("GET /buckets/.*/resolve/cursors/", 404, headers=LESS))
    assert "is listed and cannot be read" in upload(host, server, target(host, server, URL)).problem
    assert len(parquet_rows(server.content(REPO))) == before == 55


def test_what_came_late_is_taken_away_while_the_run_goes_on(host: Host, server: Hub) -> None:
    folder = target(host, server, URL)
    host.start()
    training = host.python("""
import sys, trackio
trackio.init(project="p", name="long")
for step, _ in enumerate(sys.stdin): trackio.log({"a": step / 7})
""", stdin=-1)  # fmt: skip

    def log() -> None:
        before = sum(run.points for run in host.runs("p"))
        training.stdin.write("\n")
        training.stdin.flush()
        wait_for(lambda: sum(run.points for run in host.runs("p")) > before, what="the point")

    log()
    upload(host, server, folder)
    log()
    hold = killed_at(host, server, folder, BATCH, 0)
    assert hold
    assert upload(host, server, folder).problem == ""
    hold.end(is_taken=True)
    assert len(parquet_rows(server.content(REPO))) == 3
    for turn in range(1, 4):  # every five minutes
        log()
        assert upload(host, server, folder, clock=lambda turn=turn: time.time() + 300 * turn).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    is_as_it_is_known(server)
    training.communicate(timeout=20)


def test_a_look_at_many_runs_asks_for_little(host: Host, server: Hub) -> None:
    folder = target(host, server, URL)
    logged(host, *(f"r{i}" for i in range(5)), steps=2)
    assert upload(host, server, folder).problem == ""
    before = len(server.log)
    upload(host, server, folder, clock=lambda: time.time() + 700)
    asked = [path for _, path in server.log[before:]]
    assert sum("/tree/" in path for path in asked) == 5 and not any("/resolve/cursors" in path for path in asked)


@pytest.mark.parametrize("url", [URL, DATASET])
def test_a_run_that_logs_all_the_time_is_sent_once_at_a_time(host: Host, server: Hub, tmp_path: Path, url: str) -> None:
    """Else its rows would go on as long as it does, commit after commit, and artifacts never begin."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    host.start()
    training = host.python("""
import sys, time, trackio
trackio.init(project="p", name="r").log_artifact(sys.argv[1], name="model").wait()
while True: trackio.log({"a": 0.5}); time.sleep(0.01)
""", str(tmp_path / "model.bin"))  # fmt: skip
    wait_for(lambda: sum(run.points for run in host.runs("p")) > 20, what="points")
    folder = target(host, server, url)
    server.faults.append(Fault("POST .*/(commit/|batch)", seconds=1, times=99))
    status = upload(host, server, folder)
    assert (status.problem, status.commits) == ("", 2), "rows, and the artifact"
    training.kill()


def test_doubts_last_until_nothing_can_be_on_its_way() -> None:
    run, now = ("p", "r"), 1000.0
    known = doubts.begun((), [run], now)
    assert doubts.due(known, now) == [*known], "nobody knows how it ended"
    known = doubts.taken(known, [run])
    assert doubts.due(known, now + 500) == [] and doubts.look_at(known) == now + 600
    known = doubts.taken(doubts.begun(known, [run], now + 500), [run])
    assert doubts.due(known, now + 601) == [*known], "a run that goes on is looked at too"
    known = doubts.looked(known, doubts.due(known, now + 601), now + 601)
    assert doubts.look_at(known) == now + 1100, "and once more after its last change"
    assert doubts.looked(known, doubts.due(known, now + 1101), now + 1101) == ()
