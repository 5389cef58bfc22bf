"""How commands speak: tables for people, valid JSON for programs, one sentence for an error."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from trackio import places, settings
from trackio.places import Places
from trackiod import elsewhere
from trackiod.errors import TrackiodError
from trackiod.valid_json import valid

EXIT_INTERRUPTED = 130
_CELL_CHARS = 60


class Seconds(click.FloatRange):
    """An option's seconds, 0 or more."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


class SpokenErrors(click.Group):
    """A group whose commands end with one sentence and exit code 1 on our own errors, quietly on Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TrackiodError as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            ctx.exit(0)
        except OSError as error:
            what = f"{error.filename}: " if isinstance(error.filename, str) else ""
            raise click.ClickException(f"{what}{error.strerror or error}.") from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """What a signal would end at once takes away what it has begun."""

    ended_by: list[int] = []

    def end(number: int, _: object) -> None:
        ended_by.append(number)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:  # what SQLite makes of either
        raise SystemExit(128 + ended_by[0]) if ended_by else KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def here() -> Places:
    """The places of the data folder that TRACKIO_DIR chooses."""
    ours, problems = settings.of_this_process()
    for problem in problems:
        click.echo(f"Warning: {problem}", err=True)
    return places.of(ours)


def where() -> Places:
    """The same, with what other hosts have copied."""
    found = here()
    if found.shared:
        warn(elsewhere.look(found))
    return found


def say(text: str, *, err: bool = False) -> None:
    """Prints text that may hold names of users': nothing in it can move the cursor or ring the bell."""
    click.echo(clean(text), err=err)


def warn(sentences: Iterable[str]) -> None:
    """What went wrong and did not stop the answer."""
    for sentence in sentences:
        say(f"Warning: {sentence}", err=True)


def clean(text: str) -> str:
    """`text` with what cannot be printed replaced; line ends stay."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_json(value: Any) -> None:
    """Prints valid JSON: NaN and the infinities, which JSON has not, become strings."""
    click.echo(json.dumps(valid(value), indent=2, ensure_ascii=False))


def print_long_json(facts: dict[str, Any], key: str, items: Iterable[Any]) -> None:
    """Prints `facts` with a list under `key`, one item a line, as they come: there may be millions."""
    head = json.dumps(valid(facts), indent=2, ensure_ascii=False)
    stream = sys.stdout
    stream.write(f'{head[:-2]},\n  "{key}": [')
    separator = "\n"
    for item in items:
        stream.write(f"{separator}    {json.dumps(valid(item), ensure_ascii=False)}")
        separator = ",\n"
    stream.write("]\n}\n" if separator == "\n" else "\n  ]\n}\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned with two spaces between; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [all(_is_number(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line in [list(header), *cells]:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def in_words(value: Any) -> Any:
    """What stands on a line for media and tables; anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "_type" in item for item in value):
        return f"{len(value)} x {in_words(value[0])}"
    if not isinstance(value, dict) or "_type" not in value:
        return value
    kind = str(value["_type"]).removeprefix("trackio.")
    if value.get("incomplete"):
        return f"<{kind}: {value['incomplete']}>"
    if value.get("file_path"):
        return f"<{kind} {value['file_path']}>"
    if kind == "table":
        return f"<table of {value.get('rows_count', len(value.get('_value', ())))} rows>"
    return f"<{kind}>"


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    value = in_words(value)
    text = one_line(str(value))
    return text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"


def one_line(text: str) -> str:
    """A user's text where a line is a thing of its own."""
    return " ".join(clean(text).splitlines())


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).replace("e+", "", 1).lstrip("-").isdigit() or text == "-"


def size(count: int) -> str:
    """Bytes in words: `0 B`, `12 KiB`, `3.4 MiB`."""
    if count < 1024:
        return f"{count} B"
    if count < 1 << 20:
        return f"{count / 1024:.0f} KiB"
    return f"{count / (1 << 20):.1f} MiB"


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `2 d`."""
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
