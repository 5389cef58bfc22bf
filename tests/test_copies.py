"""A copy of a data folder, read-only and somebody else's: it is read without a daemon, and answers for itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, wait_for

from trackio import inquiry, wire

NOBODY = 65534
STRANGER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""Root without its capabilities is, to another user's files, anybody."""

pytestmark = pytest.mark.skipif(bool(STRANGER) and not shutil.which("setpriv"), reason="needs setpriv, being root")

LOG = """
import trackio, sys
run = trackio.init(project="p", name="r", config={"lr": 0.1})
for i in range(50):
    trackio.log({"x": i, "half": i / 2})
print(run.id, flush=True)
sys.stdin.read()
for i in range(50, 60):
    trackio.log({"x": i})
"""
WHERE = ("--project", "p", "--run", "r")
QUESTIONS = [
    ("list", "projects"), ("list", "runs", "--project", "p"), ("list", "metrics", *WHERE),
    ("get", "project", "--project", "p"), ("get", "run", *WHERE), ("get", "metric", *WHERE, "--metric", "x"),
    ("get", "snapshot", *WHERE, "--step", "7"),
]  # fmt: skip


def read_only(folder: Path) -> None:
    """Takes every right to write away, and the ownership where we can."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)


def ask(host: Host, folder: Path, *arguments: str, program: str = "trackio") -> Any:
    """What a stranger gets to read from `folder`."""
    done = subprocess.run(
        [*STRANGER, str(Path(sys.executable).with_name(program)), *arguments, "--json"],
        env=host.environ(TRACKIO_DIR=str(folder)), capture_output=True, text=True, timeout=60 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return json.loads(done.stdout)


def everything(host: Host, folder: Path) -> list[Any]:
    return [ask(host, folder, *question) for question in QUESTIONS]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def trainer(daemon: Host) -> Any:
    """A process that has logged 50 points, all of them stored, and logs ten more before it ends."""
    process = daemon.python(LOG, stdin=subprocess.PIPE)
    process.stdout.readline()
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 100)
    return process


def copied(host: Host, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(host.data, folder, ignore=shutil.ignore_patterns("*.sock"))
    read_only(folder)
    return folder


def test_a_copy_of_a_stopped_store_says_what_the_store_says(daemon: Host, trainer: Any, tmp_path: Path) -> None:
    trainer.communicate()
    daemon.ended_run("p")
    daemon.stop()
    copy = copied(daemon, tmp_path)
    before = files(copy)
    answers = everything(daemon, copy)
    assert answers == everything(daemon, daemon.data)
    assert [v["value"] for v in answers[5]["values"]] == list(range(60))
    status = ask(daemon, copy, "status")
    assert status["daemon"] is None and not status["is_silent"] and status["problems"] == []
    assert [(r["run"], r["state"], r["points"]) for r in status["runs"]] == [("r", "finished", 110)]
    assert files(copy) == before, "reading writes nothing"


def test_a_copy_taken_while_it_is_written_is_read_as_it_was_and_answers_for_itself(
    daemon: Host, trainer: Any, tmp_path: Path
) -> None:
    copy = copied(daemon, tmp_path)
    trainer.communicate()
    daemon.ended_run("p")
    answers = everything(daemon, copy)
    assert [v["value"] for v in answers[5]["values"]] == list(range(50)), "not what came later"
    status = ask(daemon, copy, "status")
    assert status["daemon"] is None and not status["is_silent"], "the daemon of the original is not the copy's"
    assert [r["points"] for r in status["runs"]] == [100]


def test_a_copy_without_its_shm_file_names_it(daemon: Host, trainer: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(daemon.data, copy, ignore=shutil.ignore_patterns("*.sock", "*-shm"))
    assert next(copy.rglob("*-wal")).stat().st_size
    read_only(copy)
    command = [*STRANGER, str(Path(sys.executable).with_name("trackio")), "list", "runs", "--project", "p"]
    done = subprocess.run(command, env=daemon.environ(TRACKIO_DIR=str(copy)), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "") and "without its -shm file" in done.stderr
    assert done.stderr.count("\n") == 1
    trainer.communicate()


def test_what_is_logged_to_a_copy_does_not_go_to_the_original(daemon: Host, trainer: Any, tmp_path: Path) -> None:
    trainer.communicate()
    daemon.ended_run("p")
    copy = Host(tmp_path / "copy", daemon.spool)
    shutil.copytree(daemon.data, copy.data, ignore=shutil.ignore_patterns("*.sock"))
    assert inquiry.ask(copy.places, wire.StatusQuery(), 2 * PATIENCE) is None
    copy.start()
    try:
        copy.run("import trackio\ntrackio.init(project='q')\ntrackio.log({'a': 1})")
        assert copy.ended_run("q").points == 1
    finally:
        copy.stop()
    assert daemon.cli("list", "projects") == {"projects": ["p"]}
