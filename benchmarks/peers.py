"""Us beside other trackers, offline, on the same machine in the same run: `python -m benchmarks peers`.

Each peer gets a virtual environment of its own in `.venv/peers`, made at first use. Ratios carry over to other
machines, microseconds do not; "none" is the same loop without a tracker: what the machine does to p99.9.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import Figure
from trackio import places
from trackio.places import Places
from trackiod import control
from trackiod.store import schema

_ROOT = Path(__file__).resolve().parent.parent
_LOOP = str(_ROOT / "benchmarks" / "loop.py")
_CALLS, _SECONDS, _PATIENCE_SECONDS = 100_000, 8, 150
_PACED_CALLS = 4_000
_DISK = "/var/tmp"
"""a disk also where /tmp is none"""
_CHECKPOINT = f"{_DISK}/trackio-bench-checkpoint"
_COLUMNS = ("p50", "p90", "p99", "p999", "max")


Row = dict[str, Any]
"""what `loop.py` printed"""


class Peer(NamedTuple):
    """Another tracker: its name in `loop.py`, what to install, and what keeps it offline."""

    name: str
    requirement: str
    environ: dict[str, str]


_PEERS = (
    Peer("upstream", "trackio>=0.43,<0.44", {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}),
    Peer("wandb", "wandb>=0.20,<1", {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}),
    Peer("swanlab", "swanlab>=0.6,<1", {"SWANLAB_MODE": "offline"}),
    Peer("neptune", "neptune-scale>=0.14,<1", {"NEPTUNE_API_TOKEN": "none", "NEPTUNE_LOGGER_LEVEL": "critical"}),
    Peer("mlflow", "mlflow>=3,<4", {}),
    Peer("tensorboard", "tensorboard>=2.15,<3", {}),
)


def measure(where: Places, pid: int) -> Iterable[Figure]:
    """Prints the table of all trackers and scenarios; returns the figures that have a goal."""
    pythons = {peer.name: _python_of(peer) for peer in _PEERS}
    scenarios: dict[str, Callable[[str], Row | None]] = {
        "burst of 10": lambda name: _run(name, pythons, _CALLS, 10),
        "burst of 1,000": lambda name: _run(name, pythons, 1_000, 1_000),
        "10 at 1 kHz": lambda name: _run(name, pythons, _PACED_CALLS, 10, "paced"),
        "10, a busy thread beside": lambda name: _run(name, pythons, 20_000, 10, "busy"),
        "10, a saturated disk": lambda name: _beside_a_writer(lambda: _run(name, pythons, 20_000, 10)),
    }
    found: dict[str, dict[str, Row | None]] = {}
    for scenario, run in scenarios.items():
        _print_head(scenario)
        for name in ("none", "ours", *pythons):
            found.setdefault(scenario, {})[name] = run(name)
            _print_row(name, found[scenario][name])
    _print_head("ours, with the daemon ... (10 in a burst)")
    faults = {fault: _in_fault(fault) for fault in ("stopped", "killed", "absent", "on a full disk")}
    for fault, figures in faults.items():
        _print_row(fault, figures)
    return _figures(found, faults)


def _figures(found: dict[str, dict[str, Row | None]], faults: dict[str, Row]) -> Iterator[Figure]:
    burst, paced = (
        {name: row for name, row in found[scenario].items() if row} for scenario in ("burst of 10", "10 at 1 kHz")
    )

    def best(rows: dict[str, Row], key: str) -> tuple[str, float]:
        return min(((name, rows[name][key]) for name in rows if name not in ("none", "ours")), key=lambda r: r[1])

    for what, rows, key, least in (
        ("burst: log() p50", burst, "p50", 8), ("at 1 kHz: log() p50", paced, "p50", 3),
        ("CPU per call, all threads", burst, "cpu_us", 10), ("bytes per point at rest", burst, "bytes_per_point", 5),
    ):  # fmt: skip
        name, theirs = best(rows, key)
        ratio = theirs / rows["ours"][key]
        yield Figure(f"{what}, the best peer's ({name}, {theirs:.1f}) over ours", ratio, "times", least, least=True)
    yield Figure("bytes per point at rest", burst["ours"]["bytes_per_point"], "B/point", 6)
    for fault, figures in faults.items():
        yield Figure(
            f"daemon {fault}: p99.9", figures["p999"] / 1e3, "ms", 1, "no tracker", burst["none"]["p999"] / 1e3
        )


# -- running ---------------------------------------------------------------------------------------------------


def _python_of(peer: Peer) -> str:
    folder = _ROOT / ".venv" / "peers" / peer.name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"Setting up {folder.name} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", peer.requirement]
        subprocess.run(pip, check=True, capture_output=True)
        (folder / "installed").touch()
    return str(python)


def _run(name: str, pythons: dict[str, str], calls: int, width: int, *options: str) -> Row | None:
    """One tracker in one fresh process and folder, ours with a daemon that runs; None if it did not come to an end."""
    if name == "ours":
        with _a_daemon() as where:
            figures = _loop(sys.executable, name, {"TRACKIO_DIR": where.data}, calls, width, *options)
            assert figures is not None
            figures["bytes_per_point"] = _at_rest(where) / figures["points"]
            return figures
    environ = next((peer.environ for peer in _PEERS if peer.name == name), {})
    figures = _loop(pythons.get(name, sys.executable), name, environ, calls, width, *options)
    if figures is not None:
        figures["bytes_per_point"] = figures["bytes"] / figures["points"]
    return figures


def _loop(python: str, name: str, environ: dict[str, str], calls: int, width: int, *options: str) -> Row | None:
    with tempfile.TemporaryDirectory(prefix="trackio-bench-", dir=_DISK) as folder:
        folder = os.path.abspath(folder)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TRACKIO_")}
        theirs = {"TRACKIO_DIR": folder, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "HOME": folder}
        ours = {"BENCH_FOLDER": folder, "TRACKIO_AUTOSTART": "0", "TRACKIO_QUIET": "1"}
        command = [python, _LOOP, name, str(calls), str(width), str(_SECONDS), *options]
        try:
            done = subprocess.run(
                command, env={**inherited, **theirs, **ours, **environ}, timeout=_PATIENCE_SECONDS,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found


@contextmanager
def _a_daemon(folder: str = "") -> Iterator[Places]:
    with tempfile.TemporaryDirectory(prefix="trackio-bench-", dir=folder or _DISK) as data:
        os.environ |= {"TRACKIO_DIR": os.path.abspath(data), "TRACKIO_QUIET": "1", "TRACKIO_AUTOSTART": "0"}
        where = places.find(os.path.abspath(data), "")
        control.start(where)
        try:
            yield where
        finally:
            control.stop(where, "benchmark")


def _at_rest(where: Places) -> int:
    """Bytes of the project once it is folded and what is free was given back."""
    path = schema.path_of(where.projects, "bench")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _is_raw(path):
        time.sleep(0.1)
    control.stop(where, "benchmark")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("VACUUM")
    connection.close()
    return os.path.getsize(path)


def _is_raw(path: str) -> bool:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return bool(connection.execute("SELECT coalesce(sum(records), 0) >= 32 FROM batches").fetchone()[0])
    finally:
        connection.close()


def _beside_a_writer(run: Callable[[], Row | None]) -> Row | None:
    """While somebody writes a checkpoint, again and again, with fsync."""
    code = f"import os\nf = open('{_CHECKPOINT}', 'wb')\nwhile True:\n    f.seek(0)\n    for _ in range(256):"
    code += " f.write(bytes(1 << 20))\n    f.flush(); os.fsync(f.fileno())\n"
    writer = subprocess.Popen([sys.executable, "-c", code])
    try:
        return run()
    finally:
        writer.kill()
        writer.wait()
        os.unlink(_CHECKPOINT)


def _in_fault(fault: str) -> Row:
    if fault == "on a full disk":
        return _on_a_full_disk()
    with _a_daemon() as where:
        endpoint = places.read_endpoint(where.endpoint)
        assert endpoint is not None
        if fault == "absent":
            control.stop(where, "benchmark")
        else:
            os.kill(endpoint.pid, signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
        try:
            return _loop(sys.executable, "ours", {"TRACKIO_DIR": where.data}, _CALLS, 10) or {}
        finally:
            if fault == "stopped":
                os.kill(endpoint.pid, signal.SIGCONT)


def _on_a_full_disk() -> Row:
    """A device of 8 MiB with nothing free, under store and spill; needs root."""
    with tempfile.TemporaryDirectory(prefix="trackio-bench-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", folder], check=True)
        try:
            with _a_daemon(folder) as where, open(os.path.join(folder, "filler"), "wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(bytes(4096))
                except OSError:
                    pass
                return _loop(sys.executable, "ours", {"TRACKIO_DIR": where.data}, _CALLS, 10) or {}
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


# -- the table ---------------------------------------------------------------------------------------------------


def _print_head(scenario: str) -> None:
    names = "p50 µs|p90|p99|p99.9|max|calls|refused|CPU µs a call|import ms|init ms|finish ms|B/point|memory MB"
    print(f"\n| {scenario} | {names.replace('|', ' | ')} |\n|---|" + "---:|" * 13, flush=True)


def _print_row(name: str, row: Row | None) -> None:
    if row is None:
        print(f"| {name} | did not end within {_PATIENCE_SECONDS} s |" + " |" * 12, flush=True)
        return
    cells = [f"{row[key]:,.1f}" for key in _COLUMNS]
    cells += [f"{row['calls']:,}", f"{row['refused']:,}"]
    cells += [f"{row[key]:,.1f}" for key in ("cpu_us", "import_ms", "init_ms", "finish_ms")]
    cells += [f"{row['bytes_per_point']:.1f}" if "bytes_per_point" in row else "", f"{row['rss_mb']:.0f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
