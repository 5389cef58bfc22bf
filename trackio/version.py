"""The version, the upstream release whose surface it matches, and which of two versions is the older."""

from itertools import zip_longest

__version__ = "1.0.0"
__upstream__ = "0.43"


def is_older(one: str, other: str) -> bool:
    """Whether version `one` is a release before `other`. What is no version is not older than anything;
    releases and their pre-releases count as equal, and so do 1.0 and 1.0.0."""
    ours, theirs = _numbers(one), _numbers(other)
    if not ours or not theirs:
        return False
    pairs = list(zip_longest(ours, theirs, fillvalue=0))
    return [a for a, _ in pairs] < [b for _, b in pairs]


def _numbers(version: str) -> list[int]:
    """The numbers a version begins with: [1, 2, 0] of `1.2.0rc1`."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if digits:
            numbers.append(int(digits[:9]))
        if digits != part:
            break
    return numbers
