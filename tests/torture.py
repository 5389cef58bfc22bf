"""Seeded schedules of faults: real ranks at full speed, a real daemon, and trouble at moments that a seed chooses.

`make torture` runs a thousand of them and prints one line; `python tests/torture.py 1 --seed 42` runs number 42 again.
In each, one to three ranks log while processes are killed, stopped and started, system calls fail or hang, ranks fork
and save checkpoints in place, descriptors run out, the disk is full, the power is cut, or somebody else owns our
folders. At the end every record whose log() returned is stored, once and in order, or it is counted as dropped; each
rank's state is what it was; each artifact is what was logged; after a power cut nothing is missing that a reader had
seen; nothing has crashed, and no process or file is left behind.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import standin
import torture_rank
from conftest import PATIENCE, Host
from failing import Failing
from power_cut import Image

from trackio import places
from trackiod import blobs, library
from trackiod.store import points, schema
from trackiod.store.reader import ProjectReader

KINDS = {
    "kills": 6, "failing calls": 5, "forks": 3, "descriptors": 2, "artifacts": 3, "full disk": 2, "foreign folders": 1,
    "power cuts": 1,
}  # fmt: skip
"""What a schedule may have, by how often."""
_NEED_MOUNTS = ("full disk", "foreign folders", "power cuts")
_ENDINGS = {"finish": "finished", "return": "finished", "raise": "failed", "exit": "finished"}
_KILLS = ("rank", "daemon", "both", "stop the daemon", "stop a rank", "another daemon")
_OF_DAEMON = [
    ("open", errno.EMFILE), ("open", errno.EIO), ("open", errno.ENOMEM), ("open", errno.EACCES), ("read", errno.EIO),
    ("write", errno.ENOSPC), ("write", errno.EIO), ("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("stat", errno.EIO),
    ("stat", errno.ESTALE), ("unlink", errno.EIO), ("rename", errno.EIO), ("listdir", errno.EIO),
    ("listdir", errno.EMFILE), ("mkdir", errno.ENOSPC), ("ftruncate", errno.EIO), ("mmap", errno.ENOMEM),
    ("link", errno.EIO), ("fork", errno.EAGAIN), ("thread", errno.EAGAIN), ("accept", errno.EMFILE), ("fsync", 0),
    ("read", 0), ("unlink", 0),
]  # fmt: skip
"""(group of calls, error) that come to a daemon; 0: it hangs for a while"""
_OF_RANK = [
    ("open", errno.EMFILE), ("open", errno.EIO), ("mkdir", errno.ENOSPC), ("write", errno.ENOSPC), ("write", errno.EIO),
    ("fallocate", errno.ENOSPC), ("ftruncate", errno.ENOSPC), ("mmap", errno.ENOMEM), ("unlink", errno.EIO),
    ("fsync", errno.EIO), ("link", errno.EMLINK), ("rename", errno.EIO), ("stat", errno.EIO), ("socket", errno.EMFILE),
    ("connect", errno.EAGAIN), ("thread", errno.EAGAIN), ("fsync", 0), ("write", 0),
]  # fmt: skip
_MARK = "trackio-torture-"
"""in the names of the folders that are ours: elsewhere nothing fails"""
_ANYWHERE = ("fork", "thread", "accept", "socket", "connect")
"""calls that no path tells apart"""
_HANG_SECONDS = 1.5
_CRASH = re.compile(r"Traceback \(most recent call last\)|Fatal Python error|Assertion failed|\(src/\w+\.cpp:\d+\)")
_BIG_BYTES = 9 << 20
"""more than what is copied at once where files cannot be cloned"""
_DISK_BYTES = 96 << 20
_CLONE_NEWNS = 0x00020000
_INSIDE = "TRACKIO_TORTURE_INSIDE"
_STRANGER = 12345
"""a user id that is not ours"""


class RankPlan(NamedTuple):
    """What a rank does."""

    records: int
    burst: int
    pause: float
    """seconds after each burst"""
    ending: str
    forks: list[tuple[int, str, int]]
    """before which record a child is forked, how, and how many records it logs"""
    saves: list[tuple[int, int, str]]
    """before which record a checkpoint is saved, its bytes, and how it is written"""


class Event(NamedTuple):
    """Something that happens."""

    seconds: float
    """since the one before"""
    what: str
    rank: int
    call: str = ""
    error: int = 0
    after: int = 0
    count: int = -1


class Schedule(NamedTuple):
    """What a seed decides."""

    seed: int
    kinds: tuple[str, ...]
    ranks: list[RankPlan]
    starts_late: bool
    """there is no daemon at first"""
    spool_mib: int
    """a small ring is soon full, and what leaves it lies on disk"""
    events: list[Event]


def schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    chance = random.Random(seed)
    drawn = chance.choices(list(KINDS), list(KINDS.values()), k=chance.randint(1, 3))
    if "power cuts" in drawn:  # both are about what the data folder lies on
        drawn = [kind for kind in drawn if kind != "full disk"]
    kinds = tuple(kind for kind in KINDS if kind in drawn)
    ranks = [_rank_plan(chance, kinds) for _ in range(chance.randint(1, 3))]
    makers = {
        "kills": _a_kill, "failing calls": _a_fault, "descriptors": _a_limit, "full disk": _a_full_disk,
        "power cuts": _a_power_cut,
    }  # fmt: skip
    events = []
    for kind in kinds:
        if kind in makers:
            events += [makers[kind](chance, kinds, len(ranks)) for _ in range(chance.randint(1, 5))]
    chance.shuffle(events)
    return Schedule(seed, kinds, ranks, chance.random() < 0.2, chance.choice([1, 16]), events)


def _rank_plan(chance: random.Random, kinds: tuple[str, ...]) -> RankPlan:
    records, pause = chance.choice([2_000, 10_000, 40_000]), chance.choice([0, 0.001])
    forks = [
        (chance.randrange(records), chance.choice(["fork", "exit", "multiprocessing"]), chance.choice([1, 500, 5_000]))
        for _ in range(chance.randint(1, 4) if "forks" in kinds else 0)
    ]
    saves = [
        (chance.randrange(records), chance.choice([100, 100_000, _BIG_BYTES]), chance.choice(["in place", "renamed"]))
        for _ in range(chance.randint(1, 4) if "artifacts" in kinds else 0)
    ]
    ending = chance.choice(list(_ENDINGS))
    return RankPlan(records, chance.choice([50, 400]), pause, ending, sorted(forks), sorted(saves))


def _moment(chance: random.Random) -> float:
    return chance.random() ** 2 * 0.4


def _a_kill(chance: random.Random, kinds: tuple[str, ...], ranks: int) -> Event:
    return Event(_moment(chance), chance.choice(_KILLS), chance.randrange(ranks))


def _is_of_daemon(chance: random.Random, kinds: tuple[str, ...]) -> bool:
    """Where ranks fork, only the daemon is hindered: a child that finds no shared memory may die with a private one."""
    return "forks" in kinds or chance.random() < 0.6


def _a_fault(chance: random.Random, kinds: tuple[str, ...], ranks: int) -> Event:
    is_daemon = _is_of_daemon(chance, kinds)
    call, error = chance.choice(_OF_DAEMON if is_daemon else _OF_RANK)
    what = "fail the daemon's calls" if is_daemon else "fail ranks' calls"
    after, count = chance.choice([0, 0, 1, 10]), chance.choice([1, 3, 30, -1])
    return Event(_moment(chance), what, chance.randrange(ranks), call, error, after, count)


def _a_limit(chance: random.Random, kinds: tuple[str, ...], ranks: int) -> Event:
    is_daemon = _is_of_daemon(chance, kinds)
    if is_daemon:
        return Event(_moment(chance), "start a daemon with few descriptors", 0, count=chance.choice([48, 64, 128]))
    return Event(_moment(chance), "limit a rank's descriptors", chance.randrange(ranks), count=chance.randint(0, 12))


def _a_full_disk(chance: random.Random, kinds: tuple[str, ...], ranks: int) -> Event:
    return Event(_moment(chance), chance.choice(["fill the disk", "fill the disk", "make room"]), 0)


def _a_power_cut(chance: random.Random, kinds: tuple[str, ...], ranks: int) -> Event:
    return Event(chance.random(), "cut the power", 0)


# -- the machine -------------------------------------------------------------------------------------------------------


@cache
def missing() -> dict[str, str]:
    """The kinds that cannot be had on this machine, and why."""
    found = {}
    if standin.compiler() is None:
        found["failing calls"] = "there is no C compiler"
    can_mount = os.geteuid() == 0 and shutil.which("unshare")
    if not can_mount or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        found |= dict.fromkeys(_NEED_MOUNTS, "nothing can be mounted")
    elif shutil.which("mkfs.ext4") is None or not os.path.exists("/dev/loop-control"):
        found["power cuts"] = "no image of a disk can be made"
    return found


@dataclass
class TortureHost(Host):
    """A host of one schedule, perhaps at the places that we choose where the user names no spool."""

    names_spool: bool = True

    def environ(self, **more: str) -> dict[str, str]:
        environ = super().environ(**more)
        if not self.names_spool:
            del environ["TRACKIO_SPOOL_DIR"]
            environ.pop("XDG_RUNTIME_DIR", None)
        return environ

    @property
    def places(self) -> places.Places:
        return places.find(str(self.data), str(self.spool) if self.names_spool else "")


class Machine:
    """A host of a schedule, and what can be done to it. `heal` ends all that was done."""

    def __init__(self, plan: Schedule, folder: Path, spool: Path, image: Image | None) -> None:
        self.plan = plan
        self.problem = ""
        """what was found wrong on the way"""
        self._folder = folder
        self._image = image
        folder = image.folder if image is not None else folder
        self.host = TortureHost(folder / "data", spool, names_spool="foreign folders" not in plan.kinds)
        self.host.data.mkdir()
        self.host.extra["TRACKIO_SPOOL_MIB"] = str(plan.spool_mib)
        self.failing = Failing(self._folder) if "failing calls" in plan.kinds else None
        if self.failing is not None:
            self.host.extra |= self.failing.environ
        if "full disk" in plan.kinds:
            _mount(self.host.data, f"size={_DISK_BYTES},mode=700")
        self._stopped: list[int] = []
        self._limited: dict[int, tuple[int, int]] = {}
        self.ranks: list[Rank] = []

    def start(self) -> None:
        """Start a daemon; while system calls fail, or the disk is full, it may find that it cannot."""
        try:
            self.host.start()
        except Exception:
            if not {"failing calls", "full disk"} & {*self.plan.kinds}:
                raise

    def _start_with(self, descriptors: int) -> None:
        """Start a daemon that never gets more descriptors; what it starts is as limited."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        run = [sys.executable, "-P", "-m", "trackiod", "run", "--detach"]
        places.make_private(self.host.places.live)
        with open(self.host.places.log, "a") as log:
            daemon = subprocess.Popen(run, env=self.host.environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
            daemon.wait(60 * PATIENCE)
        self._limited.setdefault(self.daemon, limits)

    @property
    def daemon(self) -> int:
        endpoint = places.read_endpoint(self.host.places.endpoint)
        return endpoint.pid if endpoint else 0

    def do(self, event: Event) -> None:
        """Let something happen."""
        rank = self.ranks[event.rank]
        match event.what:
            case "rank":
                rank.kill()
            case "daemon":
                _signal(self.daemon, signal.SIGKILL)
                self.start()
            case "both":
                _signal(self.daemon, signal.SIGKILL)
                rank.kill()
            case "stop the daemon":
                pid = self.daemon
                _signal(pid, signal.SIGSTOP)
                time.sleep(0.3)
                _signal(pid, signal.SIGCONT)
            case "stop a rank":
                if rank.process.poll() is None:
                    _signal(rank.process.pid, signal.SIGSTOP)
                    self._stopped.append(rank.process.pid)
            case "another daemon":
                self.host.command("trackiod", "start")
            case _:
                self._hinder(event, rank)

    def _hinder(self, event: Event, rank: Rank) -> None:
        match event.what:
            case "fail the daemon's calls":
                self._fail(event, "trackiod run")
            case "fail ranks' calls":
                if rank.has_begun():
                    self._fail(event, "torture_rank.py")
            case "start a daemon with few descriptors":
                _signal(self.daemon, signal.SIGKILL)
                self._start_with(event.count)
            case "limit a rank's descriptors":
                if rank.has_begun():
                    self._limit(rank.process.pid, event.count)
            case "fill the disk":
                _fill(self.host.data / "filler")
            case "make room":
                (self.host.data / "filler").unlink(missing_ok=True)
            case "cut the power":
                self.problem = self.problem or self._problem_after_a_cut()
            case _:
                raise ValueError(event.what)

    def _fail(self, event: Event, process: str) -> None:
        assert self.failing is not None
        path = "" if event.call in _ANYWHERE else _MARK
        if event.error:
            self.failing.fail(event.call, event.error, path, after=event.after, count=event.count, process=process)
        else:
            self.failing.hang(event.call, _HANG_SECONDS, path, after=event.after, count=3, process=process)

    def _limit(self, pid: int, free: int) -> None:
        """Leave a process so many descriptors."""
        with suppress(OSError):
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
            self._limited.setdefault(pid, (soft, hard))

    def _problem_after_a_cut(self) -> str:
        """What a host would not find that lost its power now, of what a reader has seen: nothing is to be missing. All
        stand still meanwhile, and go on."""
        assert self._image is not None
        seen = {stream.key: len(stream.values(stream.metric)) for stream in _streams(self.host)}
        spool = Path(tempfile.mkdtemp(prefix=_MARK, dir="/dev/shm"))
        pids = _pids_of(self.host)
        try:
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            if not _wait(lambda: all(map(_stands_still, pids)), 30):
                raise TimeoutError("processes do not stop")  # what is written during the copy would tear it
            with self._image.cut() as found:
                host = TortureHost(found / "data", spool)
                try:
                    return _problem_of_found(host, seen) if host.data.is_dir() else ""
                finally:
                    host.close()
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

    def heal(self) -> None:
        """End all faults."""
        if self.failing is not None:
            self.failing.heal()
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)
        for pid, limits in self._limited.items():
            with suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        (self.host.data / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.heal()
        self.host.close()
        if "full disk" in self.plan.kinds:
            subprocess.run(["umount", "-l", str(self.host.data)], check=True)


class Rank:
    """A rank's process, and how far it says it came."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.number = number
        self.plan = plan = machine.plan.ranks[number]
        # a user's own writes are not to fail, so they lie beside what fails and fills
        self.work = Path(tempfile.mkdtemp(prefix="work-of-torture-"))
        path = self.work / "progress"
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
        self.was_killed = False
        world = str(len(machine.plan.ranks))
        environ = {"RANK": str(number), "WORLD_SIZE": world, "LOCAL_RANK": str(number), "TRACKIO_RUN_ID": "run"}
        facts = json.dumps({**plan._asdict(), "rank": number, "work": str(self.work)})
        self.errors = self.work / "errors"
        with open(self.errors, "w") as errors:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, torture_rank.__file__, str(path), facts], env=machine.host.environ(**environ),
                stdout=subprocess.DEVNULL, stderr=errors, text=True,
            )  # fmt: skip
        machine.host.processes.append(self.process)

    @property
    def logged(self) -> int:
        """log() calls that have returned."""
        return int(self._words[0])

    @property
    def saved(self) -> int:
        """log_artifact() calls that have returned."""
        return int(self._words[1])

    @property
    def children(self) -> dict[int, int]:
        """log() calls of forked children that have returned, by pid."""
        pairs = range(2, 2 + 2 * len(self.plan.forks), 2)
        return {int(self._words[i]): int(self._words[i + 1]) for i in pairs if self._words[i]}

    def has_begun(self) -> bool:
        """Wait until it has logged, or has ended; whether it logs."""
        _wait(lambda: self.logged or self.process.poll() is not None, 30)
        return self.process.poll() is None

    def has_dropped_its_end(self) -> bool:
        """Whether it said that there was no room for the record of how it ends."""
        return "finish found no room" in self.errors.read_text(errors="replace")

    def kill(self) -> None:
        self.was_killed |= self.process.poll() is None
        self.process.kill()


def _wait(condition: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _mount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)


def _fill(path: Path) -> None:
    """Fill the disk to the last page."""
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


@contextmanager
def _a_machine(plan: Schedule) -> Iterator[Machine]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=_MARK))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        spool = Path(tempfile.mkdtemp(prefix=_MARK, dir="/dev/shm"))
        stack.callback(shutil.rmtree, spool, ignore_errors=True)
        image = stack.enter_context(Image(folder)) if "power cuts" in plan.kinds else None
        machine = Machine(plan, folder, spool, image)
        stack.callback(machine.close)
        yield machine


def _enter_a_world(plan: Schedule) -> None:
    """Be in a mount namespace of our own; somebody else may have been first there at the names that we take."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if "foreign folders" not in plan.kinds:
        return
    chance = random.Random(f"folders {plan.seed}")
    _mount(Path("/mnt"), "size=1m")
    project, kept = Path(__file__).parents[1], Path("/mnt/project")  # which may lie where we mount something
    kept.mkdir()
    subprocess.run(["mount", "--bind", project, kept], check=True)
    for base in ("/dev/shm", "/tmp"):
        _mount(Path(base), "size=1g,mode=1777")
        if base == "/dev/shm" or chance.random() < 0.5:
            taken = Path(base, f"trackio-{os.geteuid()}")
            taken.mkdir()
            taken.chmod(chance.choice([0o700, 0o777, 0o1777]))
            os.chown(taken, _STRANGER, _STRANGER)
    project.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", kept, project], check=True)


# -- one schedule ------------------------------------------------------------------------------------------------------


def run(plan: Schedule) -> str:
    """Run a schedule; return what went wrong, or ""."""
    with _a_machine(plan) as machine, ExitStack() as stack:
        if not plan.starts_late:
            machine.start()
        for number in range(len(plan.ranks)):
            machine.ranks.append(Rank(machine, number))
            stack.callback(shutil.rmtree, machine.ranks[-1].work, ignore_errors=True)
        for event in plan.events:
            time.sleep(event.seconds)
            machine.do(event)
        machine.heal()
        for rank in machine.ranks:
            rank.process.wait(120 * PATIENCE)
            if not _wait(lambda rank=rank: not any(map(_is_alive, rank.children)), 60):
                return f"rank {rank.number}: its children do not end"
        machine.host.stop()
        machine.host.start()  # a new one looks for the dead at once
        return (
            machine.problem
            or _problem(machine)
            or _problem_of_artifacts(machine)
            or _problem_of_ranks(machine)
            or _left(machine.host)
        )


def _is_alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def _stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped, and so in no system call, or it is gone."""
    try:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return not _is_alive(pid)
    return all(state in "TtZX" for state in states)


class Stored(NamedTuple):
    """What is stored of a stream."""

    role: str
    rank: int
    pid: int
    state: str | None
    cause: str
    dropped: int
    gaps: list[Any]
    columns: dict[str, Any]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.role, self.rank, self.pid

    @property
    def metric(self) -> str:
        return "i" if self.role == "rank" else "child"

    def values(self, name: str) -> list[Any]:
        """A metric's values, in the order in which they were logged."""
        return self.columns[name].values.tolist() if name in self.columns else []


def _problem(machine: Machine) -> str:
    """What is not stored as it should be, once the end of all streams is known."""
    streams: list[Stored] = []

    def is_complete() -> bool:
        streams[:] = _streams(machine.host)
        known = {stream.rank if stream.role == "rank" else f"child {stream.pid}" for stream in streams}
        wanted = {rank.number for rank in machine.ranks if rank.logged}
        children = {f"child {pid}" for rank in machine.ranks for pid, logged in rank.children.items() if logged}
        return wanted | children <= known and all(stream.state for stream in streams)

    is_whole = _wait(is_complete, 60)
    by_child = {stream.pid: stream for stream in streams if stream.role == "worker"}
    of_ranks = {stream.rank: stream for stream in streams if stream.role == "rank"}
    for rank in machine.ranks:
        stored = of_ranks.get(rank.number)
        if stored is None and rank.logged:
            return f"rank {rank.number} logged {rank.logged} and nothing is stored"
        if stored is not None and (problem := _problem_of(rank, stored)):
            return f"rank {rank.number}: {problem}"
        for pid, logged in rank.children.items():
            if logged and pid not in by_child:
                return f"a child of rank {rank.number} logged {logged} and nothing is stored"
            if pid in by_child and (problem := _problem_in(by_child[pid], "child", logged)):
                return f"a child of rank {rank.number}: {problem}"
    return "" if is_whole else f"no end within a minute: {[stream[:5] for stream in streams]}"


def _streams(host: Host) -> list[Stored]:
    """What is stored of each stream."""
    path = schema.path_of(host.places.projects, "p")
    if not os.path.exists(path):
        return []
    with ProjectReader(path) as reader:
        sql = "SELECT role, rank, id, run, state, coalesce(cause, ''), refused_records FROM streams"
        rows = reader._all(sql)
        metas = reader.metas({row[3] for row in rows})
        return [
            Stored(
                role, rank, metas[id_]["pid"], state, cause, dropped,
                reader._all("SELECT start, end, cause FROM holes WHERE stream = ?", id_),
                points.columns(reader, id_, frozenset({"i", "half", "child"})),
            )
            for role, rank, id_, _, state, cause, dropped in rows
        ]  # fmt: skip


def _problem_of_found(host: Host, seen: dict[tuple[str, int, int], int]) -> str:
    """What is wrong with what a host finds that had lost its power. `seen`: how much of each stream a reader saw."""
    host.start()
    if not _wait(lambda: not _files_of(host) and all(stream.state for stream in _streams(host)), 60):
        return f"after a power cut there is no end: {_files_of(host)}"
    found = {stream.key: stream for stream in _streams(host)}
    for key, count in seen.items():
        values = found[key].values(found[key].metric) if key in found else []
        if len(values) < count:
            return f"after a power cut {len(values)} of {count} records of {key} are there"
    for key, stream in found.items():
        if any(after <= before for before, after in pairwise(stream.values(stream.metric))):
            return f"after a power cut records of {key} are there twice or out of order"
    set_aside = [name for name in os.listdir(host.places.projects) if "damaged" in name]
    return f"after a power cut {set_aside} is set aside" if set_aside else ""


def _problem_of(rank: Rank, stored: Stored) -> str:
    if problem := _problem_in(stored, "i", rank.logged):
        return problem
    if stored.values("half") != [value / 2 for value in stored.values("i")]:
        return "values differ"
    ending = _ENDINGS[rank.plan.ending]
    if rank.has_dropped_its_end() and stored.dropped:
        return ""
    wanted = ("killed", "lost") if rank.was_killed else (ending, "lost")
    if stored.state not in wanted and not (rank.was_killed and stored.state == ending):
        return f"it is {stored.state} ({stored.cause}), expected {wanted}"
    if not rank.was_killed and stored.state == "lost" and rank.plan.ending != "exit":
        return f"it is lost ({stored.cause}), but said how it ended"
    return ""


def _problem_in(stored: Stored, name: str, logged: int) -> str:
    values = stored.values(name)
    if stored.gaps:
        return f"gaps {stored.gaps}"
    if any(after <= before for before, after in pairwise(values)):
        return "doubled or out of order"
    # killed between the end of log() and the word that says so, one more may be stored or dropped
    if not logged <= len(values) + stored.dropped <= logged + 1:
        return f"logged {logged}, stored {len(values)}, dropped {stored.dropped}"
    return ""


def _problem_of_artifacts(machine: Machine) -> str:
    """Every version is what was logged; one that is not whole says so, and only where files could not be had."""
    if "artifacts" not in machine.plan.kinds or not any(rank.saved for rank in machine.ranks):
        return ""
    where = machine.host.places
    with ProjectReader(schema.path_of(where.projects, "p")) as reader:
        if not _wait(lambda: reader._all("SELECT count(*) FROM files WHERE state IS NULL") == [(0,)], 60):
            return "files wait and are not kept"
        versions = [library.named(reader, where.data, name, f"v{label}") for name, label in reader.versions()]
        named = reader._all("SELECT count(*) FROM files WHERE state <> 'kept'")[0][0]
        named += sum(len(msgpack.unpackb(row[0])["lost"]) for row in reader._all("SELECT facts FROM artifacts"))
    kept = {(int(version.name[1:]), file.get("digest")) for version in versions for file in version.manifest}
    whole = {(rank, digest) for rank, digest in kept if digest}
    for rank, digest in whole:
        path = blobs.kept_in(blobs.folder_of(where.blobs, "p"), digest, ".bin")
        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
            return f"what is kept of rank {rank}'s artifact is not what its digest says"
    logged = {
        (rank.number, hashlib.sha256(torture_rank.content(rank.number, number, size)).hexdigest()): number < rank.saved
        for rank in machine.ranks
        for number, (_, size, _) in enumerate(rank.plan.saves)
    }
    if strange := whole - logged.keys():
        return f"{len(strange)} versions hold what nobody logged"
    lost = {key for key, has_returned in logged.items() if has_returned} - whole
    may_be_lost = {"failing calls", "full disk", "descriptors"} & {*machine.plan.kinds} and named >= len(lost)
    if lost and not may_be_lost:
        return f"of {sum(logged.values())} artifacts {len(lost)} are not kept; {named} files are named as missing"
    return ""


def _problem_of_ranks(machine: Machine) -> str:
    """What a training saw of us."""
    for rank in machine.ranks:
        said = rank.errors.read_text(errors="replace")
        is_raising = rank.plan.ending == "raise"
        if said.count("Traceback") > is_raising or "Fatal Python error" in said:
            return f"rank {rank.number} printed {said[-800:]!r}"
        if not rank.was_killed and rank.process.returncode != is_raising:
            return f"rank {rank.number} ended with {rank.process.returncode}"
    return ""


def _left(host: Host) -> str:
    """What is left, or was said, when all have ended."""
    _wait(lambda: not _files_of(host), 20)
    host.stop()
    with open(host.places.log, errors="replace") as file:
        if crash := _CRASH.search(log := file.read()):
            return f"the daemon crashed: {log[max(0, crash.start() - 200) : crash.start() + 2500]}"
    if not _wait(lambda: not _processes_of(host), 20):
        return f"processes are left: {_processes_of(host)}"
    return f"files are left: {_files_of(host)}" if _files_of(host) else ""


def _files_of(host: Host) -> list[str]:
    """What lies where streams and their files wait to be stored."""
    folders = [*host.places.stream_folders, host.places.incoming]
    return [os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)]


