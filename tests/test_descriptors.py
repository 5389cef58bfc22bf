"""Scripts that close all descriptors, or take their numbers: theirs stay whole, and nothing logged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Host, shown

TAKE_OVER = """
import atexit, os, socket, sys, time, trackio
atexit.register(lambda: at_the_very_end())
run = trackio.init(project="p")
for i in range(200): trackio.log({"i": i})
time.sleep(0.7)
HOW
mine, pairs = [], []
if len(held) < 40: held += [0] * (40 - len(held))
for n in range(len(held) // 4):
    mine.append(open(os.path.join(sys.argv[1], f"mine{n}"), "w+"))
    pairs.append(socket.socketpair())
    mine.append(open(os.path.join(sys.argv[1], f"other{n}"), "w+"))
for i in range(200, 400):
    trackio.log({"i": i})
    if i % 20 == 0: time.sleep(0.1)
time.sleep(0.7)
for n, (a, b) in enumerate(pairs):
    a.sendall(b"hello")
    assert b.recv(100) == b"hello", n
for file in mine: file.write("mine"); file.flush(); assert os.fstat(file.fileno())
def at_the_very_end():
    for file in mine: file.write("!"); file.flush()
    for pair in pairs:
        for one, other in (pair, pair[::-1]):
            one.sendall(b"bye")
            assert other.recv(1000) == b"bye"
    print("whole")
"""
HOWS = {
    "closerange": "held = os.listdir('/proc/self/fd'); os.closerange(3, 4096)",
    "one by one": "held = os.listdir('/proc/self/fd')\nfor n in held:\n  try: int(n) < 3 or os.close(int(n))\n"
    "  except OSError: pass",
    "dup2": "null = os.open(os.devnull, os.O_RDWR)\nheld = [int(n) for n in os.listdir('/proc/self/fd')]\n"
    "for n in held:\n  if n > 2 and n != null: os.dup2(null, n)",
}


@pytest.mark.parametrize("how", HOWS)
def test_a_script_that_takes_all_descriptors_keeps_its_own(daemon: Host, tmp_path: Path, how: str) -> None:
    """Regular files and sockets, until the very end: also what closes with the interpreter is looked at."""
    done = daemon.run(TAKE_OVER.replace("HOW", HOWS[how]), str(tmp_path))
    assert done.returncode == 0 and done.stdout == "whole\n", done.stderr
    assert {p.read_text() for pattern in ("mine*", "other*") for p in tmp_path.glob(pattern)} == {"mine!"}
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "i")] == list(range(400))
    assert run.holes == [] and run.state.state == "finished" and "Traceback" not in done.stderr


def test_the_reserve_is_not_taken_for_what_a_script_puts_in_its_place(host: Host) -> None:
    """What is held to be given up is of an inode that no script has: /dev/null is open in many."""
    done = host.run("""
import os, sys, trackio
from trackio.descriptor import reserve
trackio.init(project="p")
null = os.open(os.devnull, os.O_RDWR)
held = [int(n) for n in os.listdir("/proc/self/fd") if int(n) > 2]
for n in held: os.dup2(null, n)
while reserve.give_up(): pass
for n in held: os.fstat(n)
print("whole", flush=True)
os._exit(0)
""")
    assert done.stdout == "whole\n", done.stderr


def test_a_process_without_standard_streams_prints_into_nothing_of_ours(daemon: Host) -> None:
    """Where 0 to 2 are closed, the next files that are opened get these numbers."""
    done = daemon.run("""
import os, time
os.closerange(0, 3)
import trackio
trackio.init(project="p")
for i in range(300): trackio.log({"i": i})
time.sleep(0.7)
links = [os.readlink(f"/proc/self/fd/{n}") for n in range(3) if os.path.lexists(f"/proc/self/fd/{n}")]
held = [link for link in links if "/streams/" in link or "socket" in link]
for n in range(3):
    try: os.write(n, b"x" * 100)
    except OSError: pass
os._exit(10 + len(held))
""")
    assert done.returncode == 10
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "i")] == list(range(300)) and run.holes == []


def test_whoever_reads_the_owner_file_does_not_end_the_run(daemon: Host) -> None:
    """Closing any descriptor of a file drops the record locks that the process has on it."""
    done = daemon.run(
        """
import pathlib, sys, time, trackio
trackio.init(project="p")
trackio.log({"i": 0})
time.sleep(0.6)
for path in pathlib.Path(sys.argv[1]).rglob("owner"): path.read_bytes()
time.sleep(4)
trackio.log({"i": 1})
""",
        str(daemon.spool),
    )
    assert done.returncode == 0 and "removed by" not in done.stderr, done.stderr
    run = daemon.ended_run("p")
    assert [p.value for p in shown(run, "i")] == [0, 1] and run.state.state == "finished"
    assert "ended: nobody" not in (daemon.data / "trackiod.log").read_text()
