"""Whether and when a training process starts a daemon, or asks an older one to make room for its own.

A daemon's life is nobody's duty: whoever misses one starts it. All who miss it do so at once, so the process
that asked for the change goes first, then local rank 0, then the others.
"""

from __future__ import annotations

from trackio import launch, voice
from trackio.places import Endpoint, Places
from trackio.shipping import Succession
from trackio.version import __version__
from trackio.wire import Welcome

_GRACE_SECONDS = 2.0
_AGAIN_SECONDS = 60.0
_SETTLED_SECONDS = 10.0
"""A daemon that answered this long did not fail at its start; the next one need not wait."""
_AUTOSTARTED = ("--autostarted",)


class Starter:
    """Starts daemons of one data folder; where they fail, at most one a minute. Owns the process that detaches one."""

    def __init__(self, places: Places, *, allowed: bool, goes_first: bool, now: float) -> None:
        """`goes_first`: local rank 0 starts a missing daemon at once, the others give it two seconds."""
        self._places = places
        self._allowed = allowed
        self._grace_seconds = 0.0 if goes_first else _GRACE_SECONDS
        self._succession = Succession(__version__, self._grace_seconds)
        self._is_successor = False
        self._options: tuple[str, ...] = _AUTOSTARTED
        self._start_at = now + self._grace_seconds
        self._connected_at = now
        self._pid = 0

    def on_welcome(self, daemon: Endpoint | None, welcome: Welcome, now: float) -> None:
        """A daemon took a stream and said what it is."""
        if daemon is not None and self._allowed:
            self._succession.on_welcome((daemon.pid, daemon.started_ns), welcome.release, welcome.life, now)

    def wants_room(self, now: float) -> bool:
        """Whether to ask the daemon to leave now. What this returns True for is done once."""
        if not self._succession.asks(now) or not launch.is_possible():
            return False
        self._is_successor = True
        self._options = _AUTOSTARTED if self._succession.life == "autostarted" else ()
        return True

    def on_connect(self, now: float) -> None:
        """Somebody answers."""
        self._connected_at = now
        self._is_successor = False

    def on_disconnect(self, now: float) -> None:
        """Nobody does any more."""
        self._succession.on_disconnect()
        miss_until = now + _GRACE_SECONDS + self._grace_seconds
        if self._is_successor:
            self._start_at = now
        elif now - self._connected_at >= _SETTLED_SECONDS:
            self._start_at = miss_until
        else:
            self._start_at = max(self._start_at, miss_until)

    def start(self, now: float) -> None:
        """Nobody answers: starts a daemon, unless one is alive or being started, or it is not our turn."""
        if not self._allowed or now < self._start_at or self._pid:
            return
        if launch.is_running(self._places):
            if not self._is_successor:
                self._start_at = now + _GRACE_SECONDS
            return
        self._start_at = now + _AGAIN_SECONDS
        options, self._options, self._is_successor = self._options, _AUTOSTARTED, False
        if not launch.is_possible():
            self._say("its own installation was removed")
            return
        try:
            self._pid = launch.spawn(self._places, *options)
        except (OSError, TypeError, ValueError) as error:
            self._say(str(error))

    def start_sampler(self) -> None:
        """The daemon cannot see the devices that this process sees, and asks for a sampler beside it."""
        if not self._pid and launch.is_possible():
            try:
                self._pid = launch.spawn_sampler(self._places)
            except (OSError, TypeError, ValueError):
                return  # it asks again

    @staticmethod
    def _say(problem: str) -> None:
        voice.warn_once(
            "no-daemon",
            f"no daemon could be started ({problem}); metrics are kept until one runs: trackiod start",
        )

    def reap(self) -> None:
        """Collects the process that detached a daemon or sampler, once it has ended. Never waits."""
        if self._pid and launch.reap(self._pid):
            self._pid = 0
