"""Every public name that is not in `trackio/__init__.py` itself: where it is loaded from, at its first use.

Media and tables need numpy, what reads runs back needs the daemon's code, and neither may cost `import trackio`
anything; so a name is a line here and its room is imported when somebody asks for it (docs/decisions/0009).
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

ELSEWHERE = {
    "Api": "trackiod.api",
    "Artifact": "trackio.artifacts",
    "Audio": "trackio.clips",
    "Histogram": "trackio.rich",
    "Html": "trackio.media",
    "Image": "trackio.media",
    "Markdown": "trackio.rich",
    "Object3D": "trackio.clips",
    "Table": "trackio.rich",
    "Trace": "trackio.rich",
    "Video": "trackio.clips",
    "watch": "trackio.watching",
    "delete_project": "trackiod.api",
    "import_csv": "trackio.imports",
    "import_tf_events": "trackio.imports",
    "Settings": "trackio.likeness",
    "freeze": "trackio.syncing",
    "show": "trackio_cli.show",
    "sync": "trackio.syncing",
    "unwatch": "trackio.watching",
}
"""name: the module that has it"""

ABSENT = {
    "ArtifactTTL": "artifacts are kept until they are deleted",
    "Classes": "labels on images are not drawn",
    "EvalTable": "log a trackio.Table",
    "Graph": "graphs of models are not drawn",
    "JoinedTable": "log one trackio.Table",
    "Molecule": "log a trackio.Object3D or trackio.Html",
    "Plotly": "log the plotly figure itself",
    "TRACKIO_LOGO_DIR": "it has no logo",
    "agent": "sweeps are not built",
    "controller": "sweeps are not built",
    "errors": "nothing of it raises errors of its own",
    "plot": "log a trackio.Table, or a figure of matplotlib or plotly",
    "restore": "use trackio.use_artifact(...).download()",
    "sweep": "sweeps are not built",
    "Registry": "registries of artifacts are not built",
    "Collection": "registries of artifacts are not built",
    "ReferenceHandler": "references are recorded and not fetched",
    "ResolvedReference": "references are recorded and not fetched",
    "register_reference_handler": "references are recorded and not fetched",
}
"""Names of upstream's and wandb's that exist and do nothing but say what to do instead."""


class Absent:
    """A name that is there for those who look it up, and says in one sentence why it does nothing when used."""

    def __init__(self, name: str, instead: str) -> None:
        self.__name__ = name
        self._sentence = f"trackio has no {name}: {instead}."

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(self._sentence)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(self._sentence)

    def __repr__(self) -> str:
        return f"<{self._sentence}>"


def daemons(room: str) -> Any:
    """A room of the daemon's package: what reads the store for those who ask from a script."""
    return importlib.import_module(f"trackiod.{room}")


def find(name: str) -> Any:
    """The public name. Raises AttributeError."""
    if name == "util":  # wandb's word for it
        return importlib.import_module("trackio.utils")
    if (module := ELSEWHERE.get(name)) is not None:
        return getattr(importlib.import_module(module), name)
    if (instead := ABSENT.get(name)) is not None:
        return Absent(name, instead)
    raise AttributeError(f"module 'trackio' has no attribute {name!r}")
