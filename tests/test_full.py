"""Full devices: a small tmpfs under the store, the spool or the spill, which later has room again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for
from failing import Failing

from trackio import record, wire
from trackio.link import Link
from trackio.places import read_endpoint
from trackio.record import Kind
from trackiod.store import schema

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")

LOG = """
import random, sys, time, trackio
trackio.init(project="p")
count, burst = int(sys.argv[1]), int(sys.argv[2])
for i in range(count):
    trackio.log({"i": i, "noise": random.random()}, step=i)
    if i % burst == 0: time.sleep(0.005)
print("logged", flush=True)
sys.stdin.read()
"""


@contextmanager
def small_device(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def grow(path: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)


def fill(path: Path) -> Path:
    """Somebody else's file that leaves nothing free."""
    filler = path / "checkpoint"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096):
        with suppress(OSError):
            while True:
                os.write(fd, bytes(size))
    os.close(fd)
    return filler


def start(host: Host, count: int, burst: int) -> Any:
    return host.python(LOG, str(count), str(burst), stdin=subprocess.PIPE)


def all_is_there(host: Host, process: Any, count: int) -> None:
    """Once there is room, everything is stored that was not refused, and the refusals are counted in the run."""
    _, err = process.communicate(timeout=60 * PATIENCE)
    run = host.ended_run("p", 60)
    wait_for(lambda: host.the_run("p").records + host.the_run("p").refused_records == count, 60, "all records")
    run = host.the_run("p")
    values = [p.value for p in shown(run, "i", all_points=True)]
    assert values == sorted(set(values)) and len(values) == run.records and run.holes == []
    assert ("found no room and were dropped" in err) == (run.refused_records > 0), err


def test_a_full_store_stops_nothing_and_is_filled_when_it_has_room(host: Host, tmp_path: Path) -> None:
    with small_device(tmp_path / "small", "8m") as device:
        host.data = device / "data"
        host.start()
        process = start(host, 30_000, 100)
        wait_for(lambda: host.runs("p") and host.the_run("p").records > 1000, 20, "the first records")
        filler = fill(device)
        wait_for(lambda: "full" in host.status().daemon["problem"], 60, "a full disk")
        assert "full" in host.command("trackio", "status").stdout
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        all_is_there(host, process, 30_000)
        assert host.the_run("p").refused_records == 0
        host.stop()


def test_a_full_spool_device_is_left_alone_and_nothing_is_lost(host: Host, tmp_path: Path) -> None:
    """A DataLoader took it all. What is logged waits in a ring that cannot grow, or in memory of its own."""
    with small_device(host.spool, "64m"):
        host.start()
        process = start(host, 30_000, 100)
        wait_for(lambda: host.runs("p") and host.the_run("p").records > 500, 20, "the first records")
        filler = fill(host.spool)
        held = sum(path.stat().st_size for path in host.spool.rglob("seg-*"))
        assert process.stdout.readline() == "logged\n"
        assert sum(path.stat().st_size for path in host.spool.rglob("seg-*")) <= held, "it did not grow"
        filler.unlink()
        all_is_there(host, process, 30_000)
        assert host.the_run("p").refused_records == 0


def test_a_spool_device_that_is_full_from_the_start_is_said_and_nothing_is_lost(host: Host, tmp_path: Path) -> None:
    with small_device(host.spool, "64m"):
        host.start()
        filler = fill(host.spool)
        process = start(host, 20_000, 100)
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        all_is_there(host, process, 20_000)
        assert host.the_run("p").refused_records == 0


def test_a_full_spill_refuses_counts_and_says_so_and_takes_more_when_it_has_room(host: Host, tmp_path: Path) -> None:
    """No daemon, a ring that may not grow, and a disk with no room: now something must go, and it is counted."""
    host.extra["TRACKIO_SPOOL_MIB"] = "1"
    with small_device(tmp_path / "small", "12m") as device:
        host.data = device / "data"
        host.data.mkdir()
        filler = fill(device)
        process = start(host, 60_000, 100)
        assert process.stdout.readline() == "logged\n"
        filler.unlink()
        host.start()
        all_is_there(host, process, 60_000)
        refused = host.the_run("p").refused_records
        assert refused > 1000
        facts = host.cli("status")
        assert facts["runs"][0]["refused_points"] == 2 * refused
        assert host.cli("get", "run", "--project", "p", "--run", host.the_run("p").name)["refused_records"] == refused
        host.stop()


# -- what the daemon does meanwhile ---------------------------------------------------------------------------------


