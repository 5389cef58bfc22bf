"""Real launchers: what each starts is as many runs as docs/semantics.md 1 says, with all its ranks.

`accelerate launch --multi_gpu` needs no GPU as long as the script uses none, so the real one runs here.
Where no launcher can be installed (SLURM, Ray, several nodes), `test_identity` plays its environment.

Tests that take `host` start the daemon when the launcher is done: what short processes left is then stored at
once, and not with the next of the daemon's scans. Those that take `daemon` have it there all the time.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PATIENCE, Host, shown

from trackiod.answers import RunView

LOG_ONE = """
import os, trackio
rank = int(os.environ.get("RANK", "0"))
trackio.init(project="p")
trackio.log({"loss": 1.0 + rank})
trackio.finish()
"""

RAISE_IN_THE_FIRST_ATTEMPT = """
import os, pathlib, signal, time, trackio
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
trackio.init(project="p")
trackio.log({"loss": 10.0 * attempt + rank})
logged = pathlib.Path("rank-0-logged")
if attempt == 0 and rank == 0:
    logged.touch()
    signal.pause()
if attempt == 0:
    while not logged.exists():
        time.sleep(0.01)
    raise RuntimeError("the first attempt fails")
trackio.finish()
"""

NAMED_BY_RANK = """
import os, pathlib, time, trackio
rank, second = int(os.environ["RANK"]), pathlib.Path("rank-1-has-ended")
while rank == 0 and not second.exists():
    time.sleep(0.01)
trackio.init(project="p", name=f"r{rank}")
trackio.log({"loss": 1.0 + rank})
trackio.finish()
second.touch()
"""

START_A_CHILD = """
import os, subprocess, sys, trackio
rank = int(os.environ["RANK"])
trackio.init(project="p", name="parent")
trackio.log({"loss": 1.0 + rank}, step=0)
if rank == 0:
    code = "import trackio; trackio.init(project='p', name='child'); trackio.log({'loss': 99.0}, step=0)"
    subprocess.run([sys.executable, "-c", code], check=True)
trackio.finish()
"""

SPAWN = """
import os, trackio

def train(rank: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    trackio.init(project="p")
    trackio.log({"loss": 1.0 + rank})
    trackio.finish()

if __name__ == "__main__":
    from torch.multiprocessing import spawn
    spawn(train, nprocs=2)
"""

LIGHTNING = """
import torch, trackio
from lightning.pytorch import LightningModule, Trainer

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def on_fit_start(self):
        trackio.init(project="p")

    def training_step(self, batch, index):
        trackio.log({"loss": 1.0 + self.global_rank})
        return self.layer(batch).sum()

    def on_fit_end(self):
        trackio.finish()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=2)

off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=1, **off).fit(Model())
"""

LAUNCH_AFTER_INIT = """
import subprocess, sys, trackio
trackio.init(project="driver")
subprocess.run(sys.argv[1:], check=True)
"""


class Shape(NamedTuple):
    """What is compared of a run."""

    ranks: list[int]
    world_size: int
    attempts: int
    state: str


ONE_JOB = Shape([0, 1], 2, 1, "finished")
ALONE = Shape([0], 1, 1, "finished")


def shape(run: RunView) -> Shape:
    assert not run.twins, [(s.rank, s.meta) for s in run.twins]
    return Shape([s.rank for s in run.ranks], run.world_size, run.attempts, run.state.state)


def ended_runs(host: Host, streams: int, project: str = "p") -> list[RunView]:
    """The project's runs, which are of this many processes, once all of these have ended."""
    runs = host.ended_runs(project)
    assert sum(len(run.streams) for run in runs) == streams
    return runs


def losses(run: RunView) -> dict[int, list[Any]]:
    """What each rank logged."""
    return {s.rank: [p.value for p in shown(run, "loss", rank=s.rank)] for s in run.ranks}


def script(host: Host, code: str) -> str:
    path = host.data.parent / "train.py"
    path.write_text(code)
    return str(path)


