"""Trainings with transformers 4.57, whose scripts track without having asked and name a Space in every call.

Its huggingface_hub excludes that of transformers 5, so `make test` gives it an environment of its own (.ci/venv).
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from conftest import Host
from reading import ended_run
from trainings import kept, logged, train

pytestmark = pytest.mark.trainers

PYTHON = Path(sys.prefix) / "transformers-4" / "bin" / "python"

TRAIN_AND_EVALUATE = """
import sys

import tiny_model
import trackio
import transformers
from transformers import Trainer, TrainingArguments

folder = sys.argv[1]
arguments = TrainingArguments(
    f"{folder}/out", max_steps=4, logging_steps=1, save_steps=2, per_device_train_batch_size=2, use_cpu=True
)
data = tiny_model.tokens()
training = Trainer(model=tiny_model.model(), args=arguments, train_dataset=data, eval_dataset=data[:4])
training.train()
training.evaluate()
run, asked = trackio.context_vars.current_run.get(), trackio.context_vars.current_space_id.get()
tiny_model.report(
    f"{folder}/report.json", history=training.state.log_history, version=transformers.__version__,
    report_to=arguments.report_to, space_id=arguments.trackio_space_id, run=run.id,
    pretended=[run._space_id, run.url, asked, trackio.sync(project=run.project), trackio.freeze(project=run.project)],
)
"""


def test_a_script_that_asked_for_no_tracker_is_one_run_and_nothing_is_uploaded(offline: Host) -> None:
    assert PYTHON.exists(), "`make test`, or .ci/venv test, makes the environment with transformers 4"
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            del offline.extra[name]
        offline.extra.update(HF_ENDPOINT=f"http://127.0.0.1:{hub.getsockname()[1]}", HF_TOKEN="hf_secret")
        report = train(offline, TRAIN_AND_EVALUATE, python=PYTHON)
        run = ended_run(offline, "huggingface")
        with pytest.raises(BlockingIOError):
            hub.accept()
    assert report["version"].startswith("4.57.")
    assert "trackio" in report["report_to"] and report["space_id"] == "trackio", "what it does when nobody says"
    assert report["pretended"] == [None] * 5
    assert (run.facts["run_id"], run.facts["state"], run.facts["attempts"]) == (report["run"], "finished", 1)
    assert run.points() == logged(report["history"])
    assert [step for step, _ in kept(report["history"], "loss")] == [1, 2, 3, 4]
    assert [step for step, _ in kept(report["history"], "eval_loss")] == [4]
    assert (run.facts["config"]["trackio_space_id"], run.facts["config"]["max_steps"]) == ("trackio", 4)
    assert "hf_secret" not in str(run.facts)
