"""Seeded kill schedules: real ranks at full speed, a real daemon, and SIGKILL at moments that a seed chooses.

`make torture` runs a thousand of them and prints one line; `python tests/torture.py 1 --seed 42` runs number 42 again.
In each, one to three ranks log while ranks and daemon are killed, stopped and started. At the end every record whose
log() returned is stored, once and in order, or it is counted as refused; and each rank's state is what it was.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from conftest import PATIENCE, Host

from trackio import places
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader

_RANK = """
import mmap, os, sys, time, trackio
words = memoryview(mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)).cast("Q")
count, burst, pause, ending = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
trackio.init(project="p")
for i in range(count):
    trackio.log({"i": i, "half": i / 2}, step=i)
    words[0] = i + 1
    if pause and i % burst == 0: time.sleep(pause)
if ending == "finish": trackio.finish()
if ending == "raise": raise KeyError(ending)
if ending == "exit": os._exit(0)
"""
_ENDINGS = {"finish": "finished", "return": "finished", "raise": "failed", "exit": "finished"}
_KILLS = ("rank", "daemon", "both", "stop the daemon", "stop a rank", "another daemon")


class Schedule(NamedTuple):
    """What a seed decides."""

    seed: int
    ranks: list[tuple[int, int, float, str]]
    """records, burst, pause in seconds, ending of each rank"""
    starts_late: bool
    """there is no daemon at first"""
    spool_mib: int
    """a small ring is soon full, and what leaves it lies on disk"""
    events: list[tuple[float, str, int]]
    """seconds to wait, what to do, to which rank"""


def schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    chance = random.Random(seed)
    ranks = [
        (chance.choice([2_000, 10_000, 40_000]), chance.choice([50, 400]), chance.choice([0, 0.001]),
         chance.choice(list(_ENDINGS)))
        for _ in range(chance.randint(1, 3))
    ]  # fmt: skip
    events = [
        (chance.random() ** 2 * 0.4, chance.choice(_KILLS), chance.randrange(len(ranks)))
        for _ in range(chance.randint(1, 5))
    ]
    return Schedule(seed, ranks, chance.random() < 0.2, chance.choice([1, 16]), events)


class Rank:
    """A rank's process, and how far it says it came."""

    def __init__(self, host: Host, number: int, world: int, plan: tuple[int, int, float, str]) -> None:
        path = host.data / f"progress-{number}"
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
        self.ending = plan[3]
        self.was_killed = False
        environ = {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number), "TRACKIO_RUN_ID": "run"}
        self.process: subprocess.Popen[str] = host.python(
            _RANK, str(path), *map(str, plan), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    @property
    def logged(self) -> int:
        """log() calls that have returned."""
        return int(self._words[0])

    def kill(self) -> None:
        self.was_killed |= self.process.poll() is None
        self.process.kill()


@contextmanager
def _a_host() -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="trackio-torture-"))
    spool = Path(tempfile.mkdtemp(prefix="trackio-torture-", dir="/dev/shm"))
    host = Host(folder / "data", spool)
    host.data.mkdir()
    try:
        yield host
    finally:
        host.close()
        shutil.rmtree(folder)


def run(plan: Schedule) -> str:
    """Runs a schedule; returns what went wrong, or ""."""
    with _a_host() as host:
        host.extra["TRACKIO_SPOOL_MIB"] = str(plan.spool_mib)
        if not plan.starts_late:
            host.start()
        ranks = [Rank(host, number, len(plan.ranks), rank) for number, rank in enumerate(plan.ranks)]
        stopped: list[int] = []
        for seconds, event, number in plan.events:
            time.sleep(seconds)
            _do(host, event, ranks[number], stopped)
        for pid in stopped:
            _signal(pid, signal.SIGCONT)
        for rank in ranks:
            rank.process.wait(120 * PATIENCE)
        host.stop()
        host.start()  # a new one looks for the dead at once
        return _problem(host, ranks)


