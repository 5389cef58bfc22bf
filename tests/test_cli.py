"""The command line: upstream's grammar and keys, valid JSON, errors with the nearest name."""

from __future__ import annotations

import json
import subprocess

import pytest
from conftest import Host, wait_for

LOGGED = """
import trackio
run = trackio.init(project="demo", name="r1", config={"lr": 0.1})
trackio.log({"loss": 1.0, "note": "a"})
trackio.log({"loss": float("nan"), "acc": 0.5})
trackio.log({"loss": float("inf")}, step=10)
trackio.log({"loss": 0.25, "acc": True})
print(run.id)
"""


@pytest.fixture
def logged(daemon: Host) -> Host:
    daemon.extra["LOGGED_ID"] = daemon.run(LOGGED).stdout.strip()
    daemon.ended_run("demo")
    return daemon


def test_list_and_get_follow_upstreams_keys(logged: Host) -> None:
    run_id = logged.extra["LOGGED_ID"]
    assert logged.cli("list", "projects") == {"projects": ["demo"]}
    runs = logged.cli("list", "runs", "--project", "demo")
    assert (runs["project"], runs["runs"]) == ("demo", ["r1"])
    assert logged.cli("list", "metrics", "--project", "demo", "--run", "r1") == {
        "project": "demo", "run": "r1", "run_id": run_id, "metrics": ["acc", "loss", "note"],
    }  # fmt: skip
    project = logged.cli("get", "project", "--project", "demo")
    assert (project["num_runs"], project["last_activity"]) == (1, 11)
    assert project["runs"][0]["id"] == run_id and project["runs"][0]["created_at"].endswith("+00:00")
    run = logged.cli("get", "run", "--project", "demo", "--run", "r1")
    assert {k: run[k] for k in ("project", "run", "run_id", "num_logs", "metrics", "config", "last_step", "state")} == {
        "project": "demo", "run": "r1", "run_id": run_id, "num_logs": 4, "metrics": ["acc", "loss", "note"],
        "config": {"lr": 0.1}, "last_step": 11, "state": "finished",
    }  # fmt: skip


def test_get_metric_has_timestamp_step_and_value_and_json_is_valid(logged: Host) -> None:
    got = logged.cli("get", "metric", "--project", "demo", "--run", "r1", "--metric", "loss")
    assert (got["project"], got["run"], got["run_id"], got["metric"]) == (
        "demo", "r1", logged.extra["LOGGED_ID"], "loss",
    )  # fmt: skip
    assert [(v["step"], v["value"]) for v in got["values"]] == [(0, 1.0), (1, "NaN"), (10, "Infinity"), (11, 0.25)]
    assert all(v["timestamp"].endswith("+00:00") for v in got["values"])


@pytest.mark.parametrize(
    ("options", "steps"),
    [(["--step", "0"], [0]), (["--around", "0", "--window", "1"], [0, 1]), (["--around", "10"], [0, 1, 10, 11]),
     (["--at-time", "2001-01-01"], [])],
)  # fmt: skip
def test_windows_choose_points(logged: Host, options: list[str], steps: list[int]) -> None:
    got = logged.cli("get", "metric", "--project", "demo", "--run", "r1", "--metric", "loss", *options)
    assert [v["step"] for v in got["values"]] == steps
    snapshot = logged.cli("get", "snapshot", "--project", "demo", "--run", logged.extra["LOGGED_ID"], *options)
    assert [v["step"] for v in snapshot["metrics"].get("loss", [])] == steps


def test_a_point_is_found_by_its_own_time(logged: Host) -> None:
    at = logged.cli("get", "metric", "--project", "demo", "--run", "r1", "--metric", "note")["values"][0]["timestamp"]
    got = logged.cli("get", "snapshot", "--project", "demo", "--run", "r1", "--at-time", at, "--window", "5")
    assert "note" in got["metrics"] and (got["at_time"], got["window"]) == (at, 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "runs", "--project", "dem"], "Error: Project 'dem' not found. Did you mean 'demo'?"),
        (["get", "run", "--project", "demo", "--run", "r2"],
         "Error: Run 'r2' not found in project 'demo'. Did you mean 'r1'?"),
        (["get", "metric", "--project", "demo", "--run", "r1", "--metric", "los"],
         "Error: Metric 'los' not found in run 'r1' of project 'demo'. Did you mean 'loss'?"),
        (["get", "metric", "--project", "demo", "--run", "r1", "--metric", "loss", "--rank", "7"],
         "Error: Rank '7' not found in run 'r1'."),
        (["get", "metric", "--project", "demo", "--run", "r1", "--metric", "loss", "--attempt", "7"],
         "Error: Attempt '7' not found in run 'r1'."),
        (["get", "snapshot", "--project", "demo", "--run", "r1"],
         "Error: Provide --step, --around (with --window), or --at-time (with --window)."),
        (["get", "snapshot", "--project", "demo", "--run", "r1", "--at-time", "noon"],
         "Error: --at-time 'noon' is no ISO 8601 time."),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_sentence_and_exit_code_1(logged: Host, words: list[str], sentence: str) -> None:
    for extra in ([], ["--json"]):
        done = logged.command("trackio", *words, *extra)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence + "\n")