class Sender:
    """A stream of this process that sends its window again and again, faster than a real one does."""

    def __init__(self, host: Host, number: int, project: str = "p") -> None:
        endpoint = read_endpoint(host.places.endpoint)
        assert endpoint is not None
        self.link = Link(endpoint.socket)
        self.id = f"{number:012x}"
        self.meta = {
            "project": project, "run": "r", "name": "r", "role": "rank", "attempt": "0", "rank": number,
            "local_rank": 0, "world_size": 64, "started_ns": time.time_ns(),
        }  # fmt: skip
        self.bodies: list[bytes] = []
        self.offsets = [0]
        self.said: list[Any] = []

    def log(self, value: int, size: int) -> None:
        """One batch of one call, with a text of this size."""
        self.bodies.append(record.encode(self.offsets[-1], record.pack(Kind.LOG, 10**18, value, 0, {"i": "x" * size})))
        self.offsets.append(self.offsets[-1] + len(self.bodies[-1]))

    def turn(self) -> None:
        self.link.flush()
        self.said += self.link.receive()

    def hello(self) -> None:
        self._send(wire.Hello(self.id, self.meta))

    def send(self, batch: int) -> None:
        start, end = self.offsets[batch], self.offsets[batch + 1]
        self._send(wire.Data(self.id, start, end, 0, [0, 0], self.bodies[batch]))

    def _send(self, message: wire.Message) -> None:
        self._until_clear()
        self.link.send(message)
        self._until_clear()

    def _until_clear(self) -> None:
        deadline = time.monotonic() + 20 * PATIENCE
        while self.turn() or not self.link.is_clear:
            assert time.monotonic() < deadline
            self.link.wait(0.05)

    def heard(self, kind: type) -> list[Any]:
        self.turn()
        return [message for message in self.said if isinstance(message, kind)]


def memory_mib(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("VmRSS"))


def test_while_commits_fail_the_daemon_holds_nothing_and_senders_are_asked_to_go_on(host: Host, tmp_path: Path) -> None:
    """16 ranks send 4 MiB each, three times. Nothing is acked meanwhile, not even an old offset to a heartbeat."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    pid = host.start()
    senders = [Sender(host, number) for number in range(16)]
    for sender in senders:
        sender.hello()
        for value in range(4):
            sender.log(value, 1 << 20)
    for sender in senders:
        wait_for(lambda sender=sender: sender.heard(wire.Welcome), what="WELCOME")
    before = memory_mib(pid)
    with failing.fail("write", errno.ENOSPC, path="/projects/", process="trackiod run"):
        senders[0].send(0)
        wait_for(lambda: "ENOSPC" in host.status().daemon["problem"], what="a full disk")
        for _ in range(3):
            for sender in senders:
                for batch in range(4):
                    sender.send(batch)
        for sender in senders:
            sender._send(wire.Heartbeat(sender.id, sender.offsets[-1], [0, 0]))
        host.status()
        assert memory_mib(pid) < before + 24
        assert not any(sender.heard(wire.Ack) for sender in senders)
        assert "project 'p' cannot be " in host.status().daemon["problem"]
    for sender in senders:
        wait_for(lambda sender=sender: sender.heard(wire.Ack), what="to be asked to go on")
        assert sender.said[-1].committed in sender.offsets[:2]
        for batch in range(4):
            sender.send(batch)
    for sender in senders:
        end = wire.Ack(sender.id, sender.offsets[-1])
        wait_for(lambda sender=sender, end=end: end in sender.heard(wire.Ack), what="the last ack")
        sender.link.close()
    assert host.status().daemon["problem"] == ""
    assert Path(host.places.log).read_text().count("cannot be written") == 1


def test_a_disk_that_hangs_bounds_what_the_daemon_holds(host: Host, tmp_path: Path) -> None:
    """40 ranks send 4 MiB each while an fsync does not come back: 64 MiB of these are held."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    pid = host.start()
    senders = [Sender(host, number) for number in range(40)]
    for sender in senders:
        sender.hello()
        for value in range(4):
            sender.log(value, 1 << 20)
    for sender in senders:
        wait_for(lambda sender=sender: sender.heard(wire.Welcome), what="WELCOME")
    before = memory_mib(pid)
    with failing.hang("fsync", 600, path="/projects/", process="trackiod run") as rule:
        senders[0].send(0)
        wait_for(lambda: rule.hits, what="a hanging disk")
        for sender in senders:
            for batch in range(4):
                sender.send(batch)
        host.status()
        assert 40 < memory_mib(pid) - before < 110
    done: set[str] = set()

    def all_is_acked() -> bool:
        for sender in senders:
            if wire.Ack(sender.id, sender.offsets[-1]) in sender.heard(wire.Ack):
                done.add(sender.id)
            elif any(ack.rewind for ack in sender.said if isinstance(ack, wire.Ack)):
                sender.said.clear()
                for batch in range(4):
                    sender.send(batch)
        return len(done) == len(senders)

    wait_for(all_is_acked, 40, "the last acks")
    for sender in senders:
        sender.link.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
