"""`trackiod doctor`: verdicts from facts, and what it says in real situations."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Host, wait_for

from trackio.version import __version__, is_older
from trackiod.doctor import OK, PROBLEM, WARNING, examine
from trackiod.facts import Daemon, Facts, Limits, Login, Space, removes_ipc
from trackiod.installation import Copy, Installation, Owner
from trackiod.store.wal import LongLog

ROOT = Path(__file__).parent.parent
OURS = Copy("/site/trackio", __version__)
DISK = Space("/home/a/trackio", True, True, True, "ext4", False, True, 100 << 30, 80 << 30)
SHM = Space("/dev/shm/trackio-1000/x", True, True, True, "tmpfs", True, True, 8 << 30, 8 << 30)
REPORT = {"version": __version__, "pid": 7, "python": "/site/python", "problem": "", "life": "started"}
HEALTHY = Facts(
    installation=Installation(OURS, "/site/python", OURS, None, (), (Owner("trackio", __version__, "/site"),), ()),
    settings=(),
    autostart=True,
    data="/home/a/trackio",
    network="",
    daemon=Daemon(REPORT, True, 7, True, 65536, ()),
    live=DISK,
    spools=(SHM,),
    shm=SHM,
    limits=Limits(65536, 8 << 20, False),
    login=Login("a", False, True, True, True),
    logs=(),
    waiting=0,
)


def installed(**changes: Any) -> dict[str, Any]:
    return {"installation": HEALTHY.installation._replace(**changes)}


def daemon_says(**changes: Any) -> dict[str, Any]:
    return {"daemon": HEALTHY.daemon._replace(report={**REPORT, **changes})}


def silent(**changes: Any) -> dict[str, Any]:
    return {"daemon": Daemon(None, changes.pop("is_running", False), None, None, None, ()), **changes}


def test_a_healthy_host_has_only_ok() -> None:
    checks = examine(HEALTHY)
    assert {c.verdict for c in checks} == {OK} and not any(c.fix for c in checks)
    assert len({c.name for c in checks}) == len(checks)


OLD = Copy("/old/trackio", "0.30.0")
UPSTREAM = Owner("trackio", "0.30.0", "/site")
TROUBLES = [
    ("package", PROBLEM, "0.30.0", installed(imported=OLD)),
    ("package", PROBLEM, "finds nothing", installed(imported=None)),
    ("current folder", WARNING, "/old/trackio", installed(in_cwd=OLD)),
    ("other copies", WARNING, "0.30.0", installed(hidden=(OLD,))),
    ("package files", PROBLEM, "0.30.0", installed(owners=(UPSTREAM, UPSTREAM._replace(version=__version__)))),
    ("package files", WARNING, "trackio/ui.py", installed(strangers=("trackio/ui.py",))),
    ("settings", WARNING, "TRACKIO_MODE", {"settings": ("TRACKIO_MODE='x' is not understood.",)}),
    ("daemon", WARNING, "newer", daemon_says(version="0.9.1")),
    ("daemon", WARNING, "interpreter is gone", {"daemon": HEALTHY.daemon._replace(has_python=False)}),
    ("daemon", PROBLEM, "does not answer", silent(is_running=True)),
    ("daemon", WARNING, "TRACKIO_AUTOSTART=0", silent(autostart=False)),
    ("storing", PROBLEM, "disk is full", daemon_says(problem="the disk is full")),
    ("log", WARNING, "damaged", {"daemon": HEALTHY.daemon._replace(errors=("x ERROR y: damaged",))}),
    ("data folder", PROBLEM, "no folder of yours", {"live": DISK._replace(is_ours=False)}),
    ("data folder", PROBLEM, "cannot be written", {"live": DISK._replace(is_writable=False)}),
    ("file system", WARNING, "nfs4", {"network": "nfs4"}),
    ("file system", WARNING, "is memory", {"live": DISK._replace(is_memory=True, type="tmpfs")}),
    ("free space", WARNING, "500 MiB", {"live": DISK._replace(free_bytes=500 << 20)}),
    ("free space", PROBLEM, "20 MiB", {"live": DISK._replace(free_bytes=20 << 20)}),
    ("free space", WARNING, "unknown", {"live": DISK._replace(free_bytes=None)}),
    ("spool", PROBLEM, "overlay", {"spools": (SHM._replace(type="overlay", is_memory=False, is_mappable=False),)}),
    ("spool", PROBLEM, "nearly full", {"spools": (SHM._replace(free_bytes=1 << 20),)}),
    ("spool", PROBLEM, "not yours", {"spools": (SHM._replace(is_writable=False),)}),
    ("spool", WARNING, "checkpoint", {"spools": (DISK,)}),
    ("/dev/shm", WARNING, "64 MiB", {"shm": SHM._replace(total_bytes=64 << 20, free_bytes=60 << 20)}),
    ("/dev/shm", WARNING, "no /dev/shm", {"shm": None}),
    ("open files", WARNING, "1,000", {"daemon": HEALTHY.daemon._replace(files_limit=1000)}),
    ("open files", PROBLEM, "128", silent(limits=Limits(128, None, False))),
    ("locked memory", WARNING, "InfiniBand", {"limits": Limits(4096, 8 << 20, True)}),
    ("linger", WARNING, "/dev/shm", {"login": HEALTHY.login._replace(lingers=False)}),
    ("linger", WARNING, "unknown", {"login": HEALTHY.login._replace(lingers=None)}),
    ("waiting", WARNING, "3 ended", silent(waiting=3)),
    ("database log", WARNING, "388 MiB",
     {"logs": (LongLog("p", "/x/p.db-wal", 388 << 20, ("7 (sqlite3)",)),)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "verdict", "words", "changes"), TROUBLES, ids=[f"{t[0]}-{t[2]}" for t in TROUBLES])
def test_each_trouble_is_named_with_its_fix(name: str, verdict: str, words: str, changes: dict[str, Any]) -> None:
    checks = {c.name: c for c in examine(HEALTHY._replace(**changes))}
    check = checks[name]
    assert check.verdict == verdict and words in check.sentence and check.fix
    assert [n for n, c in checks.items() if c.verdict != OK] == [name], "and nothing else is"


@pytest.mark.parametrize("changes", [
    silent(), {"login": Login("a", True, True, False, True)}, {"login": Login("a", False, False, None, True)},
    {"limits": Limits(None, None, False)}, {"shm": SHM, "spools": (DISK._replace(is_writable=False), SHM)},
    daemon_says(version="99.0"),
])  # fmt: skip
def test_what_is_no_trouble_is_ok(changes: dict[str, Any]) -> None:
    assert {c.verdict for c in examine(HEALTHY._replace(**changes))} == {OK}


def test_the_last_word_of_logind_about_ipc_rules() -> None:
    assert removes_ipc([]) and removes_ipc(["[Login]\n#RemoveIPC=no\n"])
    assert not removes_ipc(["[Login]\nRemoveIPC=yes\n", "[Login]\nRemoveIPC=no\n"])


@pytest.mark.parametrize(("one", "other", "older"), [
    ("1.0.0", "1.0.1", True), ("0.9.9", "1.0", True), ("1.9", "1.10", True), ("1.0", "1.0.0", False),
    ("1.1.0", "1.0.9", False), ("1.1.0rc1", "1.1.0", False), ("1.0.0.dev3", "1.0.1", True),
    ("", "1.0", False), ("1.0", "", False), ("x", "1", False),
])  # fmt: skip
def test_versions_are_ordered_by_their_release(one: str, other: str, older: bool) -> None:
    assert is_older(one, other) is older


# -- in real situations ----------------------------------------------------------------------------------------


def doctor(host: Host, *before: str, code: int | None = 0, **options: Any) -> dict[str, dict[str, str]]:
    """Runs it, perhaps under another command; returns its checks by name."""
    command = [*before, str(Path(sys.executable).with_name("trackiod")), "doctor", "--json"]
    env = {**host.environ(TRACKIO_AUTOSTART="1"), **options.pop("env", {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60 * PATIENCE, **options)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def files_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_it_writes_nothing_and_starts_no_daemon(host: Host) -> None:
    shutil.rmtree(host.data)
    before = files_in(host.spool)
    checks = doctor(host)
    assert "not made yet" in checks["data folder"]["sentence"] and "does not run" in checks["daemon"]["sentence"]
    assert not host.data.exists() and files_in(host.spool) == before
    assert str(host.spool) in checks["spool"]["sentence"]


def test_it_names_the_daemon_that_runs(daemon: Host) -> None:
    sentence = doctor(daemon)["daemon"]["sentence"]
    assert f"pid {daemon.status().daemon['pid']}" in sentence and sys.executable in sentence


def test_a_daemon_that_is_silent_is_a_problem(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        check = doctor(daemon, code=1)["daemon"]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "does not answer" in check["sentence"] and f"pid {pid}" in check["sentence"] and check["fix"]


def test_few_descriptors_are_a_problem(host: Host) -> None:
    check = doctor(host, "sh", "-c", 'ulimit -n 100; exec "$@"', "sh", code=1)["open files"]
    assert check["verdict"] == PROBLEM and "100 files" in check["sentence"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("unshare"), reason="needs unshare, being root")
def test_a_folder_that_cannot_be_written_is_a_problem(host: Host) -> None:
    """Root may write wherever there is a mode; for root the folder is a read-only bind in a namespace."""
    bind = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", bind, str(host.data)] if os.geteuid() == 0 else []
    host.data.chmod(0o500)
    try:
        check = doctor(host, *before, code=1)["data folder"]
    finally:
        host.data.chmod(0o700)
    assert check["verdict"] == PROBLEM and "cannot be written" in check["sentence"] and "TRACKIO_DIR" in check["fix"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
@pytest.mark.parametrize(("filled", "verdict"), [("0", OK), ("50m", "")])
def test_the_small_shared_memory_of_a_container_is_named(host: Host, filled: str, verdict: str) -> None:
    """Half full, spools go elsewhere; whether there is an elsewhere is the host's."""
    small = f'mount -t tmpfs -o size=64m tmpfs /dev/shm && head -c {filled} /dev/zero > /dev/shm/full && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", small, "sh"]
    checks = doctor(host, *before, code=0 if verdict else None, env={"TRACKIO_SPOOL_DIR": "/dev/shm"})
    assert checks["/dev/shm"]["verdict"] == WARNING and "64 MiB" in checks["/dev/shm"]["sentence"]
    assert ("lie in /dev/shm/" in checks["spool"]["sentence"]) is (verdict == OK)


