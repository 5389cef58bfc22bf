"""Which run a process is in: the rules over environments, and real processes that are given them.

Played here is what cannot be installed: SLURM, Ray, several nodes. The environments of Open MPI 5.0.11 and
MPICH 5.0.2 were printed by the real ones. In the tests with processes, the daemon starts when all have ended.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from conftest import PATIENCE, Host, wait_for
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trackio import rendezvous
from trackio.identity import PARENT_VARIABLE, Facts, Job, Rank, job_of, rank_of, restarts_of
from trackio.names import derived_id
from trackiod.answers import RunView

Environ = dict[str, str]

LOG_ONE = """
import sys, trackio
run = trackio.init(project="p", name=sys.argv[1] if len(sys.argv) > 1 else None)
trackio.log({"loss": 1.0})
trackio.finish()
print(run.id)
"""


class Shape(NamedTuple):
    """What is compared of a run."""

    ranks: list[int]
    world_size: int
    attempts: int


ALONE = Shape([0], 1, 1)


# -- environments as launchers make them -----------------------------------------------------------------------


def srun(task: int, tasks: int, *, nodes: int = 1, job: str = "4711", step: str = "0", **more: str) -> Environ:
    """A task of an srun step."""
    each = tasks // nodes
    return {
        **batch(job, tasks),
        "SLURM_STEP_ID": step,
        "SLURM_STEPID": step,
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % each),
        "SLURM_NODEID": str(task // each),
        **more,
    }


def batch(job: str = "4711", tasks: int = 8) -> Environ:
    """A batch script: it knows how many tasks the job may have, but is no step itself."""
    return {
        "SLURM_JOB_ID": job,
        "SLURM_JOBID": job,
        "SLURM_CLUSTER_NAME": "hpc",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NPROCS": str(tasks),
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }


def torchrun(rank: int, world: int, *, nodes: int = 1, run_id: str = "none", launch: str = "a") -> Environ:
    """A rank of torchrun; with several nodes each has an agent, and so an error folder, of its own."""
    each = world // nodes
    folder = f"/tmp/torchelastic_{launch}{rank // each}/{run_id}_{launch}{rank // each}"
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % each),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(each),
        "GROUP_RANK": str(rank // each),
        "GROUP_WORLD_SIZE": str(nodes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_ERROR_FILE": f"{folder}/attempt_0/{rank % each}/error.json",
    }


def open_mpi(rank: int, size: int, *, pid: int = 7549, nodes: int = 1) -> Environ:
    """A rank of Open MPI 5. `OMPI_FILE_LOCATION` is a folder of this rank's own."""
    each = size // nodes
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % each),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(each),
        "OMPI_COMM_WORLD_NODE_RANK": str(rank % each),
        "OMPI_FILE_LOCATION": f"/tmp/ompi.{pid + rank // each}/1/{rank}",
        "PMIX_NAMESPACE": f"prterun-vm-{pid}@1",
        "PMIX_RANK": str(rank),
        "PMIX_SERVER_TMPDIR": f"/tmp/ompi.{pid + rank // each}",
    }


def mpich(rank: int, size: int, *, nodes: int = 1) -> Environ:
    """A rank of MPICH's hydra: nothing in it names the job."""
    each = size // nodes
    return {
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(size),
        "PMI_FD": str(9 + 2 * rank),
        "MPI_LOCALRANKID": str(rank % each),
        "MPI_LOCALNRANKS": str(each),
    }


