"""Uploads by Xet, which `huggingface_hub` uses where hf_xet is installed: the real hf_xet against a store of its kind
(`xet`). The other uploads' tests go by LFS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import hub
import pytest
from conftest import Host
from hub import Fault, Hub
from uploads import REPO, hub_environ, loaded, local, logged, parquet_rows, remote, target, upload

XET = {"HF_HUB_DISABLE_XET": "0"}


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub.serving() as served:
        yield served


@pytest.mark.parametrize("environment", ["", "transformers-4"])
def test_rows_go_by_xet_and_are_what_is_stored_here(host: Host, server: Hub, environment: str) -> None:
    python = f".venv/{environment}/bin/python" if environment else sys.executable
    if not os.path.exists(python):
        pytest.skip(f"needs {python}: .ci/venv makes it")
    logged(host, "one", "two")
    folder = target(host, server)
    status = upload(host, server, folder, python=os.path.abspath(python), **XET)
    assert (status.problem, status.commits) == ("", 1)
    assert server.requests("POST /v1/xorbs/") and server.requests("POST .*/shards")
    assert not server.requests("PUT /lfs/")
    assert remote(loaded(host, server)) == local(host)


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (Fault("/xet-write-token", 401), "parked"),
        (Fault("/xet-write-token", 403), "parked"),
        (Fault("/v1/xorbs/", 503, times=9), "again"),
        (Fault("/v1/xorbs/", times=9), "again"),
        (Fault("/v1/xorbs/", 401), "again"),
        (Fault("/v1/shards", 500, times=9), "again"),
        (Fault("POST .*/commit/", is_after=True), "again"),
    ],
    ids=lambda value: f"{value.pattern} {value.status}" if isinstance(value, Fault) else value,
)
def test_rows_are_there_once_whatever_xets_store_answers(host: Host, server: Hub, fault: Fault, state: str) -> None:
    logged(host, "one")
    folder = target(host, server)
    server.faults.append(fault)
    status = upload(host, server, folder, HF_XET_CLIENT_RETRY_BASE_DELAY="100ms", **XET)
    assert status.problem and status.failures == 1
    assert bool(status.parked) == (state == "parked")
    server.faults.clear()
    status = upload(host, server, folder, **XET)
    assert (status.problem, status.failures) == ("", 0)
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)


def test_rows_are_there_once_when_the_uploader_is_killed_while_it_uses_xet(host: Host, server: Hub) -> None:
    logged(host, "one", "two")
    folder = target(host, server)
    command = [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path)]
    server.faults.append(Fault("POST|PUT|GET", seconds=0.05, times=10**6))
    for turn in range(6):
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=host.environ(**hub_environ(server, host, **XET)),
        )  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(json.dumps({"token": "hf_test", "is_retry": True}))
        child.stdin.close()
        time.sleep(0.9 + 0.2 * turn)
        child.kill()
        child.wait()
    server.faults.clear()
    assert upload(host, server, folder, **XET).problem == ""
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)
    assert server.repos[REPO].private
