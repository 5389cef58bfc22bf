"""The daemon's threads: all are started before it is ready, and one that ends too early ends the daemon.

A thread that is missing does not show: a daemon without its commit thread would go on receiving and store nothing. One
that ends leaves everything with its senders, and they start the next one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from trackiod.errors import CannotStart

log = logging.getLogger("trackiod.threads")


class Threads:
    """Starts threads and watches them until `stop`."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        """`on_failure` is called in the thread that fails, with a sentence."""
        self._on_failure = on_failure
        self._is_stopping = False

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """Start a thread that runs `run` until `stop`. Raises CannotStart."""
        return _started(name, partial(self._watched, name, run))

    def check_room(self, count: int) -> None:
        """Start so many threads at once, and end them, for libzmq: it aborts where it cannot start its own. Raises
        CannotStart."""
        end = threading.Event()
        probes: list[threading.Thread] = []
        try:
            probes.extend(_started(f"probe {number}", end.wait) for number in range(count))
        finally:
            end.set()
            for probe in probes:
                probe.join()

    def stop(self) -> None:
        """From now on threads may end."""
        self._is_stopping = True

    def _watched(self, name: str, run: Callable[[], None]) -> None:
        why = "returned"
        try:
            run()
        except BaseException as error:  # the border of a thread: the daemon ends in order
            log.exception("internal error in the %s thread", name)
            why = f"raised {type(error).__name__}"
        if not self._is_stopping:
            self._on_failure(f"The {name} thread of trackiod {why}; the daemon ends, and the next one goes on.")


def _started(name: str, run: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise CannotStart(
            f"No thread can be started ({error}): the user's process limit is reached. End processes, or raise the"
            " limit (ulimit -u). Metrics are kept until the daemon starts."
        ) from error
    return thread
