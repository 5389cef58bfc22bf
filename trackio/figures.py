"""What others' packages make that may be logged: figures, PIL images. Imports none of them: what nobody has imported
nobody can have made."""

from __future__ import annotations

import io
import sys
from typing import Any


def is_a(value: Any, module: str, name: str) -> bool:
    """Whether it is of that class."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name, ()))


def is_pil(value: Any) -> bool:
    return is_a(value, "PIL.Image", "Image")


def is_plotly(value: Any) -> bool:
    return is_a(value, "plotly.basedatatypes", "BaseFigure")


def is_figure(value: Any) -> bool:
    """A figure of matplotlib's, or `matplotlib.pyplot`, which means its current one."""
    return is_a(value, "matplotlib.figure", "Figure") or value is sys.modules.get("matplotlib.pyplot", is_a)


def is_animation(value: Any) -> bool:
    return is_a(value, "matplotlib.animation", "Animation")


def _figure(value: Any) -> Any:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.gcf() if pyplot is not None and value is pyplot else value


def svg_of(value: Any) -> str:
    buffer = io.StringIO()
    _figure(value).savefig(buffer, format="svg", bbox_inches="tight")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def png_of(value: Any) -> bytes:
    buffer = io.BytesIO()
    _figure(value).savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()