def launch(host: Host, *command: str, **env: Any) -> None:
    """Runs a launcher of this environment to its end, which must be a good one."""
    done = host.command(*command, OMP_NUM_THREADS="1", **env)
    assert done.returncode == 0, done.stderr
    assert "internal error" not in done.stderr, done.stderr


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def static(port: str) -> tuple[str, ...]:
    """Flags by which torchrun tells its ranks nothing but TORCHELASTIC_RUN_ID=none and the given port."""
    where = ("--master-addr", "127.0.0.1", "--master-port", port)
    return ("torchrun", *where, "--nnodes", "1", "--node-rank", "0", "--nproc-per-node", "2")


# -- torchrun ------------------------------------------------------------------------------------------------


@pytest.mark.trainers
def test_a_torchrun_is_one_run_and_two_are_two(daemon: Host) -> None:
    train = script(daemon, LOG_ONE)
    launch(daemon, "torchrun", "--nproc-per-node", "2", train)
    launch(daemon, "torchrun", "--nproc-per-node", "2", train)
    runs = ended_runs(daemon, streams=4)
    assert [shape(run) for run in runs] == [ONE_JOB, ONE_JOB]
    assert [losses(run) for run in runs] == [{0: [1.0], 1: [2.0]}] * 2


@pytest.mark.trainers
def test_two_static_torchruns_on_one_port_are_two_runs(host: Host) -> None:
    train, port = script(host, LOG_ONE), free_port()
    launch(host, *static(port), train)
    launch(host, *static(port), train)
    host.start()
    assert [shape(run) for run in ended_runs(host, streams=4)] == [ONE_JOB, ONE_JOB]


@pytest.mark.trainers
def test_an_elastic_restart_is_an_attempt_of_the_same_run(daemon: Host) -> None:
    launch(
        daemon, "torchrun", "--nproc-per-node", "2", "--max-restarts", "1", script(daemon, RAISE_IN_THE_FIRST_ATTEMPT)
    )
    (run,) = ended_runs(daemon, streams=4)
    assert shape(run) == Shape([0, 1], 2, 2, "finished")
    assert [p.value for p in shown(run, "loss", rank=1, attempt=0)] == [1.0]
    assert losses(run) == {0: [10.0], 1: [11.0]}


@pytest.mark.trainers
def test_a_shell_between_torchrun_and_its_ranks_changes_nothing(host: Host) -> None:
    line = f"{sys.executable} {script(host, LOG_ONE)}; exit $?"
    launch(host, "torchrun", "--nproc-per-node", "2", "--no-python", "sh", "-c", line)
    host.start()
    assert [shape(run) for run in ended_runs(host, streams=2)] == [ONE_JOB]


@pytest.mark.trainers
def test_agents_that_meet_under_one_rendezvous_id_are_one_run(daemon: Host) -> None:
    torchrun, train = str(Path(sys.executable).with_name("torchrun")), script(daemon, LOG_ONE)
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "job-7")
    command = (torchrun, *meeting, "--local-addr", "127.0.0.1", "--nnodes", "2", "--nproc-per-node", "1", train)
    first = daemon.python("import os, sys; os.execv(sys.argv[1], sys.argv[1:])", *command, env={"OMP_NUM_THREADS": "1"})
    launch(daemon, *("torchrun", *command[1:]))
    assert first.wait(timeout=60 * PATIENCE) == 0, first.stderr.read()
    assert [shape(run) for run in ended_runs(daemon, streams=2)] == [ONE_JOB]


@pytest.mark.trainers
def test_names_that_differ_by_rank_are_one_run_named_as_rank_0_says(daemon: Host) -> None:
    launch(daemon, "torchrun", "--nproc-per-node", "2", script(daemon, NAMED_BY_RANK))
    (run,) = ended_runs(daemon, streams=2)
    assert (run.name, shape(run)) == ("r0", ONE_JOB)


@pytest.mark.trainers
def test_trackio_run_per_rank_makes_every_rank_a_run(host: Host) -> None:
    launch(host, "torchrun", "--nproc-per-node", "2", script(host, LOG_ONE), TRACKIO_RUN_PER_RANK="1")
    host.start()
    runs = ended_runs(host, streams=2)
    assert sorted(value for run in runs for values in losses(run).values() for value in values) == [1.0, 2.0]
    assert len(runs) == 2


