"""Gives what is logged beside numbers and text its plain form, and its files to the daemon (`values.Keep`)."""

from __future__ import annotations

from typing import Any

from trackio.figures import is_a, is_animation, is_figure, is_pil, is_plotly
from trackio.interrupts import hand_on
from trackio.media import Html, Image
from trackio.rich import Rich, Table
from trackio.staging import Staging
from trackio.values import Keep, Unstorable, short_repr


def keeper(staging: Staging) -> Keep:
    """What gives media, tables, figures and data frames their plain form; None for anything else."""

    def keep(value: Any) -> Any:
        if isinstance(value, Rich):
            rich: Rich = value
        elif is_figure(value) or is_plotly(value) or is_animation(value):
            rich = _made(Html, value)
        elif is_pil(value):
            rich = _made(Image, value)
        elif is_a(value, "pandas", "DataFrame"):
            rich = _made(Table, None, None, value)
        else:
            return None
        try:
            return rich._stored(staging, keep)
        except Unstorable:
            raise
        except Exception as error:
            hand_on(error)
            raise Unstorable(f"its {type(rich).__name__} could not be kept ({short_repr(error)})") from error

    return keep


def _made(kind: type[Rich], *contents: Any) -> Rich:
    try:
        return kind(*contents)
    except Exception as error:
        hand_on(error)
        raise Unstorable(f"no {kind.__name__} could be made of it ({short_repr(error)})") from error
