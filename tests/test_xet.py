"""Uploads by Xet, which `huggingface_hub` uses where hf_xet is installed: the real hf_xet against a store of its kind
(`xet`). The other uploads' tests go by LFS."""

from __future__ import annotations

import os
import sys

import pytest
from conftest import Host
from hub import Fault, Hub
from uploads import REPO, killed_at, loaded, local, logged, parquet_rows, remote, target, upload_alone

XET = {"HF_HUB_DISABLE_XET": "0"}


@pytest.mark.parametrize("environment", ["", "transformers-4"])
def test_rows_go_by_xet_and_are_what_is_stored_here(host: Host, server: Hub, environment: str) -> None:
    python = f".venv/{environment}/bin/python" if environment else sys.executable
    if not os.path.exists(python):
        pytest.skip(f"needs {python}: .ci/venv makes it")
    logged(host, "one", "two")
    folder = target(host, server)
    status = upload_alone(host, server, folder, python=os.path.abspath(python), **XET)
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
        (Fault("/v1/shards", 409), "again"),
        (Fault("/v1/shards", 500, times=9), "again"),
        (Fault("POST .*/commit/", is_after=True), "again"),
    ],
    ids=lambda value: f"{value.pattern} {value.status}" if isinstance(value, Fault) else value,
)
def test_rows_are_there_once_whatever_xets_store_answers(host: Host, server: Hub, fault: Fault, state: str) -> None:
    logged(host, "one")
    folder = target(host, server)
    server.faults.append(fault)
    status = upload_alone(host, server, folder, HF_XET_CLIENT_RETRY_BASE_DELAY="100ms", **XET)
    assert status.problem and status.failures == 1
    assert bool(status.parked) == (state == "parked")
    server.faults.clear()
    status = upload_alone(host, server, folder, **XET)
    assert (status.problem, status.failures) == ("", 0)
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)


def test_rows_are_there_once_when_the_uploader_is_killed_at_any_request(host: Host, server: Hub) -> None:
    logged(host, "one", "two")
    folder = target(host, server)
    requests = 0
    while hold := killed_at(host, server, folder, "POST .*(/xorbs/|/shards|/commit/)", requests, **XET):
        hold.end(is_taken=True)
        requests += 1
        assert requests < 9
    assert requests, "it was killed"
    assert upload_alone(host, server, folder, **XET).problem == ""
    assert remote(parquet_rows(server.repos[REPO].tree)) == local(host)
    assert server.repos[REPO].private
