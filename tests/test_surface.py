"""What scripts written for wandb and upstream use beside logging: names, settings, reading, deleting, importing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import Host, wait_for

HEAD = "import os, sys, json\nimport trackio as wandb\nimport trackio\n"


def script(host: Host, code: str, **env: str) -> Any:
    """Runs a script in the test's folder; it must end well."""
    done = host.run(f"{HEAD}os.chdir({str(host.data.parent)!r})\n{code}", env=env)
    assert done.returncode == 0, done.stderr
    return done


def said(done: Any) -> list[str]:
    return [line for line in done.stderr.splitlines() if "see it with" not in line]


# -- as wandb --------------------------------------------------------------------------------------------------


def test_a_wandb_script_runs_unchanged(daemon: Host) -> None:
    done = script(daemon, """
import numpy as np
assert wandb.run is None
wandb.login(key="secret")
run = wandb.init(project="w", entity="me", name="first", config={"lr": 0.1, "skip": 1}, tags=["a", "b"], notes="why",
                 job_type="train", id="own-id", dir="/tmp", reinit=True, config_exclude_keys=["skip"],
                 settings=wandb.Settings(start_method="thread"), save_code=True, group="g")
assert wandb.run is run and (run.id, run.name, run.project) == ("own-id", "first", "w")
assert (run.tags, run.notes, run.job_type, run.group) == (("a", "b"), "why", "train", "g")
assert (run.resumed, run.url) == (False, None)
wandb.config.batch = 8
wandb.config.update({"lr": 0.2}, allow_val_change=True)
assert wandb.config.as_dict()["batch"] == 8
assert wandb.config["lr"] == 0.2 and run.config.batch == 8 and "skip" not in wandb.config
wandb.define_metric("acc", summary="max")
for step in range(3):
    wandb.log({"acc": step / 10}, commit=False)
    wandb.log(data={"loss": 1.0 - step})
    assert run.step == step
wandb.log({"hist": wandb.Histogram(np.arange(10.0)), "table": wandb.Table(columns=["a"], data=[[1]])}, step=5)
wandb.summary["best"] = 0.9
wandb.run.summary.update({"done": True})
wandb.alert(title="t", text="x", level="WARN")
assert len(wandb.util.generate_id()) == 8 and wandb.util.generate_id(4) != wandb.util.generate_id(4)
run.name = "second"
wandb.finish(exit_code=0, quiet=True)
assert wandb.run is None
""")  # fmt: skip
    assert said(done) == ["trackio: WARN t: x (step 5)"] and "secret" not in done.stderr
    daemon.ended_run("w")
    facts = daemon.cli("get", "run", "--project", "w", "--run", "own-id")
    assert (facts["run"], facts["group"], facts["tags"], facts["notes"], facts["job_type"]) == (
        "second", "g", ["a", "b"], "why", "train",
    )  # fmt: skip
    assert facts["config"] == {"lr": 0.2, "batch": 8} and facts["summary"]["best"] == {"set": 0.9}
    assert facts["summary"]["acc"]["last"] == 0.2 and facts["metrics"] == ["acc", "hist", "loss", "table"]
    values = daemon.cli("get", "metric", "--project", "w", "--run", "second", "--metric", "acc")["values"]
    assert [(v["step"], v["value"]) for v in values] == [(0, 0.0), (1, 0.1), (2, 0.2)]


def test_reinit_returns_the_open_run_finishes_it_or_leaves_it_open(daemon: Host) -> None:
    script(daemon, """
first = wandb.init(project="w", name="a")
assert wandb.init(project="w", name="b", reinit="return_previous") is first
second = wandb.init(project="w", name="b", reinit="create_new")
assert second is not first and not first.is_finished
third = wandb.init(project="w", name="c", reinit="finish_previous")
assert second.is_finished and not first.is_finished
assert wandb.init(project="w", mode="shared", name="d").name == "d"
""")  # fmt: skip
    wait_for(lambda: len(daemon.runs("w")) == 4, what="four runs")