def _pids_of(host: Host) -> list[int]:
    """The processes that use the host's data folder."""
    ours = f"TRACKIO_DIR={host.data}".encode()
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if ours in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and _is_alive(pid):
                found.append(pid)
    return found


def _processes_of(host: Host) -> list[str]:
    """Their command lines."""
    found = []
    for pid in _pids_of(host):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


# -- many --------------------------------------------------------------------------------------------------------------


def try_seed(seed: int) -> tuple[int, str | None]:
    """Run a seed's schedule; return it and what went wrong, None where this machine cannot have it."""
    plan = schedule(seed)
    if missing().keys() & {*plan.kinds}:
        return seed, None
    try:
        if {*_NEED_MOUNTS} & {*plan.kinds} and _INSIDE not in os.environ:
            return seed, _in_a_world_of_its_own(seed)
        return seed, run(plan)
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"


def _in_a_world_of_its_own(seed: int) -> str:
    """A mount namespace is a process's, so another one runs the schedule."""
    done = subprocess.run(
        [sys.executable, __file__, "1", "--seed", str(seed)], env=os.environ | {_INSIDE: "1"},
        capture_output=True, text=True, timeout=600 * PATIENCE,
    )  # fmt: skip
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000, help="how many schedules")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    options = parser.parse_args()
    if _INSIDE in os.environ:
        _enter_a_world(schedule(options.seed))
        problem = try_seed(options.seed)[1]
        print(problem)
        return 1 if problem else 0
    failed, left_out = 0, 0
    kinds: Counter[str] = Counter()
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(min(options.count, os.cpu_count() or 1)) as pool:
        for seed, problem in pool.imap_unordered(try_seed, range(options.seed, options.seed + options.count)):
            left_out += problem is None
            kinds.update(schedule(seed).kinds if problem is not None else ())
            if problem:
                failed += 1
                print(f"seed {seed} ({', '.join(schedule(seed).kinds)}): {problem}", flush=True)
    verdict = f"{failed} FAILED" if failed else "nothing lost, nothing doubled, nothing left behind"
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
    without = f"; {left_out} left out ({'; '.join(f'{kind}: {why}' for kind, why in missing().items())})"
    print(f"{options.count} schedules from seed {options.seed} on ({counts}), {time.monotonic() - began:.0f} s: "
          f"{verdict}{without if left_out else ''}")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
