"""Messages: round trip, evolution, and frames from strangers."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackio import wire

MESSAGES = [
    wire.Hello("s", {"run": "r"}, 8, 16),
    wire.Welcome("s", 40, "store", 1, "1.0.0", "started"),
    wire.Data("s", 0, 3, 0, [1, 2], b"abc"),
    wire.Ack("s", 8, True),
    wire.Heartbeat("s", 8, [0, 0]),
    wire.Refusal("s", "no"),
    wire.Unknown("s"),
    wire.Find("p", "n", "a"),
    wire.Found("p", "n", "id", 3),
    wire.StatusQuery(),
    wire.StatusReport({"pid": 1}, [{"stream": "s"}]),
    wire.Stop("why"),
    wire.Stopping(1),
    wire.Edit("p", "move", "r", "q"),
    wire.Edited(False, "no"),
    wire.SamplerQuery("s", {"hidden": 1}),
    wire.SamplerOrders({"leave": False}),
    wire.HostSampler("s"),
    wire.Copy(),
    wire.Sync("p", {"url": "hf://datasets/a/b"}, {"token": "t"}, True),
    wire.Protect("s", [0, 7]),
    wire.Protected("s", []),
    wire.SetAside("s"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: wire.Message) -> None:
    read = wire.decode([bytes(frame) for frame in wire.encode(message)])
    assert read == message and type(read) is type(message)


def test_every_message_is_tried_here() -> None:
    assert {type(m) for m in MESSAGES} == set(wire._TYPES.values())


def test_fields_that_a_newer_minor_added_are_ignored() -> None:
    assert wire.decode([msgpack.packb([4, "s", 8, False, 0, "new", 1])]) == wire.Ack("s", 8)


def test_fields_that_an_older_minor_lacks_get_their_defaults() -> None:
    assert wire.decode([msgpack.packb([2, "s", 8])]) == wire.Welcome("s", 8)


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_frames_from_strangers_are_wire_errors(frames: list[bytes]) -> None:
    try:
        wire.decode(frames)
    except wire.WireError as error:
        assert str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=5)
                    | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=6)))  # fmt: skip
def test_arrays_of_wrong_types_are_wire_errors(value: object) -> None:
    try:
        message = wire.decode([msgpack.packb(value)])
    except wire.WireError as error:
        assert str(error)
    else:
        assert wire.decode([bytes(f) for f in wire.encode(message)]) == message


@pytest.mark.parametrize(("versions", "common"), [([1, 1], 1), ([1, 9], 1), ([2, 9], None), ([], None), ([0, 0], None)])
def test_the_highest_common_version_is_spoken(versions: list[int], common: int | None) -> None:
    assert wire.common_version(versions) == common
