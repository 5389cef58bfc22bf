"""What callers touch: init, log, finish, config, Run, context variables, modes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from conftest import Host, shown, wait_for

SCRIPT_END = "\nimport json as _json; print(_json.dumps(out))"


def outcome(host: Host, code: str, **env: str) -> Any:
    """Runs `code`, which fills `out`; returns it. The process must end well and say at most lines of ours."""
    done = host.run("out = {}\nimport trackio\n" + code + SCRIPT_END, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_stored_is_asked_and_edited_with_any_text(daemon: Host) -> None:
    assert outcome(daemon, r"""
trackio.init(project="p\udcff", name="r")
trackio.log({"a": 1})
trackio.finish(wait="stored", timeout=60)
api = trackio.Api()
run = api.run("p\udcff", "r")
out["found"] = [run.project, len(api.runs("p\udcff")), run.rename("n" * 5000 + "\udcff").name, run.move("\udcff" * 500)]
out["moved"] = [run.state, len(run.project), trackio.delete_project(run.project, force=True)]
for odd in (object(), ["p"], {"$gt": ""}, 1, b"p", "\0"):
    for ask in (api.run, lambda project, run: api.runs(project), api.alerts):
        for project in ("p", odd):
            try: ask(project, odd)
            except ValueError: pass
""") == {"found": ["p\\udcff", 1, "n" * 128, True], "moved": ["finished", 128, True]}  # fmt: skip


def test_import_loads_nothing_heavy() -> None:
    code = "import sys; before = {*sys.modules}; import trackio; new = {*sys.modules} - before; print([m for m in (\
'zmq','numpy','torch','click','sqlite3','psutil','datasets','huggingface_hub','pynvml','PIL','pandas','trackio.rich',\
'trackio.media','trackiod','asyncio','multiprocessing','subprocess','dataclasses','json','shutil') if m in new])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these() -> None:
    import trackio

    assert sorted(trackio.__all__) == [
        "AlertLevel", "Api", "Artifact", "ArtifactTTL", "Audio", "Classes", "Collection", "Config", "EvalTable",
        "Graph", "Histogram", "Html", "Image", "JoinedTable", "Markdown", "Molecule", "Object3D", "Plotly",
        "ReferenceHandler", "Registry", "ResolvedReference", "Run", "Settings", "TRACKIO_LOGO_DIR", "Table",
        "Trace", "Video", "__upstream__", "__version__", "agent", "alert", "config", "context_vars", "controller",
        "define_metric", "delete_project", "errors", "finish", "freeze", "import_csv", "import_tf_events", "init",
        "log", "log_artifact", "log_cpu", "log_gpu", "log_system", "login", "plot", "register_reference_handler",
        "restore", "save", "show", "summary", "sweep", "sync", "unwatch", "use_artifact", "watch",
    ]  # fmt: skip
    assert all(hasattr(trackio, name) for name in trackio.__all__)


def test_the_version_is_above_the_newest_upstream_it_matches() -> None:
    from packaging.version import Version

    import trackio

    assert Version(trackio.__version__) > Version(trackio.__upstream__)
    assert Version(trackio.__version__) >= Version("0.21.1")


def test_log_before_init_is_a_runtime_error_and_finish_is_nothing(host: Host) -> None:
    done = host.run("import trackio\ntrackio.finish()\ntrackio.log({'a': 1})")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: Call trackio.init() before trackio.log()."


def test_metrics_that_are_no_mapping_are_a_type_error(host: Host) -> None:
    done = host.run("import trackio\ntrackio.init()\ntrackio.log([1])")
    assert done.stderr.splitlines()[-1] == "TypeError: log() takes a mapping of names to values, not a list"


def test_a_run_compares_to_its_id(host: Host) -> None:
    out = outcome(host, """
run = trackio.init(project="p", name="r", group="g")
out = [str(run) == run.id, f"{run}" == run.id, run == run.id, hash(run) == hash(run.id), run.id in {run},
       run.project, run.name, run.group, run.url, run._space_id, run._stop_flag.is_set(), trackio.config == run.config]
""")  # fmt: skip
    assert out == [True, True, True, True, True, "p", "r", "g", None, None, False, True]


def test_a_run_is_a_context_manager(daemon: Host) -> None:
    daemon.run("import trackio\ntry:\n  with trackio.init(project='p') as run:\n    run.log({'a': 1}); 1/0\n"
               "except ZeroDivisionError: pass")  # fmt: skip
    assert daemon.ended_run("p").state == ("failed", "ZeroDivisionError")


def test_config_exists_before_init_follows_the_run_and_survives_finish(daemon: Host) -> None:
    out = outcome(daemon, """