def ray(rank: int, world: int) -> Environ:
    return {"RAY_JOB_ID": "02000000", "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}


def facts(environ: Environ, *, node: int = 0, parent: int = 100, **more: Any) -> Facts:
    """A process born with `environ`, on a node, under a parent."""
    given = {"born_environ": environ, "pid": next(_pids), "started": "900", "parent_pid": parent}
    return Facts(environ, **{**given, "parent_started": f"{parent}", "boot_id": f"boot-{node}", **more})


_pids = itertools.count(1000)


def jobs(environs: Sequence[Environ], each: int | None = None, **more: Any) -> list[Job]:
    """The jobs of processes, `each` to a node."""
    return [job_of(facts(e, node=i // (each or len(environs)), **more)) for i, e in enumerate(environs)]


def the_key(found: Sequence[Job]) -> tuple[str, ...]:
    """The key that all of them agree on."""
    keys = {job.key for job in found}
    assert len(keys) == 1, keys
    return keys.pop()


# -- real processes ------------------------------------------------------------------------------------------


def run_all(host: Host, environs: Sequence[Environ], names: Sequence[str] = (), code: str = LOG_ONE) -> list[str]:
    """Runs a process in each environment, all at once; returns what each said on stderr."""
    started = [host.python(code, *names[i : i + 1], env={"OMP_NUM_THREADS": "1", **e}) for i, e in enumerate(environs)]
    said = []
    for process in started:
        _, err = process.communicate(timeout=60 * PATIENCE)
        assert process.returncode == 0, err
        assert not any(words in err for words in ("internal error", "failed", "Traceback")), err
        said.append(str(err))
    return said


def stored(host: Host, streams: int) -> list[RunView]:
    """The runs of the project `p`, with this many streams in all, once all have ended."""
    host.start()

    def found() -> list[RunView]:
        runs = host.runs("p")
        have = [s for run in runs for s in run.streams]
        return runs if len(have) >= streams and all(s.state is not None for s in have) else []

    runs: list[RunView] = wait_for(found, what=f"the end of {streams} streams")
    assert sum(len(run.streams) for run in runs) == streams
    return runs


def shape(run: RunView) -> Shape:
    assert not run.twins, [(s.rank, s.meta) for s in run.twins]
    return Shape([s.rank for s in run.ranks], run.world_size, run.attempts)


# -- SLURM -----------------------------------------------------------------------------------------------------


def test_the_tasks_of_an_srun_step_are_one_run(host: Host) -> None:
    run_all(host, [srun(task, 4) for task in range(4)])
    assert [shape(run) for run in stored(host, 4)] == [Shape([0, 1, 2, 3], 4, 1)]


def test_srun_tasks_with_names_of_their_own_are_runs_of_their_own(host: Host) -> None:
    names = [f"seed-{task}" for task in range(8)]
    run_all(host, [srun(task, 8) for task in range(8)], names)
    assert sorted(run.name for run in stored(host, 8)) == names


def test_scripts_in_one_slurm_job_with_one_task_are_runs_of_their_own(host: Host) -> None:
    run_all(host, [srun(0, 1), srun(0, 1)])
    assert [shape(run) for run in stored(host, 2)] == [ALONE, ALONE]


def test_a_batch_script_is_a_run_of_its_own_however_many_tasks_it_may_start(host: Host) -> None:
    run_all(host, [batch(tasks=8), batch(tasks=8)])
    assert [shape(run) for run in stored(host, 2)] == [ALONE, ALONE]


def test_a_requeued_slurm_job_is_an_attempt_of_the_same_run(host: Host) -> None:
    run_all(host, [srun(task, 2) for task in range(2)])
    run_all(host, [srun(task, 2, SLURM_RESTART_COUNT="1") for task in range(2)])
    assert [shape(run) for run in stored(host, 4)] == [Shape([0, 1], 2, 2)]


def test_an_srun_step_over_nodes_has_one_key() -> None:
    found = jobs([srun(task, 4, nodes=2) for task in range(4)], each=2)
    assert the_key(found) and [job.rank for job in found] == [Rank(t, t % 2, 4, "slurm") for t in range(4)]


@pytest.mark.parametrize("other", [{"job": "4712"}, {"step": "1"}, {"SLURM_CLUSTER_NAME": "other"}])
def test_another_job_step_or_cluster_is_another_key(other: Any) -> None:
    assert job_of(facts(srun(0, 2))).key != job_of(facts(srun(0, 2, **other))).key


def test_srun_tasks_that_set_torchs_variables_themselves_have_the_steps_key() -> None:
    def task(number: int, step: str) -> Environ:
        own = {"RANK": str(number), "WORLD_SIZE": "4", "LOCAL_RANK": str(number % 2), "MASTER_PORT": "29500"}
        return srun(number, 4, nodes=2, step=step) | own

    first, second = (the_key(jobs([task(n, step) for n in range(4)], each=2)) for step in "01")
    assert first and first != second


# -- torch over nodes -----------------------------------------------------------------------------------------


def torchrun_under_srun(rank: int) -> Environ:
    """A rank of 4 on 2 nodes, where srun started one torchrun on each."""
    return srun(rank // 2, 2, nodes=2) | torchrun(rank, 4, nodes=2)


def test_static_torchruns_of_one_srun_step_are_one_run_over_nodes(host: Host) -> None:
    said = run_all(host, [torchrun_under_srun(rank) for rank in range(4)])
    assert [shape(run) for run in stored(host, 4)] == [Shape([0, 1, 2, 3], 4, 1)]
    assert not any("TRACKIO_RUN_ID" in text for text in said)
    assert the_key(jobs([torchrun_under_srun(rank) for rank in range(4)], each=2))


def test_nodes_that_share_nothing_are_a_run_each_and_one_sentence_names_trackio_run_id(host: Host) -> None:
    said = run_all(host, [torchrun(rank, 4, nodes=2) for rank in range(4)])
    assert sorted(shape(run) for run in stored(host, 4)) == [Shape([0, 1], 4, 1), Shape([2, 3], 4, 1)]
    for node in (said[:2], said[2:]):
        assert any("TRACKIO_RUN_ID" in text for text in node), node
    assert all(text.count("TRACKIO_RUN_ID") <= 1 for text in said), said


def test_nodes_that_share_only_trackio_run_id_are_one_run(host: Host) -> None:
    said = run_all(host, [{"TRACKIO_RUN_ID": "mine", **torchrun(rank, 4, nodes=2)} for rank in range(4)])
    (run,) = stored(host, 4)
    assert (run.id, shape(run)) == ("mine", Shape([0, 1, 2, 3], 4, 1))
    assert not any("TRACKIO_RUN_ID" in text for text in said)


@pytest.mark.trainers
def test_nodes_that_share_torchs_process_group_are_one_run(host: Host) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meet = "\nd.barrier()\nd.destroy_process_group()"  # as in a training, rank 0, which holds the store, leaves last
    code = "import torch.distributed as d\nd.init_process_group('gloo')\n" + LOG_ONE + meet
    said = run_all(host, [{**torchrun(rank, 2, nodes=2), "MASTER_PORT": port} for rank in range(2)], code=code)
    assert [shape(run) for run in stored(host, 2)] == [Shape([0, 1], 2, 1)]
    assert not any("TRACKIO_RUN_ID" in text for text in said)


def test_an_elastic_job_over_nodes_has_the_key_of_its_id() -> None:
    found = jobs([torchrun(rank, 4, nodes=2, run_id="job-7") for rank in range(4)], each=2)
    assert the_key(found) and not any(job.needs_store for job in found)
    assert the_key(found) != job_of(facts(torchrun(0, 4, nodes=2, run_id="job-8"))).key


@pytest.mark.parametrize("run_id", ["none", "456"])
def test_a_constant_elastic_id_does_not_merge_launches_on_one_node(run_id: str) -> None:
    first, second = (
        the_key(jobs([torchrun(rank, 2, run_id=run_id, launch=launch) for rank in range(2)])) for launch in "ab"
    )
    assert first and first != second


def test_ranks_under_different_parents_have_the_key_of_their_torchrun() -> None:
    assert the_key([job_of(facts(torchrun(rank, 2), parent=200 + rank)) for rank in range(2)])


# -- names and ordinals ----------------------------------------------------------------------------------------


def test_a_name_that_only_rank_0_gives_is_the_name_of_the_one_run(host: Host) -> None:
    run_all(host, [torchrun(rank, 2) for rank in range(2)], ["mine"])
    runs = stored(host, 2)
    assert [(run.name, shape(run)) for run in runs] == [("mine", Shape([0, 1], 2, 1))]


@pytest.mark.parametrize("names", [("train", "eval"), ("same", "same")])
def test_each_init_of_all_ranks_is_a_run_of_all_ranks(host: Host, names: tuple[str, str]) -> None:
    code = "".join(f"\nimport trackio; trackio.init(project='p', name={n!r}); trackio.log({{'x': 1}})" for n in names)
    run_all(host, [torchrun(rank, 2) for rank in range(2)], code=code)
    assert [shape(run) for run in stored(host, 4)] == [Shape([0, 1], 2, 1)] * 2


# -- Ray and MPI -----------------------------------------------------------------------------------------------


def test_ray_workers_of_one_name_are_one_run_and_other_names_are_others(host: Host) -> None:
    run_all(host, [ray(0, 2), ray(1, 2), ray(0, 2), ray(1, 2)], ["a", "a", "b", "b"])
    runs = {run.name: shape(run) for run in stored(host, 4)}
    assert runs == {"a": Shape([0, 1], 2, 1), "b": Shape([0, 1], 2, 1)}


def test_the_ranks_of_an_mpirun_are_one_run(host: Host) -> None:
    run_all(host, [open_mpi(rank, 2) for rank in range(2)])
    assert [shape(run) for run in stored(host, 2)] == [Shape([0, 1], 2, 1)]


def test_the_ranks_of_an_mpich_launch_are_one_run(host: Host) -> None:
    run_all(host, [mpich(rank, 2) for rank in range(2)])
    assert [shape(run) for run in stored(host, 2)] == [Shape([0, 1], 2, 1)]


def test_mpi_ranks_with_names_of_their_own_are_runs_of_their_own(host: Host) -> None:
    run_all(host, [open_mpi(rank, 2) for rank in range(2)], ["r0", "r1"])
    assert sorted(run.name for run in stored(host, 2)) == ["r0", "r1"]


def test_another_mpirun_is_another_key() -> None:
    assert job_of(facts(open_mpi(0, 2))).key != job_of(facts(open_mpi(0, 2, pid=7600))).key
    assert job_of(facts(mpich(0, 2), parent=1)).key != job_of(facts(mpich(0, 2), parent=2)).key


@pytest.mark.parametrize("rank_environ", [open_mpi, mpich])
def test_an_mpi_job_over_nodes_is_one_run_or_says_that_it_is_not(rank_environ: Any) -> None:
    found = [job_of(facts(rank_environ(rank, 4, nodes=2), node=rank // 2, parent=100 + rank // 2)) for rank in range(4)]
    assert len({job.key for job in found}) == 1 or all(job.needs_store for job in found)


@pytest.mark.parametrize("rank_environ", [open_mpi, mpich])
def test_mpi_ranks_that_mpirun_starts_through_srun_have_mpis_ranks(rank_environ: Any) -> None:
    """On the other nodes of an allocation mpirun starts one helper each by srun: the ranks inherit its task."""
    found = [rank_of(srun(1, 2, nodes=2) | rank_environ(rank, 8, nodes=2)) for rank in range(4, 8)]
    assert [(r.rank, r.world_size) for r in found] == [(rank, 8) for rank in range(4, 8)]


# -- launchers that are processes ------------------------------------------------------------------------------


def test_a_process_that_ranked_itself_is_the_launcher_of_its_children() -> None:
    """As Lightning's script launcher: rank 0 sets its variables after birth and starts the others."""
    ranked = [{"LOCAL_RANK": str(r), "NODE_RANK": "0", "WORLD_SIZE": "2"} for r in range(2)]
    first = facts(ranked[0], born_environ={}, pid=500, started="7")
    second = facts(ranked[1], parent=500, parent_started="7")
    assert the_key([job_of(first), job_of(second)])
    assert [job_of(f).rank for f in (first, second)] == [Rank(r, r, 2, "torch") for r in range(2)]


def test_multiprocessing_children_that_ranked_themselves_have_their_parents_key() -> None:
    ranked = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2"} for r in range(2)]
    found = [job_of(facts(e, born_environ={}, forked_by_multiprocessing=True)) for e in ranked]
    assert the_key(found)
    again = [job_of(facts(e, born_environ={}, forked_by_multiprocessing=True, parent=101)) for e in ranked]
    assert the_key(found) != the_key(again)


def test_the_first_process_of_a_container_is_not_merged_with_that_of_another() -> None:
    """Its parent is outside (pid 0) and tells nothing: two `docker run` on one host look alike."""
    environ = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "peer", "MASTER_PORT": "29500"}
    one, other = (
        job_of(facts(environ, pid=1, started=started, parent=0, parent_started="")) for started in ("50", "60")
    )
    assert not one.key or one.key != other.key


# -- children of ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("environ", [torchrun(0, 2), srun(0, 2), open_mpi(0, 2), ray(0, 2)])
def test_a_child_that_inherits_its_parents_rank_has_no_key(environ: Environ) -> None:
    assert job_of(facts(environ)).key
    child = job_of(facts({**environ, PARENT_VARIABLE: "77:0"}))
    assert child.key == () and child.rank == Rank()


def test_a_rank_whose_launcher_has_a_run_is_no_child_of_it() -> None:
    """Lightning's rank 0 may call init() before it starts the others."""
    assert job_of(facts({**torchrun(1, 2), PARENT_VARIABLE: "77:0"})).key


def test_a_process_that_execs_itself_is_no_child_of_itself() -> None:
    assert job_of(facts({**torchrun(0, 2), PARENT_VARIABLE: "77:0"}, pid=77)).key


SPAWN_AFTER_INIT = """
import multiprocessing, os, trackio

def train(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    trackio.init(project="p")
    trackio.log({"loss": 1.0})

trackio.init(project="driver")
ranks = [multiprocessing.get_context("fork").Process(target=train, args=(rank,)) for rank in range(2)]
for rank in ranks:
    rank.start()
for rank in ranks:
    rank.join()
"""


def test_ranks_that_a_process_with_a_run_of_its_own_spawns_are_one_run(host: Host) -> None:
    """As `notebook_launcher` does, which forks, from a kernel that called init()."""
    run_all(host, [{}], code=SPAWN_AFTER_INIT)
    assert [shape(run) for run in stored(host, 2)] == [Shape([0, 1], 2, 1)]


# -- whatever the environment holds ------------------------------------------------------------------------------

NUMBERS = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE NODE_RANK NNODES NUM_NODES MASTER_PORT "
    "SLURM_PROCID SLURM_LOCALID SLURM_NTASKS SLURM_STEP_NUM_TASKS SLURM_STEP_NUM_NODES SLURM_RESTART_COUNT "
    "OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK PMI_RANK PMI_SIZE MPI_LOCALRANKID "
    "MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK TORCHELASTIC_RESTART_COUNT"
).split()
WORDS = (
    "TORCHELASTIC_RUN_ID TORCHELASTIC_ERROR_FILE RAY_JOB_ID SLURM_CLUSTER_NAME SLURM_JOB_ID SLURM_STEP_ID MASTER_ADDR "
    "PMIX_NAMESPACE OMPI_MCA_ess_base_jobid PMI_JOBID MV2_COMM_WORLD_JOBID OMPI_FILE_LOCATION PMIX_SERVER_TMPDIR"
).split()
ODD = ["", " ", "abc", "-1", "1.5", "0x2", "²", "٣", "+2", "1_0", "9" * 20, "\udcff", "none"]
values = st.one_of(
    st.sampled_from(ODD),
    st.integers(0, 9).map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
launched = st.sampled_from(
    [{}, torchrun(0, 2), torchrun(1, 4, nodes=2), srun(0, 2), open_mpi(0, 2), mpich(0, 2), ray(0, 2)]
)
overlaid = st.dictionaries(st.sampled_from([*NUMBERS, *WORDS, PARENT_VARIABLE]), values, max_size=20)
environs = st.builds(lambda base, odd: {**base, **odd}, launched, overlaid)


@settings(database=None, deadline=None, max_examples=300)
@given(environs, st.booleans(), st.booleans())
@example({**torchrun(0, 2), PARENT_VARIABLE: "²:0"}, True, False)
def test_no_environment_makes_job_of_raise(environ: Environ, born: bool, spawned: bool) -> None:
    known = facts(environ, born_environ=environ if born else {}, forked_by_multiprocessing=spawned)
    job = job_of(known)
    assert job == job_of(known), "a key never depends on when it is asked for"
    assert job.rank.rank >= 0 and job.rank.local_rank >= 0 and job.rank.world_size >= 1
    assert not job.key or job.rank.world_size > 1, "world size 1 derives nothing"
    assert len(derived_id(*job.key)) == 12


@pytest.mark.parametrize("odd", [*ODD, "9" * 5000, "²:0"], ids=range(len(ODD) + 2))
def test_an_odd_value_of_a_rank_variable_never_raises(odd: str) -> None:
    launches = (torchrun(0, 2), srun(0, 2), open_mpi(0, 2), mpich(0, 2), ray(0, 2))
    for environ, variable in itertools.product(launches, [*NUMBERS, PARENT_VARIABLE]):
        assert job_of(facts({**environ, variable: odd})).rank.world_size >= 1


@pytest.mark.parametrize(
    "odd",
    [
        {"RANK": "", "LOCAL_RANK": "abc"},
        {"RANK": "-1"},
        {"RANK": "9" * 20, "LOCAL_RANK": "9" * 20},
        {"WORLD_SIZE": "9" * 5000},
        {"TORCHELASTIC_ERROR_FILE": os.fsdecode(b"/tmp/\xff/attempt_0/0/error.json")},
        {PARENT_VARIABLE: "²:0"},
    ],
    ids=["no numbers", "negative", "64 bits", "5000 digits", "no UTF-8", "parent"],
)
def test_a_process_with_odd_rank_variables_logs_all_the_same(host: Host, odd: Environ) -> None:
    run_all(host, [{**torchrun(0, 2), **odd}])
    (run,) = stored(host, 1)
    assert run.points == 1


def test_a_world_of_one_by_every_source_derives_nothing() -> None:
    for environ in ({}, torchrun(0, 1), srun(0, 1), open_mpi(0, 1), mpich(0, 1), ray(0, 1)):
        assert job_of(facts(environ)).key == ()
        assert rank_of(environ) == Rank()


def test_nodes_agree_over_torch_s_store_or_are_told_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    _, why = rendezvous.shared_id("mine", "p/first", 1)
    assert why == "the launcher gives the nodes nothing to tell this job by"
    monkeypatch.setattr(rendezvous, "_store", lambda: store)
    monkeypatch.setattr(rendezvous, "_WAIT_SECONDS", 0.1)
    found, why = rendezvous.shared_id("mine", "p/first", 1)
    assert found is None and "torch's store does not tell" in why
    assert rendezvous.shared_id("rank 0's", "p/first", 0) == ("rank 0's", "")
    assert rendezvous.shared_id("mine", "p/first", 1) == ("rank 0's", "")


# -- restarts ----------------------------------------------------------------------------------------------------


def test_restarts_are_counted_within_the_job_and_the_launch_that_count() -> None:
    def restarts(folder: str, **more: str) -> list[tuple[str, str, int]]:
        return restarts_of({"TORCHELASTIC_ERROR_FILE": f"{folder}/attempt_0/0/error.json", **more})

    job = {"SLURM_CLUSTER_NAME": "c", "SLURM_JOB_ID": "4711"}
    first = restarts("/tmp/a", TORCHELASTIC_RESTART_COUNT="0", **job)
    again = restarts("/tmp/a", TORCHELASTIC_RESTART_COUNT="2", **job)
    requeued = restarts("/tmp/b", TORCHELASTIC_RESTART_COUNT="0", SLURM_RESTART_COUNT="1", **job)
    assert [[(launcher, times) for launcher, _, times in each] for each in (first, again, requeued)] == [
        [("slurm", 0), ("elastic", 0)], [("slurm", 0), ("elastic", 2)], [("slurm", 1), ("elastic", 0)],
    ]  # fmt: skip
    slurm, elastic = zip(first, again, requeued, strict=True)
    assert len({scope for _, scope, _ in slurm}) == 1
    assert [scope == elastic[0][1] for _, scope, _ in elastic] == [True, True, False]
    assert restarts_of({}) == [] and restarts_of({"TORCHELASTIC_RESTART_COUNT": "1"}) == [("elastic", "", 1)]
