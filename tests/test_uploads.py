"""Uploads: the real `huggingface_hub` and `datasets` against a server that speaks the Hub's API (`hub`)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub
import pytest
from conftest import Host, clean_environ
from hub import Fault, Hub

from trackiod.uploads.target import Folder, Status, Target

REPO = "user/runs"
URL = f"hf://datasets/{REPO}"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub.serving() as served:
        yield served


def hub_environ(server: Hub, host: Host, **more: str) -> dict[str, str]:
    home = str(host.data.parent / "hf")
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }


def target(host: Host, server: Hub, **options: Any) -> Folder:
    """The target of all runs of project p."""
    wanted = Target(URL, {"p": True}, environ={"HF_ENDPOINT": server.url}, **options)
    folder = Folder(host.places, wanted.id)
    folder.write_target(wanted)
    return folder


def upload(host: Host, server: Hub, folder: Folder, *, is_retry: bool = True, token: str = "hf_test") -> Status:
    """Runs the uploader as the daemon does; returns how the target stands then."""
    command = [sys.executable, "-m", "trackiod", "upload", os.path.basename(folder.path)]
    job = json.dumps({"token": token, "is_retry": is_retry})
    done = subprocess.run(
        command, input=job, env=host.environ(**hub_environ(server, host)), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder.read_status()


LOAD = """
import json, sys
import datasets, pyarrow
table = datasets.load_dataset(sys.argv[1], sys.argv[2], token="hf_test")["train"].data.table
columns = [c.cast("int64") if pyarrow.types.is_timestamp(c.type) else c for c in table.columns]
print(json.dumps([table.column_names, list(zip(*(c.to_pylist() for c in columns)))]))
"""


def loaded(host: Host, server: Hub, kind: str = "metrics", python: str = sys.executable) -> list[dict[str, Any]]:
    """What `datasets.load_dataset(repo, kind)` returns, row by row."""
    environ = {**clean_environ(), **hub_environ(server, host, HF_DATASETS_CACHE=str(host.data.parent / "cache"))}
    done = subprocess.run([python, "-c", LOAD, REPO, kind], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names, rows = json.loads(done.stdout)
    return [dict(zip(names, row, strict=True)) for row in rows]


LOG = """
import sys, trackio
trackio.init(project="p", name=sys.argv[1], config={"lr": 0.1})
for i in range(int(sys.argv[2])):
    trackio.log({"loss": i / 7, "n": i, "odd": float("nan") if i % 3 else float("inf"), "big": 2**60 + i,
                 "yes": i % 2 == 0, "text": f"t{i}", "map": {"a": [i]}}, step=i)
trackio.alert("high", "too high", level="warn")
trackio.log_system({"fan": 7})
"""


def local(host: Host) -> list[tuple[Any, ...]]:
    """(run, rank, metric, step, value) of all that is stored of project p, as a float or, for what is none, as text."""
    found = []
    for run in host.runs("p"):
        for metric in run.metric_names:
            for rank in sorted({stream.rank for stream in run.streams}):
                shown = host.cli(
                    "get", "metric", "--project", "p", "--run", run.id, "--metric", metric, "--rank", str(rank), "--all"
                )
                found += [
                    (run.id, rank, metric, point["step"], comparable(point["value"])) for point in shown["values"]
                ]
    return sorted(found, key=str)


def comparable(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return float(value) if abs(value) <= 1 << 53 else str(value)
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return value


def remote(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = []
    for row in rows:
        number = row["value"]
        if isinstance(number, float) and not math.isfinite(number):
            number = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN")
        value = number if row["value_text"] is None else row["value_text"]
        found.append((row["run_id"], row["rank"], row["metric"], row["step"], value))
    return sorted(found, key=str)


def test_what_is_loaded_from_the_hub_is_what_is_stored_here(host: Host, server: Hub) -> None:
    host.start()
    assert host.run(LOG, "one", "40").returncode == 0
    host.ended_runs("p")
    folder = target(host, server)
    status = upload(host, server, folder)
    assert (status.problem, status.parked, status.rows_waiting) == ("", "", 0)
    assert remote(loaded(host, server)) == local(host)
    (repo,) = server.repos.values()
    assert repo.private and len(repo.commits) == 2
    alerts, runs, system = (loaded(host, server, kind) for kind in ("alerts", "runs", "system"))
    assert [(row["title"], row["text"], row["level"]) for row in alerts] == [("high", "too high", "warn")]
    assert [(row["run"], row["state"], json.loads(row["config"])["lr"], row["host"]) for row in runs] == [
        ("one", "finished", 0.1, None)
    ]
    assert [(row["metric"], row["value"]) for row in system] == [("fan", 7.0)]
    assert upload(host, server, folder).commits == status.commits, "nothing waits, nothing is sent"
