"""`TrackioLogger` for PyTorch Lightning: `Trainer(logger=TrackioLogger(project="p"))`.

Works with `lightning` and with `pytorch_lightning`. Rank 0 logs; the launcher's other ranks stay silent, as with every
logger of Lightning's.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import trackio
from trackio.border import never_raises
from trackio.runs import Run
from trackio.values import key_text

try:
    from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
except ImportError:
    from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
    from pytorch_lightning.utilities.rank_zero import rank_zero_only


class TrackioLogger(Logger):
    """Metrics, hyper-parameters, pictures and, if asked for, the best checkpoint of a Lightning training.

    `fit()`, `validate()` and `test()` of one logger are one run. `log_model=True` logs the best checkpoint as an
    artifact when the training ends. Other keywords are `trackio.init`'s.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        prefix: str = "",
        log_model: bool = False,
        **init: Any,
    ) -> None:
        super().__init__()
        self._project, self._name = project, name
        self._prefix = f"{prefix}/" if prefix else ""
        self._log_model = log_model
        self._init = init
        self._run: Run | None = None
        self._best = ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The run, opened at first use. On other ranks Lightning puts something in its place that does nothing."""
        if self._run is None:
            self._run = trackio.init(project=self._project, name=self._name, **self._init)
        return self._run

    @property
    def name(self) -> str | None:
        """The project: the folder that Lightning puts checkpoints in."""
        return self._run.project if self._run is not None else self._project or "default"

    @property
    def version(self) -> str | None:
        """The run's id, once it is open."""
        return None if self._run is None else self._run.id

    @rank_zero_only
    @never_raises(None, ValueError)
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Records metrics at Lightning's global step."""
        self.experiment.log({self._prefix + key_text(name): value for name, value in metrics.items()}, step=step)

    @rank_zero_only
    @never_raises(None, ValueError)
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Puts them into the run's configuration."""
        self.experiment.config.update(params)

    @rank_zero_only
    def log_image(
        self, key: str, images: Sequence[Any], step: int | None = None, caption: Sequence[str] | None = None
    ) -> None:
        """Records pictures: paths, arrays or PIL images, each with its caption."""
        captions: Sequence[str | None] = caption or [None] * len(images)
        made = [trackio.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.log_metrics({key: made}, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Remembers the best one, which `log_model=True` logs at the end."""
        self._best = checkpoint_callback.best_model_path or self._best

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """The end of fit() or test(): the run is finished, or failed; what is logged later re-opens it."""
        if self._run is None:
            return
        if self._log_model and self._best and status != "failed":
            self._log_best(self._run)
        self._run.finish(exit_code=1 if status == "failed" else 0)

    @never_raises(None)
    def _log_best(self, run: Run) -> None:
        """A checkpoint that is gone meanwhile is no reason to end a training with an exception."""
        run.log_artifact(self._best, name=f"model-{run.id}", type="model")
