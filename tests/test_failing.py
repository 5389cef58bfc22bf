"""The rig for failing system calls: each group really fails in a real process, says so once, and heals."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PATIENCE, Host, wait_for
from failing import CALLS, Failing

_CHILD = """
import ctypes, fcntl, mmap, os, select, socket, sqlite3, subprocess, sys, tempfile, threading
folder = sys.argv[1]
path = folder + "/file"
open(path, "wb").write(b"x" * 100)
os.mkdir(folder + "/empty")
file = os.open(path, os.O_RDWR)
server = socket.socket(socket.AF_UNIX)
server.bind(folder + "/socket")
server.listen()
server.setblocking(False)

def connect():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(folder + "/socket")
    server.accept()[0].close()

def accept():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(folder + "/socket")
        server.accept()[0].close()

def start_thread():
    try:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
    except RuntimeError as error:
        raise OSError(int(sys.argv[2]), str(error))

def select_all():
    connection = sqlite3.connect(f"file:{folder}/some.db?mode=ro", uri=True)
    try:
        connection.execute("SELECT * FROM t").fetchall()
    finally:
        connection.close()

calls = {
    "open": lambda: open(path).close(),
    "read": lambda: os.pread(file, 1, 0),
    "write": lambda: os.pwrite(file, b"y", 0),
    "fsync": lambda: os.fdatasync(file),
    "stat": lambda: os.stat(path),
    "unlink": lambda: (os.makedirs(folder + "/gone", exist_ok=True), os.rmdir(folder + "/gone")),
    "rename": lambda: (os.rename(path, path + "2"), os.rename(path + "2", path)),
    "listdir": lambda: os.listdir(folder),
    "mkdir": lambda: tempfile.TemporaryDirectory(dir=folder).cleanup(),
    "link": lambda: (os.link(path, path + "3"), os.unlink(path + "3")),
    "ftruncate": lambda: os.ftruncate(file, 100),
    "fallocate": lambda: os.posix_fallocate(file, 0, 100),
    "mmap": lambda: mmap.mmap(file, 100).close(),
    "fork": lambda: subprocess.run(["/bin/true"], check=True),
    "thread": start_thread,
    "accept": accept,
    "socket": lambda: socket.socket().close(),
    "connect": connect,
    "fcntl": lambda: fcntl.fcntl(file, fcntl.F_GETFL),
    "flock": lambda: fcntl.flock(file, fcntl.LOCK_SH),
    "ioctl": lambda: fcntl.ioctl(file, 0x541B, b"0000"),
    "pipe": lambda: [os.close(end) for end in os.pipe()],
    "event": lambda: select.epoll().close(),
    "dup": lambda: os.close(os.dup(file)),
    "sendfile": lambda: os.sendfile(os.open("/dev/null", os.O_WRONLY), file, 0, 1),
    "at": lambda: os.close(os.open("file", os.O_RDONLY, dir_fd=os.open(folder, os.O_RDONLY))),
    "sqlite": select_all,
}
for line in sys.stdin:
    try:
        calls[line.strip()]()
        answer = "0"
    except OSError as error:
        answer = str(error.errno)
    except sqlite3.Error as error:
        answer = error.sqlite_errorname
    print(answer, flush=True)
"""

Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing")


@pytest.fixture(scope="module")
def failing(folder: Path) -> Failing:
    return Failing(folder)


@pytest.fixture(scope="module")
def ask(failing: Failing, folder: Path) -> Iterator[Ask]:
    """Makes a call in the child; returns its errno, or "0"."""
    files = folder / "files"
    files.mkdir()
    with (
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(files), str(errno.EIO)],
            env=os.environ | failing.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        ) as process
    ):  # fmt: skip
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def ask(name: str) -> str:
            stdin.write(name + "\n")
            return stdout.readline().strip()

        yield ask
        stdin.close()


@pytest.mark.parametrize("call", CALLS)
def test_a_call_fails_while_its_rule_holds(call: str, failing: Failing, folder: Path, ask: Ask) -> None:
    has_path = call not in ("fork", "thread", "socket", "pipe", "event")
    assert ask(call) == "0"
    with failing.fail(call, errno.EIO, path=str(folder) if has_path else "", process="-c") as rule:
        assert ask(call) == str(errno.EIO)
        assert rule.hits == (2 if call == "fork" else 1)  # after vfork, Python tries fork
        failing.heal()
        assert ask(call) == "0"


def test_a_rule_heeds_its_path_its_process_and_its_counts(failing: Failing, folder: Path, ask: Ask) -> None:
    with failing.fail("open", errno.EMFILE, path="/elsewhere"), failing.fail("open", errno.EIO, process="trackiod"):
        assert ask("open") == "0"
    with failing.fail("open", errno.EMFILE, path="/file", after=1, count=2) as first:
        with failing.fail("stat", errno.ENOMEM, path="/file"):
            assert [ask(call) for call in ("open", "open", "stat", "open", "open")] == ["0", "24", "12", "24", "0"]
        assert ask("stat") == "0"
        assert first.hits == 2


def test_names_relative_to_a_folder_and_both_ends_of_a_copy_are_known(failing: Failing, folder: Path, ask: Ask) -> None:
    with failing.fail("open", errno.ESTALE, path=f"{folder}/files/file"):
        assert ask("at") == str(errno.ESTALE)
    with failing.fail("read", errno.EIO, path="/file"):
        assert ask("sendfile") == str(errno.EIO)
    with failing.fail("write", errno.ENOSPC, path="/dev/null"):
        assert ask("sendfile") == str(errno.ENOSPC)


def test_sqlite_is_caught_too(failing: Failing, folder: Path, ask: Ask) -> None:
    connection = sqlite3.connect(folder / "files" / "some.db")
    connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    connection.close()
    assert ask("sqlite") == "0"
    with failing.fail("pread", errno.EIO, path="/some.db") as rule:
        assert ask("sqlite").startswith(("SQLITE_IOERR", "SQLITE_CORRUPT"))
        assert rule.hits
    assert ask("sqlite") == "0"


def test_a_call_hangs_until_it_is_healed(failing: Failing, folder: Path, ask: Ask) -> None:
    answers: list[str] = []
    with failing.hang("fsync", 600, path="/file") as rule:
        thread = threading.Thread(target=lambda: answers.append(ask("fsync")))
        thread.start()
        wait_for(lambda: rule.hits == 1, what="the call")
        assert not answers
    thread.join()
    assert answers == ["0"]


def test_the_daemon_and_zeromq_are_caught_too(failing: Failing, host: Host) -> None:
    host.extra |= failing.environ
    host.start()
    with failing.hang("accept", 600, process="trackiod run", count=1) as rule:
        training = host.python("import trackio; trackio.init(project='p'); trackio.log({'a': 1}); trackio.finish()")
        wait_for(lambda: rule.hits == 1, what="the call")
    assert training.wait(60) == 0
    assert host.ended_run("p").state.state == "finished"


def test_a_daemon_that_cannot_be_forked_says_so_in_a_sentence(failing: Failing, host: Host) -> None:
    host.extra |= failing.environ
    with failing.fail("fork", errno.EAGAIN, process="trackiod run") as rule:
        command = [sys.executable, "-m", "trackiod", "run", "--detach"]
        done = subprocess.run(command, env=host.environ(), capture_output=True, text=True, timeout=60 * PATIENCE)
        assert rule.hits
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "EAGAIN" in done.stderr, done.stderr
    assert host.start()
