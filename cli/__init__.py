"""The commands (installed as `trackio_cli`). They run with the `trackio` beside them, even where a training
script would import another one: `trackiod doctor` has to be able to say so."""

from __future__ import annotations

import importlib.util
import os
import sys

_FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def _use_our_own(name: str) -> None:
    """Puts the package beside us into `sys.modules`, unless it is the one an import would find anyway."""
    ours = os.path.join(_FOLDER, name)
    if name in sys.modules or not os.path.isfile(os.path.join(ours, "__init__.py")):
        return
    found = importlib.util.find_spec(name)
    if found is not None and found.origin and os.path.realpath(os.path.dirname(found.origin)) == ours:
        return
    spec = importlib.util.spec_from_file_location(
        name, os.path.join(ours, "__init__.py"), submodule_search_locations=[ours]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _check_own() -> None:
    """Another package installed over ours leaves its files in our folder."""
    if not os.path.isfile(os.path.join(_FOLDER, "trackio", "wire.py")):
        sys.exit(
            f"The package in {os.path.join(_FOLDER, 'trackio')} is not the one that came with this command: "
            "another one was installed over it. Uninstall both, then install this one again."
        )


_check_own()
_use_our_own("trackio")
_use_our_own("trackiod")
