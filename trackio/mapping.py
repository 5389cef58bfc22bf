"""Mapping a file into memory without keeping a descriptor of it.

`mmap.mmap` duplicates the descriptor and closes that number with the mapping, whatever it is of by then: a script that
closes all descriptors would lose a file of its own. Python 3.13 can do without; before, anonymous memory is mapped, and
the file over it.
"""

from __future__ import annotations

import mmap
import os
import sys

try:
    import ctypes
except ImportError:  # a Python that was built without libffi: then the mapping keeps its descriptor
    ctypes = None  # type: ignore[assignment]

_MAP_FIXED = 0x10


def map_file(fd: int, size: int) -> mmap.mmap:
    """Maps the first `size` bytes of a file, shared, for reading and writing; `fd` may be closed. Raises OSError."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, trackfd=False)
    if ctypes is None:
        return mmap.mmap(fd, size)
    mapping = mmap.mmap(-1, size)
    view = (ctypes.c_char * size).from_buffer(mapping)
    address = ctypes.addressof(view)
    del view  # else the mapping could not be closed
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    flags = mmap.MAP_SHARED | _MAP_FIXED
    if function(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
        error = ctypes.get_errno()
        mapping.close()
        raise OSError(error, os.strerror(error))
    return mapping
