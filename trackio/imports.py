"""`import_csv`, `import_tf_events`: runs made of files, with the steps and times that stand in them."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from trackio import voice
from trackio.opening import imported_run
from trackio.record import Origin

_ROWS_AT_ONCE = 2000
_SECONDS = 600.0
_EXPLICIT = int(Origin.EXPLICIT)

Row = tuple[int, int, dict[str, float]]
"""step, time in nanoseconds, metrics"""


def import_csv(csv_path: Any, project: str, name: str | None = None, **unused: Any) -> None:
    """Makes a run of a CSV file with a header: a `step` column, perhaps `timestamp` (ISO 8601 or seconds since 1970),
    and a metric in every column whose cells are numbers or empty. Its name is the file's unless given. Raises
    FileNotFoundError, or ValueError if it holds none of these."""
    path = os.fspath(csv_path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"CSV file not found: {path}")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = [column for column in reader.fieldnames or [] if column]
        rows = list(reader)
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
    _store(project, name or os.path.splitext(os.path.basename(path))[0], found)


def _rows(rows: list[dict[str, Any]], step_column: str, numeric: list[str]) -> Iterator[Row]:
    now = time.time_ns()
    for number, row in enumerate(rows):
        metrics = {column: value for column in numeric if (value := _number(row[column])) is not None}
        step = _number(row[step_column])
        if step is None or not math.isfinite(step):
            raise ValueError(f"Row {number + 2} of the CSV file has no step.")
        stamp = next((v for c, v in row.items() if c and c.strip().lower() == "timestamp"), None)
        if metrics:
            yield int(step), _time_ns(stamp, now), metrics


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


def import_tf_events(log_dir: Any, project: str, name: str | None = None, **unused: Any) -> None:
    """Makes a run of each folder with TensorBoard's event files below `log_dir`: its scalars, named by the folder
    (`main` for the topmost), behind `name_` if given. Needs the tensorboard package. Raises FileNotFoundError,
    ImportError, or ValueError if there are no scalars."""
    root = os.path.abspath(os.fspath(log_dir))
    if not os.path.isdir(root):
        raise FileNotFoundError(f"TF events directory not found: {root}")
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
            _store(project, f"{name}_{run}" if name else run, sorted(rows, key=lambda row: (row[1], row[0])))
            imported += 1
    if not imported:
        raise ValueError(f"No TensorFlow events data found in {root}")


def _store(project: str, name: str, rows: Iterable[Row]) -> None:
    run = imported_run(project, name)
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
