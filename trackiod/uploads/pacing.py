"""When to commit to a target that allows so many commits an hour to all who share it. Pure: the time is an argument.

All hosts of a job share a repository's commits without speaking to each other: each takes its part of them. A host
has a bucket of tokens, a commit takes one, and they come back slowly; with `hosts` hosts a bucket holds 60/hosts tokens
and gets as many an hour, so that no hour has more than 120 commits of all, and 8 of the Hub's 128 are left for others.
"""

from __future__ import annotations

import random
from typing import NamedTuple

COMMITS_AN_HOUR = 120
HOUR = 3600.0
FIRST_SECONDS = 20.0
"""from the first rows to the first commit"""
EVERY_SECONDS = 300.0
_SHORTEST_PAUSE = 5.0
_LONGEST_PAUSE = 900.0


class Budget(NamedTuple):
    """A host's part of the commits, as it was at a time; it outlives the daemon."""

    tokens: float
    at: float

    def refilled(self, now: float, hosts: int) -> Budget:
        """As it is now."""
        passed = max(0.0, now - self.at)  # a clock that goes back takes nothing away
        return Budget(min(capacity(hosts), self.tokens + passed * rate(hosts)), now)

    def seconds_until(self, tokens: int, hosts: int) -> float:
        """How long until there are so many tokens, or as many as the bucket holds."""
        return max(0.0, (min(tokens, capacity(hosts)) - self.tokens) / rate(hosts))


def first_budget(now: float, hosts: int, node: int) -> Budget:
    """Of a host that never committed. Where hosts are too many for each to commit in the first hour, they begin in the
    order of their ranks."""
    if hosts <= COMMITS_AN_HOUR / 2:
        return Budget(capacity(hosts), now)
    turn = node * HOUR / (COMMITS_AN_HOUR / 2)
    return Budget(1.0 - turn * rate(hosts), now)


def capacity(hosts: int) -> float:
    """Tokens that a host's bucket holds."""
    return max(1.0, COMMITS_AN_HOUR / 2 / hosts)


def rate(hosts: int) -> float:
    """Tokens that it gets in a second."""
    return COMMITS_AN_HOUR / 2 / hosts / HOUR


def pause_after(failures: int, asked: float | None = None) -> float:
    """Seconds to wait after so many failures in a row, with full jitter; at least what the target asked for."""
    longest = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2.0 ** min(failures, 10))
    return (asked or 0.0) + random.uniform(_SHORTEST_PAUSE / 2, longest)
