"""Scripts written for earlier trackers run as they are: no arguments, other words for things, config at any time.

Each is a file that a plain `python` runs; what it left is read through the command line.
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Host
from reading import ended_run, ended_runs

TRAIN = """
import trackio

trackio.config.learning_rate = 0.1
trackio.config["model"] = {"depth": 2}
trackio.config.update({"seed": 7}, batch_size=8)

experiment = trackio.init(project_name="older", experiment_name="first", description="SECRET-1", hf_token="SECRET-2",
                          trackio_url="http://127.0.0.1:9", trackio_token="SECRET-3", dataset_repo="me/data",
                          monitoring_mode="both", enable_tracking=True, log_metrics=True)
assert (f"{experiment}", str(experiment)) == (experiment.id, experiment.id) and experiment == experiment.id

config = trackio.config
assert (config.project_name, config.experiment_name, config.learning_rate) == ("older", "first", 0.1)
assert "seed" in config and config.get("nothing") is None and dict(config.items())["batch_size"] == 8
config.update({"warmup": 3, "allow_val_change": True}, optimizer="adam")
config.update({"seed": 8}, allow_val_change=True)
assert config.allow_val_change is True and config["seed"] == 8 and "warmup" in config.keys() and "8" in repr(config)

for step in range(3):
    trackio.log({"loss": 1 / (step + 1), "note": None}, step, experiment_id="SECRET-4", epoch_only=False)
trackio.log({"train/global_step": 5, "accuracy": 0.5})
trackio.log(metrics={"accuracy": 0.75}, step=6, experiment_id="SECRET-5")
trackio.finish()
trackio.finish()

assert trackio.config.learning_rate == 0.1, "it survives finish()"
trackio.config.best = 0.75
trackio.log({"final": 1.0})
"""

NO_ARGUMENTS = """
import trackio

trackio.finish()
trackio.config.only = "the first"
names = []
for number in range(3):
    run = trackio.init()
    names.append(run.name)
    trackio.log({"number": number})
assert len(set(names)) == 3, names
assert "only" not in trackio.config
print(*names)
"""

THE_SAME_EXPERIMENT_TWICE = """
import trackio

for number in range(2):
    trackio.init(project_name="p", experiment_name="e", test_param=number)
    trackio.log({"number": number})
"""


def run_script(host: Host, code: str, **env: str) -> Any:
    """Runs a file of `code` as a user would; it must end well."""
    script = host.data.parent / "train.py"
    script.write_text(code)
    done = host.command("python", str(script), **env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def test_names_config_and_steps_mean_what_they_meant(daemon: Host) -> None:
    run_script(daemon, TRAIN)
    run = ended_run(daemon, "older")
    assert (run.facts["run"], run.facts["state"], run.facts["attempts"]) == ("first", "finished", 1)
    assert run.facts["config"] == {
        "learning_rate": 0.1, "model": {"depth": 2}, "seed": 8, "batch_size": 8, "warmup": 3, "optimizer": "adam",
        "best": 0.75,
    }  # fmt: skip
    assert run.points() == {
        "loss": [(0, 1.0), (1, 1 / 2), (2, 1 / 3)],
        "train/global_step": [(5, 5)],
        "accuracy": [(5, 0.5), (6, 0.75)],
        "final": [(7, 1.0)],
    }, "log() after finish() is stored"


def test_unknown_words_are_named_once_and_their_values_never(daemon: Host) -> None:
    said = run_script(daemon, TRAIN).stderr
    lines = [line for line in said.splitlines() if "see it with" not in line]
    assert sorted(lines) == [
        "trackio: init() knows no 'description'; it is ignored.",
        "trackio: init() knows no 'enable_tracking'; it is ignored.",
        "trackio: init() knows no 'log_metrics'; it is ignored.",
        "trackio: log() knows no 'epoch_only'; it is ignored.",
        "trackio: log() knows no 'experiment_id'; it is ignored.",
    ]
    assert "SECRET" not in said + str(ended_run(daemon, "older").facts)
    daemon.stop()
    files = [path for folder in (daemon.data, daemon.spool) for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"SECRET" in path.read_bytes()]


@pytest.mark.parametrize(("env", "project"), [({}, "default"), ({"EXPERIMENT_NAME": "mine"}, "mine")])
def test_an_init_without_arguments_is_a_run_of_its_own_each_time(
    daemon: Host, env: dict[str, str], project: str
) -> None:
    names = run_script(daemon, NO_ARGUMENTS, **env).stdout.split()
    runs = ended_runs(daemon, project)
    assert [(run.facts["run"], run.facts["state"]) for run in runs] == [(name, "finished") for name in names]
    assert [run.series("number") for run in runs] == [[(0, 0)], [(0, 1)], [(0, 2)]]
    assert [run.facts["config"] for run in runs] == [{"only": "the first"}, {}, {}]


def test_two_experiments_of_one_name_are_two_runs_and_the_name_means_the_newest(daemon: Host) -> None:
    run_script(daemon, THE_SAME_EXPERIMENT_TWICE)
    first, second = ended_runs(daemon, "p")
    assert first.facts["run"] == second.facts["run"] == "e" and first.facts["run_id"] != second.facts["run_id"]
    assert [run.series("number") for run in (first, second)] == [[(0, 0)], [(0, 1)]]
    assert daemon.cli("get", "run", "--project", "p", "--run", "e") == second.facts