c = trackio.config
out["before"] = [c.project_name, c.experiment_name, "lr" in c]
c.lr = 0.1
c["model"] = {"depth": 2}
run = trackio.init(project="p", name="r", config={"seed": 7})
out["after"] = [c is trackio.config, c.lr, c["model"], c.seed, c.project_name, c.experiment_name, run.config.lr]
c.update({"batch": 8}, allow_val_change=True)
out["allow"] = c.allow_val_change
trackio.finish()
c.late = True
out["late"] = [c.late, c.get("nope"), sorted(k for k in c.keys() if k != "allow_val_change")]
""")  # fmt: skip
    assert out["before"] == [None, None, False]
    assert out["after"] == [True, 0.1, {"depth": 2}, 7, "p", "r", 0.1]
    assert out["allow"] is True
    assert out["late"] == [
        True, None, ["batch", "experiment_name", "late", "lr", "model", "project_name", "seed"],
    ]  # fmt: skip
    run = daemon.ended_run("p")
    assert run.config() == {"lr": 0.1, "model": {"depth": 2}, "seed": 7, "batch": 8, "late": True}


def test_a_second_init_is_another_run_and_finishes_the_first(daemon: Host) -> None:
    outcome(daemon, """
first = trackio.init(project="p", name="a")
trackio.log({"x": 1})
second = trackio.init(project="p", name="b")
trackio.log({"x": 2})
first.log({"x": 3})
""")  # fmt: skip
    wait_for(lambda: [r.state.state for r in daemon.runs("p")] == ["finished", "finished"])
    runs = {r.name: r for r in daemon.runs("p")}
    assert [p.value for p in shown(runs["a"], "x")] == [1, 3]
    assert [p.value for p in shown(runs["b"], "x")] == [2]


@pytest.mark.parametrize("finished", ["", "trackio.finish()"])
def test_a_nameless_resume_allow_goes_on_with_the_processs_run(daemon: Host, finished: str) -> None:
    """A script's own init() and the trainer's callback; train() and evaluate()."""
    out = outcome(daemon, f"""
mine = trackio.init(project="p", name="x")
trackio.log({{"mine": 1}})
{finished}
theirs = trackio.init(project="p", resume="allow")
trackio.log({{"theirs": 1}})
trackio.finish()
out = mine.id == theirs.id
""")  # fmt: skip
    assert out is True
    run = daemon.ended_run("p")
    assert run.name == "x" and run.metric_names == ["mine", "theirs"] and run.state.state == "finished"


def test_the_callbacks_default_project_does_not_take_the_run_away(host: Host) -> None:
    assert outcome(host, """
mine = trackio.init(project="my-sft", name="x")
out = trackio.init(project="huggingface", name=None, resume="allow", space_id=None).id == mine.id
""")  # fmt: skip


def test_the_callback_comes_back_to_the_run_it_once_went_on_with(host: Host) -> None:
    """train() finishes the run; evaluate() asks for the default project again."""
    assert outcome(host, """
mine = trackio.init(project="mine", name="x")
trackio.init(project="huggingface", resume="allow"); trackio.finish()
again = trackio.init(project="huggingface", resume="allow"); trackio.finish()
other = trackio.init(project="other", resume="allow")
out = [again.id == mine.id, other.id == mine.id]
""") == [True, False]  # fmt: skip


@pytest.mark.parametrize("variable", ["TRACKIO_RUN_NAME", "TRACKIO_RUN_ID"])
def test_a_name_or_id_from_the_environment_does_not_make_the_callback_ask_for_another_run(
    daemon: Host, variable: str
) -> None:
    """Only what the call itself says does: the environment says the same to the script's own init()."""
    out = outcome(daemon, """
mine = trackio.init(project="mine")
trackio.log({"mine": 1})
for call in ("train", "evaluate"):
    theirs = trackio.init(project="huggingface", name=None, resume="allow")
    trackio.log({call: 1})
    trackio.finish()
    out[call] = theirs.id == mine.id
""", **{variable: "given"})  # fmt: skip
    assert out == {"train": True, "evaluate": True}
    assert daemon.cli("list", "projects")["projects"] == ["mine"]
    run = daemon.cli("get", "run", "--project", "mine", "--run", "given")
    assert run["metrics"] == ["evaluate", "mine", "train"] and run["attempts"] == 1


