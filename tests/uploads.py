"""Uploading to a local Hub and reading it back, with what is stored here beside it."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow
from conftest import Host, clean_environ, wait_for
from hub import Fault, Hold, Hub
from pyarrow import parquet

from trackiod.sinks import open_sink
from trackiod.uploads.target import Folder, Status, Target
from trackiod.uploads.uploader import Uploader

REPO = "user/runs"
URL = f"hf://datasets/{REPO}"


def hub_environ(server: Hub, host: Host, **more: str) -> dict[str, str]:
    home = str(host.data.parent / "hf")
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }


def target(host: Host, server: Hub, url: str = URL, **options: Any) -> Folder:
    """The target of all runs of project p."""
    wanted = Target(url, {"p": True}, environ={"HF_ENDPOINT": server.url}, **options)
    folder = Folder(host.places, wanted.id)
    folder.write_target(wanted)
    return folder


def upload(
    host: Host,
    server: Hub,
    folder: Folder,
    *,
    is_retry: bool = True,
    token: str = "hf_test",
    clock: Callable[[], float] = time.time,
) -> Status:
    """Sends what waits, in this process; returns how the target stands then."""
    wanted = folder.read_target()
    assert wanted is not None
    lanes = [folder, Folder(host.places, wanted.id, "artifacts")]
    found = []
    for lane in lanes if folder.lane == "rows" else [folder]:
        if found and not found[0].has_artifacts:
            break
        sink = open_sink(wanted.url, token, server.url)
        found.append(Uploader(host.places, lane, wanted, sink, clock).upload(is_retry=is_retry))
        if found[-1].failures or found[-1].parked:
            break
    return joined(*found)


def joined(rows: Status, artifacts: Status = Status()) -> Status:  # noqa: B008  it is not changed
    """How a target stands, of rows and artifacts together."""
    return rows._replace(
        problem=rows.problem or artifacts.problem,
        parked=rows.parked or artifacts.parked,
        failures=max(rows.failures, artifacts.failures),
        commits=rows.commits + artifacts.commits,
        is_behind=rows.is_behind or artifacts.is_behind,
    )


def upload_alone(host: Host, server: Hub, folder: Folder, *, python: str = sys.executable, **environ: str) -> Status:
    """Sends it by the process that the daemon starts."""
    for lane in ("rows", "artifacts"):
        child = uploading(host, server, folder, python, lane, **environ)
        _, said = child.communicate(timeout=120)
        assert child.returncode == 0, said
        if not folder.read_status().has_artifacts:
            return folder.read_status()
    return joined(folder.read_status(), Folder(host.places, os.path.basename(folder.path), "artifacts").read_status())


def uploading(
    host: Host, server: Hub, folder: Folder, python: str = sys.executable, lane: str = "rows", **environ: str
) -> subprocess.Popen[str]:
    """That process, which knows what it needs."""
    command = [python, "-m", "trackiod", "upload", os.path.basename(folder.path), lane]
    env = host.environ(**hub_environ(server, host, **environ))
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert child.stdin is not None
    child.stdin.write(json.dumps({"token": "hf_test", "is_retry": True}))
    child.stdin.close()
    child.stdin = None
    return child


def killed_at(host: Host, server: Hub, folder: Folder, pattern: str, nth: int, **environ: str) -> Hold | None:
    """Kills an uploader while its n-th request of a pattern, from 0, is on its way. Returns what ends that
    request; None if there are not so many."""
    fault = Fault(pattern, skip=nth, hold=Hold())
    server.faults.append(fault)
    child = uploading(host, server, folder, **environ)
    wait_for(lambda: not fault.times or child.poll() is not None, what="the request, or the end")
    server.faults.remove(fault)
    child.kill()
    child.communicate()
    return None if fault.times else fault.hold


LOAD = """
import json, sys
import datasets, pyarrow
files = sys.argv[3] if sys.argv[3:] else None
table = datasets.load_dataset(*sys.argv[1:3], data_files=files, token="hf_test")["train"].data.table
columns = [c.cast("int64") if pyarrow.types.is_timestamp(c.type) else c for c in table.columns]
print(json.dumps([table.column_names, list(zip(*(c.to_pylist() for c in columns)))]))
"""


def loaded(host: Host, server: Hub, kind: str = "metrics", python: str = sys.executable) -> list[dict[str, Any]]:
    """What `datasets.load_dataset(repo, kind)` returns, row by row."""
    return _loaded(host, server, (REPO, kind), python)


def loaded_from_bucket(host: Host, server: Hub, kind: str = "metrics") -> list[dict[str, Any]]:
    """What `datasets` reads of a bucket's Parquet files, row by row."""
    return _loaded(host, server, ("parquet", "default", f"hf://buckets/{REPO}/{kind}/**/*.parquet"), sys.executable)


def parquet_rows(files: Mapping[str, bytes], kind: str = "metrics") -> list[dict[str, Any]]:
    """The rows of a kind's files, read as what they are: quicker than by `datasets`."""
    rows = []
    for path, data in files.items():
        if path.startswith(f"{kind}/"):
            table = parquet.read_table(io.BytesIO(data))
            columns = [c.cast("int64") if pyarrow.types.is_timestamp(c.type) else c for c in table.columns]
            values = zip(*(c.to_pylist() for c in columns), strict=True)
            rows += [dict(zip(table.column_names, row, strict=True)) for row in values]
    return rows


def _loaded(host: Host, server: Hub, what: tuple[str, ...], python: str) -> list[dict[str, Any]]:
    environ = {**clean_environ(), **hub_environ(server, host, HF_DATASETS_CACHE=str(host.data.parent / "cache"))}
    done = subprocess.run([python, "-c", LOAD, *what], env=environ, capture_output=True, text=True, timeout=120)
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
                shown = host.cli_here(
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


def logged(host: Host, *runs: str, steps: int = 40) -> None:
    """Runs of project p that have ended, in a store that nobody serves any more."""
    host.start()
    for run in runs:
        assert host.run(LOG, run, str(steps)).returncode == 0
    host.ended_runs("p")
    host.stop()
