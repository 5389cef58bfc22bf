"""What Hugging Face trainers log arrives, from unmodified TRL, transformers and accelerate.

The trainings run in processes of their own, on a model built there, and report what they themselves kept
(`state.log_history`); the tests compare that with what readers see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, shown, wait_for

from trackiod import curves
from trackiod.answers import RunView

pytestmark = pytest.mark.trainers

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parent),
}
SECONDS = 180.0

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


@pytest.fixture
def offline(host: Host, tmp_path: Path) -> Iterator[Host]:
    """A host whose daemon runs and whose processes ask no hub for anything."""
    host.extra.update(OFFLINE, HF_HOME=str(tmp_path / "hf"))
    host.start()
    yield host


def train(host: Host, code: str) -> Any:
    """Runs a training to its end; returns its report."""
    folder = host.data.parent
    done = host.run(code, str(folder), seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


def arrived(host: Host, project: str) -> RunView:
    """The project's one run, once all that was logged is stored: a process may have had several streams."""
    wait_for(lambda: not list(host.spool.rglob("seg-*")), what="the end of all streams")
    return host.ended_run(project)


def seen(run: RunView, metric: str) -> list[tuple[int, Any]]:
    """(step, value) of each visible point."""
    return [(point.step, point.value) for point in shown(run, metric)]


def kept(history: list[dict[str, Any]], key: str) -> list[tuple[int, Any]]:
    """(global step, value) as the trainer itself remembers them."""
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def assert_nothing_is_missing(run: RunView) -> None:
    assert (run.holes, run.refused_points, run.refused_records, run.twins) == ([], 0, 0, [])


def assert_is_the_sft_training(run: RunView, report: Any, folder: Path) -> None:
    assert run.state == ("finished", "")
    losses = kept(report["history"], "loss")
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    for key in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens"):
        assert seen(run, f"train/{key}") == kept(report["history"], key)
    assert seen(run, "train/global_step") == [(step, step) for step in (1, 2, 3, 4)]
    assert run.steps == (4, 4)
    assert run.config()["learning_rate"] == 1e-2 and run.config()["max_steps"] == 4
    assert run.config()["hidden_size"] == 16 and run.config()["model/num_parameters"] == report["parameters"]
    assert_nothing_is_missing(run)
    assert {"checkpoint-2", "checkpoint-4"} <= {path.name for path in (folder / "out").iterdir()}


def test_an_unmodified_sft_training_with_checkpoints_is_one_run(offline: Host) -> None:
    report = train(offline, SFT)
    run = arrived(offline, "sft")
    assert_is_the_sft_training(run, report, offline.data.parent)
    assert (run.attempts, run.logging, run.world_size) == (1, 1, 1)
    card = (offline.data.parent / "out" / "README.md").read_text()
    assert "hf.space" not in card, "a model card links to no Space that does not hold the data"