@pytest.mark.parametrize(
    ("again", "same"), [("name='x'", True), ("id='i'", True), ("name='x', id='i'", True), ("name='y'", False),
                        ("id='j'", False), ("name='x', id='j'", False), ("name='y', id='i'", False)],
)  # fmt: skip
def test_the_callback_goes_on_with_the_run_only_if_it_says_no_other_name_or_id(
    host: Host, again: str, same: bool
) -> None:
    assert outcome(host, f"""
mine = trackio.init(project="mine", name="x", id="i")
out = trackio.init(project="huggingface", resume="allow", {again}) is mine
""") is same  # fmt: skip


def test_resume_allow_with_the_runs_own_name_is_no_new_attempt(daemon: Host) -> None:
    out = outcome(daemon, """
mine = trackio.init(project="p", name="x"); trackio.log({"a": 1})
theirs = trackio.init(project="p", name="x", resume="allow"); trackio.log({"a": 2})
out = mine.id == theirs.id
""")  # fmt: skip
    run = daemon.ended_run("p")
    assert out and run.attempts == 1 and [p.value for p in shown(run, "a")] == [1, 2]


def test_uploads_that_are_not_built_say_so_and_return_none(host: Host) -> None:
    """transformers writes what sync() returns into model cards."""
    done = host.run(
        "import trackio\nprint(trackio.sync(project='p', sdk='static', force=True), trackio.freeze(project='p'))"
    )
    assert done.stdout.strip() == "None None" and done.stderr.count("nothing is uploaded to Spaces yet") == 1


@pytest.mark.parametrize("ended", [False, True])
def test_finish_waits_for_a_daemon_that_is_not_there_yet(host: Host, ended: bool) -> None:
    """It is started; and started again, where it was killed."""
    code = """
import os, signal, sys, trackio
from trackio import inquiry, places, wire
run = trackio.init(project="p", mode="online")
if sys.argv[1:]:
    trackio.finish(wait="stored", timeout=60)
    run = trackio.init(project="p")
    os.kill(int(sys.argv[1]), signal.SIGKILL)
trackio.log({"a": 1})
trackio.finish(wait="stored", timeout=100)
"""
    arguments = [str(host.start())] if ended else []
    done = host.run(code, *arguments, env={"TRACKIO_AUTOSTART": "1"}, seconds=120)
    assert done.returncode == 0 and "not everything" not in done.stderr, done.stderr
    assert {run.state.state for run in host.runs("p")} == {"finished"}


def test_what_a_signal_handler_raises_in_log_comes_to_the_user(host: Host) -> None:
    """Were one swallowed, its time limit would never end."""
    code = """
import random, signal, trackio
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
trackio.init(project="p")
ended = 0
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
        while True: trackio.log({"loss": 0.5, "text": "x" * 100})
    except Late:
        ended += 1
print(ended)
"""
    done = host.run(code)
    assert done.stdout.split() == ["300"] and "skipped" not in done.stderr, done.stderr


def test_a_copy_of_the_configuration_is_the_users_own(daemon: Host) -> None:
    assert outcome(daemon, """
import copy, pickle
run = trackio.init(project="p", config={"lr": [1]})
for mine in (copy.copy(run.config), copy.deepcopy(run.config), pickle.loads(pickle.dumps(run.config))):
    assert mine["lr"] == [1]
    mine["lr"], mine["more"] = 2, 3
trackio.log({"a": 1})
out = dict(run.config)
""")["lr"] == [1]  # fmt: skip
    assert daemon.ended_run("p").config() == {"lr": [1]}


def test_a_stderr_of_the_users_own_may_raise(host: Host) -> None:
    code = """
import sys, trackio
class Stderr:
    def write(self, text): raise RuntimeError("no")
sys.stderr = Stderr()
trackio.init(project="p")
trackio.log({"a": object()})
trackio.finish(wait="nonsense")
print("went on")
"""
    assert host.run(code).stdout == "went on\n"


def test_log_after_finish_reopens_the_run(daemon: Host) -> None:
    outcome(daemon, """
run = trackio.init(project="p")
trackio.finish()
trackio.log({"x": 1})
run.log({"x": 2})
""")  # fmt: skip
    assert daemon.ended_run("p").state.state == "finished"
    assert daemon.values("p", "x") == [1, 2]