def test_text_shows_what_json_holds(logged: Host) -> None:
    for words, expected in (
        (["list", "projects"], "Projects:\n  - demo\n"),
        (["list", "metrics", "--project", "demo", "--run", "r1"], "  - loss"),
        (["get", "project", "--project", "demo"], "Number of runs: 1"),
        (["get", "run", "--project", "demo", "--run", "r1"], "Ranks: 1 logging of 1"),
        (["get", "metric", "--project", "demo", "--run", "r1", "--metric", "loss"], "nan"),
        (["get", "snapshot", "--project", "demo", "--run", "r1", "--step", "1"], "acc:"),
        (["status"], "finished"),
    ):
        done = logged.command("trackio", *words)
        assert done.returncode == 0 and expected in done.stdout, (words, done.stdout, done.stderr)


def test_reading_needs_no_daemon_and_starts_none(logged: Host) -> None:
    logged.stop()
    assert logged.cli("get", "metric", "--project", "demo", "--run", "r1", "--metric", "acc")["values"]
    status = logged.cli("status")
    assert status["daemon"] is None and status["runs"][0]["state"] == "finished"
    assert "trackiod start" in logged.command("trackio", "status").stdout
    assert logged.status() is None


def test_an_empty_folder_is_no_error(host: Host) -> None:
    assert host.cli("list", "projects") == {"projects": []}
    assert host.cli("status")["runs"] == []
    assert "No runs yet" in host.command("trackio", "status").stdout
    assert not (host.data / "projects").exists()


def test_status_shows_ranks_steps_rate_lag_and_losses(daemon: Host) -> None:
    code = """
import trackio, sys, time, os
trackio.init(project="p", name="job")
rank = int(os.environ["RANK"])
for i in range(30 + rank):
    trackio.log({"loss": i}, step=i); time.sleep(0.01)
sys.stdin.read()
"""
    env = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x",
           "TORCHELASTIC_ERROR_FILE": "/tmp/a/b/attempt_0/0/error.json"}  # fmt: skip
    ranks = [
        daemon.python(code, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdin=subprocess.PIPE) for r in range(3)
    ]
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 93)
    (run,) = daemon.cli("status")["runs"]
    assert (run["state"], run["logging"], run["world_size"]) == ("running", 3, 4)
    assert (run["last_step"], run["highest_step"], run["points"]) == (29, 31, 93)
    assert run["steps_per_second"] > 0 and (run["lag_bytes"], run["holes"], run["refused_points"]) == (0, 0, 0)
    text = daemon.command("trackio", "status").stdout
    assert "3 logging of 4" in text and "29 (highest 31)" in text
    for rank in ranks:
        rank.communicate()
    assert daemon.ended_run("p").state.state == "finished"
    values = daemon.cli("get", "metric", "--project", "p", "--run", "job", "--metric", "loss")["values"]
    assert values[-1] == {"timestamp": values[-1]["timestamp"], "step": 31, "value": 31, "ranks": "1 of 3"}
    one = daemon.cli("get", "metric", "--project", "p", "--run", "job", "--metric", "loss", "--rank", "2")["values"]
    assert len(one) == 32
    everything = daemon.cli("get", "metric", "--project", "p", "--run", "job", "--metric", "loss", "--all")["values"]
    assert len(everything) == 93


