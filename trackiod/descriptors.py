"""Who gets a descriptor where few are left. The system gives the lowest number that is free, so a high number of a new
one says that few are.

What is kept free is for databases, children and folders that are read, without which nothing is stored at all.
"""

from __future__ import annotations

import os
import resource

FOR_CONNECTIONS = 20
"""So many stay free when a connection is accepted."""
FOR_STREAMS = 28
"""When a stream is taken on: answers to `status` and the like need connections, too."""
FOR_COMFORT = 36
"""For what a stream does without: its segments, which are held against an epilog, and its exit code."""


def is_short(number: int, reserve: int) -> bool:
    """Whether a new descriptor of this number leaves less than a reserve free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and number >= limit - reserve


def are_short(reserve: int) -> bool:
    """Whether less than a reserve is free now."""
    try:
        number = os.dup(0)
    except OSError:
        return True
    os.close(number)
    return is_short(number, reserve)


def unless_short(number: int, reserve: int) -> int:
    """Return a new descriptor, or close it and return -1 where it leaves less than a reserve free."""
    if number >= 0 and is_short(number, reserve):
        os.close(number)
        return -1
    return number