def test_an_sft_training_under_torchrun_is_one_run_in_which_one_rank_of_two_logs(offline: Host) -> None:
    folder = offline.data.parent
    (folder / "sft.py").write_text(SFT)
    done = offline.command("torchrun", "--nproc-per-node", "2", "sft.py", str(folder), seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["world_size"] == 2
    run = arrived(offline, "sft")
    assert_is_the_sft_training(run, report, folder)
    assert (run.attempts, run.logging, run.world_size) == (1, 1, 2)
    assert [point.is_partial for point in shown(run, "train/loss")] == [False] * 4


def test_a_scripts_own_init_and_the_trainers_callback_are_one_run(offline: Host) -> None:
    report = train(offline, TRAINER + """
run = trackio.init(project="mine", name="x", config={"mine": 7})
trackio.log({"warm": 1.5}, step=0)
training = trainer()
training.train()
trackio.log({"after": 2.5}, step=5)
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, run=run.id)
""")  # fmt: skip
    run = arrived(offline, "mine")
    assert (run.id, run.name, run.state) == (report["run"], "x", ("finished", ""))
    assert offline.runs("huggingface") == []
    assert run.attempts == 1
    assert seen(run, "warm") == [(0, 1.5)] and seen(run, "after") == [(5, 2.5)]
    assert seen(run, "train/loss") == kept(report["history"], "loss")
    assert [step for step, _ in seen(run, "train/loss")] == [1, 2, 3, 4]
    assert (run.config()["mine"], run.config()["learning_rate"]) == (7, 1e-2)
    assert_nothing_is_missing(run)


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
    run = arrived(offline, "mine")
    assert (run.id, run.name, run.state) == (report["run"], "x", ("finished", ""))
    assert seen(run, "train/loss") == kept(report["history"], "loss")
    assert "eval/loss" in run.metric_names, [view.metric_names for view in offline.runs("huggingface")]
    assert seen(run, "eval/loss") == kept(report["history"], "eval_loss")
    assert seen(run, "after") == [(5, 2.5)]
    assert offline.runs("huggingface") == []


@pytest.mark.parametrize("name", [None, "x"])
def test_train_and_evaluate_are_one_run(offline: Host, name: str | None) -> None:
    report = train(offline, TRAINER + f"""
training = trainer(project="evaluated", run_name={name!r})
training.train()
training.evaluate()
tiny_model.report(f"{{folder}}/report.json", history=training.state.log_history)
""")  # fmt: skip
    run = arrived(offline, "evaluated")
    assert run.state == ("finished", "")
    assert name in (None, run.name)
    if name is None:  # by docs/semantics.md 2, an init() with the name of a run that exists is a new attempt of it
        assert run.attempts == 1
    assert seen(run, "train/loss") == kept(report["history"], "loss")
    assert [step for step, _ in seen(run, "train/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in seen(run, "eval/loss")] == [4]
    assert seen(run, "eval/loss") == kept(report["history"], "eval_loss")
    assert_nothing_is_missing(run)


def test_a_training_resumed_from_a_checkpoint_is_one_run_of_two_attempts(offline: Host) -> None:
    """The second attempt goes to step 6, so its learning rate falls slower: step 4 has another value."""
    start = TRAINER + """
training = trainer(project="resumed", run_name="x", save_strategy="steps", save_steps=2)
training.train()
run = trackio.context_vars.current_run.get()
tiny_model.report(f"{folder}/report.json", history=training.state.log_history, run=run.id)
"""  # fmt: skip
    go_on = start.replace("save_steps=2", "max_steps=6").replace("train()", 'train(f"{folder}/out/checkpoint-2")')
    first = train(offline, start)
    before = arrived(offline, "resumed")
    assert (before.name, before.attempts) == ("x", 1)
    second = train(offline, go_on)
    run = arrived(offline, "resumed")
    assert first["run"] == second["run"] == before.id == run.id
    assert (run.state, run.attempts) == (("finished", ""), 2)
    for key in ("loss", "learning_rate", "grad_norm"):
        assert seen(run, f"train/{key}") == kept(second["history"], key)
    assert [step for step, _ in seen(run, "train/loss")] == [1, 2, 3, 4, 5, 6]
    old, new = (dict(kept(report["history"], "learning_rate")) for report in (first, second))
    assert old[2] == new[2] and old[4] < new[4], "else the test could not tell the attempts apart"
    again = shown(run, "train/learning_rate", attempt=0)
    assert [(point.step, point.value) for point in again] == kept(first["history"], "learning_rate")
    assert curves.series(run, "train/loss").hidden == 2
    assert_nothing_is_missing(run)


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
    run = arrived(offline, "acc")
    assert (run.id, run.name, run.state) == (done.stdout.split()[-1], "x", ("finished", ""))
    assert seen(run, "loss") == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)]
    assert seen(run, "nested/acc") == [(10, 0.1), (20, 0.2), (30, 0.3)]
    assert seen(run, "done") == [(31, True)]
    assert run.config() == {"lr": 0.1, "layers": [1, 2]}
    assert (run.attempts, run.logging, run.world_size) == (1, 1, 1)
    assert_nothing_is_missing(run)