def test_watch_shows_it_again(logged: Host) -> None:
    import sys
    from pathlib import Path

    program = str(Path(sys.executable).with_name("trackio"))
    process = subprocess.Popen([program, "status", "--watch"], env=logged.environ(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        seen = 0
        while seen < 2:
            seen += "PROJECT" in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()


def test_attempts_and_hidden_points_can_be_read(daemon: Host) -> None:
    log = "import trackio\ntrackio.init(project='p', name='n', resume='allow')\n"
    daemon.run(log + "[trackio.log({'a': i}, step=i) for i in range(4)]")
    daemon.ended_run("p")
    daemon.run(log + "[trackio.log({'a': 10 + i}, step=i) for i in (2, 3)]")
    wait_for(lambda: daemon.the_run("p").points == 6)
    where = ["--project", "p", "--run", "n", "--metric", "a"]

    def values(*options: str) -> list[int]:
        return [v["value"] for v in daemon.cli("get", "metric", *where, *options)["values"]]

    assert values() == [0, 1, 12, 13] and values("--attempt", "0") == [0, 1, 2, 3]
    assert values("--all") == [0, 1, 2, 3, 12, 13]
    assert daemon.cli("get", "run", "--project", "p", "--run", "n")["hidden_points"] == 2
    snapshot = ["get", "snapshot", "--project", "p", "--run", "n", "--step", "2"]
    assert [v["value"] for v in daemon.cli(*snapshot, "--all")["metrics"]["a"]] == [2, 12]
    assert [v["value"] for v in daemon.cli(*snapshot, "--attempt", "0")["metrics"]["a"]] == [2]


def test_ctrl_c_ends_watching_quietly(logged: Host) -> None:
    import signal
    import sys
    from pathlib import Path

    for words in (["trackio", "status", "--watch"], ["trackiod", "logs", "-f"]):
        program = str(Path(sys.executable).with_name(words[0]))
        process = subprocess.Popen(
            [program, *words[1:]], env=logged.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert (process.returncode, err) == (130, "")


def test_an_output_that_cannot_be_written_is_one_sentence(logged: Host) -> None:
    import sys
    from pathlib import Path

    program = str(Path(sys.executable).with_name("trackio"))
    with open("/dev/full", "w") as full:
        done = subprocess.run([program, "status"], env=logged.environ(), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_names_cannot_move_the_cursor(daemon: Host) -> None:
    daemon.run("import trackio\ntrackio.init(project='a\\x1b[2Jb', name='n\\x07')\ntrackio.log({'m\\x1b[1A': 1})")
    wait_for(lambda: daemon.cli("list", "projects")["projects"] == ["a\x1b[2Jb"])
    for words in (["list", "projects"], ["list", "runs", "--project", "a\x1b[2Jb"], ["status"],
                  ["get", "run", "--project", "a\x1b[2Jb", "--run", "n\x07"]):  # fmt: skip
        done = daemon.command("trackio", *words)
        assert done.returncode == 0 and "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_status_tells_of_data_that_wait_to_be_stored(host: Host) -> None:
    host.run("import trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})")
    assert host.cli("status")["waiting"] == 1
    text = host.command("trackio", "status").stdout
    assert "Of 1 process(es) data wait" in text and "No runs yet" not in text


def test_status_tells_of_data_that_wait_of_a_run_that_is_known(host: Host) -> None:
    """Its process is dead and so is the daemon that had met it."""
    code = """
import os, signal, sys, trackio
trackio.init(project="p")
while not os.path.exists(sys.argv[2]): trackio.log({"a": 1})
os.kill(int(sys.argv[1]), signal.SIGKILL)
trackio.log({"a": 2})
os._exit(0)
"""
    met = host.data / "met"
    process = host.python(code, str(host.start()), str(met))
    wait_for(lambda: any(run.points for run in host.runs("p")), what="its first points")
    met.touch()
    process.wait()
    assert host.cli("status")["waiting"] == 1


def test_config_that_differs_between_ranks_is_told(daemon: Host) -> None:
    env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x",
           "TORCHELASTIC_ERROR_FILE": "/tmp/a/b/attempt_0/0/error.json"}  # fmt: skip
    for rank in (1, 0):
        daemon.run(f"import trackio\ntrackio.init(project='p', name='j', config={{'lr': 0.1, 'seed': {rank}}})\n"
                   "trackio.log({'a': 1})", env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)})  # fmt: skip
    wait_for(lambda: daemon.runs("p") and [s.state for s in daemon.the_run("p").streams] == ["finished"] * 2)
    run = daemon.cli("get", "run", "--project", "p", "--run", "j")
    assert run["config"] == {"lr": 0.1, "seed": 0}
    assert run["config_differences"] == {"seed": {"0": 0, "1": 1}}
    other = daemon.cli("get", "run", "--project", "p", "--run", "j", "--rank", "1")
    assert other["config"] == {"lr": 0.1, "seed": 1}


def test_version_and_help_are_there(host: Host) -> None:
    import trackio

    for program in ("trackio", "trackiod"):
        assert host.command(program, "--version").stdout == f"{program} {trackio.__version__}\n"
        assert "Commands:" in host.command(program, "--help").stdout


def test_a_run_that_is_written_is_read_without_waiting(daemon: Host) -> None:
    process = daemon.python("import trackio\ntrackio.init(project='p', name='n')\nwhile True: trackio.log({'a': 1.0})")
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points > 1000)
    for _ in range(3):
        done = daemon.command("trackio", "status", "--json")
        assert done.returncode == 0 and json.loads(done.stdout)["runs"][0]["state"] == "running"
    process.kill()
