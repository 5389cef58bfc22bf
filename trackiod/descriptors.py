"""Who gets a descriptor where few are left. The system gives the lowest number that is free, so a high number of a new
one says that few are.

What is kept free is for databases, children and folders that are read, without which nothing is stored at all, and for
connections that libzmq accepts before it can be stopped.
"""

from __future__ import annotations

import errno
import os
import resource

FOR_CONNECTIONS = 0
"""Beyond the reserve: one more connection may be accepted."""
TO_LET_IN_AGAIN = 4
FOR_STREAMS = 8
"""When a stream is taken on: answers to `status` and the like need connections, too."""
FOR_COMFORT = 16
"""For what a stream does without: its segments, which are held against an epilog, and its exit code."""
_MIN_RESERVE, _MAX_RESERVE = 24, 128
_AMPLE = 512


def reserve_of(limit: int) -> int:
    """Return how many descriptors of `limit` are kept free."""
    return max(_MIN_RESERVE, min(3 * limit // 8, _MAX_RESERVE))


def is_short(number: int, more: int) -> bool:
    """Whether a new descriptor of this number leaves less than the reserve and `more` free."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and number >= limit - reserve_of(limit) - more


def are_short(more: int) -> bool:
    """Whether less than the reserve and `more` is free now."""
    try:
        number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    os.close(number)
    return is_short(number, more)


def are_ample() -> bool:
    """Whether so many are free that no burst of connections can use them up."""
    return not are_short(_AMPLE)


def unless_short(number: int, more: int) -> int:
    """Return a new descriptor, or close it and return -1 where it leaves less than the reserve and `more` free."""
    if number >= 0 and is_short(number, more):
        os.close(number)
        return -1
    return number
