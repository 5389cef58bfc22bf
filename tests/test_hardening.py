"""The units' restrictions, applied to a real daemon while real processes train outside them.

systemd is not needed: the directives are read from the unit files, and what they mean is done with a mount namespace,
without capabilities, and by comparing the system calls that were made with those that are allowed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, shown, wait_for

UNITS = Path(__file__).parent.parent / "systemd"
SERVICES = ["trackiod.service", "trackiod@.service"]

HARMFUL = [
    ("PrivateTmp", r"yes|true|1|disconnected", "spools of processes without a better place lie in /tmp"),
    ("PrivateDevices", r"yes|true|1", "GPUs are device nodes"),
    ("PrivateIPC", r"yes|true|1", "spools lie in the host's /dev/shm"),
    ("PrivateUsers", r"yes|true|1", "peers and files of the same user would look like nobody's"),
    ("PrivatePIDs", r"yes|true|1", "how a process ended is asked by its pid"),
    ("ProtectProc", r"invisible|noaccess|ptraceable", "how a process ended, and what it uses, is read in /proc"),
    ("ProcSubset", r"pid", "the host's figures are read in /proc"),
    ("ProtectHome", r".+", "the data folder is in the user's home"),
    ("ProtectSystem", r"strict", "the data folder may be anywhere, and must be written"),
    ("RemoveIPC", r"yes|true|1", "stopping the daemon would remove every spool in /dev/shm"),
    ("DynamicUser", r"yes|true|1", "it is its user's daemon"),
    ("DeviceAllow", r".+", "all other devices are closed then, and a GPU's module may be loaded later"),
    ("DevicePolicy", r"closed|strict", "GPUs are device nodes"),
    ("ProtectClock", r"yes|true|1", "before systemd 253 it closes all devices but the clock"),
    ("InaccessiblePaths", r".+", "spools, homes and devices must be seen"),
    ("TemporaryFileSystem", r".+", "spools, homes and devices must be seen"),
    ("RootDirectory", r".+", "spools, homes and devices must be seen"),
]


def directives(unit: str) -> dict[str, str]:
    """The [Service] part of a unit file; of several lines of one name the last."""
    text = (UNITS / unit).read_text().split("[Service]")[1].split("\n[")[0]
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def is_on(unit: dict[str, str], name: str) -> bool:
    return unit.get(name, "no") in ("yes", "true", "1")


@pytest.mark.parametrize("unit", SERVICES)
@pytest.mark.parametrize(("name", "values", "reason"), HARMFUL, ids=[h[0] for h in HARMFUL])
def test_a_restriction_that_takes_away_what_the_daemon_needs_is_not_set(
    unit: str, name: str, values: str, reason: str
) -> None:
    value = directives(unit).get(name, "no")
    assert value == "no" or not re.fullmatch(values, value), f"{name}={value}: {reason}"


# -- the restrictions as commands ------------------------------------------------------------------------------


def read_only_paths(unit: dict[str, str]) -> list[str]:
    """What the directives make read-only (man 5 systemd.exec)."""
    system = {"full": ["/usr", "/boot", "/efi", "/etc"], "yes": ["/usr", "/boot", "/efi"]}
    paths = system.get(unit.get("ProtectSystem", "no"), [])
    if is_on(unit, "ProtectKernelTunables"):
        paths += ["/proc/sys", "/proc/fs", "/proc/irq", "/proc/bus", "/proc/sysrq-trigger", "/sys"]
    if is_on(unit, "ProtectControlGroups"):
        paths += ["/sys/fs/cgroup"]
    return [path for path in paths if os.path.exists(path)]


def hidden_paths(unit: dict[str, str]) -> list[str]:
    paths = ["/dev/kmsg", "/proc/kmsg"] if is_on(unit, "ProtectKernelLogs") else []
    return [path for path in paths if os.path.exists(path)]


def confined(unit: dict[str, str]) -> list[str]:
    """The command that runs another one under the unit's restrictions."""
    lines = ["set -e"]
    for path in read_only_paths(unit):
        lines += [f"mount --rbind {path} {path}", f"mount -o remount,bind,ro {path}"]
    lines += [f"mount --bind /dev/null {path}" for path in hidden_paths(unit)]
    rights = ["setpriv"]
    if unit.get("CapabilityBoundingSet") == "":
        rights += ["--bounding-set=-all", "--inh-caps=-all"]
    if is_on(unit, "NoNewPrivileges"):
        rights += ["--no-new-privs"]
    if is_on(unit, "MemoryDenyWriteExecute"):
        rights += [sys.executable, "-c", DENY_WRITE_EXECUTE]
    lines.append(f'umask {unit.get("UMask", "0022")}; exec "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *rights]


DENY_WRITE_EXECUTE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE; an older kernel does not know it
os.execvp(sys.argv[1], sys.argv[1:])
"""
AS_A_USER = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
DAEMON = [sys.executable, "-P", "-m", "trackiod", "run"]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"), reason="needs root and unshare"
)  # fmt: skip

TRAINER = """
import trackio, sys
trackio.init(project="p")
for line in sys.stdin:
    for i in range(*map(int, line.split())):
        trackio.log({"i": i}, step=i)
    print(flush=True)
"""


@pytest.fixture(params=["/dev/shm", "/run/user", "/tmp"])
def spooling(host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host whose spools lie in one of the folders that may hold them."""
    parent, spool = request.param, host.spool
    made = not os.path.isdir(parent)
    os.makedirs(parent, exist_ok=True)
    host.spool = Path(tempfile.mkdtemp(prefix="trackio-test-", dir=parent))
    yield host
    host.stop()
    shutil.rmtree(host.spool, ignore_errors=True)
    if made:
        os.rmdir(parent)
    host.spool = spool


def start(host: Host, command: list[str]) -> Any:
    process = subprocess.Popen(
        command, env=host.environ(), cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    host.processes.append(process)
    return process


def log(process: Any, first: int, end: int) -> None:
    process.stdin.write(f"{first} {end}\n")
    process.stdin.flush()
    process.stdout.readline()


def train_and_be_killed(host: Host) -> None:
    """A process outside is tracked while it runs; when it is killed, what only its spool holds is stored and its
    end is known."""
    wait_for(host.status, 30, "the confined daemon")
    pid = host.status().daemon["pid"]
    trainer = start(host, [*AS_A_USER, sys.executable, "-P", "-c", TRAINER])
    log(trainer, 0, 100)
    wait_for(lambda: host.runs("p") and host.the_run("p").points == 100)
    os.kill(pid, signal.SIGSTOP)
    log(trainer, 100, 300)
    trainer.kill()
    trainer.communicate()
    os.kill(pid, signal.SIGCONT)
    run = host.ended_run("p", 30)
    assert [p.value for p in shown(run, "i")] == list(range(300)) and run.holes == []
    assert run.state.state == "killed", "its end is read in /proc"


@needs_root
@pytest.mark.parametrize("unit", SERVICES)
def test_a_daemon_under_the_units_restrictions_does_all_of_its_work(spooling: Host, unit: str) -> None:
    process = start(spooling, [*confined(directives(unit)), *DAEMON])
    train_and_be_killed(spooling)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 0 and " ERROR " not in err, err


@needs_root
def test_the_restrictions_are_in_force_and_devices_homes_and_proc_are_seen() -> None:
    unit = directives("trackiod@.service")
    assert {"/usr", "/etc", "/proc/sys", "/sys/fs/cgroup"} <= {*read_only_paths(unit)}
    look = (
        "touch /etc/trackio-test 2>/dev/null && echo written; grep CapEff /proc/self/status; ls /dev; ls -d /home /root"
    )
    inside = subprocess.run([*confined(unit), "sh", "-c", look], capture_output=True, text=True, check=True).stdout
    assert "written" not in inside and re.search(r"CapEff:\s+0+$", inside, re.MULTILINE)
    assert {*os.listdir("/dev")} <= {*inside.split()}, "a GPU's nodes would be among them"
    pids = subprocess.run([*confined(unit), "ls", "/proc"], capture_output=True, text=True, check=True).stdout.split()
    assert str(os.getpid()) in pids


def allowed_calls(groups: str) -> set[str]:
    """The system calls in a group of systemd's, such as @system-service."""
    text = subprocess.run(["systemd-analyze", "syscall-filter", *groups.split()], capture_output=True, text=True).stdout
    calls: set[str] = set()
    for line in text.splitlines():
        name = line.strip()
        if line.startswith(" ") and name.startswith("@"):
            calls |= allowed_calls(name)
        elif line.startswith(" ") and not name.startswith("#"):
            calls.add(name)
    return calls


@needs_root
@pytest.mark.skipif(not shutil.which("strace") or not shutil.which("systemd-analyze"),
                    reason="needs strace and systemd-analyze")  # fmt: skip
def test_the_daemon_makes_only_the_system_calls_that_its_unit_allows(host: Host, tmp_path: Path) -> None:
    unit, trace = directives("trackiod@.service"), tmp_path / "trace"
    allowed = allowed_calls(unit["SystemCallFilter"])
    assert len(allowed) > 200
    process = start(host, [*confined(unit), "strace", "-f", "-qq", "-o", str(trace), *DAEMON])
    try:
        train_and_be_killed(host)
    finally:
        host.stop()  # it would outlive the strace that is killed at the end of a test
    process.communicate(timeout=20 * PATIENCE)
    text = trace.read_text()
    made = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    assert {"pidfd_open", "flock", "execve", "fdatasync"} & made and made <= allowed, made - allowed
    families = set(re.findall(r"socket\((AF_\w+)", text))
    assert families <= {*unit["RestrictAddressFamilies"].split()}, families
    assert not re.search(r"(clone|unshare|clone3)\([^\n]*CLONE_NEW", text)
    assert not re.search(r"(mmap|mprotect)\([^\n]*PROT_WRITE\|PROT_EXEC", text)
