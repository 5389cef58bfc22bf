"""Which run this process is in: decided here, without asking anyone. Pure over `Facts`.

The rule of the whole table: a key never guesses. Joining two jobs by mistake mixes their points; splitting
one only makes two runs of it. `docs/decisions/0003-run-keys.md` tells where evidence moved a row.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from trackio import names, places

PARENT_VARIABLE = "TRACKIO_PARENT"
"""`<pid>:<rank>` of a process that called init(): its children know they are no rank of the launcher's."""


class Rank(NamedTuple):
    """A process's place in its job. `launcher` is torch, slurm, mpi or none."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    launcher: str = "none"


class Facts(NamedTuple):
    """What the operating system and the environment say about this process."""

    environ: Mapping[str, str]
    born_environ: Mapping[str, str]
    """/proc/self/environ: the environment the process was started with"""
    pid: int = 0
    started: str = ""
    parent_pid: int = 0
    parent_started: str = ""
    boot_id: str = ""
    forked_by_multiprocessing: bool = False
    interactive: bool = False


class Job(NamedTuple):
    """What all ranks of one launch agree on. Without a `key` the process is a run of its own."""

    rank: Rank
    key: tuple[str, ...] = ()
    attempt: str = ""
    """different for each start of the same job; equal in its ranks"""
    name_blind: bool = False
    """ranks belong together whatever their names (torch-style launchers), not only where these are equal (SLURM and MPI
    without torch's variables)"""
    needs_store: bool = False
    """several nodes and nothing they share in the environment: only a store can tell them the same id"""


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = environ.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
    return None


def rank_of(environ: Mapping[str, str]) -> Rank:
    """The process's place by the first launcher whose variables name a world larger than one."""
    world, rank = _number(environ, "WORLD_SIZE"), _torch_rank(environ)
    if world is not None and world > 1 and rank is not None:
        return Rank(rank, _number(environ, "LOCAL_RANK") or 0, world, "torch")
    slurm, mpi = _slurm_rank(environ), _mpi_rank(environ)
    if slurm is not None and mpi is not None:
        # mpirun starts its helpers through srun: SLURM's variables are the helper's then, and so inherited
        by_mpirun = "OMPI_COMM_WORLD_SIZE" in environ or mpi.world_size != slurm.world_size
        return mpi if by_mpirun else slurm
    return slurm or mpi or Rank()


def _slurm_rank(environ: Mapping[str, str]) -> Rank | None:
    tasks, task = _number(environ, "SLURM_STEP_NUM_TASKS"), _number(environ, "SLURM_PROCID")
    if not environ.get("SLURM_STEP_ID") or tasks is None or tasks <= 1 or task is None:
        return None
    return Rank(task, _number(environ, "SLURM_LOCALID") or 0, tasks, "slurm")


def _mpi_rank(environ: Mapping[str, str]) -> Rank | None:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    peer = _number(environ, "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
    if size is not None and size > 1 and peer is not None:
        local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
        return Rank(peer, local or 0, size, "mpi")
    return None


def _torch_rank(environ: Mapping[str, str]) -> int | None:
    """RANK; else, as Lightning's script launcher leaves it, from the node's and the local rank."""
    rank, local = _number(environ, "RANK"), _number(environ, "LOCAL_RANK")
    if rank is not None or local is None:
        return rank
    node = _number(environ, "NODE_RANK", "GROUP_RANK") or 0
    local_world = _number(environ, "LOCAL_WORLD_SIZE") if node else 0
    return None if local_world is None else node * local_world + local


def job_of(facts: Facts) -> Job:
    """The job this process is part of, by the table in docs/semantics.md from the top down (TRACKIO_RUN_ID aside)."""
    environ = facts.environ
    rank = rank_of(environ)
    if rank.launcher == "none" or is_child_of_a_rank(facts, rank):
        return Job(Rank(), attempt=_restarts(environ))
    if rank.launcher == "torch":
        return _torch_job(facts, rank)
    if rank.launcher == "slurm":
        return Job(rank, ("slurm", *_slurm_step(environ)), _restarts(environ))
    return _mpi_job(facts, rank)


def is_child_of_a_rank(facts: Facts, rank: Rank) -> bool:
    """Whether a parent that called init() has this very rank: then ours were inherited, not given."""
    pid, _, parent_rank = facts.environ.get(PARENT_VARIABLE, "").partition(":")
    return bool(pid) and pid != str(facts.pid) and parent_rank == str(rank.rank)


def _torch_job(facts: Facts, rank: Rank) -> Job:
    environ = facts.environ
    elastic = environ.get("TORCHELASTIC_RUN_ID", "")
    nonce = _elastic_nonce(environ)
    restarts = _restarts(environ)
    one_node = _on_one_node(environ, rank)
    if elastic and elastic != "none":
        launch = (nonce,) if one_node and nonce else _slurm_step(environ)
        return Job(rank, ("elastic", elastic, *launch), restarts, name_blind=True)
    if environ.get("RAY_JOB_ID"):
        return Job(rank, ("ray", environ["RAY_JOB_ID"]), restarts)
    if one_node and nonce:
        return Job(rank, ("launch", nonce), restarts, name_blind=True)
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    if environ.get("SLURM_JOB_ID") and (not one_node or (tasks or 1) > 1):
        return Job(rank, ("slurm", *_slurm_step(environ)), restarts, name_blind=True)
    if one_node:
        return Job(rank, ("launcher", *_launcher(facts)), restarts, name_blind=True)
    return Job(rank, ("node", nonce, *_launcher(facts)), restarts, name_blind=True, needs_store=True)


def _on_one_node(environ: Mapping[str, str], rank: Rank) -> bool:
    """Whether all ranks run on this host. Without a word on it, they do."""
    local_world = _number(environ, "LOCAL_WORLD_SIZE")
    nodes = _number(environ, "GROUP_WORLD_SIZE", "NNODES", "NUM_NODES", "SLURM_STEP_NUM_NODES")
    if local_world is not None:
        return local_world >= rank.world_size
    return nodes is None or nodes <= 1


def nodes_of(environ: Mapping[str, str], rank: Rank) -> tuple[int, int]:
    """How many hosts the job has, and which of them this is; 1 and 0 without a word on it."""
    local_world = _number(environ, "LOCAL_WORLD_SIZE")
    nodes = _number(environ, "GROUP_WORLD_SIZE", "NNODES", "NUM_NODES", "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if nodes is None and local_world:
        nodes = -(-rank.world_size // local_world)
    node = _number(environ, "GROUP_RANK", "NODE_RANK", "SLURM_NODEID")
    if node is None and local_world:
        node = rank.rank // local_world
    nodes = max(1, nodes or 1)
    return nodes, min(max(0, node or 0), nodes - 1)


def _elastic_nonce(environ: Mapping[str, str]) -> str:
    """The random folder that one torchrun agent made for its error files: new in each launch, equal in all
    ranks of the node and after elastic restarts, also when the run id is the constant `none`."""
    path = environ.get("TORCHELASTIC_ERROR_FILE", "")
    folder, found, _ = path.rpartition("/attempt_")
    return folder if found else ""


def restarts_of(environ: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """How often launchers started this again, the outermost first: (launcher, the one launch that counts, count). The
    launch is empty where the environment does not name it."""
    slurm, elastic = _number(environ, "SLURM_RESTART_COUNT"), _number(environ, "TORCHELASTIC_RESTART_COUNT")
    job, nonce = environ.get("SLURM_JOB_ID", ""), _elastic_nonce(environ)
    found = []
    if slurm is not None or job:  # the first start of a job has no count
        scope = names.derived_id("slurm", environ.get("SLURM_CLUSTER_NAME", ""), job) if job else ""
        found.append(("slurm", scope, slurm or 0))
    if elastic is not None:
        found.append(("elastic", names.derived_id("elastic", nonce) if nonce else "", elastic))
    return found


def _restarts(environ: Mapping[str, str]) -> str:
    elastic = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    slurm = environ.get("SLURM_RESTART_COUNT", "0")
    return f"{slurm}.{elastic}"


def _slurm_step(environ: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(environ.get(n, "") for n in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_STEP_ID"))


def _mpi_job(facts: Facts, rank: Rank) -> Job:
    environ = facts.environ
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_LOCAL_SIZE")
    one_node = local is None or local >= rank.world_size
    for name in ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "MV2_COMM_WORLD_JOBID"):
        if environ.get(name):
            nonce = (facts.boot_id, environ.get("PMIX_SERVER_URI2", "")) if one_node else _slurm_step(environ)[:2]
            return Job(rank, ("mpi", environ[name], *nonce), _restarts(environ))
    key = ("mpi", facts.boot_id, str(facts.parent_pid), facts.parent_started)
    return Job(rank, key, _restarts(environ), needs_store=not one_node)


def _launcher(facts: Facts) -> tuple[str, ...]:
    """The process that started the ranks: our parent, or ourselves if we gave ourselves our rank.

    Lightning's script launcher is rank 0 itself, which sets its own variables after it was born. A child
    of `multiprocessing` (torch's spawn, notebook_launcher) also sets them itself, but is nobody's launcher.
    """
    set_by_us = "LOCAL_RANK" not in facts.born_environ and "RANK" not in facts.born_environ
    if (set_by_us and not facts.forked_by_multiprocessing) or not facts.parent_pid:
        return (facts.boot_id, str(facts.pid), facts.started)
    return (facts.boot_id, str(facts.parent_pid), facts.parent_started)


def started_of(pid: int) -> str:
    """The start time of a process in clock ticks since boot, or empty if it cannot be seen (hidepid)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def facts_of_this_process() -> Facts:
    """Reads them; a fact that cannot be read is empty."""
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (item.partition(b"=") for item in file.read().split(b"\0") if item)
            born = {os.fsdecode(k): os.fsdecode(v) for k, _, v in pairs}
    except OSError:
        born = dict(os.environ)
    pid, ppid = os.getpid(), os.getppid()
    return Facts(
        environ=dict(os.environ),
        born_environ=born,
        pid=pid,
        started=started_of(pid),
        parent_pid=ppid,
        parent_started=started_of(ppid),
        boot_id=places.boot_id(),
        forked_by_multiprocessing=_is_multiprocessing_child(),
        interactive=hasattr(sys, "ps1") or "ipykernel" in sys.modules,
    )


def _is_multiprocessing_child() -> bool:
    """Whether this process was made by `multiprocessing`, which then is imported in it."""
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None
