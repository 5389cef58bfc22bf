"""The daemon's threads: none is started later, none ends unnoticed, and no alert, file or limit ends one."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, database, wait_for
from failing import Failing

from trackiod import sending
from trackiod.errors import CannotStart
from trackiod.store import schema
from trackiod.threads import Threads

HEAD = "import trackio\nrun = trackio.init(project='p', name='r')\n"


def alerts(host: Host) -> dict[str, Any]:
    """The alerts of the project by title: how it stands with their webhooks."""
    return {a["title"]: a["webhook"] for a in host.cli("list", "alerts", "--project", "p")["alerts"]}


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that gives each connection to `answer`, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

    def guarded(connection: socket.socket) -> None:
        with suppress(OSError):
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            connection.close()
        thread.join()


def says(text: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(text)
        connection.close()

    return answer


def drip(connection: socket.socket) -> None:
    """A header without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    end = threading.Event()
    while not end.wait(0.5):
        connection.sendall(b"x")


ODD_ADDRESSES = [
    "http://[::1", " ", "http://", "http://:80", "http://127.0.0.1:99999", "http://127.0.0.1:x/", "http://a b/",
    "http://h\u00f6st.invalid\u2024/", "http://a\x01b/", "http://" + "a" * 70 + ".invalid/", "https://127.0.0.1:0/",
    "file:///etc/passwd", "x",
]  # fmt: skip


