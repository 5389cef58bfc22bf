"""`import_csv`, `import_tf_events`: runs made of files, with the steps and times that stand in them."""

from __future__ import annotations

import csv
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from trackio import voice
from trackio.border import raises_only
from trackio.opening import imported_run
from trackio.record import Origin
from trackio.values import clean_text, is_given, text_of

_ROWS_AT_ONCE = 2000
_SECONDS = 600.0
_EXPLICIT = int(Origin.EXPLICIT)
_INT64 = range(-(1 << 63), 1 << 63)

FORMULA = "^'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
"""what a spreadsheet takes for the beginning of a formula, also behind quotes of ours"""

Row = tuple[int, int, dict[str, float]]
"""step, time in nanoseconds, metrics"""


@raises_only(ValueError, FileNotFoundError)
def import_csv(csv_path: Any, project: str, name: str | None = None, **unused: Any) -> None:
    """Makes a run of a CSV file with a header: a `step` column, perhaps `timestamp` (ISO 8601 or seconds since 1970),
    and a metric in every column whose cells are numbers or empty. Its name is the file's unless given. Raises
    FileNotFoundError, or ValueError if it holds none of these."""
    path = os.fsdecode(csv_path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"CSV file not found: {clean_text(path)}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            lines = list(csv.reader(file))
        except csv.Error as error:
            raise ValueError(f"{clean_text(path)} is not a CSV file: {error}.") from None
    header = [_unquoted(name) for name in lines[0]] if lines else []
    columns = [column for column in header if column]
    rows = [dict(zip_longest(header, map(_unquoted, line[: len(header)]))) for line in lines[1:] if line]
    if not rows:
        raise ValueError("CSV file is empty")
    step_column = next((column for column in columns if column.strip().lower() == "step"), None)
    if step_column is None:
        raise ValueError("CSV file must contain a 'step' or 'Step' column")
    others = [c for c in columns if c != step_column and c.strip().lower() != "timestamp"]
    numeric = [c for c in others if all(_number(row[c]) is not None or not row[c] for row in rows)]
    found = list(_rows(rows, step_column, numeric))
    if not found:
        raise ValueError(f"No numeric metric data found in CSV file: {path}.")
    for column in set(others) - set(numeric):
        voice.warn(f"column {column!r} of {path} holds more than numbers; it is left out.")
    _store(project, text_of(name) if is_given(name) else os.path.splitext(os.path.basename(path))[0], found)


def _rows(rows: list[dict[str, Any]], step_column: str, numeric: list[str]) -> Iterator[Row]:
    now = time.time_ns()
    for number, row in enumerate(rows):
        metrics = {column: value for column in numeric if (value := _number(row[column])) is not None}
        step = _number(row[step_column])
        if step is None or not math.isfinite(step) or int(step) not in _INT64:
            raise ValueError(f"Row {number + 2} of the CSV file has no step.")
        stamp = next((v for c, v in row.items() if c and c.strip().lower() == "timestamp"), None)
        if metrics:
            yield int(step), _time_ns(stamp, now), metrics


def _unquoted(cell: str) -> str:
    """A cell as it was before an export put a quote before what looks like a formula."""
    return cell[1:] if cell.startswith("'") and re.match(FORMULA, cell) else cell


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _time_ns(stamp: Any, otherwise: int) -> int:
    """A time as it stands in a file; what is none, or before 1970, is now."""
    seconds = _number(stamp)
    try:
        if seconds is None:
            moment = datetime.fromisoformat(str(stamp))
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        time_ns = int(seconds * 1e9)
    except (ValueError, OverflowError):
        return otherwise
    return time_ns if 0 <= time_ns < 1 << 63 else otherwise


@raises_only(ValueError, FileNotFoundError, ImportError)
def import_tf_events(log_dir: Any, project: str, name: str | None = None, **unused: Any) -> None:
    """Makes a run of each folder with TensorBoard's event files below `log_dir`: its scalars, named by the folder
    (`main` for the topmost), behind `name_` if given. Needs the tensorboard package. Raises FileNotFoundError,
    ImportError, or ValueError if there are no scalars."""
    root = os.path.abspath(os.fsdecode(log_dir))
    if not os.path.isdir(root):
        raise FileNotFoundError(f"TF events directory not found: {clean_text(root)}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise ImportError("import_tf_events() needs the tensorboard package: pip install tensorboard") from None
    imported = 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        if not any("tfevents" in file for file in files):
            continue
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        rows = [
            (int(event.step), _time_ns(event.wall_time, 0), {tag: float(event.value)})
            for tag in events.Tags()["scalars"]
            for event in events.Scalars(tag)
        ]
        if rows:
            run = os.path.relpath(folder, root)
            run = "main" if run == "." else run
            _store(
                project,
                f"{text_of(name)}_{run}" if is_given(name) else run,
                sorted(rows, key=lambda row: (row[1], row[0])),
            )
            imported += 1
    if not imported:
        raise ValueError(f"No TensorFlow events data found in {root}")


def _store(project: str, name: str, rows: Iterable[Row]) -> None:
    run = imported_run(text_of(project), text_of(name))
    stream = run._open()
    count = 0
    for step, time_ns, metrics in rows:
        if stream is not None:
            stream.log(step, _EXPLICIT, metrics, lambda at=time_ns: at)
        count += 1
        if count % _ROWS_AT_ONCE == 0 and stream is not None:
            stream.deliver(_SECONDS, is_patient=True)
    run.finish()
    if stream is None or not stream.deliver(_SECONDS, is_patient=True):
        voice.warn("the daemon does not have all of the import yet; it is kept on this host and stored when it can.")
    run.retire()
    voice.say(f"imported {count:,} rows into run {run.name!r} of project {project!r}")