def test_mode_disabled_in_settings_or_call_stores_nothing(host: Host) -> None:
    done = script(host, """
import numpy as np
for how in ({"mode": "disabled"}, {"settings": wandb.Settings(mode="disabled")}):
    run = wandb.init(project="w", tags="x", **how)
    wandb.log({"image": wandb.Image(np.zeros((2, 2), np.uint8))}); wandb.alert("x"); wandb.log_system({"a": 1})
    wandb.save(__file__) if "__file__" in globals() else None
    assert run.tags == ("x",) and wandb.run is run
""")  # fmt: skip
    assert said(done) == ["trackio: WARN x"] * 2 and not (host.data / "projects").exists()


def test_watch_stores_gradients_and_parameters_every_so_often(daemon: Host) -> None:
    done = script(daemon, """
import torch
wandb.init(project="w", name="r")
model = torch.nn.Linear(3, 2)
wandb.watch(model, log="all", log_freq=2)
for step in range(4):
    model.zero_grad(); model(torch.ones(1, 3)).sum().backward()
    wandb.log({"loss": step})
wandb.unwatch(model)
wandb.log({"loss": 4})
model.named_parameters = lambda: 1 / 0
wandb.watch(model)
wandb.log({"loss": 5}); wandb.log({"loss": 6})
""")  # fmt: skip
    assert said(done) == ["trackio: watch() failed and ends: ZeroDivisionError('division by zero')"]
    daemon.ended_run("w")
    metrics = daemon.cli("list", "metrics", "--project", "w", "--run", "r")["metrics"]
    assert metrics == ["gradients/bias", "gradients/weight", "loss", "parameters/bias", "parameters/weight"]
    values = daemon.cli("get", "metric", "--project", "w", "--run", "r", "--metric", "gradients/weight")["values"]
    assert [v["step"] for v in values] == [0, 2]
    assert sum(values[0]["value"]["values"]) == 6 and values[0]["value"]["_type"] == "trackio.histogram"


def test_names_that_are_absent_are_there_and_say_so_when_used() -> None:
    import trackio
    from trackio import surface
    from trackio.sqlite_storage import SQLiteStorage

    for name in surface.ABSENT:
        found = getattr(trackio, name)
        with pytest.raises(NotImplementedError, match=rf"^trackio has no {name}: .{{8,90}}\.$"):
            found()
    with pytest.raises(NotImplementedError, match=r"read with trackio\.Api"):
        SQLiteStorage.get_runs("p")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trackio.nonsense
    assert not hasattr(trackio, "__wrapped__") and not isinstance(surface.Absent("a", "b"), type)


def test_every_public_name_can_be_had_by_star_and_by_from() -> None:
    code = "from trackio import *\nfrom trackio import Table, Image, Api, show, util, run, watch\n"
    code += "print(Table.__module__, run)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "trackio.rich None"


def test_show_says_that_there_is_no_dashboard_and_shows_the_runs(daemon: Host) -> None:
    done = script(daemon, """
wandb.init(project="w", name="shown"); wandb.log({"loss": 1}); wandb.finish()
app, url, share_url, full_url = trackio.show("w", open_browser=False, block_thread=False)
assert (app, url, share_url, full_url) == (None, None, None, None)
trackio.show(project="other")
""")  # fmt: skip
    assert done.stdout.count("There is no dashboard yet") == 2 and done.stdout.count("shown") == 1
    assert "shown" in daemon.command("trackio", "show").stdout