def test_what_a_dead_process_left_waits(host: Host) -> None:
    process = host.python("import trackio, sys\ntrackio.init(project='p')\ntrackio.log({'a': 1})\nprint(flush=True)\n"
                          "sys.stdin.read()", stdin=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert doctor(host)["waiting"]["verdict"] == WARNING
    host.start()
    wait_for(lambda: doctor(host)["waiting"]["verdict"] == OK)


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    """A folder with another package called trackio."""
    package = tmp_path / "shadow" / "trackio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.30.0"\nraise RuntimeError("the wrong one")\n')
    return package


def test_another_trackio_on_the_path_is_named_and_the_commands_work_all_the_same(daemon: Host, shadow: Path) -> None:
    env = {"PYTHONPATH": str(shadow.parent)}
    check = doctor(daemon, code=1, env=env)["package"]
    assert check["verdict"] == PROBLEM and f"trackio 0.30.0 in {shadow}" in check["sentence"]
    assert daemon.command("trackio", "list", "projects", **env).stdout.startswith("No projects")
    assert daemon.command("trackiod", "restart", **env).returncode == 0


def test_another_trackio_in_the_current_folder_is_named(host: Host, shadow: Path) -> None:
    check = doctor(host, cwd=shadow.parent)["current folder"]
    assert check["verdict"] == WARNING and str(shadow) in check["sentence"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with ours in it, as pip leaves them."""
    site = tmp_path / "site"
    for package, name in (("trackio", "trackio"), ("trackiod", "trackiod"), ("cli", "trackio_cli")):
        shutil.copytree(ROOT / package, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    brought = [str(path.relative_to(site)) for path in site.rglob("*.py")]
    distribution(site, __version__, brought)
    return site


def distribution(site: Path, version: str, brought: list[str]) -> None:
    folder = site / f"trackio-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trackio\nVersion: {version}\n")
    (folder / "RECORD").write_text("".join(f"{path},,\n" for path in brought))


def ask_site(host: Host, site: Path) -> Any:
    code = "from trackio_cli.daemon import trackiod; trackiod()"
    env = {"PYTHONPATH": str(site), "TRACKIO_AUTOSTART": "1"}
    process = host.python(code, "doctor", "--json", env=env, cwd=site.parent)
    out, err = process.communicate(timeout=60 * PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def files_check(done: Any) -> dict[str, str] | None:
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["package"]["verdict"] == OK, checks["package"]
    return checks.get("package files")


def upstream_over(site: Path) -> None:
    distribution(site, "0.30.0", ["trackio/__init__.py"])


def leftover(site: Path) -> None:
    (site / "trackio" / "ui.py").write_text("")


@pytest.mark.parametrize(("act", "words"), [(None, ""), (leftover, "trackio/ui.py"), (upstream_over, "0.30.0")])
def test_what_is_left_of_another_installation_is_named(
    host: Host, site: Path, act: Callable[[Path], None] | None, words: str
) -> None:
    if act is None:
        assert files_check(ask_site(host, site)) is None
        return
    act(site)
    check = files_check(ask_site(host, site))
    assert check is not None and words in check["sentence"] and check["fix"]


def test_commands_whose_package_was_overwritten_say_so_in_one_sentence(host: Host, site: Path) -> None:
    (site / "trackio" / "wire.py").unlink()
    done = ask_site(host, site)
    assert done.returncode == 1 and "installed over it" in done.stderr and "Traceback" not in done.stderr
