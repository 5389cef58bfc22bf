"""Tell the exceptions that interrupt a call from those that its values or our code raise.

A signal handler of the user's may raise anywhere in our code: a time limit, say. Such an exception is meant for whoever
called us, and every place that catches broadly hands it on. Pure.
"""

from __future__ import annotations

import sys
from types import FrameType

_OURS = frozenset({"builtins", "msgpack", "numpy", "trackio", "trackiod"}) | sys.stdlib_module_names
"""packages whose exceptions our code may raise while nothing of the user's runs"""
_module_of = type.__dict__["__module__"]


def is_interrupt(error: BaseException) -> bool:
    """Return whether a signal handler or a trace function raised it.

    Python gives those, and nothing else, the frame that it interrupts as an argument. So it does not matter what they
    are called, where they are defined, and whose frame is the last one.
    """
    seen: set[int] = set()
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if seen and _was_given(frame, seen):
            return True
        seen.add(id(frame))
        trace = trace.tb_next
    return False


def is_foreign(error: BaseException) -> bool:
    """Return whether neither Python nor our code has such an exception: while no code of the user's ran, it was put
    into this thread from outside."""
    module = _module_of.__get__(type(error))
    return not (isinstance(module, str) and module.partition(".")[0] in _OURS)


def hand_on(error: BaseException) -> None:
    """Raise `error` again if it is an interrupt. To be called first wherever an `except` is broad."""
    if is_interrupt(error):
        raise error


def _was_given(frame: FrameType, interrupted: set[int]) -> bool:
    """Whether one of its first arguments is a frame that stands further out, or the one that called it."""
    code = frame.f_code
    count = min(code.co_argcount, 3)
    names = [*code.co_varnames[:count]]
    has_rest = code.co_flags & 0x04
    if has_rest:
        names.append(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
    values = frame.f_locals
    given = [values.get(name) for name in names]
    if has_rest and type(rest := given.pop()) is tuple:
        given += rest[:3]
    return any(type(value) is FrameType and (value is frame.f_back or id(value) in interrupted) for value in given)