def test_system_metrics_have_a_time_and_no_step(daemon: Host) -> None:
    done = script(daemon, """
wandb.init(project="w", name="r")
trackio.log_system({"gpu": {"0": {"temp": 60}}, "fan": 0.5, "odd": object()})
trackio.log_system({"fan": 0.75})
assert trackio.log_gpu() == {} and trackio.log_cpu() == {}
""")  # fmt: skip
    assert "'odd' was left out" in done.stderr and done.stderr.count("\n") == 2
    daemon.ended_run("w")
    which = ("--project", "w", "--run", "r")
    assert daemon.cli("list", "system-metrics", *which)["system_metrics"] == ["fan", "gpu/0/temp"]
    found = daemon.cli("get", "system-metric", *which, "--metric", "fan")["values"]
    assert [v["fan"] for v in found] == [0.5, 0.75] and found[0]["timestamp"] < found[1]["timestamp"]
    assert daemon.cli("get", "system-metric", *which)["system_metrics"][0]["gpu/0/temp"] == 60
    assert daemon.cli("list", "metrics", *which)["metrics"] == []


# -- reading, deleting, importing -----------------------------------------------------------------------------------


def test_the_api_reads_renames_moves_and_deletes(daemon: Host) -> None:
    script(daemon, """
import numpy as np
for name in ("a", "b"):
    with trackio.init(project="w", name=name, config={"name": name}) as run:
        trackio.log({"x": 1.5, "image": trackio.Image(np.full((2, 2), ord(name), np.uint8))}, step=3)
        trackio.alert("hot", level="error")
""")  # fmt: skip
    daemon.ended_runs("w")
    wait_for(lambda: not daemon.status().daemon["errands"], what="the files")
    done = script(daemon, """
api = trackio.Api()
runs = api.runs("w")
assert len(runs) == 2 and [run.name for run in runs] == ["a", "b"] and runs[0].config == {"name": "a"}
a, b = runs
assert a.state == "finished" and a.metrics == ["image", "x"]
assert [(p["step"], p["value"]) for p in a.history("x")] == [(3, 1.5)]
assert [alert["title"] for alert in a.alerts(level="error")] == ["hot"] and a.alerts(level="info") == []
assert len(api.alerts("w")) == 2 and len(api.alerts("w", run="b")) == 1
assert api.run("w", "b").id == b.id
assert a.rename("c").name == "c" and [run.name for run in api.runs("w")] == ["c", "b"]
assert b.move("v") and b.project == "v" and [run.name for run in api.runs("v")] == ["b"]
assert b.config == {"name": "b"}
assert [(p["step"], p["value"]) for p in b.history("x")] == [(3, 1.5)] and len(b.alerts()) == 1
image = b.history("image")[0]["value"]
assert a.delete() and len(api.runs("w")) == 0 and a.config is None and not a.delete() and a.alerts() == []
for wrong in ("api.runs('none')", "api.alerts('none')", "api.run('v', 'none')", "b.history('n')"):
    try: eval(wrong)
    except ValueError as error: print("ValueError", error)
assert trackio.delete_project("w", force=True) and not trackio.delete_project("w", force=True)
print(json.dumps(sorted(os.listdir(os.environ["TRACKIO_DIR"] + "/projects"))))
""")  # fmt: skip
    assert done.stdout.count("ValueError") == 4 and "* Run 'a' not found" not in done.stdout
    blobs = [p for p in (daemon.data / "blobs").rglob("*") if p.is_file()]
    assert len(blobs) == 1, "only the moved run's picture is left"
    (value,) = daemon.cli("get", "metric", "--project", "v", "--run", "b", "--metric", "image")["values"]
    assert value["value"]["file_path"] == str(blobs[0])


def test_a_run_that_runs_is_not_deleted(daemon: Host) -> None:
    done = script(daemon, """
import time
trackio.init(project="w", name="r"); trackio.log({"x": 1}); time.sleep(0.5)
(run,) = trackio.Api().runs("w")
assert not run.delete() and not run.move("v") and run.rename("n").name == "r" and not trackio.delete_project("w", True)
""")  # fmt: skip
    assert done.stdout.count("is running.") == 4
    assert len(daemon.ended_runs("w")) == 1


