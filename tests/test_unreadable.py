"""An I/O error is not an answer: what a dead process left and cannot be read now is removed by nobody, is in nobody's
way, is shown, and is stored once it can be read."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, wait_for
from failing import Failing

from trackio import places
from trackiod import orphans

LOG = """
import os, sys, trackio
trackio.init(project=sys.argv[1])
for i in range(500): trackio.log({"i": i}, step=i)
"""
KILLED = LOG + "os.kill(os.getpid(), 9)"
MET = LOG + "print('logged', flush=True); sys.stdin.read()"


@pytest.fixture
def failing(host: Host, tmp_path: Path) -> Any:
    failing = Failing(tmp_path / "failing")
    host.extra.update(failing.environ)
    yield failing
    failing.heal()


def blocked(host: Host) -> list[dict[str, Any]]:
    report = host.status()
    found: list[dict[str, Any]] = report.daemon["blocked"] if report else []
    return found


def segments(host: Host) -> list[Path]:
    return [*host.spool.rglob("streams/*/seg-*"), *(host.data / "spill").rglob("seg-*")]


FAULTS = [
    ("open", errno.EMFILE, ""),
    ("open", errno.EACCES, "/seg-"),
    ("read", errno.EIO, "/seg-"),
    ("listdir", errno.EIO, ""),
    ("stat", errno.ENOMEM, ""),
    ("open", errno.ESTALE, "/counters"),
    ("unlink", errno.EIO, "/seg-"),
    ("open", errno.ENOTDIR, "/seg-"),
    ("read", errno.ENOTDIR, "/seg-"),
    ("stat", errno.ENOTDIR, ""),
    ("stat", errno.EIO, "/seg-"),
    ("unlink", errno.ENOTDIR, ""),
]


def test_what_cannot_be_read_is_kept_until_it_can_and_blocks_nobody(host: Host, failing: Failing) -> None:
    host.start()
    for number in range(len(FAULTS)):
        host.python(MET, f"p{number}", stdin=subprocess.PIPE)
    wait_for(lambda: len(host.status().streams) == len(FAULTS))
    of_project = {stream["project"]: stream["stream"] for stream in host.status().streams}
    for process in host.processes:
        assert process.stdout.readline() == "logged\n"
    rules = [
        failing.fail(call, error, of_project[f"p{number}"] + path, process="trackiod")
        for number, (call, error, path) in enumerate(FAULTS)
    ]
    for process in host.processes:
        process.kill()
    wait_for(lambda: len(blocked(host)) == len(FAULTS))
    assert all(rule.hits for rule in rules)
    for one in blocked(host):
        _, error, path = FAULTS[int(one["project"][1:])]
        assert one["error"] == errno.errorcode[error] and one["stream"] + path in one["path"] and one["next_try_at"]
    assert {path.parent.name for path in segments(host)} == {*of_project.values()}, "something was removed"
    host.run(LOG, "q")
    assert host.ended_run("q").records == 500, "the others go on"
    failing.heal()
    for project in of_project:
        run = host.ended_run(project, 60)
        assert (run.records, run.holes) == (500, [])
    wait_for(lambda: not blocked(host) and not segments(host), what="what is stored to be removed")


def test_facts_that_cannot_be_read_do_not_make_a_stream_absent(host: Host, failing: Failing) -> None:
    projects = ("p", "q", "r")
    for project in projects:
        host.run(KILLED, project)
    of_project = {found.meta["project"]: found.id for found in orphans.find(host.places)}
    faults = [("read", errno.EIO, "stream.meta"), ("open", errno.ENOTDIR, ""), ("fcntl", errno.ENOLCK, "owner")]
    rules = [
        failing.fail(call, error, f"{of_project[project]}/{path}", process="trackiod")
        for project, (call, error, path) in zip(projects, faults, strict=True)
    ]
    host.start()
    wait_for(lambda: len(blocked(host)) == 3)
    shown = {one["stream"]: (one["error"], one["path"].rpartition("/")[2]) for one in blocked(host)}
    assert [shown[of_project[p]] for p in projects] == [("EIO", "stream.meta"), ("ENOTDIR", "stream.meta"),
                                                        ("ENOLCK", "owner")]  # fmt: skip
    wait_for(lambda: all(rule.hits > 2 for rule in rules))
    assert {path.parent.name for path in segments(host)} == {*of_project.values()}
    failing.heal()
    for project in projects:
        assert host.ended_run(project, 60).records == 500


def test_of_a_process_that_the_daemon_met_what_is_held_open_is_kept_too(host: Host, failing: Failing) -> None:
    host.start()
    process = host.python(MET, "p", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "logged\n"
    (stream,) = wait_for(lambda: host.status().streams)
    with failing.fail("fcntl", errno.ENOLCK, "/owner", process="trackiod") as rule:
        wait_for(lambda: rule.hits > 3)
        assert [one["stream"] for one in host.status().streams] == [stream["stream"]], "it is not dead"
    with failing.fail("read", errno.EIO, "/seg-", process="trackiod"):
        process.kill()
        wait_for(lambda: blocked(host))
        shutil.rmtree(host.spool)  # an epilog
    assert host.ended_run("p", 60).records == 500


def test_a_drain_a_stop_and_a_set_aside_do_not_wait_for_what_cannot_be_read(host: Host, failing: Failing) -> None:
    host.run(KILLED, "p")
    (stream,) = (found.id for found in orphans.find(host.places))
    rule = failing.fail("read", errno.EIO, "/seg-", process="trackiod")
    host.start()
    host.run(LOG, "q")
    drained = host.command("trackio", "drain", "--timeout", str(60 * PATIENCE))
    assert drained.returncode == 1 and stream in drained.stderr and "EIO" in drained.stderr and "seg-" in drained.stderr
    assert host.the_run("q").records == 500
    for program in ("trackio", "trackiod"):
        text = host.command(program, "status").stdout
        assert "Blocked" in text and stream in text and "EIO" in text and "seg-" in text
    assert stream in host.command("trackiod", "doctor").stdout
    assert stream in host.command("trackiod", "repair").stdout
    assert host.command("trackiod", "stop").returncode == 0
    kept = {path.name: path.read_bytes() for path in segments(host)}
    host.start()
    done = host.command("trackiod", "repair", "--set-aside", stream)
    assert done.returncode == 0, done.stderr
    aside = [*host.data.glob("damaged/*/seg-*"), *host.spool.rglob("damaged/*/seg-*")]
    assert {path.name: path.read_bytes() for path in aside} == kept and kept
    assert str(aside[0].parent) in done.stdout and not segments(host)
    run = host.the_run("p")
    assert run.state.state == "lost" and len(run.holes) == 1 and "EIO" in run.holes[0].cause
    again = host.command("trackiod", "repair", "--set-aside", stream)
    assert again.returncode == 1 and "There is no stream" in again.stderr
    rule.end()


def test_what_cannot_be_found_at_a_start_has_not_ended(host: Host, failing: Failing) -> None:
    """A daemon that starts while the folders of streams cannot be listed does not take them for gone."""
    host.start()
    host.run(LOG + "os.kill(os.getpid(), 9)", "p")
    host.stop()
    process = host.python(MET, "q", stdin=subprocess.PIPE)
    process.stdout.readline()
    with failing.fail("listdir", errno.EIO, "streams", process="trackiod"):
        host.start()
        wait_for(lambda: blocked(host))
        assert "EIO" in host.command("trackio", "drain", "--timeout", "1").stderr
    process.communicate("")
    for project in ("p", "q"):
        run = host.ended_run(project, 60)
        assert (run.records, run.holes) == (500, [])


def test_other_users_folders_are_not_errors(tmp_path: Path) -> None:
    """A root that somebody else made first holds nothing of ours."""
    spool = tmp_path / "spool"
    (spool / "trackio-0").mkdir(parents=True)
    (spool / "trackio-0").joinpath("x").write_text("not a folder")
    where = places.Places("", str(tmp_path / "data"), "", (str(spool / "trackio-0" / "x"),))
    assert orphans.scan(where) == orphans.Scan([], [], {}, set(), {})


def test_projects_that_cannot_be_listed_are_said_and_taken_up_later(host: Host, failing: Failing) -> None:
    host.start()
    host.run(KILLED, "p")
    host.ended_run("p")
    host.stop()
    with failing.fail("listdir", errno.EIO, "/projects", process="trackio"):
        for words in (["list", "projects"], ["status"]):
            done = host.command("trackio", *words)
            assert "cannot be listed" in done.stdout + done.stderr and "EIO" in done.stdout + done.stderr
        host.start()
    host.run(LOG, "p")
    wait_for(lambda: len(host.ended_runs("p")) == 2)


def test_folders_whose_maker_or_remover_was_killed_in_between_go(host: Host) -> None:
    """They hold neither a word nor a record; one that holds a record is damaged, and is kept."""
    root = Path(host.places.make_root(host.places.roots[0]))
    folders = [root / "streams" / "0123456789abcdef", Path(host.places.spill) / "fedcba9876543210"]
    for path, names in zip(folders, (["owner"], ["owner", "stream.meta.new"]), strict=True):
        path.mkdir(parents=True, mode=0o700)
        for name in names:
            (path / name).touch(mode=0o600)
    host.start()
    wait_for(lambda: not any(path.exists() for path in folders), 30, "the folders' end")
    assert not (host.data / "damaged").exists()
