"""Uploads to Hugging Face buckets, which have no commits: the real `huggingface_hub`, `hf_xet` and `datasets` against a
server that speaks their API (`hub`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub
import pytest
from conftest import Host, wait_for
from hub import Bucket, Fault, Hub
from uploads import LOG, REPO, hub_environ, loaded_from_bucket, local, logged, parquet_rows, remote, target, upload

from trackiod.uploads.target import Folder

URL = f"hf://buckets/{REPO}"
BATCH = "POST .*/batch"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub.serving() as served:
        yield served


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


@pytest.mark.parametrize(
    "fault",
    [
        Fault(BATCH, 403, is_after=True),  # taken, though nobody hears it
        Fault(BATCH, 403),
        Fault("/xet-write-token", 403),
        Fault("POST /v1/xorbs/", 503, times=9),
        Fault("GET .*/resolve/cursors/", 500),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.status}",
)
def test_rows_are_there_once_whatever_the_hub_answers(host: Host, server: Hub, fault: Fault) -> None:
    logged(host, "one")
    folder = target(host, server, URL)
    server.faults.append(fault)
    status = upload(host, server, folder, HF_XET_CLIENT_RETRY_BASE_DELAY="100ms")
    assert status.failures == 1 and status.problem
    server.faults.clear()
    logged(host, "two")
    status = upload(host, server, folder)
    assert (status.problem, status.failures, status.is_sending) == ("", 0, False)
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
    assert len(files_of(server, "metrics")) == 1, "they are merged when the run has ended"
    assert max(int(path[-14:-8]) for path in files_of(server, "metrics")) > 3
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


def test_what_an_upload_left_is_found_though_its_process_was_killed(host: Host, server: Hub) -> None:
    bucket = server.add_bucket(REPO)
    logged(host, "one")
    folder = target(host, server, URL)
    bucket.refused = "^cursors/"
    upload(host, server, folder)
    (alerts,) = files_of(server, "alerts")
    bucket.files[alerts.replace("-000000.", "-000001.")] = bucket.files[alerts]  # as if it had come further
    bucket.refused = ""
    assert upload(host, server, folder).problem == ""
    assert len(parquet_rows(server.content(REPO), "alerts")) == 1
    assert remote(parquet_rows(server.content(REPO))) == local(host)


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


def test_rows_are_there_once_when_the_uploader_is_killed_at_any_moment(host: Host, server: Hub) -> None:
    folder = target(host, server, URL)
    grown(host, server, folder, 3)
    logged(host, "one")
    command = [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path)]
    server.faults.append(Fault("POST|PUT|GET", seconds=0.04, times=10**6))
    for turn in range(8):
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=host.environ(**hub_environ(server, host)),
        )  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(json.dumps({"token": "hf_test", "is_retry": True}))
        child.stdin.close()
        time.sleep(0.6 + 0.17 * turn)
        child.kill()
        child.wait()
        if turn == 4:
            logged(host, "two")
    server.faults.clear()
    assert upload(host, server, folder).problem == ""
    assert remote(parquet_rows(server.content(REPO))) == local(host)
    alerts = parquet_rows(server.content(REPO), "alerts")
    assert sorted(row["title"] for row in alerts) == ["high", "high", "turn 0", "turn 1", "turn 2"]


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
    status = upload(host, server, target(host, server, URL), python=python)
    assert "knows no buckets well enough" in status.parked
    assert not server.log