@pytest.mark.trainers
def test_a_child_script_that_inherits_rank_variables_is_a_run_of_its_own(daemon: Host) -> None:
    launch(daemon, "torchrun", "--nproc-per-node", "2", script(daemon, START_A_CHILD))
    runs = {run.name: run for run in ended_runs(daemon, streams=3)}
    assert {name: shape(run) for name, run in runs.items()} == {"parent": ONE_JOB, "child": ALONE}
    assert losses(runs["parent"]) == {0: [1.0], 1: [2.0]} and losses(runs["child"]) == {0: [99.0]}


@pytest.mark.trainers
def test_a_torchrun_started_by_a_process_with_a_run_of_its_own_is_one_run(daemon: Host) -> None:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    driver = daemon.run(LAUNCH_AFTER_INIT, torchrun, "--nproc-per-node", "2", script(daemon, LOG_ONE))
    assert driver.returncode == 0, driver.stderr
    assert [shape(run) for run in ended_runs(daemon, streams=1, project="driver")] == [ALONE]
    assert [shape(run) for run in ended_runs(daemon, streams=2)] == [ONE_JOB]


# -- those that build on torch -------------------------------------------------------------------------------


@pytest.mark.trainers
def test_two_accelerate_launches_are_two_runs(host: Host, tmp_path: Path) -> None:
    train, port = script(host, LOG_ONE), free_port()
    flags = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port)
    for _ in range(2):
        launch(host, "accelerate", "launch", *flags, train, HF_HOME=str(tmp_path / "hf"))
    host.start()
    assert [shape(run) for run in ended_runs(host, streams=4)] == [ONE_JOB, ONE_JOB]


@pytest.mark.trainers
def test_what_lightnings_script_launcher_starts_is_one_run(daemon: Host) -> None:
    launch(daemon, "python", script(daemon, LIGHTNING), CUDA_VISIBLE_DEVICES="")
    (run,) = ended_runs(daemon, streams=2)
    assert shape(run) == ONE_JOB
    assert losses(run) == {0: [1.0], 1: [2.0]}


@pytest.mark.trainers
def test_processes_that_torch_spawns_and_that_rank_themselves_are_one_run(host: Host) -> None:
    launch(host, "python", script(host, SPAWN))
    host.start()
    (run,) = ended_runs(host, streams=2)
    assert shape(run) == ONE_JOB
    assert losses(run) == {0: [1.0], 1: [2.0]}


# -- no launcher, or one without torch -----------------------------------------------------------------------


def test_scripts_started_from_one_shell_are_runs_of_their_own(host: Host) -> None:
    train = script(host, LOG_ONE)
    line = f"{sys.executable} {train}; {sys.executable} {train} & {sys.executable} {train} & wait"
    done = subprocess.run(["sh", "-c", line], env=host.environ(), capture_output=True, timeout=60 * PATIENCE)
    assert done.returncode == 0, done.stderr
    host.start()
    assert [shape(run) for run in ended_runs(host, streams=3)] == [ALONE, ALONE, ALONE]


def test_unrelated_processes_with_one_trackio_run_id_are_one_run_of_that_id(host: Host) -> None:
    for _ in range(2):
        assert host.run(LOG_ONE, env={"TRACKIO_RUN_ID": "x"}).returncode == 0
    host.start()
    (run,) = ended_runs(host, streams=2)
    assert (run.id, shape(run)) == ("x", Shape([0], 1, 2, "finished"))


def test_an_mpirun_is_one_run_and_two_are_two(host: Host) -> None:
    mpirun = shutil.which("mpirun") or shutil.which("mpirun", path=str(Path(sys.executable).parent))
    if mpirun is None:
        pytest.skip("no mpirun on PATH or in this environment")
    as_any_user = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    on_few_cores = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    for _ in range(2):
        done = subprocess.run(
            [mpirun, "-n", "2", sys.executable, script(host, LOG_ONE)],
            env={**host.environ(), **as_any_user, **on_few_cores, "TMPDIR": os.environ.get("TMPDIR", "/tmp")},
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
        )
        assert done.returncode == 0, done.stderr
    host.start()
    assert [shape(run) for run in ended_runs(host, streams=4)] == [ONE_JOB, ONE_JOB]
