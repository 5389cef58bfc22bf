"""The bytes that are kept or sent, as the first release wrote them: what fails here breaks other releases.

A format may only grow at its end. Where a test here has to change, the old bytes stay and must be read on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgpack
import pytest
from conftest import Host

from trackio import places, record, segment, wire
from trackio.folder import packed_meta, unpacked_meta
from trackio.places import COUNTERS, Endpoint
from trackio.record import Kind, Origin

T = 1_700_000_000_000_000_000

MESSAGES: list[tuple[wire.Message, str]] = [
    (wire.Hello("s", {"run": "r"}, 8, 16, secrets={"a": "t"}), "9701a17381a372756ea172081092010181a161a174"),
    (wire.Welcome("s", 40, "store", 1, "1.0.0", "started"), "9702a17328a573746f726501a5312e302e30a773746172746564"),
    (wire.Data("s", 0, 3, 0, [1, 2], b"abc"), "9603a173000300920102"),
    (wire.Ack("s", 8, True, 2), "9504a17308c302"),
    (wire.Heartbeat("s", 8, [0, 300]), "9405a173089200cd012c"),
    (wire.Refusal("s", "no"), "9306a173a26e6f"),
    (wire.Unknown("s"), "9207a173"),
    (wire.Find("p", "n", "a"), "9408a170a16ea161"),
    (wire.Found("p", "n", "id", 3), "9509a170a16ea2696403"),
    (wire.StatusQuery(), "910a"),
    (wire.StatusReport({"pid": 1}, [{"stream": "s"}]), "930b81a3706964019181a673747265616da173"),
    (wire.Stop("why"), "920ca3776879"),
    (wire.Stopping(1), "920d01"),
    (wire.Edit("p", "rename", "r", "n"), "950ea170a672656e616d65a172a16e"),
    (wire.Edited(False, "no"), "930fc2a26e6f"),
    (wire.SamplerQuery("s", {"hidden": 1}), "9310a17381a668696464656e01"),
    (wire.SamplerOrders({"leave": False}), "921181a56c65617665c2"),
    (wire.HostSampler("s"), "9212a173"),
    (wire.Copy(), "9113"),
    (wire.Sync("p", {"url": "u"}, {}, True), "9514a17081a375726ca17580c3"),
    (wire.Protect("s", [0, 7]), "9315a173920007"),
    (wire.Protected("s", [7]), "9316a1739107"),
    (wire.SetAside("s"), "9217a173"),
]


@pytest.mark.parametrize(("message", "golden"), MESSAGES, ids=[type(m).__name__ for m, _ in MESSAGES])
def test_a_message_has_the_bytes_of_version_1(message: wire.Message, golden: str) -> None:
    frames = [bytes(frame) for frame in wire.encode(message)]
    assert frames[0].hex() == golden
    assert wire.decode([bytes.fromhex(golden), *frames[1:]]) == message


def test_a_message_without_the_fields_that_came_later_is_understood() -> None:
    assert wire.decode([bytes.fromhex("9601a17381a372756ea1720810920101")]) == wire.Hello("s", {"run": "r"}, 8, 16)


def test_every_message_has_its_bytes_here() -> None:
    assert {type(message) for message, _ in MESSAGES} == set(wire._TYPES.values())


VALUES = {"loss": 0.5, "n": -3, "big": 1 << 63, "ok": True, "t": "é", "l": [1, 2.5], "nan": math.nan}
RECORDS: list[tuple[Kind, tuple[Any, ...], str]] = [
    (Kind.LOG, (7, int(Origin.METRIC), VALUES),
     "9500cf17979cfe362a0000070187a46c6f7373cb3fe0000000000000a16efda3626967cf8000000000000000a26f6bc3a174a2c3a9a16c9201"
     "cb4004000000000000a36e616ecb7ff8000000000000"),
    (Kind.CONFIG, ({"lr": 0.1, "layers": [1, 2]},),
     "9301cf17979cfe362a000082a26c72cb3fb999999999999aa66c6179657273920102"),
    (Kind.DEFINE, ("train/*", {"reduce": "sum"}), "9402cf17979cfe362a0000a7747261696e2f2a81a6726564756365a373756d"),
    (Kind.FINISH, ("failed", "ValueError", True), "9503cf17979cfe362a0000a66661696c6564aa56616c75654572726f72c3"),
    (Kind.CLOCK, (12345,), "9304cf17979cfe362a0000cd3039"),
    (Kind.SUMMARY, ({"best": 0.5},), "9305cf17979cfe362a000081a462657374cb3fe0000000000000"),
    (Kind.FILE, (3, {"size": 9, "suffix": ".png", "encode": "image"}),
     "9406cf17979cfe362a00000383a473697a6509a6737566666978a42e706e67a6656e636f6465a5696d616765"),
    (Kind.ALERT, ({"level": "warn", "title": "t", "text": None, "step": 4, "webhook": None},),
     "9307cf17979cfe362a000085a56c6576656ca47761726ea57469746c65a174a474657874c0a47374657004a7776562686f6f6bc0"),
    (Kind.ARTIFACT, (0, "output", "m", {"files": 1}), "960acf17979cfe362a000000a66f7574707574a16d81a566696c657301"),
    (Kind.NAME, ("new",), "9308cf17979cfe362a0000a36e6577"),
    (Kind.SYSTEM, ({"fan": 0.5},), "9309cf17979cfe362a000081a366616ecb3fe0000000000000"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "golden"), RECORDS, ids=[kind.name for kind, _, _ in RECORDS])
def test_a_record_has_the_bytes_of_version_1(kind: Kind, fields: tuple[Any, ...], golden: str) -> None:
    assert record.pack(kind, T, *fields).hex() == golden
    assert repr(record.unpack(bytes.fromhex(golden))) == repr([int(kind), T, *fields])


def test_every_kind_of_record_has_its_bytes_here_and_keeps_its_number() -> None:
    assert {kind for kind, _, _ in RECORDS} == set(Kind)
    assert {o.name: o.value for o in Origin} == {"EXPLICIT": 0, "METRIC": 1, "COUNTER": 2}


def test_a_framed_record_has_the_bytes_of_version_1() -> None:
    golden = "41000000000000001c00000092d29a359500cf17979cfe362a0000070181a46c6f7373cb3fe000000000000000000000"
    assert record.encode(64, record.pack(Kind.LOG, T, 7, 1, {"loss": 0.5})).hex() == golden


def test_an_endpoint_has_the_text_of_version_1() -> None:
    endpoint = Endpoint("/run/user/1000/trackiod.sock", 7, T, "boot", "store", "1.0.0", "1:2")
    golden = "socket /run/user/1000/trackiod.sock\npid 7\nstarted_ns 1700000000000000000\nboot_id boot\nstore store\n"
    assert endpoint.to_text() == f"{golden}version 1.0.0\nfolder 1:2\n"


def test_an_endpoint_of_the_future_is_read_and_one_without_a_folder_too(host: Host) -> None:
    path = host.data / "endpoint"
    path.write_text("socket /s\npid 7\nstarted_ns 8\nboot_id b\nstore s\nversion 1\nmore of it\n")
    assert places.read_endpoint(str(path)) == Endpoint("/s", 7, 8, "b", "s", "1")


META = {
    "format": 1, "stream": "00112233aabbccdd", "client": "1.0.0", "pid": 7, "host": "h", "boot_id": "b",
    "started_ns": T, "monotonic_ns": 5, "project": "p", "run": "run-1", "name": "old", "named": True, "group": None,
    "resume": "never", "role": "rank", "rank": 0, "local_rank": 0, "world_size": 1, "launcher": "none", "attempt": "a",
    "interactive": False, "data": "",
}  # fmt: skip


def leave(parent: str, base: int, data: bytes) -> None:
    """A stream's folder as a dead process leaves it: its facts, its counters, one segment."""
    path = f"{parent}/{META['stream']}"
    places.make_private(path)
    Path(path, places.STREAM_META).write_bytes(msgpack.packb(META))  # the first release wrote no checksum
    header = bytes.fromhex("74726b7365670001") + base.to_bytes(8, "little") + bytes(48)
    Path(path, "seg-000001").write_bytes(header + data)
    Path(path, COUNTERS).write_bytes((2).to_bytes(8, "little") + (3).to_bytes(8, "little") + bytes(4080))


