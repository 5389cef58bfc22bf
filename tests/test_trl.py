"""TRL's trainers, unmodified, on a model built on the spot: what each logs arrives, tables and traces too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from conftest import Host, wait_for
from reading import Stored, ended_run
from trainings import SECONDS, kept, logged, train

pytestmark = pytest.mark.trainers

OPTIONS = """
import sys

import tiny_model
from datasets import Dataset

folder = sys.argv[1]
options = dict(
    output_dir=f"{folder}/out", report_to="trackio", project="trl", run_name="x", logging_steps=1, max_steps=3,
    save_strategy="no", per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True, bf16=False, disable_tqdm=True,
)
words = [row["text"].split() for row in tiny_model.texts(8)]
pairs = [{"prompt": " ".join(w[:4]), "chosen": " ".join(w[4:]), "rejected": " ".join(w[:3])} for w in words]
labelled = [{"prompt": p["prompt"], "completion": p["chosen"], "label": i % 2 == 0} for i, p in enumerate(pairs)]
common = dict(processing_class=tiny_model.tokenizer())
"""

REPORT = """
training.train()
if training.is_world_process_zero():
    tiny_model.report(f"{folder}/report.json", history=training.state.log_history)
"""

PREFERENCES = """
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
model, data = tiny_model.model, Dataset.from_list
trainers = [
    DPOTrainer(model=model(), ref_model=model(), args=DPOConfig(**options | {"project": "dpo"}, max_length=16),
               train_dataset=data(pairs), **common),
    KTOTrainer(model=model(), ref_model=model(), args=KTOConfig(**options | {"project": "kto"}, max_length=16),
               train_dataset=data(labelled), **common),
    CPOTrainer(model=model(), args=CPOConfig(**options | {"project": "cpo"}, max_length=16),
               train_dataset=data(pairs), **common),
]
for training in trainers: training.train()
histories = [training.state.log_history for training in trainers]
tiny_model.report(f"{folder}/report.json", **dict(zip(("dpo", "kto", "cpo"), histories)))
"""

GRPO = """
from trl import GRPOConfig, GRPOTrainer
training = GRPOTrainer(
    model=tiny_model.model(), reward_funcs=tiny_model.different_words,
    args=GRPOConfig(**options, num_generations=2, max_completion_length=4, log_completions=True),
    train_dataset=Dataset.from_list(tiny_model.prompts()), **common,
)
"""

PPO = """
from transformers import LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer
def judge():
    config = tiny_model.model().config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)
options.pop("max_steps")
encode = tiny_model.tokenizer()
encode.padding_side = "left"
rows = [{"input_ids": encode(p["prompt"])["input_ids"]} for p in tiny_model.prompts(12)]
training = PPOTrainer(
    args=PPOConfig(**options, total_episodes=12, num_ppo_epochs=1, num_mini_batches=1, response_length=4,
                   gradient_accumulation_steps=1, num_sample_generations=0),
    processing_class=encode, model=tiny_model.model(), ref_model=tiny_model.model(), reward_model=judge(),
    value_model=judge(), train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:2]),
)
"""

SFT = """
from trl import SFTConfig, SFTTrainer
training = SFTTrainer(model=tiny_model.model(), args=SFTConfig(**options, max_length=16),
                      train_dataset=Dataset.from_list(tiny_model.texts()), **common)
