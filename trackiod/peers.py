"""Who sends: only processes of our own user, and root's, are heard."""

from __future__ import annotations

import logging
import os
import socket

import zmq

from trackio import trust

log = logging.getLogger("trackiod.peers")

_MOST_KNOWN = 10_000


class Peers:
    """The connections that were looked at."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def pid_of(self, peer: bytes, frame: zmq.Frame) -> int | None:
        """The pid at the other end of a connection, by its identity and a frame that came from it; None if it is
        another user's process that is not root's, or gone."""
        if peer in self._known:
            return self._known[peer]
        try:
            # a copy of the descriptor: libzmq owns the original
            with socket.socket(fileno=os.dup(frame.get(zmq.SRCFD))) as connection:
                pid, uid = trust.peer_of(connection)
        except (OSError, zmq.ZMQError, KeyError):
            return None
        if not trust.is_trusted(uid):
            log.warning("a message from uid %d (pid %d) was refused", uid, pid)
            return None
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        self._known[peer] = pid
        return pid
