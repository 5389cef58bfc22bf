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
from trackio.voice import escaped, is_harmless
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
            with _clean_errors():
                return super().invoke(ctx)
        except TrackiodError as error:
            raise click.ClickException(one_line(str(error))) from error
        except BrokenPipeError:
            ctx.exit(0)
        except OSError as error:
            what = f"{error.filename}: " if isinstance(error.filename, str) else ""
            raise click.ClickException(one_line(f"{what}{error.strerror or error}.")) from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _clean_errors():
            return super().make_context(*args, **kwargs)


@contextmanager
def _clean_errors() -> Iterator[None]:
    """What click itself says of arguments, which may be names of users'."""
    try:
        yield
    except click.ClickException as error:
        text = one_line(error.format_message())
        if text == error.format_message():
            raise
        if isinstance(error, click.UsageError):
            raise click.UsageError(text, error.ctx) from error
        raise click.ClickException(text) from error


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
        say(f"Warning: {problem}", err=True)
    return places.of(ours)


def where() -> Places:
    """The same, with what other hosts have copied."""
    found = here()
    if found.shared:
        warn(elsewhere.look(found))
    return found


class Block(str):
    """Lines that are clean already: a table's."""


def say(*lines: str, err: bool = False, nl: bool = True, colour: str | None = None) -> None:
    """Print lines that may hold names of users': nothing in them can move the cursor, ring the bell or begin another
    line. Whatever commands print goes through here or `print_json`."""
    text = block(*lines)
    click.echo(text if colour is None else click.style(text, fg=colour), err=err, nl=nl)


def block(*lines: str) -> Block:
    """These lines, each of them clean."""
    return Block("\n".join(line if isinstance(line, Block) else one_line(line) for line in lines))


def warn(sentences: Iterable[str]) -> None:
    """What went wrong and did not stop the answer."""
    for sentence in sentences:
        say(f"Warning: {sentence}", err=True)


def clean(text: str) -> str:
    """`text` with what a terminal obeys or hides written as escapes; line ends and tabs stay."""
    return escaped(text, "\n\t")


def print_json(value: Any) -> None:
    """Prints valid JSON: NaN and the infinities, which JSON has not, become strings."""
    click.echo(_json(value, indent=2))


def _json(value: Any, indent: int | None = None) -> str:
    """JSON in which nothing moves a cursor either: what `clean` escapes is escaped as JSON has it, and is read back
    equal. Between its strings there is nothing but ASCII and line ends."""
    text = json.dumps(valid(value), indent=indent, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c == "\n" or is_harmless(c) else json.dumps(c)[1:-1] if c != "\x7f" else "\\u007f" for c in text
    )


def print_long_json(facts: dict[str, Any], key: str, items: Iterable[Any]) -> None:
    """Prints `facts` with a list under `key`, one item a line, as they come: there may be millions."""
    head = _json(facts, indent=2)
    stream = sys.stdout
    stream.write(f'{head[:-2]},\n  "{key}": [')
    separator = "\n"
    for item in items:
        stream.write(f"{separator}    {_json(item)}")
        separator = ",\n"
    stream.write("]\n}\n" if separator == "\n" else "\n  ]\n}\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """Columns aligned with two spaces between; numbers to the right."""
    header = [one_line(name) for name in header]
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [all(_is_number(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line in [list(header), *cells]:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return Block("\n".join(lines))


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