"""


def python(name: str) -> Path:
    path = Path(sys.prefix) / name / "bin" / "python"
    assert path.exists(), f"`make test`, or .ci/venv test, makes the environment {name}"
    return path


def assert_is_the_training(run: Stored, report: Any, steps: list[int]) -> None:
    """All that the trainer remembers is shown, and nothing else but what TRL logs beside it."""
    assert (run.facts["run"], run.facts["state"], run.facts["attempts"]) == ("x", "finished", 1)
    shown = {
        name: points for name, points in run.points().items() if not name.startswith(("profiling/", "completions"))
    }
    remembered = logged(report["history"])
    assert shown == remembered | {
        name: points for name, points in shown.items() if name.startswith("train/completions/")
    }
    assert [step for step, _ in kept(report["history"], "loss")] == steps


def test_dpo_kto_and_cpo_trainings_in_one_process_are_a_run_each_with_everything_they_log(offline: Host) -> None:
    report = train(offline, OPTIONS + PREFERENCES)
    for project in ("dpo", "kto", "cpo"):
        run = ended_run(offline, project)
        assert_is_the_training(run, {"history": report[project]}, [1, 2, 3])
        assert any("rewards" in name for name in run.facts["metrics"])


def test_ppo_of_the_last_trl_that_has_it(offline: Host) -> None:
    """It knows no loss: it logs its objectives once in each of its updates."""
    report = train(offline, OPTIONS + PPO + REPORT, python=python("trl-1-12"))
    run = ended_run(offline, "trl")
    shown = run.points()
    assert shown == json.loads(json.dumps(logged(report["history"])), parse_constant=str, object_hook=as_points)
    assert len(shown["train/objective/kl"]) == 6 and run.facts["state"] == "finished"


def test_an_sft_training_of_a_year_ago(offline: Host) -> None:
    """TRL 0.25 and transformers 4.57."""
    report = train(offline, OPTIONS.replace('project="trl", ', "") + SFT + REPORT, python=python("transformers-4"))
    assert_is_the_training(ended_run(offline, "huggingface"), report, [1, 2, 3])


def as_points(found: dict[str, Any]) -> Any:
    return {name: [tuple(point) for point in points] for name, points in found.items()}


def completions(run: Stored) -> list[list[dict[str, Any]]]:
    """The rows of each table that GRPO logged."""
    return [point["value"]["_value"] for point in run.metric("completions")["values"]]


def assert_completions_are_those_of(run: Stored, report: Any, folder: Path) -> None:
    """TRL itself writes the same tables as Parquet files."""
    import pandas as pd

    tables = {max(row["step"] for row in table): table for table in completions(run)}  # the last is logged twice
    files = sorted((folder / "out" / "completions").iterdir())
    assert len(tables) == len(files) == len(kept(report["history"], "loss"))
    for table, file in zip(tables.values(), files, strict=True):
        expected = json.loads(pd.read_parquet(file).to_json(orient="records", double_precision=15))
        assert [{k: v for k, v in row.items() if k not in ("image", "advantage")} for row in table] == [
            {k: v for k, v in row.items() if k != "advantage"} for row in expected
        ]
        assert [row["advantage"] for row in table] == pytest.approx([row["advantage"] for row in expected])


def test_grpo_under_torchrun_is_one_run_with_its_completions(offline: Host) -> None:
    folder = offline.data.parent
    (folder / "grpo.py").write_text(OPTIONS + GRPO + REPORT + "tiny_model.leave()")
    done = offline.command("torchrun", "--nproc-per-node", "2", "grpo.py", str(folder), seconds=SECONDS)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    run = ended_run(offline, "trl")
    assert_is_the_training(run, report, [1, 2, 3])
    assert_completions_are_those_of(run, report, folder)
    assert len(completions(run)[0]) == 4, "of both ranks, gathered by rank 0"
    assert run.facts["world_size"] == 2


SEEING_GRPO = """
import PIL.Image
from trl import GRPOConfig, GRPOTrainer
model, processor = tiny_model.seeing_model()
rows = [{"prompt": [{"role": "user", "content": p["prompt"]}], "image": PIL.Image.new("RGB", (8, 8), (i * 9, 1, 2))}
        for i, p in enumerate(tiny_model.prompts(8))]
training = GRPOTrainer(
    model=model, reward_funcs=lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
    args=GRPOConfig(**options, num_generations=2, max_completion_length=4, log_completions=True),
    processing_class=processor, train_dataset=Dataset.from_list(rows),
)
"""


def test_pictures_stand_in_the_tables_of_a_model_that_sees(offline: Host) -> None:
    report = train(offline, OPTIONS + SEEING_GRPO + REPORT)
    run = ended_run(offline, "trl")
    assert_is_the_training(run, report, [1, 2, 3])
    wait_for(lambda: "not kept yet" not in str(completions(run)), what="the pictures")
    pictures = [picture for table in completions(run) for row in table for picture in row["image"]]
    assert len(pictures) == 2 * 4
    for picture in pictures:
        assert picture["_type"] == "trackio.image"
        with PIL.Image.open(picture["file_path"]) as image:
            red, *others = image.convert("RGB").getpixel((5, 5))
            assert image.size == (8, 8) and red % 9 == 0 and others == [1, 2]


def test_rollouts_of_the_async_trainers_arrive_from_their_thread(offline: Host) -> None:
    """TRL's own function, called as its trainer does: in a copied context, in a thread that never saw init()."""
    done = offline.run("""
import contextvars, threading, dataclasses, torch, trackio
from trl.experimental.async_grpo import async_grpo_trainer as trainer
trackio.init(project="trl", name="x")
fields = {f.name: f for f in dataclasses.fields(trainer.RolloutSample)}
known = dict(prompt=[{"role": "user", "content": "a cat"}], completion=[{"role": "assistant", "content": "sees"}],
             input_ids=[1, 2, 3], completion_mask=torch.tensor([0, 0, 1]), old_log_probs=[0.0], advantage=0.5,
             model_version=7, metrics={"reward": 1.5, "none": None})
sample = trainer.RolloutSample(**{name: known.get(name, 0) for name in fields})
context = contextvars.copy_context()
call = lambda: context.run(trainer.log_rollout_traces, [sample, sample], 3, ["trackio"])
thread = threading.Thread(target=call); thread.start(); thread.join()
""", seconds=SECONDS)  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stderr, done.stderr
    run = ended_run(offline, "trl")
    (point,) = run.metric("rollouts")["values"]
    assert point["step"] == 3 and len(point["value"]) == 2
    trace = point["value"][0]
    assert trace["_type"] == "trackio.trace" and trace["metadata"]["reward"] == 1.5
    assert [m["content"] for m in trace["messages"]] == ["a cat", "sees"]