def test_csv_files_are_imported_with_their_steps_and_times(daemon: Host) -> None:
    done = script(daemon, """
rows = ["Step,timestamp,train/loss,note,acc", "0,2024-01-02T03:04:05+00:00,0.5,x,", "10,1704164646.5,nan,y,0.9"]
open("log.csv", "w").write("\\n".join(rows))
trackio.import_csv("log.csv", project="c", name="mine")
trackio.import_csv("log.csv", project="c")
for name, text in (("empty", ""), ("none", "a,b\\n1,2\\n"), ("text", "step,b\\n1,x\\n")):
    open(f"{name}.csv", "w").write(text)
for name in ("gone", "empty", "none", "text"):
    try: trackio.import_csv(f"{name}.csv", project="c")
    except (FileNotFoundError, ValueError) as error: print(type(error).__name__, error)
assert trackio.run is None
""")  # fmt: skip
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "FileNotFoundError CSV file not found", "ValueError CSV file is empty",
        "ValueError CSV file must contain a 'step' or 'Step' column",
        "ValueError No numeric metric data found in CSV file",
    ]  # fmt: skip
    assert "column 'note' of log.csv holds more than numbers" in done.stderr
    assert [run.name for run in daemon.ended_runs("c")] == ["mine", "log"]
    values = daemon.cli("get", "metric", "--project", "c", "--run", "mine", "--metric", "train/loss")["values"]
    assert values == [
        {"timestamp": "2024-01-02T03:04:05.000000+00:00", "step": 0, "value": 0.5},
        {"timestamp": "2024-01-02T03:04:06.500000+00:00", "step": 10, "value": "NaN"},
    ]


def test_tensorboard_files_are_imported_a_run_for_each_folder(daemon: Host) -> None:
    script(daemon, """
from torch.utils.tensorboard import SummaryWriter
for folder in ("logs", "logs/eval"):
    with SummaryWriter(folder) as writer:
        for step in range(3): writer.add_scalar("loss", step / 4, step, walltime=1_700_000_000 + step)
trackio.import_tf_events("logs", project="t", name="tb")
try: trackio.import_tf_events(os.environ["TRACKIO_DIR"], project="t")
except ValueError as error: print(error)
""")  # fmt: skip
    assert sorted(run.name for run in daemon.ended_runs("t")) == ["tb_eval", "tb_main"]
    values = daemon.cli("get", "metric", "--project", "t", "--run", "tb_eval", "--metric", "loss")["values"]
    assert [(v["step"], v["value"], v["timestamp"][:19]) for v in values] == [
        (n, n / 4, f"2023-11-14T22:13:2{n}") for n in range(3)
    ]


def test_strange_names_are_stored_as_given(daemon: Host) -> None:
    name = "../ü/<b>\N{PILE OF POO}\a" + "x" * 300
    done = script(daemon, f"name = {name!r}" + """
trackio.init(project="nul\\0", name="\\0"); trackio.log({"a": 1})
trackio.init(project=name, name=name, group=name, tags=[name], config={name: name})
trackio.log({name: 1, "html": trackio.Html(name), "md": trackio.Markdown(name)})
trackio.alert(name, name)
""")  # fmt: skip
    assert [line.split(" ")[1] for line in said(done)] == ["the", "the", "WARN"], done.stderr
    project = name[:128]
    wait_for(lambda: daemon.cli("list", "projects")["projects"] == [project, "nul\0"], what="both projects")
    daemon.ended_runs(project)
    facts = daemon.cli("get", "run", "--project", project, "--run", name[:128])
    assert facts["config"] == {name: name} and name in facts["metrics"]
    (alert,) = daemon.cli("list", "alerts", "--project", project)["alerts"]
    assert alert["title"] == name
    assert not [p for p in daemon.data.parent.rglob("*") if "<b>" in p.name], "no name of a user's is a file's"
