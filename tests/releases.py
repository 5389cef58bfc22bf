"""Other releases of us: virtual environments with this source, under another number and changed as a release may be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import PATIENCE, Host

ROOT = Path(__file__).parent.parent
Change = Callable[[str], str]
"""of a file's text"""

ASK = """
import json, sys
from contextlib import closing
from trackiod.store import schema
with closing(schema.open_for_reading(sys.argv[1])) as store:
    print(json.dumps(store.execute(sys.argv[2]).fetchall()))
"""


def make_release(folder: Path, version: str, changes: Mapping[str, Change] | None = None) -> Path:
    """Makes a virtual environment with a release in it; the packages that it needs are this environment's."""
    made = folder / f"venv-{version}"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True)
    site = next(made.glob("lib/python*/site-packages"))
    for package, name in (("trackio", "trackio"), ("trackiod", "trackiod"), ("cli", "trackio_cli")):
        shutil.copytree(ROOT / package, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    numbered = {"trackio/version.py": replacing(r'^__version__ = ".*"$', f'__version__ = "{version}"')}
    for name, change in (numbered | dict(changes or {})).items():
        path = site / name
        path.write_text(change(path.read_text()))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def replacing(*pairs: str) -> Change:
    """Replaces what each first of two matches, which is there once, by the second."""

    def change(text: str) -> str:
        for pattern, new in zip(pairs[::2], pairs[1::2], strict=True):
            text, count = re.subn(pattern, lambda match, new=new: match.expand(new), text, flags=re.MULTILINE)
            assert count == 1, pattern
        return text

    return change


def python(host: Host, folder: Path, code: str, *arguments: str, **env: str) -> Any:
    """A process of that environment."""
    process = subprocess.Popen(
        [str(folder / "bin" / "python"), "-P", "-c", code, *arguments],
        env=host.environ(**{"TRACKIO_AUTOSTART": "1", **env}), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    host.processes.append(process)
    return process


def run(host: Host, folder: Path, code: str, *arguments: str, **env: str) -> str:
    """A process of that environment that ends well; returns what it printed."""
    process = python(host, folder, code, *arguments, **env)
    out, err = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 0 and "Traceback" not in err, out + err
    return str(out)


def trackiod(host: Host, folder: Path, *arguments: str) -> None:
    run(host, folder, "from trackio_cli.daemon import trackiod; trackiod()", *arguments)


def trackio(host: Host, folder: Path, *arguments: str) -> Any:
    """What `trackio ... --json` of that environment says."""
    return json.loads(run(host, folder, "from trackio_cli.main import trackio; trackio()", *arguments, "--json"))


def ask(host: Host, folder: Path, path: str, sql: str) -> Any:
    """Rows of a store, as that release reads them."""
    return json.loads(run(host, folder, ASK, path, sql))
