"""What Hugging Face trainers log arrives, from unmodified TRL, transformers and accelerate.

The trainings run in processes of their own, on a model built there, and report what they themselves kept
(`state.log_history`); the tests compare that with what readers see.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Host
from fake_hub import FakeHub
from reading import Points, Stored, count, ended_run
from trainings import SECONDS, kept, logged, train

pytestmark = pytest.mark.trainers

SFT = """
import sys

import tiny_model
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

folder = sys.argv[1]
arguments = SFTConfig(
    output_dir=f"{folder}/out", report_to="trackio", project="sft", max_steps=4, save_steps=2, logging_steps=1,
    per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, bf16=False, disable_tqdm=True, max_length=16,
)
trainer = SFTTrainer(
    model=tiny_model.model(), args=arguments, train_dataset=Dataset.from_list(tiny_model.texts()),
    processing_class=tiny_model.tokenizer(),
)
trainer.train()
if trainer.is_world_process_zero():
    tiny_model.report(
        f"{folder}/report.json", history=trainer.state.log_history, world_size=arguments.world_size,
        parameters=trainer.accelerator.unwrap_model(trainer.model).num_parameters(),
    )
"""

TRAINER = """
import sys

import tiny_model
import trackio
from transformers import Trainer, TrainingArguments

folder = sys.argv[1]


def trainer(**options):
    options = {
        "output_dir": f"{folder}/out", "report_to": "trackio", "max_steps": 4, "logging_steps": 1,
        "save_strategy": "no", "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True,
        "disable_tqdm": True, **options,
    }
    data = tiny_model.tokens()
    arguments = TrainingArguments(**options)
    return Trainer(model=tiny_model.model(), args=arguments, train_dataset=data, eval_dataset=data[:4])
"""


def projects(host: Host) -> list[str]:
    found: list[str] = host.cli("list", "projects")["projects"]
    return found


def assert_is_the_sft_training(run: Stored, report: Any, folder: Path) -> None:
    assert (run.facts["state"], run.facts["cause"]) == ("finished", "")
    assert run.points() == logged(report["history"])
    for key in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens"):
        assert [step for step, _ in kept(report["history"], key)] == [1, 2, 3, 4]
    assert (run.facts["last_step"], run.facts["highest_step"], run.facts["attempts"]) == (4, 4, 1)
    config = run.facts["config"]
    assert (config["learning_rate"], config["max_steps"], config["hidden_size"]) == (1e-2, 4, 16)
    assert config["model/num_parameters"] == report["parameters"]
    assert {"checkpoint-2", "checkpoint-4"} <= {path.name for path in (folder / "out").iterdir()}


def test_an_unmodified_sft_training_with_checkpoints_is_one_run(offline: Host) -> None:
    report = train(offline, SFT)
    run = ended_run(offline, "sft")
    assert_is_the_sft_training(run, report, offline.data.parent)
    assert (run.facts["logging"], run.facts["world_size"]) == (1, 1)
    card = (offline.data.parent / "out" / "README.md").read_text()
    assert "hf.space" not in card, "a model card links to no Space that does not hold the data"


def test_an_sft_training_under_torchrun_is_one_run_in_which_one_rank_of_two_logs(offline: Host) -> None:
    folder = offline.data.parent
    (folder / "sft.py").write_text(SFT + "tiny_model.leave()")
    done = offline.command("torchrun", "--nproc-per-node", "2", "sft.py", str(folder), seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["world_size"] == 2
    run = ended_run(offline, "sft")
    assert_is_the_sft_training(run, report, folder)
    assert (run.facts["logging"], run.facts["world_size"]) == (1, 2)
    assert not any("ranks" in point for point in run.metric("train/loss")["values"]), "no step is partial"


def test_a_scripts_own_init_and_the_trainers_callback_are_one_run(offline: Host) -> None:
    report = train(offline, TRAINER + """
run = trackio.init(project="mine", name="x", config={"mine": 7})
trackio.log({"warm": 1.5}, step=0)
training = trainer()
training.train()
trackio.log({"after": 2.5}, step=5)
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, run=run.id)
""")  # fmt: skip
    run = ended_run(offline, "mine")
    assert (run.facts["run_id"], run.facts["run"], run.facts["state"]) == (report["run"], "x", "finished")
    assert projects(offline) == ["mine"] and run.facts["attempts"] == 1
    assert [step for step, _ in kept(report["history"], "loss")] == [1, 2, 3, 4]
    assert run.points() == {"warm": [(0, 1.5)], **logged(report["history"]), "after": [(5, 2.5)]}
    assert (run.facts["config"]["mine"], run.facts["config"]["learning_rate"]) == (7, 1e-2)


def test_a_scripts_own_init_train_and_evaluate_are_one_run(offline: Host) -> None:
    """The callback asks for project "huggingface" again after its own finish()."""
    report = train(offline, TRAINER + """
