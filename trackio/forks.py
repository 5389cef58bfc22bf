"""Noticing that this process is a forked child, also where C forked, of which Python and its hooks know nothing.

The kernel wipes one page in every forked child: whoever finds it empty is one. The look at it costs no system call.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

_MADV_WIPEONFORK = 18
_PAGE_BYTES = 4096


def _page() -> tuple[memoryview, bool]:
    """A page, and whether it is empty in forked children: kernels before 4.14 and other systems do not wipe it."""
    page = mmap.mmap(-1, _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        return memoryview(page), False
    return memoryview(page), True


mark, _is_wiped = _page()
"""its first byte is 0 in a forked child that has not noticed yet"""
mark[0] = 1
_on_child: list[Callable[[], None]] = []


def call_in_child(act: Callable[[], None]) -> None:
    """What a child that notices does first: it lets go of its parent's streams."""
    _on_child[:] = [act]


def notice() -> bool:
    """Whether this is a forked child that had not noticed; it has then."""
    if mark[0]:
        return False
    _renew()
    return True


def after_python_forked() -> None:
    """Python's hook in the child: some other hook may have logged, and noticed, before."""
    if _is_wiped:
        notice()
    else:
        _renew()


def _renew() -> None:
    for act in _on_child:
        act()
    mark[0] = 1
