"""Our DEALER against libzmq's ROUTER, over a real AF_UNIX socket; and against peers that are none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from conftest import wait_for
from hypothesis import given
from hypothesis import strategies as st

from trackio import wire, zmtp
from trackio.link import Link, LinkError


@pytest.fixture
def router(tmp_path: Path) -> Iterator[tuple[zmq.Socket[bytes], str]]:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    path = str(tmp_path / "s")
    router.bind(f"ipc://{path}")
    router.setsockopt(zmq.RCVTIMEO, 5000)
    yield router, path
    router.close()
    context.term()


def ready(path: str) -> Link:
    link = Link(path)

    def is_ready() -> bool:
        link.receive()
        link.flush()
        return link.is_clear

    wait_for(is_ready)
    return link


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 1 << 20])
def test_a_batch_of_any_size_arrives_whole(router: tuple[zmq.Socket[bytes], str], size: int) -> None:
    link = ready(router[1])
    message = wire.Data("s", 0, size, 0, [0, 0], bytes(i % 251 for i in range(size)))
    link.send(message)

    def frames() -> list[bytes] | None:
        link.flush()
        try:
            return router[0].recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    assert wire.decode(wait_for(frames)[1:]) == message
    link.close()


def test_answers_of_any_size_arrive_whole(router: tuple[zmq.Socket[bytes], str]) -> None:
    link = ready(router[1])
    link.send(wire.StatusQuery())
    peer = router[0].recv_multipart()[0]
    answers = [wire.Refusal("s", "x" * size) for size in (1, 300, 100_000)]
    for answer in answers:
        router[0].send_multipart([peer, *wire.encode(answer)])
    got: list[wire.Message] = []
    wait_for(lambda: got.extend(link.receive()) or len(got) == 3)
    assert got == answers
    link.close()


def test_a_batch_is_kept_while_the_socket_is_full(router: tuple[zmq.Socket[bytes], str]) -> None:
    link = ready(router[1])
    count = 40
    sent = 0
    received = []
    while len(received) < count:
        link.flush()
        if link.is_clear and sent < count:
            link.send(wire.Data("s", sent, sent + 1, 0, [0, 0], bytes(300_000)))
            sent += 1
        try:
            received.append(wire.decode(router[0].recv_multipart(zmq.NOBLOCK)[1:]).start)
        except zmq.Again:
            link.wait(0.01)
    assert received == list(range(count))
    link.close()


def test_a_peer_that_speaks_something_else_is_a_link_error(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    link = Link(str(tmp_path / "s"))
    peer, _ = listener.accept()
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(LinkError, match="ZMTP"):
        wait_for(link.receive)
    for each in (peer, listener, link):
        each.close()


def test_no_daemon_is_a_link_error(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="No such file"):
        Link(str(tmp_path / "none"))


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_a_protocol_error(data: bytes) -> None:
    dealer = zmtp.Dealer()
    try:
        dealer.receive(zmtp.GREETING + data)
    except zmtp.ProtocolError as error:
        assert str(error)


@given(st.lists(st.lists(st.binary(max_size=400), min_size=1, max_size=3), max_size=5), st.integers(1, 50))
def test_messages_are_read_however_they_are_cut(messages: list[list[bytes]], step: int) -> None:
    stream = zmtp.Dealer.opening() + b"".join(bytes(b) for m in messages for b in zmtp.frames(m))
    dealer = zmtp.Dealer()
    got = [m for i in range(0, len(stream), step) for m in dealer.receive(stream[i : i + step])]
    assert got == messages and dealer.ready