def test_resume_by_name_is_a_new_attempt_whose_counter_goes_on(daemon: Host) -> None:
    first = outcome(
        daemon, "r = trackio.init(project='p', name='x'); [trackio.log({'a': i}) for i in range(3)]; out = r.id"
    )
    second = outcome(daemon, """
r = trackio.init(project='p', name='x', resume='allow')
trackio.log({'a': 10})
out = r.id
""")  # fmt: skip
    assert first == second
    run = daemon.ended_run("p")
    assert run.attempts == 2
    assert [(p.step, p.value) for p in shown(run, "a")] == [(0, 0), (1, 1), (2, 2), (3, 10)]


def test_resume_must_without_such_a_run_is_a_value_error(daemon: Host) -> None:
    done = daemon.run("import trackio\ntrackio.init(project='p', name='zzz', resume='must')")
    assert done.stderr.splitlines()[-1] == "ValueError: Run 'zzz' does not exist in project 'p'"


def test_resume_by_id_goes_on_with_the_steps_and_must_wants_the_id_to_exist(daemon: Host) -> None:
    log = (
        "r = trackio.init(project='p', id='mine', resume=%r); trackio.log({'a': 1}); trackio.log({'a': 2}); out = r.id"
    )
    done = daemon.run("import trackio\ntrackio.init(project='p', id='mine', resume='must')")
    assert done.stderr.splitlines()[-1] == "ValueError: Run 'mine' does not exist in project 'p'"
    for resume in ("allow", "must"):
        assert outcome(daemon, log % resume) == "mine"
    run = daemon.ended_run("p")
    assert run.attempts == 2 and [(p.step, p.value) for p in shown(run, "a")] == [(0, 1), (1, 2), (2, 1), (3, 2)]


def test_a_late_rank_does_not_go_on_from_its_peers_steps(daemon: Host) -> None:
    job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x",
           "TORCHELASTIC_ERROR_FILE": "/tmp/a/b/attempt_0/0/error.json"}  # fmt: skip
    code = "trackio.init(project='p', name='r', resume='allow'); [trackio.log({'a': i}) for i in range(5)]; out = 0"
    for rank in ("1", "0"):
        outcome(daemon, code, **job, RANK=rank, LOCAL_RANK=rank)
        wait_for(lambda: daemon.runs("p"))
    run = daemon.ended_run("p")
    wait_for(lambda: daemon.the_run("p").points == 10)
    assert [(p.step, p.value, p.ranks) for p in shown(daemon.the_run("p"), "a")] == [(i, i, 2) for i in range(5)]
    assert run.attempts == 1


def test_resume_without_a_daemon_goes_on_and_is_shown_as_one_run(host: Host) -> None:
    """The id was given out; the daemon records that the run continues another."""
    code = "r = trackio.init(project='p', name='x', resume='allow'); trackio.log({'a': 1}, step=%d); out = r.id"
    ids = {outcome(host, code % step) for step in (1, 2)}
    assert len(ids) == 2
    host.start()
    wait_for(lambda: host.runs("p") and host.the_run("p").attempts == 2)
    assert [p.step for p in shown(host.the_run("p"), "a")] == [1, 2]


def test_disabled_stores_nothing_and_starts_nothing(host: Host) -> None:
    code = "r = trackio.init(project='p'); trackio.log({'a': 1}); trackio.config.x = 1; trackio.finish(); out = r.name"
    assert outcome(host, code, TRACKIO_MODE="disabled", TRACKIO_AUTOSTART="1")
    assert not list(host.data.iterdir()) and not list(host.spool.iterdir())
    assert outcome(host, code.replace("project='p'", "project='p', mode='disabled'"))
    assert not list(host.data.iterdir()) and not list(host.spool.iterdir())


def test_environment_names_the_run(daemon: Host) -> None:
    env = {"TRACKIO_PROJECT_NAME": "from-env", "TRACKIO_RUN_NAME": "n", "TRACKIO_SPACE_ID": "", "TRACKIO_ODD": "x"}
    assert outcome(daemon, "r = trackio.init(); out = [r.project, r.name]", **env) == ["from-env", "n"]
    assert outcome(daemon, "r = trackio.init(); out = r.project") == "default"


