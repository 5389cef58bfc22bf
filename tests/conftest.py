"""What tests share: a data folder of their own, real processes, and waiting with a deadline.

All deadlines are scaled by TRACKIO_TEST_PATIENCE, so a slow machine needs one number.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from trackio_cli.main import trackio as trackio_command

from trackio import places
from trackio.places import Places
from trackiod import catalog, control, curves, orphans
from trackiod.answers import RunView
from trackiod.store.reader import ProjectReader, project_names
from trackiod.views.reduction import Shown

# the Hub's libraries, which tests use in this process too, read these when they are loaded
os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ |= {"HF_HOME": tempfile.mkdtemp(prefix="trackio-hf-"), "HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms"}
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

PATIENCE = float(os.environ.get("TRACKIO_TEST_PATIENCE", "1"))
_CLEAN = ("TRACKIO_", "HF_", "SLURM_", "OMPI_", "PMI", "TORCHELASTIC_", "RAY_")
_LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "EXPERIMENT_NAME"}


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, what: str = "the condition") -> Any:
    """Waits until `condition()` is truthy and returns that; fails the test at the deadline."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come within {seconds * PATIENCE:g} s")
        time.sleep(0.02)
    return value


@contextmanager
def database(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A SQLite database, in one transaction that is committed where nothing fails."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def clean_environ() -> dict[str, str]:
    """This process's environment without launcher variables and settings of ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_CLEAN) and k not in _LAUNCHER}


@dataclass
class Host:
    """A data folder and spool of one test's own, and the real processes that use them."""

    data: Path
    spool: Path
    extra: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    readers: list[ProjectReader] = field(default_factory=list)

    @property
    def places(self) -> Places:
        return places.find(str(self.data), str(self.spool), self.extra.get("TRACKIO_SHARED_DIR", ""))

    def environ(self, **more: str) -> dict[str, str]:
        ours = {
            "TRACKIO_DIR": str(self.data),
            "TRACKIO_SPOOL_DIR": str(self.spool),
            "TRACKIO_AUTOSTART": "0",
            "TRACKIO_IDLE_SECONDS": "30",
            "TRACKIO_SAMPLING": "0",
        }
        return {**clean_environ(), **ours, **self.extra, **more}

    # -- processes ---------------------------------------------------------------------------------

    def python(self, code: str, *arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        """Starts a real Python process that runs `code`; kills it when the test ends."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=self.environ(**(env or {})), **options)
        self.processes.append(process)
        return process

    def run(self, code: str, *arguments: str, env: Mapping[str, str] | None = None, seconds: float = 60) -> Any:
        """Runs `code` to its end; returns the completed process (stdout, stderr, returncode)."""
        process = self.python(code, *arguments, env=env)
        out, err = process.communicate(timeout=seconds * PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def command(self, *arguments: str, seconds: float = 60, **env: str) -> Any:
        """Runs a program of this environment (`trackio`, `trackiod`, `torchrun`) to its end."""
        program = str(Path(sys.executable).with_name(arguments[0]))
        return subprocess.run(
            [program, *arguments[1:]],
            env=self.environ(**env),
            capture_output=True,
            text=True,
            timeout=seconds * PATIENCE,
            cwd=self.data.parent,
        )

    def cli(self, *arguments: str) -> Any:
        """Runs `trackio ... --json`; returns the parsed JSON, strictly: no NaN tokens."""
        done = self.command("trackio", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))

    def cli_here(self, *arguments: str) -> Any:
        """The same without a process of its own: for those that ask for much."""
        with _environment(self.environ()):
            done = CliRunner().invoke(trackio_command, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))

    # -- the daemon ----------------------------------------------------------------------------------

    def start(self) -> int:
        """Starts the daemon; returns its pid. What is in `extra` for the loader (`Failing.environ`) reaches it too."""
        with _environment(self.environ()):
            if "LD_PRELOAD" in self.extra:
                self._start_preloaded()
            return control.start(self.places, 60 * PATIENCE).pid

    def _start_preloaded(self) -> None:
        """Starts the daemon with this environment as it is: a job's LD_PRELOAD is otherwise kept from the daemon."""
        places.make_private(self.places.live)
        with open(self.places.log, "a") as log:
            command = [sys.executable, "-P", "-m", "trackiod", "run", "--detach"]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60 * PATIENCE)

    def stop(self) -> bool:
        """Stops the daemon. What was read before cannot be read on."""
        while self.readers:
            self.readers.pop().close()
        return control.stop(self.places, "test")

    def status(self) -> Any:
        return control.status(self.places)

    # -- reading -------------------------------------------------------------------------------------

    def runs(self, project: str) -> list[RunView]:
        """The project's runs now. They can be read until the daemon is stopped."""
        names, _ = project_names(self.places.projects)
        if project not in names:
            return []
        self.readers.append(ProjectReader(_path(self.places, project)))
        return catalog.runs(self.readers[-1])

    def the_run(self, project: str) -> RunView:
        views = self.runs(project)
        assert len(views) == 1, [v.name for v in views]
        return views[0]

    def ended_runs(self, project: str, seconds: float = 20) -> list[RunView]:
        """The project's runs, once all that was logged to it on this host is stored and none is running."""

        def found() -> list[RunView]:
            if any(stream.meta["project"] == project for stream in orphans.find(self.places)):
                return []
            runs = self.runs(project)
            return runs if all(run.state.state != "running" for run in runs) else []

        runs: list[RunView] = wait_for(found, seconds, f"the end of the runs in {project}")
        return runs

    def ended_run(self, project: str, seconds: float = 20) -> RunView:
        """The project's one run, once all that was logged to it is stored and it is no longer running."""
        self.ended_runs(project, seconds)
        return self.the_run(project)

    def values(self, project: str, metric: str, **options: Any) -> list[Any]:
        return [p.value for p in shown(self.the_run(project), metric, **options)]

    def close(self) -> None:
        self.stop()  # first: it may hold the other end of a pipe that is read below
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            with suppress(subprocess.TimeoutExpired):  # what it started may hold its pipes
                process.communicate(timeout=20)
        self.stop()
        shutil.rmtree(self.spool, ignore_errors=True)


def shown(run: RunView, metric: str, **options: Any) -> list[Shown]:
    """A metric's points as readers see them; options are those of `curves.Choice`."""
    return list(curves.series(run, metric, curves.Choice(**options)).curve.points())


def _path(where: Places, project: str) -> str:
    from trackiod.store import schema

    return schema.readable_path(where.projects, project)


class _environment:
    """Puts an environment in place for a block."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ

    def __enter__(self) -> None:
        self._before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self._environ)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self._before)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder that costs no disk, where the system has such."""
    folder = tempfile.mkdtemp(prefix="trackio-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def host(tmp_path: Path, in_memory: Path) -> Iterator[Host]:
    """A host without a daemon."""
    host = Host(tmp_path / "data", in_memory)
    host.data.mkdir()
    yield host
    host.close()


@pytest.fixture
def daemon(host: Host) -> Host:
    """A host whose daemon runs."""
    host.start()
    return host


OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parent),
}


@pytest.fixture
def offline(host: Host, tmp_path: Path) -> Host:
    """A host whose daemon runs and whose trainings ask no hub for anything."""
    host.extra.update(OFFLINE, HF_HOME=str(tmp_path / "hf"))
    host.start()
    return host


@pytest.fixture
def server() -> Iterator[Any]:
    """A Hub on this machine."""
    import hub

    with hub.serving() as served:
        yield served
