"""The units, and what the daemon tells systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import PATIENCE, Host

UNITS = Path(__file__).parent.parent / "systemd"


def test_the_daemon_says_that_it_is_ready_feeds_the_watchdog_and_says_that_it_stops(host: Host) -> None:
    path = str(host.spool / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(20 * PATIENCE)
        process = host.python(
            "from trackiod.daemon import run; raise SystemExit(run())",
            env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"},
        )
        assert systemd.recv(4096).startswith(b"READY=1")
        assert host.status() is not None, "ready means that it answers"
        assert [systemd.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.send_signal(signal.SIGTERM)
        while (last := systemd.recv(4096)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"
        process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.iterdir()))
def test_systemd_finds_nothing_wrong_with_the_units(unit: str, tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        shutil.copy(path, tmp_path / path.name.replace("@.", "@root."))
    whose = "--system" if "@" in unit else "--user"
    done = subprocess.run(
        ["systemd-analyze", "verify", whose, str(tmp_path / unit.replace("@.", "@root."))],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Failed to initialize" not in done.stderr, done.stderr
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "trackiod" in line]
    assert ours == [], ours


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_system_units_exposure_is_low(tmp_path: Path) -> None:
    shutil.copy(UNITS / "trackiod@.service", tmp_path / "trackiod@root.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(tmp_path / "trackiod@root.service")],
        capture_output=True,
        text=True,
    )
    found = re.search(r"Overall exposure level.*?: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge a file: {done.stderr[:200]}")
    assert float(found.group(1)) <= 4.0, done.stdout