def test_aliases_and_unknown_words_are_taken_and_named_once(host: Host) -> None:
    done = host.run("""
import trackio
r = trackio.init(project_name="p", experiment_name="e", hf_token="SECRET", trackio_url="u", test_param=1)
r.log({"a": 1}, odd="SECRET"); r.log({"a": 1}, odd=2)
r.log(data={"b": 2}, step=3)
print(r.project, r.name)
""")  # fmt: skip
    assert done.stdout.split() == ["p", "e"]
    assert "SECRET" not in done.stderr
    assert done.stderr.count("'test_param'") == 1 and done.stderr.count("'odd'") == 1
    assert "hf_token" not in done.stderr


def test_the_process_says_one_line_and_quiet_says_none(host: Host) -> None:
    code = "import trackio\ntrackio.init(project='p', name='n')\ntrackio.log({'a': 1})\ntrackio.finish()"
    done = host.run(code)
    assert len(done.stderr.splitlines()) == 1 and "'n'" in done.stderr and not done.stdout
    assert host.run(code, env={"TRACKIO_QUIET": "1"}).stderr == ""


def test_a_fresh_thread_and_a_copied_context_find_the_run(daemon: Host) -> None:
    outcome(daemon, """
import threading, contextvars
trackio.init(project="p")
t = threading.Thread(target=lambda: trackio.log({"thread": 1})); t.start(); t.join()
contextvars.copy_context().run(trackio.log, {"context": 1})
assert trackio.context_vars.current_project.get() == "p"
""")  # fmt: skip
    assert daemon.ended_run("p").metric_names == ["context", "thread"]


def test_no_signal_handler_is_installed_and_excepthooks_are_chained(host: Host) -> None:
    done = host.run("""
import signal, sys
before = [signal.getsignal(s) for s in range(1, 32)]
sys.excepthook = lambda *a: print("mine", a[0].__name__)
import trackio
trackio.init()
assert before == [signal.getsignal(s) for s in range(1, 32)]
raise KeyError
""")  # fmt: skip
    assert done.stdout.strip() == "mine KeyError"


def test_define_metric_is_stored_and_used(daemon: Host) -> None:
    outcome(daemon, """
trackio.init(project="p")
trackio.define_metric("tokens", reduce="sum")
trackio.define_metric("val/*", step_metric="val/step", reduce="max")
trackio.log({"val/loss": 1.0, "val/step": 40})
trackio.define_metric("x", reduce="nonsense")
""")  # fmt: skip
    run = daemon.ended_run("p")
    assert (run.reduction_of("tokens"), run.reduction_of("val/loss"), run.reduction_of("x")) == ("sum", "max", "mean")
    assert shown(run, "val/loss")[0].step == 40


def test_ids_are_never_exported_to_children(host: Host) -> None:
    out = outcome(host, """
import os
r = trackio.init()
out = [k for k, v in os.environ.items() if r.id in v]
""")  # fmt: skip
    assert out == []


def test_a_run_that_goes_on_after_another_one_stays_one_attempt(daemon: Host) -> None:
    """Ray Tune's callback holds many runs in one process and logs to each after the others' init()."""
    daemon.run("""
import time, trackio
one = trackio.init(project="p", name="one", config={"lr": 1})
one.log({"a": 1.0}); one.log({"a": 2.0})
two = trackio.init(project="p", name="two"); two.log({"a": 5.0})
three = trackio.init(project="p", name="three")
while not one.is_retired: time.sleep(0.05)
one.log({"a": 3.0})
one.log({"a": 4.0}, step=1)
""", seconds=60)  # fmt: skip
    assert [(run.name, *run.state[:2]) for run in daemon.ended_runs("p", 60)] == [
        (name, "finished", "") for name in ("one", "two", "three")
    ]
    run = daemon.cli("get", "run", "--project", "p", "--run", "one")
    assert (run["attempts"], run["last_step"], run["highest_step"], run["logging"]) == (1, 2, 2, 1)
    assert run["summary"]["a"] == {"last": 3.0, "min": 1.0, "max": 4.0, "mean": pytest.approx(8 / 3)}
    assert (run["points"], run["hidden_points"], run["config"]) == (4, 1, {"lr": 1})
    got = daemon.cli("get", "metric", "--project", "p", "--run", "one", "--metric", "a")
    assert [(v["step"], v["value"]) for v in got["values"]] == [(0, 1.0), (1, 4.0), (2, 3.0)]
