"""`trackio.lightning.TrackioLogger`, with `lightning` itself."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Host, wait_for
from reading import ended_run
from trainings import SECONDS

pytestmark = pytest.mark.trainers

SCRIPT = """
import os, sys, warnings
warnings.simplefilter("ignore")
import lightning as L, torch
from trackio.lightning import TrackioLogger

class Model(L.LightningModule):
    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        loss = self.layer(batch).pow(2).mean()
        self.log("train_loss", loss)
        if self.global_step == 5 and FAIL: raise ValueError("on purpose")
        return loss
    def validation_step(self, batch, index): self.log("val_loss", self.layer(batch).pow(2).mean())
    def test_step(self, batch, index): self.log("test_loss", self.layer(batch).pow(2).mean())
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), self.hparams.lr)

FAIL, DEVICES = len(sys.argv) > 1 and sys.argv[1] == "fail", int(os.environ.get("DEVICES", "1"))
data = torch.utils.data.DataLoader(torch.ones(16, 4), batch_size=2)
logger = TrackioLogger(project="pl", name="x", prefix="m", log_model=True, tags=["t"])
trainer = L.Trainer(max_epochs=2, logger=logger, log_every_n_steps=2, accelerator="cpu", devices=DEVICES,
                    strategy="ddp" if DEVICES > 1 else "auto", enable_progress_bar=False, enable_model_summary=False,
                    default_root_dir=os.getcwd())
L.seed_everything(1, verbose=False)
model = Model()
trainer.fit(model, data, data)
if trainer.is_global_zero: logger.log_image("picture", [torch.zeros(3, 8, 8).numpy().transpose(1, 2, 0)], step=3)
trainer.test(model, data, verbose=False)
if trainer.is_global_zero: print(logger.version)
"""


def train(host: Host, *arguments: str, **env: str) -> Any:
    path = host.data.parent / "train.py"
    path.write_text(SCRIPT)
    return host.command("python", str(path), *arguments, seconds=SECONDS, **env)


def test_fit_and_test_of_two_ranks_are_one_run(offline: Host) -> None:
    done = train(offline, DEVICES="2")
    assert done.returncode == 0, done.stderr
    run = ended_run(offline, "pl")
    assert (run.facts["run"], run.facts["run_id"], run.facts["state"]) == ("x", done.stdout.split()[-1], "finished")
    assert run.facts["config"]["lr"] == 0.01 and run.facts["tags"] == ["t"] and run.facts["attempts"] == 1
    points = run.points()
    assert [step for step, _ in points["m/train_loss"]] == [1, 3, 5, 7]
    assert [step for step, _ in points["m/val_loss"]] == [3, 7]
    assert [step for step, _ in points["m/test_loss"]] == [8] and points["m/epoch"][-1][1] == 2
    losses = [value for _, value in points["m/train_loss"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert points["m/picture"][0][1][0]["_type"] == "trackio.image"
    (artifact,) = wait_for(lambda: offline.cli("list", "artifacts", "--project", "pl")["artifacts"], what="the model")
    assert artifact["type"] == "model" and artifact["manifest"][0]["path"].endswith(".ckpt")


def test_a_training_that_raises_is_a_failed_run(offline: Host) -> None:
    done = train(offline, "fail")
    assert done.returncode != 0 and "on purpose" in done.stderr
    run = ended_run(offline, "pl")
    assert run.facts["state"] == "failed" and len(run.points()["m/train_loss"]) == 2