run = trackio.init(project="mine", name="x")
training = trainer()
training.train()
training.evaluate()
trackio.log({"after": 2.5}, step=5)
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, run=run.id)
""")  # fmt: skip
    run = ended_run(offline, "mine")
    assert (run.facts["run_id"], run.facts["run"], run.facts["state"]) == (report["run"], "x", "finished")
    assert projects(offline) == ["mine"]
    assert [step for step, _ in kept(report["history"], "eval_loss")] == [4]
    assert run.points() == {**logged(report["history"]), "after": [(5, 2.5)]}


@pytest.mark.parametrize("name", [None, "x"])
def test_train_and_evaluate_are_one_run(offline: Host, name: str | None) -> None:
    report = train(offline, TRAINER + f"""
training = trainer(project="evaluated", run_name={name!r})
training.train()
training.evaluate()
tiny_model.report(f"{{folder}}/report.json", history=training.state.log_history)
""")  # fmt: skip
    run = ended_run(offline, "evaluated")
    assert (run.facts["state"], run.facts["attempts"]) == ("finished", 1) and name in (None, run.facts["run"])
    assert [step for step, _ in kept(report["history"], "loss")] == [1, 2, 3, 4]
    assert [step for step, _ in kept(report["history"], "eval_loss")] == [4]
    assert run.points() == logged(report["history"])


# -- resumed from a checkpoint in a new process -----------------------------------------------------------------

CHECKPOINTED = """
import sys

import tiny_model
import trackio

folder, checkpoint = sys.argv[1], next(iter(sys.argv[2:]), None)
options = dict(
    output_dir=f"{folder}/out", report_to="trackio", project="resumed", run_name="x", logging_steps=1, save_steps=2,
    max_steps=6 if checkpoint else 4, per_device_train_batch_size=2, per_device_eval_batch_size=2, learning_rate=1e-2,
    use_cpu=True, bf16=False, disable_tqdm=True,
)
profiled = []
"""

PLAIN = """
from transformers import Trainer, TrainingArguments

data = tiny_model.tokens()
training = Trainer(
    model=tiny_model.model(), args=TrainingArguments(**options), train_dataset=data, eval_dataset=data[:4]
)
"""

TRL_SFT = """
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

training = SFTTrainer(
    model=tiny_model.model(), args=SFTConfig(**options, max_length=16), processing_class=tiny_model.tokenizer(),
    train_dataset=Dataset.from_list(tiny_model.texts()), eval_dataset=Dataset.from_list(tiny_model.texts(4)),
)
"""

TRL_GRPO = """
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.extras.profiling import ProfilingContext

log_metrics = ProfilingContext._log_metrics


def log_and_remember(self, duration):
    profiled.append((f"profiling/Time taken: {self.name}", self.step, duration))
    log_metrics(self, duration)


ProfilingContext._log_metrics = log_and_remember
arguments = GRPOConfig(
    **options, gradient_accumulation_steps=2, num_generations=2, max_completion_length=4
)
training = GRPOTrainer(
    model=tiny_model.model(), args=arguments, processing_class=tiny_model.tokenizer(),
    reward_funcs=tiny_model.different_words, train_dataset=Dataset.from_list(tiny_model.prompts()),
    eval_dataset=Dataset.from_list(tiny_model.prompts(2)),
)
"""

TRAIN_AND_EVALUATE = """
training.train(resume_from_checkpoint=checkpoint)
training.evaluate()
run = trackio.context_vars.current_run.get()
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, run=run.id, profiled=profiled)
"""


def measured(report: Any) -> dict[str, list[tuple[int, float]]]:
    """What TRL's profiler measured, by metric; the evaluation's come last and have the highest step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for metric, step, seconds in report["profiled"]:
        found.setdefault(metric, []).append((step, seconds))
    return found


def hiding(old: list[tuple[int, Any]], new: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """What shows of a metric when `new` was logged by a later attempt."""
    first = min((step for step, _ in new), default=1 << 60)
    return [point for point in old if point[0] < first] + new


def train_twice(host: Host, trainer: str) -> tuple[Any, Any]:
    """Trains, saves and evaluates; resumes at step 2 in a new process and does it again. Returns both reports.

    The second goes to step 6, so its learning rate falls slower: steps 3 and 4 have other values.
    """
    code = CHECKPOINTED + trainer + TRAIN_AND_EVALUATE
    first = train(host, code)
    run = ended_run(host, "resumed")
    once = everything_logged(first, 0)
    assert run.points() == once
    assert [step for step, _ in once["train/loss"]] == [1, 2, 3, 4] and [step for step, _ in once["eval/loss"]] == [4]
    assert (run.facts["run"], run.facts["state"], run.facts["attempts"]) == ("x", "finished", 1)
    return first, train(host, code, str(host.data.parent / "out" / "checkpoint-2"))


def everything_logged(report: Any, after: int) -> Points:
    """What a training logged after a step: the trainer's values, and those of TRL's profiler."""
    own = logged([entry for entry in report["history"] if entry["step"] > after])
    return own | {name: list(dict(points).items()) for name, points in measured(report).items()}


def assert_is_one_run_of_two_attempts(run: Stored, first: Any, second: Any) -> None:
    assert run.facts["run_id"] == first["run"], "what a reader knew it by is still its id"
    assert (run.facts["run"], run.facts["state"], run.facts["attempts"]) == ("x", "finished", 2)
    once, again = everything_logged(first, 0), everything_logged(second, 2)
    shown, stored = run.points(), run.points("--all")
    assert shown == {name: hiding(once[name], again[name]) for name in once}
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["eval/loss"]] == [4, 6], "the second attempt evaluated at step 6 alone"
    assert dict(once["train/learning_rate"])[4] < dict(shown["train/learning_rate"])[4], "the attempts differ"
    assert run.points("--attempt", "0") == once and run.points("--attempt", "1") == again
    assert run.metric("train/loss")["hidden"] == 2
    assert run.facts["points"] == count(stored)
    assert run.facts["hidden_points"] == count(stored) - count(shown)