def test_what_the_first_release_left_behind_is_stored(host: Host) -> None:
    """A stream's folder made of the bytes above: one segment in the spool, its successor on disk."""
    data, borders = b"", [0]
    for _, _, golden in RECORDS:
        data += record.encode(len(data), bytes.fromhex(golden))
        borders.append(len(data))
    leave(host.places.stream_folders[0], 0, data[: borders[2]])
    leave(host.places.spill, borders[2], data[borders[2] :])
    host.start()
    run = host.ended_run("p")
    assert (run.id, run.name, run.state) == ("run-1", "new", ("failed", "ValueError"))
    assert run.config() == {"lr": 0.1, "layers": [1, 2]} and run.holes == []
    assert host.values("p", "loss") == [0.5] and host.values("p", "t") == ["é"]
    assert (run.records, run.refused_records, run.refused_points) == (1, 2, 3)


def test_the_facts_of_a_stream_have_the_bytes_of_version_1_and_a_checksum() -> None:
    golden = bytes.fromhex("83a372756ea172a472616e6b00a3637263ce")
    packed = packed_meta({"run": "r", "rank": 0})
    assert packed[:-4] == golden and unpacked_meta(packed) == {"run": "r", "rank": 0}
    assert packed[-4:].hex() == "6466940c", "the checksum of what is before its name"


def test_a_segments_name_and_marks_are_those_of_version_1() -> None:
    assert (segment.PREFIX, segment.MAGIC.hex(), segment.HEADER_BYTES) == ("seg-", "74726b7365670001", 64)
    assert (places.STREAM_META, places.OWNER, places.COUNTERS) == ("stream.meta", "owner", "counters")
    assert (wire.VERSION, wire.OLDEST_VERSION) == (1, 1)