def _do(host: Host, event: str, rank: Rank, stopped: list[int]) -> None:
    endpoint = places.read_endpoint(host.places.endpoint)
    daemon = endpoint.pid if endpoint else 0
    match event:
        case "rank":
            rank.kill()
        case "daemon":
            _signal(daemon, signal.SIGKILL)
            host.start()
        case "both":
            _signal(daemon, signal.SIGKILL)
            rank.kill()
        case "stop the daemon":
            _signal(daemon, signal.SIGSTOP)
            time.sleep(0.3)
            _signal(daemon, signal.SIGCONT)
        case "stop a rank":
            if rank.process.poll() is None:
                _signal(rank.process.pid, signal.SIGSTOP)
                stopped.append(rank.process.pid)
        case "another daemon":
            host.command("trackiod", "start")


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _problem(host: Host, ranks: list[Rank]) -> str:
    """What is not as it should be, once every rank's end is known."""
    deadline = time.monotonic() + 60 * PATIENCE
    while True:
        rows = _streams(host)
        if sum(rank.logged > 0 for rank in ranks) <= len(rows) and all(row["state"] for row in rows.values()):
            break
        if time.monotonic() > deadline:
            return f"no end within a minute: {rows}"
        time.sleep(0.05)
    for number, rank in enumerate(ranks):
        row = rows.get(number)
        if row is None:
            if rank.logged:
                return f"rank {number} logged {rank.logged} and nothing is stored"
            continue
        if problem := _problem_of(rank, row):
            return f"rank {number}: {problem}"
    return ""


def _streams(host: Host) -> dict[int, dict[str, Any]]:
    """What is stored of each rank."""
    path = schema.path_of(host.places.projects, "p")
    if not os.path.exists(path):
        return {}
    with ProjectReader(path) as reader:
        sql = "SELECT rank, id, state, cause, refused_records FROM streams WHERE role = 'rank'"
        return {
            rank: {
                "state": state, "cause": cause, "refused": refused,
                "holes": reader._all("SELECT start, end, cause FROM holes WHERE stream = ?", id_),
                "columns": points.columns(reader, id_, frozenset({"i", "half"})),
            }
            for rank, id_, state, cause, refused in reader._all(sql)
        }  # fmt: skip


def _problem_of(rank: Rank, row: dict[str, Any]) -> str:
    values = row["columns"]["i"].values.tolist()
    if row["holes"]:
        return f"holes {row['holes']}"
    if any(after <= before for before, after in pairwise(values)):
        return "doubled or out of order"
    if row["columns"]["half"].values.tolist() != [value / 2 for value in values]:
        return "values differ"
    # killed between the end of log() and the word that says so, one more may be stored or refused
    if not rank.logged <= len(values) + row["refused"] <= rank.logged + 1:
        return f"logged {rank.logged}, stored {len(values)}, refused {row['refused']}"
    wanted = ("killed", "lost") if rank.was_killed else (_ENDINGS[rank.ending], "lost")
    if row["state"] not in wanted and not (rank.was_killed and row["state"] == _ENDINGS[rank.ending]):
        return f"it is {row['state']} ({row['cause']}), expected {wanted}"
    if not rank.was_killed and row["state"] == "lost" and rank.ending != "exit":
        return f"it is lost ({row['cause']}), but said how it ended"
    return ""


def _try(seed: int) -> tuple[int, str]:
    try:
        return seed, run(schedule(seed))
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many schedules")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    options = parser.parse_args()
    failed = 0
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for seed, problem in pool.imap_unordered(_try, range(options.seed, options.seed + options.count)):
            if problem:
                failed += 1
                print(f"seed {seed}: {problem}", flush=True)
    verdict = f"{failed} FAILED" if failed else "nothing lost, nothing doubled"
    print(f"{options.count} kill schedules from seed {options.seed} on, {time.monotonic() - began:.0f} s: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