def test_an_address_or_a_server_may_be_anything_and_ends_its_own_alert_only(daemon: Host) -> None:
    """Also after a restart, when everything that is not sent yet is taken up again."""
    with (
        answering(says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as ssh,
        answering(says(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n")) as many,
        answering(says(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000)) as long,
        answering(says(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n")) as away,
        answering(says(b"")) as silent,
        answering(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as good,
    ):
        odd = [*ODD_ADDRESSES, ssh, many, long, away, silent]
        done = daemon.run(HEAD + f"""
for i, address in enumerate({odd!r}):
    trackio.alert(f"odd {{i}}", webhook_url=address)
trackio.alert("good", webhook_url={good!r})
""")  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        wait_for(lambda: alerts(daemon).get("good") == "sent", what="the good one")
        final = {f"odd {i}" for i in range(len(ODD_ADDRESSES))} | {f"odd {odd.index(away)}"}
        wait_for(lambda: all(str(alerts(daemon)[title]).startswith("not sent: ") for title in final), what="the ends")
        assert [alerts(daemon)[f"odd {odd.index(url)}"] for url in (ssh, many, long, silent)] == ["not sent yet"] * 4
        daemon.stop()
        daemon.start()
        daemon.run(HEAD + f"trackio.alert('later', webhook_url={good!r})")
        wait_for(lambda: alerts(daemon).get("later") == "sent", what="one after a restart")
        log = daemon.places.log
        assert "Traceback" not in Path(log).read_text() and daemon.status().daemon["problem"] == ""
        assert "does not speak HTTP" in Path(log).read_text()


def test_a_stored_row_may_be_anything_and_ends_its_own_alert_only(daemon: Host) -> None:
    with answering(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as good:
        daemon.run(HEAD + f"[trackio.alert(str(i), webhook_url={good!r}) for i in range(4)]")
        daemon.ended_run("p")
        wait_for(lambda: set(alerts(daemon).values()) == {"sent"}, what="all alerts")
        daemon.stop()
        with database(schema.path_of(daemon.places.projects, "p")) as connection:
            connection.execute("UPDATE alerts SET webhook = x'00ff', sent = NULL WHERE title = '0'")
            connection.execute("UPDATE alerts SET webhook = 7, sent = NULL WHERE title = '1'")
            connection.execute("UPDATE alerts SET webhook = ?, level = x'ff', sent = NULL WHERE title = '2'", (good,))
            connection.execute("UPDATE alerts SET webhook = ?, sent = NULL WHERE title = '3'", (good,))
        daemon.start()

        def all_sent() -> dict[str, Any]:
            with database(schema.path_of(daemon.places.projects, "p")) as connection:
                found = dict(connection.execute("SELECT title, sent FROM alerts"))
            return {} if None in found.values() else found

        sent = wait_for(all_sent, what="the end of all")
        assert sent["3"] == "sent" and sent["0"].startswith("not sent") and sent["1"].startswith("not sent"), sent
        assert daemon.status().daemon["problem"] == ""


def test_a_server_that_drips_holds_others_up_once_only(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation on its socket comes in time, and the answer never. Three alerts for it wait together."""
    monkeypatch.setattr(sending, "SECONDS", 2.0)
    done: dict[str, str] = {}
    sender = sending.Sending(host.places, lambda errand, work: done.__setitem__(str(errand.facts["title"]), work.sent))
    failures: list[str] = []
    thread = Threads(failures.append).start("send", sender.run)
    with answering(drip) as slow, answering(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as good:
        for i, url in enumerate([slow, slow, slow, good, good]):
            facts = {"start": i, "time_ns": 1 << 62, "step": None, "level": "warn", "title": str(i), "text": None,
                     "webhook": url, "run_id": "r", "run": "r"}  # fmt: skip
            sender.take(sending.ToSend("p", "s", facts))
        wait_for(lambda: done == {"3": "sent", "4": "sent"}, what="the others")
        with sender._wake:
            assert sorted((w.tries, w.errand.facts["title"]) for w in sender._waiting) == [(0, "1"), (0, "2"), (1, "0")]
        sender.stop()
        thread.join(20 * PATIENCE)
    assert not thread.is_alive()


def test_pauses_grow_and_are_bounded() -> None:
    assert [sending.pause_after(tries) for tries in (0, 1, 2, 6, 7, 10_000)] == [5, 10, 20, 320, 600, 600]


# -- threads themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["returns", "raises"])
def test_a_thread_that_ends_too_early_is_said(why: str) -> None:
    failures: list[str] = []

    def run() -> None:
        if why == "raises":
            raise ZeroDivisionError

    Threads(failures.append).start("commit", run).join()
    (sentence,) = failures
    assert "commit thread" in sentence and ("ZeroDivisionError" in sentence) == (why == "raises")


def test_a_thread_that_ends_with_the_daemon_is_not() -> None:
    failures: list[str] = []
    end = threading.Event()
    threads = Threads(failures.append)

    def wait() -> None:
        end.wait()

    thread = threads.start("commit", wait)
    threads.stop()
    end.set()
    thread.join()
    assert failures == []


def test_all_threads_of_a_daemon_are_there_when_it_is_ready_and_none_is_started_later(
    host: Host, tmp_path: Path
) -> None:
    """From READY on no thread can be started, as at the user's process limit: files are kept and alerts sent."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    pid = host.start()
    threads = sorted(os.listdir(f"/proc/{pid}/task"))
    with (
        answering(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as good,
        failing.fail("thread", errno.EAGAIN, process="trackiod run") as rule,
    ):
        (tmp_path / "x").write_text("x")
        host.run(HEAD + f"trackio.alert('a', webhook_url={good!r})\nrun.log_artifact('{tmp_path}/x', name='x')")
        host.ended_run("p")
        wait_for(lambda: alerts(host).get("a") == "sent" and not host.status().daemon["errands"], what="both errands")
        assert rule.hits == 0
    assert sorted(os.listdir(f"/proc/{pid}/task")) == threads and host.status().daemon["pid"] == pid


def test_a_daemon_that_can_start_no_child_tries_again(host: Host, tmp_path: Path) -> None:
    """EAGAIN at fork: an ordinary failure, and everything is done once processes can be started."""
    failing = Failing(tmp_path / "failing")
    host.extra |= {**failing.environ, "TRACKIO_SAMPLING": "1"}
    pid = host.start()
    with answering(says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as good:
        with failing.fail("fork", errno.EAGAIN, process="trackiod run") as rule:
            host.run(HEAD + f"trackio.alert('a', webhook_url={good!r})\ntrackio.log({{'x': 1}})")
            host.ended_run("p")
            wait_for(lambda: rule.hits, what="a failing fork")
            assert alerts(host) == {"a": "not sent yet"} and host.values("p", "x") == [1]
        wait_for(lambda: alerts(host) == {"a": "sent"}, what="the alert")
    assert host.status().daemon["pid"] == pid and host.status().daemon["problem"] == ""


@pytest.mark.parametrize("after", range(5))
def test_a_daemon_that_can_start_no_thread_says_so_and_the_next_start_works(
    host: Host, tmp_path: Path, after: int
) -> None:
    failing = Failing(tmp_path / "failing")
    command = [sys.executable, "-m", "trackiod", "run", "--detach"]
    with failing.fail("thread", errno.EAGAIN, process="trackiod run", after=after):
        done = subprocess.run(command, env=host.environ(**failing.environ), capture_output=True, text=True)
    assert done.returncode == 1 and "process limit is reached" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + Path(host.places.log).read_text()
    assert host.start()


def test_a_thread_that_cannot_be_started_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(CannotStart, match="process limit is reached"):
        Threads(print).check_room(1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user with a process limit")
def test_a_daemon_at_the_real_process_limit_starts_whole_or_not_at_all(host: Host) -> None:
    """Of another user, since root is exempt; so low that it has its main thread and no other."""
    for folder in (host.data, host.spool):
        os.chown(folder, 65534, 65534)
    for parent in host.data.parents:
        if parent == Path("/"):
            break
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    code = """
import os, resource, sys
import zmq
from trackiod import committer, daemon, errands, outlets, sampling, server  # where that user may not read them
os.setgroups([]); os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
from trackiod import daemon
sys.exit(daemon.run())
"""
    done = host.run(code, env={"HOME": "/nonexistent"})
    assert done.returncode == 1 and "process limit" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and done.returncode != -signal.SIGABRT