def test_a_store_that_cannot_be_written_is_named_with_path_and_errno_and_others_go_on(
    host: Host, tmp_path: Path, error: int
) -> None:
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    host.start()
    bad, good = Sender(host, 1, "bad"), Sender(host, 2, "good")
    for sender in (bad, good):
        sender.hello()
        sender.log(1, 10)
        wait_for(lambda sender=sender: sender.heard(wire.Welcome), what="WELCOME")
    path = Path(schema.path_of(host.places.projects, "bad"))
    rules = [failing.fail("write", error, path=name, process="trackiod run") for name in (path.name, "/projects/#")]
    bad.send(0)
    wait_for(lambda: "'bad'" in host.status().daemon["problem"], what="the sentence")
    problem = host.status().daemon["problem"]
    assert str(path) in problem and errno.errorcode[error] in problem, problem
    good.send(0)
    wait_for(lambda: good.heard(wire.Ack), what="the other project")
    assert rules[0].hits and not bad.heard(wire.Ack)
    failing.heal()
    wait_for(lambda: wire.Ack(bad.id, bad.offsets[-1]) in bad.heard(wire.Ack), what="the ack")
    for sender in (bad, good):
        sender.link.close()


# -- starting ---------------------------------------------------------------------------------------------------------


def test_a_daemon_that_starts_on_a_full_disk_says_so_in_a_sentence_and_starts_when_there_is_room(
    host: Host, tmp_path: Path
) -> None:
    with small_device(tmp_path / "small", "1m") as device:
        host.data = device / "data"
        filler = fill(device)
        done = host.command("trackiod", "start")
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "No space left on device" in done.stderr and str(device) in done.stderr
        filler.unlink()
        assert host.command("trackiod", "start").returncode == 0
        host.stop()


@pytest.mark.parametrize(
    ("call", "name", "error"),
    [("open", "lock", errno.EROFS), ("open", "store.id", errno.EIO), ("write", "store.id", errno.ENOSPC),
     ("open", "endpoint", errno.ENOSPC), ("write", "endpoint", errno.EDQUOT), ("mkdir", "projects", errno.ENOSPC),
     ("open", "log", errno.ENOSPC)],
)  # fmt: skip
def test_a_daemon_that_cannot_make_a_file_says_so_or_does_without(
    host: Host, tmp_path: Path, call: str, name: str, error: int
) -> None:
    failing = Failing(tmp_path / "failing")
    paths = {"log": host.places.log, "lock": host.places.lock, "endpoint": host.places.endpoint}
    path = paths.get(name, f"{host.data}/{name}")
    with failing.fail(call, error, path=path, process="trackiod run") as rule:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trackiod", "run", "--detach"], env=host.environ(**failing.environ),
            capture_output=True, text=True, timeout=60 * PATIENCE,
        )  # fmt: skip
        assert rule.hits
        if name == "log":
            assert done.returncode == 0 and host.status(), "it does without"
        else:
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
            assert os.strerror(error) in done.stderr and str(host.data) in done.stderr
    assert host.start() and "Traceback" not in done.stderr


def test_a_project_that_cannot_be_opened_at_start_is_taken_up_later(host: Host, tmp_path: Path) -> None:
    """Its process is gone, and what it left, too: only the store knows that a run is open."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    pid = host.start()
    process = host.python("import sys, trackio\ntrackio.init(project='p')\ntrackio.log({'a': 1})\nsys.stdin.read()",
                          stdin=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: host.runs("p") and host.the_run("p").records, what="the record")
    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    subprocess.run(["rm", "-rf", *host.places.roots, str(Path(host.places.live) / "spill")], check=True)
    with failing.fail("open", errno.EMFILE, path="/projects/", process="trackiod run") as rule:
        host.start()
        wait_for(lambda: rule.hits >= 2, what="another look")
    assert host.ended_run("p").state.state == "lost" and host.status().daemon["problem"] == ""
    assert not list(Path(host.places.projects).glob("*damaged*"))
