"""Several releases of us on one host: two venvs, a daemon older or newer than its clients."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from releases import make_release, python, trackiod

from trackio import launch
from trackio.shipping import HAND_OVERS_A_PROCESS, Succession

OLDER, NEWER = "0.9.7", "99.1.0"

TRAINER = """
import sys, threading, trackio
trackio.init(project=sys.argv[1])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
i = 0
while not stop.wait(0.005):
    trackio.log({"i": i})
    i += 1
print(trackio.__version__, i)
"""

Venv = Callable[[str], Path]


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    """Makes a virtual environment with a release of us in it."""
    return lambda version: make_release(tmp_path, version)


def stored(host: Host, project: str) -> int:
    return host.the_run(project).points if host.runs(project) else 0


def wait_for_more(host: Host, *projects: str) -> None:
    """Until points that are logged from now on are stored."""
    for project in projects:
        before = stored(host, project)
        wait_for(lambda p=project, n=before: stored(host, p) > n + 20, 30, f"more of {project}")


def daemon_of(host: Host, version: str) -> Any:
    """The daemon's facts, once it is of that release."""
    return wait_for(
        lambda: (report := host.status()) is not None and report.daemon["version"] == version and report.daemon,
        30, f"a daemon of {version}",
    )  # fmt: skip


def end_and_check(host: Host, process: Any, project: str, version: str) -> None:
    """Ends a trainer; everything it logged is stored once."""
    out, err = process.communicate(timeout=30 * PATIENCE)
    assert process.returncode == 0 and "Traceback" not in err, err
    said, count = out.split()
    assert said == version
    run = host.ended_run(project)
    assert [p.value for p in shown(run, "i", all_points=True)] == list(range(int(count)))
    assert (run.holes, run.refused_records, run.state.state) == ([], 0, "finished")


def log_of(host: Host) -> str:
    return (host.data / "trackiod.log").read_text()


def test_a_newer_client_takes_over_from_an_older_daemon_and_nothing_is_lost(host: Host, venv: Venv) -> None:
    old, new = venv(OLDER), venv(NEWER)
    older = python(host, old, TRAINER, "older")
    first = daemon_of(host, OLDER)
    wait_for_more(host, "older")
    newer = python(host, new, TRAINER, "newer")
    second = daemon_of(host, NEWER)
    assert second["pid"] != first["pid"] and second["life"] == "autostarted"
    wait_for_more(host, "older", "newer")
    assert f"stopping: handing over to trackio {NEWER}" in log_of(host)
    end_and_check(host, older, "older", OLDER)
    end_and_check(host, newer, "newer", NEWER)
    assert log_of(host).count("handing over") == 1 and host.status().daemon["pid"] == second["pid"]


def test_an_older_client_just_works_with_a_newer_daemon(host: Host, venv: Venv) -> None:
    old, new = venv(OLDER), venv(NEWER)
    newer = python(host, new, TRAINER, "newer")
    pid = daemon_of(host, NEWER)["pid"]
    older = python(host, old, TRAINER, "older")
    wait_for_more(host, "older", "newer")
    end_and_check(host, older, "older", OLDER)
    end_and_check(host, newer, "newer", NEWER)
    assert host.status().daemon["pid"] == pid and "handing over" not in log_of(host)


def test_a_daemon_that_a_user_started_is_followed_by_one_that_stays_too(host: Host, venv: Venv) -> None:
    old, new = venv(OLDER), venv(NEWER)
    trackiod(host, old, "start")
    assert daemon_of(host, OLDER)["life"] == "started"
    newer = python(host, new, TRAINER, "newer")
    assert daemon_of(host, NEWER)["life"] == "started"
    wait_for_more(host, "newer")
    end_and_check(host, newer, "newer", NEWER)


def test_a_service_is_not_asked_to_hand_over(host: Host, venv: Venv) -> None:
    """Whoever watches over it would start the same release again."""
    service = python(host, venv(OLDER), "from trackiod.daemon import run; raise SystemExit(run())")
    assert daemon_of(host, OLDER)["life"] == "service"
    newer = python(host, venv(NEWER), TRAINER, "newer")
    wait_for_more(host, "newer")
    end_and_check(host, newer, "newer", NEWER)
    assert service.poll() is None and "handing over" not in log_of(host)
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=20 * PATIENCE)