@pytest.mark.parametrize("trainer", [PLAIN, TRL_SFT], ids=["Trainer", "SFTTrainer"])
def test_a_training_resumed_from_a_checkpoint_is_one_run_of_two_attempts(offline: Host, trainer: str) -> None:
    first, second = train_twice(offline, trainer)
    assert_is_one_run_of_two_attempts(ended_run(offline, "resumed"), first, second)


def test_both_values_a_resumed_grpo_training_logs_at_one_step_stay_readable(offline: Host) -> None:
    """With two accumulation steps the batch is prepared twice a step: generated first, then taken from memory."""
    first, second = train_twice(offline, TRL_GRPO)
    run = ended_run(offline, "resumed")
    assert_is_one_run_of_two_attempts(run, first, second)
    stored, shown = run.points("--all"), run.points()
    for name, points in measured(second).items():
        assert stored[name] == measured(first)[name] + points
        assert run.metric(name)["hidden"] == len(stored[name]) - len(shown[name])

    name = "profiling/Time taken: GRPOTrainer._prepare_inputs"
    generated, reused = [point for point in measured(first)[name] if point[0] == 0]
    assert generated != reused
    both = run.metric(name, "--all", "--step", "0")["values"]
    assert [(p["step"], p["value"], p["rank"], p["attempt"]) for p in both] == [(*generated, 0, 0), (*reused, 0, 0)]
    assert [(p["step"], p["value"]) for p in run.metric(name, "--step", "0")["values"]] == [reused]


ACCELERATE = """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True, log_with="trackio")
accelerator.init_trackers("acc", config={"lr": 0.1, "layers": [1, 2]}, init_kwargs={"trackio": {"name": "x"}})
for step in (10, 20, 30):
    accelerator.log({"loss": 1 / step, "nested": {"acc": step / 100}}, step=step)
accelerator.log({"done": True})
print(accelerator.get_tracker("trackio", unwrap=True).id)
accelerator.end_training()
"""


def test_accelerates_tracker_is_one_run_with_its_config_and_steps(offline: Host) -> None:
    done = offline.run(ACCELERATE, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    run = ended_run(offline, "acc")
    assert (run.facts["run_id"], run.facts["run"], run.facts["state"]) == (done.stdout.split()[-1], "x", "finished")
    assert run.points() == {
        "loss": [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)],
        "nested/acc": [(10, 0.1), (20, 0.2), (30, 0.3)],
        "done": [(31, True)],
    }
    assert run.facts["config"] == {"lr": 0.1, "layers": [1, 2]}
    assert (run.facts["attempts"], run.facts["logging"], run.facts["world_size"]) == (1, 1, 1)


def test_pushing_a_model_says_that_its_metrics_stay_here_and_links_to_no_space(offline: Host) -> None:
    """All paths of the callback: a Space is asked for, a prediction logged, the model pushed to a Hub."""
    with FakeHub() as hub:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            offline.extra.pop(name, None)
        offline.extra.update(HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret", HF_HUB_DISABLE_XET="1")
        report = train(offline, TRAINER + """
training = trainer(project="pushed", push_to_hub=True, hub_model_id="me/out", trackio_space_id=None)
training.train()
training.predict(tiny_model.tokens(4))
training.push_to_hub()
frozen = trainer(project="frozen", trackio_space_id="me/space")
frozen.train()
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, frozen=frozen.state.log_history)
""")  # fmt: skip
    run, frozen = ended_run(offline, "pushed"), ended_run(offline, "frozen")
    shown = run.points()
    assert {k: v for k, v in shown.items() if not k.startswith("test/")} == logged(report["history"])
    assert any(name.startswith("test/") for name in shown), "what predict() measured"
    assert frozen.points() == logged(report["frozen"])
    assert "model.safetensors" in hub.files and "config.json" in hub.files
    card = hub.files["README.md"].decode()
    assert "spaces/" not in card and "hf.space" not in card, "a model card links to no Space that holds nothing"
    assert not any("spaces" in asked for asked in hub.asked), "nothing of ours talks to the Hub"
