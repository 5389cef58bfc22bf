"""A hostile or broken peer: the daemon lives, its memory is bounded, who sends nonsense is told, others are served."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from conftest import PATIENCE, Host, wait_for

from trackio import record, wire, zmtp
from trackio.record import Kind

META = {"project": "hostile", "run": "r", "name": "n", "role": "rank", "attempt": "a", "rank": 0, "local_rank": 0,
        "world_size": 1, "started_ns": 1}  # fmt: skip


@contextmanager
def peer(host: Host, *, reads: bool = True) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, int(10_000 * PATIENCE))
    dealer.setsockopt(zmq.SNDTIMEO, int(60_000 * PATIENCE))
    dealer.connect(f"ipc://{host.status().daemon['socket']}")
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


def tell(dealer: zmq.Socket[bytes], message: wire.Message) -> None:
    dealer.send_multipart(wire.encode(message))


def answer_to(dealer: zmq.Socket[bytes], message: wire.Message) -> wire.Message:
    tell(dealer, message)
    return wire.decode(dealer.recv_multipart())


def body(count: int, start: int = 0) -> bytes:
    data = b""
    for i in range(count):
        data += record.encode(start + len(data), record.pack(Kind.LOG, 1 << 60, i, 0, {"a": i}))
    return data


def resident_mb(host: Host) -> float:
    with open(f"/proc/{host.status().daemon['pid']}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def serves(host: Host, pid: int) -> None:
    """The same daemon still takes what an honest process logs."""
    host.run("import trackio\ntrackio.init(project='honest')\ntrackio.log({'a': 1})")
    wait_for(lambda: host.runs("honest") and host.runs("honest")[-1].state.state == "finished")
    assert host.status().daemon["pid"] == pid
    assert resident_mb(host) < 250


@pytest.mark.parametrize("seed", range(3))
def test_random_and_mutated_frames_cost_nobody_anything(daemon: Host, seed: int) -> None:
    pid = daemon.status().daemon["pid"]
    chance = random.Random(seed)
    data = body(20)
    honest: list[list[bytes]] = [
        [bytes(frame) for frame in wire.encode(message)]
        for message in (
            wire.Hello("s", META), wire.Data("s", 0, len(data), 0, [0, 0], data), wire.Heartbeat("s", 5, [1, 2]),
            wire.Find("hostile", "n"), wire.StatusQuery(),
        )
    ]  # fmt: skip
    with peer(daemon) as dealer:
        for _ in range(3000):
            if chance.random() < 0.2:
                frames = [chance.randbytes(chance.randrange(40)) for _ in range(chance.randrange(1, 4))]
            else:
                frames = list(chance.choice(honest))
                place = chance.randrange(len(frames))
                mutated = bytearray(frames[place])
                for _ in range(chance.randrange(1, 4)):
                    mutated[chance.randrange(len(mutated))] = chance.randrange(256)
                frames[place] = bytes(mutated)
            if not asks_to_stop(frames):  # which a process of the same user may
                dealer.send_multipart(frames)
    serves(daemon, pid)


def asks_to_stop(frames: list[bytes]) -> bool:
    try:
        return isinstance(wire.decode(frames), wire.Stop)
    except wire.WireError:
        return False


def test_numbers_and_names_that_cannot_be_are_survived_and_told(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    data = body(3)
    with peer(daemon) as dealer:
        for changed in ({"rank": -1}, {"rank": (1 << 64) - 1}, {"role": "king"}, {"project": ""},
                        {"project": "x" * 5000}, {"started_ns": "now"}, {"world_size": None}):  # fmt: skip
            assert isinstance(answer_to(dealer, wire.Hello("s", {**META, **changed})), wire.Refusal), changed
        assert isinstance(answer_to(dealer, wire.Hello("s", META)), wire.Welcome)
        for start, end, oldest in ((5, 2, 0), (-8, len(data) - 8, -8), (1 << 62, (1 << 62) + len(data), 1 << 62),
                                   (0, len(data) + 1, 0)):  # fmt: skip
            answer = answer_to(dealer, wire.Data("s", start, end, oldest, [0, 0], data))
            assert isinstance(answer, wire.Ack), (start, end, answer)
        assert answer_to(dealer, wire.Data("stranger", 0, len(data), 0, [0, 0], data)) == wire.Unknown("stranger")
    serves(daemon, pid)


def test_offsets_counts_and_clocks_that_cannot_be_are_no_errors_of_ours(daemon: Host) -> None:
    """What SQLite cannot hold, or what misses, costs its own message or record."""
    pid = daemon.status().daemon["pid"]
    data, far, clocks = body(3), 1 << 63, b""
    for time in (far, -1, float("inf"), None, "now"):
        clocks += record.encode(len(data + clocks), record.pack(Kind.CLOCK, 1 << 60, time))
    with peer(daemon) as dealer:
        tell(dealer, wire.Hello("s", META))
        for start in (far - 8, far, (1 << 64) - 4096):
            tell(dealer, wire.Data("s", start, min(start + len(data), (1 << 64) - 1), start, [0, 0], data))
        for refused in ([], [1], [-1, -1], [far, (1 << 64) - 1], [1, 2, 3]):
            tell(dealer, wire.Data("s", 0, len(data), 0, refused, data))
        tell(dealer, wire.Data("s", len(data), len(data + clocks), 0, [0, 0], clocks))
        for target in ({"stop": True}, {"stop": True, "url": ["a/b"]}, {"stop": True, "url": None}):
            tell(dealer, wire.Sync("hostile", target, {}))
        for _ in range(100):
            tell(dealer, wire.Unknown("s"))
        serves(daemon, pid)
        log = (daemon.data / "trackiod.log").read_text()
        assert " ERROR " not in log and "Traceback" not in log, log[-3000:]
        assert log.count("a Unknown is not for a daemon") <= 1, "of a flood one line a second"
        (run,) = daemon.runs("hostile")
        assert (run.points, run.refused_points) == (3, far - 1)


def test_deep_nesting_is_a_dropped_message_or_a_record_set_aside(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    deep = b"\x91" * 200_000
    payload = b"\x95\x00\xcf" + struct.pack(">Q", 1 << 60) + b"\x00\x00\x81\xa1a" + deep + b"\x00"
    data = record.encode(0, payload)
    with peer(daemon) as dealer:
        dealer.send_multipart([deep])
        dealer.send_multipart([b"\x93\x01\xa1s" + b"\x81\xa1a" * 100_000])
        assert isinstance(answer_to(dealer, wire.Hello("s", META)), wire.Welcome)
        data += body(3, len(data))
        assert answer_to(dealer, wire.Data("s", 0, len(data), 0, [0, 0], data)) == wire.Ack("s", len(data))
    run = daemon.the_run("hostile")
    assert run.records == 3 and "malformed" in run.holes[0].cause
    serves(daemon, pid)


def test_giant_lengths_end_the_connection_and_take_no_memory(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    path = daemon.status().daemon["socket"]
    for flags, size in ((2, 1 << 62), (2, 1 << 40), (3, (2 << 20) + 1), (6, 1 << 50)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10 * PATIENCE)
            stranger.connect(path)
            stranger.sendall(zmtp.Dealer.opening() + bytes((flags,)) + struct.pack(">Q", size) + b"x" * 1000)
            while stranger.recv(4096):
                continue  # its greeting; then it hangs up
    serves(daemon, pid)


def test_a_million_tiny_messages_from_one_that_never_reads_leave_it_small_and_answering(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    beat = [bytes(frame) for frame in wire.encode(wire.Heartbeat("nobody", 1, [0, 0]))]
    with peer(daemon) as dealer:
        for number in range(1_000_000):
            dealer.send_multipart(beat if number % 4 else [b"\xc1"])
        with peer(daemon) as other:
            assert isinstance(answer_to(other, wire.StatusQuery()), wire.StatusReport), "others are answered meanwhile"
    wait_for(lambda: resident_mb(daemon) < 250, 30)
    logs = list(daemon.data.glob("trackiod.log*"))  # a full one is kept beside
    assert sum(map(os.path.getsize, logs)) < 100_000, "of a flood it says one line a second"
    serves(daemon, pid)


def test_a_replayed_stream_is_stored_once(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    first = body(100)
    second = body(100, len(first))
    end = len(first) + len(second)
    with peer(daemon) as dealer:
        for _ in range(3):
            assert isinstance(answer_to(dealer, wire.Hello("s", META)), wire.Welcome)
            answer_to(dealer, wire.Data("s", 0, len(first), 0, [0, 0], first))
            assert answer_to(dealer, wire.Data("s", len(first), end, 0, [0, 0], second)) == wire.Ack("s", end)
        tell(dealer, wire.Data("s", 0, end, 0, [0, 0], first + second))
        assert wire.decode(dealer.recv_multipart()) == wire.Ack("s", end)
    assert daemon.the_run("hostile").records == 200
    serves(daemon, pid)


ODD: list[Any] = [
    None, True, -1, 1 << 62, (1 << 64) - 1, 1.5, float("nan"), "", "\0", "a\0b", "x" * 70_000, b"\xff\0", [], [[]],
    [None] * 3, {}, {"a": [{}]}, {1: 2}, "../../x", "/", "relative",
]  # fmt: skip
FACTS = (
    "project run name role attempt rank local_rank world_size started_ns spool webhook target sampling group tags "
    "notes job_type weakness boot_id host cgroup hosted process resume named restarts monotonic_ns format stream pid "
    "interactive cuda_visible_devices is_first_namespace data client launcher"
).split()


def test_facts_of_any_kind_cost_their_own_stream_only(daemon: Host, tmp_path: Path) -> None:
    """Each fact of HELLO, and each field of the other messages, is once everything that it cannot be."""
    pid = daemon.status().daemon["pid"]
    data = body(2)
    for name, make in (("fifo", os.mkfifo), ("folder", os.mkdir)):
        for file in ("owner", "seg-0"):
            (tmp_path / name).mkdir(exist_ok=True)
            make(tmp_path / name / file)
    spools = [
        *(bytes(tmp_path / name) for name in ("fifo", "folder")),
        b"/dev/null",
        b"/proc/self",
        b"/tmp/\xff",
        "/" * 5000,
    ]
    hellos = [{**META, fact: value} for fact in FACTS for value in ODD]
    hellos += [{**META, "spool": spool} for spool in spools]
    hellos += [{**META, "webhook": [url, "info"]} for url in ("http://[::1", "", "\0", "x" * 30_000)]
    hellos += [{**META, "target": {"url": "hf://datasets/a/b", key: value}}
               for key in ("url", "environ", "hosts", "node", "private") for value in ODD]  # fmt: skip
    hellos += [{**META, "sampling": {key: value}} for key in ("gpu", "gpu_interval", "cpu_interval") for value in ODD]
    with peer(daemon) as dealer:
        for number, meta in enumerate(hellos):
            tell(dealer, wire.Hello(f"s{number}", meta))
            tell(dealer, wire.Data(f"s{number}", 0, len(data), 0, [0, 0], data))
        for stream in ("", ".", "..", "../../x", "/etc", "a\0b", "x" * 5000, "\n"):
            answer = wire.Refusal(stream, "trackiod cannot take this stream: its id is not one.")
            tell(dealer, wire.Hello(stream, META))
            while (said := wire.decode(dealer.recv_multipart())) != answer:
                assert isinstance(said, (wire.Welcome, wire.Ack, wire.Refusal, wire.Unknown)), said
        for value in ODD:
            tell(dealer, wire.Hello("secrets", META, secrets={"token": value, "environ": value, str(value): value}))
            tell(
                dealer,
                wire.SamplerQuery("s1", dict.fromkeys(("devices", "trouble", "hidden", "hosted", "release"), value)),
            )
            tell(dealer, wire.Sync("hostile", {"url": value, "stop": value, "environ": value}, {"token": value}))
            for text in ("", "\0", "x" * 70_000, "../x"):
                tell(dealer, wire.Find(text, text, text))
                tell(dealer, wire.Edit(text, text, text, text))
        tell(dealer, wire.Heartbeat("s1", -1, [-1, 1 << 63, 3]))
    log = (daemon.data / "trackiod.log").read_text()
    assert "could not be handled" not in log and "Traceback" not in log, log[-3000:]
    serves(daemon, pid)
    for command in (["status"], ["list", "projects"], ["list", "runs", "--project", "hostile"]):
        done = daemon.command("trackio", *command)
        assert done.returncode == 0, done.stderr