def test_a_client_that_may_not_start_a_daemon_does_not_ask_for_one(host: Host, venv: Venv) -> None:
    older = python(host, venv(OLDER), TRAINER, "older")
    daemon_of(host, OLDER)
    newer = python(host, venv(NEWER), TRAINER.replace("import sys", "import os; os.environ['TRACKIO_AUTOSTART'] = '0'\n"
                                                      "import sys", 1), "newer")  # fmt: skip
    wait_for_more(host, "newer")
    end_and_check(host, newer, "newer", NEWER)
    end_and_check(host, older, "older", OLDER)
    assert "handing over" not in log_of(host)


# -- an installation that changes under its processes ----------------------------------------------------------


def test_a_deleted_venv_ends_its_daemon_and_a_process_of_another_one_starts_the_next(host: Host, venv: Venv) -> None:
    """The same release in both, so nobody is asked to hand over."""
    doomed, kept = venv(OLDER), venv(f"{OLDER}.post1")
    from_doomed = python(host, doomed, TRAINER, "doomed")
    first = daemon_of(host, OLDER)
    from_kept = python(host, kept, TRAINER, "kept")
    wait_for_more(host, "doomed", "kept")
    shutil.rmtree(doomed)
    second = daemon_of(host, f"{OLDER}.post1")
    assert second["pid"] != first["pid"] and str(kept) in second["python"]
    assert "stopping: the installed package changed" in log_of(host)
    wait_for_more(host, "doomed", "kept")
    end_and_check(host, from_doomed, "doomed", OLDER)
    end_and_check(host, from_kept, "kept", f"{OLDER}.post1")


def test_an_upgraded_venv_gets_a_daemon_of_its_new_release(host: Host, venv: Venv) -> None:
    folder = venv(OLDER)
    trackiod(host, folder, "start")
    process = python(host, folder, TRAINER, "before")
    wait_for_more(host, "before")
    shutil.rmtree(folder)
    shutil.move(venv(NEWER), folder)
    daemon_of(host, NEWER)
    wait_for_more(host, "before")
    end_and_check(host, process, "before", OLDER)


def test_a_process_whose_installation_is_gone_starts_no_daemon_and_keeps_what_it_logs(host: Host, venv: Venv) -> None:
    doomed, said = venv(OLDER), host.data.parent / "said"
    trackiod(host, doomed, "start")
    process = python(
        host, doomed, f"import sys; sys.stderr = open({str(said)!r}, 'w', buffering=1)\n{TRAINER}", "doomed"
    )
    wait_for_more(host, "doomed")
    shutil.rmtree(doomed)
    wait_for(lambda: "its own installation was removed" in said.read_text(), 30, "the one line about it")
    assert host.status() is None and not launch.is_running(host.places)
    host.start()
    end_and_check(host, process, "doomed", OLDER)
    assert "No module" not in log_of(host) and "Traceback" not in log_of(host)


# -- the decision ----------------------------------------------------------------------------------------------


def asked(*met: tuple[tuple[int, int], str, str], patience: float = 0.0) -> list[bool]:
    """What a client of release 2.0 does when it meets these daemons, one after the other."""
    succession = Succession("2.0", patience)
    answers = []
    for daemon, release, life in met:
        succession.on_welcome(daemon, release, life, 10.0)
        answers.append(succession.asks(10.0 + patience))
        succession.on_disconnect()
    return answers


@pytest.mark.parametrize(("release", "life", "asks"), [
    ("1.9", "autostarted", True), ("1.9", "started", True), ("1.9", "service", False), ("1.9", "", False),
    ("2.0", "autostarted", False), ("2.1", "autostarted", False), ("", "autostarted", False),
])  # fmt: skip
def test_only_an_older_daemon_that_nobody_watches_over_is_asked(release: str, life: str, asks: bool) -> None:
    assert asked(((7, 1), release, life)) == [asks]


def test_a_daemon_is_asked_once_and_a_process_asks_no_more_than_three() -> None:
    assert asked(*[((7, 1), "1.0", "started")] * 3) == [True, False, False]
    several = [((pid, 1), "1.0", "started") for pid in range(HAND_OVERS_A_PROCESS + 2)]
    assert asked(*several) == [True] * HAND_OVERS_A_PROCESS + [False] * 2


def test_the_other_ranks_leave_the_first_one_time_to_ask() -> None:
    succession = Succession("2.0", 2.0)
    succession.on_welcome((7, 1), "1.0", "started", 10.0)
    assert not succession.asks(11.9) and succession.asks(12.0) and not succession.asks(13.0)
    succession.on_welcome((8, 1), "1.0", "started", 20.0)
    succession.on_disconnect()
    assert not succession.asks(30.0), "somebody else has asked it"
