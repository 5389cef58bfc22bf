"""Several users of one shared folder: whom a group lets read, whose a run is shown as, what a copy that lies can do.

One process plays all of them, as root: what a user copied is given to another number afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Host

from trackiod.sinks import access, directory

ALICE, GROUP = 54321, 54999
LOG = "import sys, trackio\ntrackio.init(project='p', name=sys.argv[1])\n[trackio.log({'a': i}) for i in range(10)]"
ARTIFACT = f"{LOG}\nopen('m.bin', 'w').write('x')\ntrackio.log_artifact('m.bin', name='m')"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be several users")


def user(folder: Path, name: str, **extra: str) -> Host:
    host = Host(
        folder / name / "data", folder / f"spool-{name}", {"TRACKIO_SHARED_DIR": str(folder / "shared"), **extra}
    )
    host.data.mkdir(parents=True)
    return host


def logs(host: Host, run: str, code: str = LOG) -> None:
    """Logs a run and copies it."""
    host.start()
    assert host.run(f"import os\nos.chdir({str(host.data.parent)!r})\n{code}", run).returncode == 0
    host.ended_runs("p")
    host.stop()
    directory.copy_out(host.places, access=access.of_group(host.extra.get("TRACKIO_SHARED_GROUP", ""))[0])


def given_to(uid: int, path: str | Path) -> None:
    subprocess.run(["chown", "-R", f"{uid}:{uid}", str(path)], check=True)


def may_be_passed(folder: Path) -> None:
    """Lets other users reach what lies in a test's folder."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o011 != 0o011:
            parent.chmod(parent.stat().st_mode | 0o011)


def index_of(folder: str) -> Path:
    (found,) = Path(folder).rglob("parts.json")
    return found


def listed(host: Host) -> Any:
    done = host.command("trackio", "list", "runs", "--project", "p", "--json")
    runs = {run["name"]: run for run in json.loads(done.stdout)["details"]} if done.stdout else {}
    return runs, done.stderr


@pytest.fixture
def alice(tmp_path: Path) -> Host:
    """Another user, whose run lies in the shared folder."""
    host = user(tmp_path, "alice")
    logs(host, "hers", ARTIFACT)
    given_to(ALICE, Path(directory.own_folder(host.places)).parent)
    return host


# -- a group -----------------------------------------------------------------------------------------------------------


def modes(folder: Path) -> set[tuple[bool, int, int]]:
    everything = [folder, *folder.rglob("*")]
    return {(path.is_dir(), path.stat().st_mode & 0o7777, path.stat().st_gid) for path in everything}


def test_a_group_may_read_copies_and_nobody_else(tmp_path: Path) -> None:
    host = user(tmp_path, "me")
    logs(host, "first", ARTIFACT)
    store = Path(directory.own_folder(host.places))
    assert modes(store) == {(True, 0o700, 0), (False, 0o600, 0)}
    host.extra["TRACKIO_SHARED_GROUP"] = str(GROUP)
    logs(host, "second")
    assert modes(store) == {(True, 0o2750, GROUP), (False, 0o640, GROUP)}, "what was there before, too"
    assert store.parent.stat().st_mode & 0o7777 == 0o2750
    tmp_path.joinpath("shared").chmod(0o755)
    code = (
        "import os, sys\nos.setgroups([int(sys.argv[1])]); os.setgid(54321); os.setuid(54321)\nopen(sys.argv[2]).read()"
    )
    os.chdir("/")
    may_be_passed(tmp_path)
    read = [subprocess.run([sys.executable, "-c", code, str(gid), index_of(str(store))], capture_output=True).returncode
            for gid in (GROUP, GROUP + 1)]  # fmt: skip
    assert read == [0, 1]
    del host.extra["TRACKIO_SHARED_GROUP"]
    logs(host, "third")
    assert {mode & 0o077 for _, mode, _ in modes(store)} == {0}


def test_a_group_that_is_not_there_is_one_sentence_and_copies_are_made(tmp_path: Path) -> None:
    host = user(tmp_path, "me", TRACKIO_SHARED_GROUP="no-such-group")
    host.start()
    assert host.run(LOG, "r").returncode == 0
    host.command("trackio", "drain", "--timeout", "10")
    status = host.command("trackio", "status").stdout
    assert status.count("TRACKIO_SHARED_GROUP='no-such-group' is not a group") == 1, status
    assert modes(Path(directory.own_folder(host.places))) == {(True, 0o700, 0), (False, 0o600, 0)}
    host.close()


# -- reading another user's copies -------------------------------------------------------------------------------------


def test_another_users_run_is_shown_as_that_users(tmp_path: Path, alice: Host) -> None:
    me = user(tmp_path, "me")
    logs(me, "mine")
    folder = Path(directory.own_folder(me.places)).parent
    assert folder.name == f"{os.uname().nodename}~0", "the host's folder is hers"
    runs, problems = listed(me)
    assert not problems and "owner" not in runs["mine"] and f"uid {ALICE}" in runs["hers"]["owner"]
    facts = me.cli_here("get", "run", "--project", "p", "--run", "hers")
    assert f"uid {ALICE}" in facts["owner"] and facts["points"] == 10
    assert f"of another user (uid {ALICE})" in me.command("trackio", "status").stdout
    assert me.cli_here("list", "artifacts", "--project", "p")["artifacts"] == [], "they are hers alone"


def test_a_copy_that_is_not_for_us_is_passed_over(tmp_path: Path, alice: Host) -> None:
    """As another user sees it, whom no mode lets look into the folder: root stands in for the user it belongs to."""
    me = user(tmp_path, "me")
    given_to(0, tmp_path / "shared")
    given_to(ALICE, me.data)
    hers = tmp_path / "shared"
    may_be_passed(tmp_path)
    hers.chmod(0o755)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.setgroups([])
        os.setgid(ALICE)
        os.setuid(ALICE)
        from trackiod import elsewhere

        os.write(writer, repr(elsewhere.refresh(me.places)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        assert file.read() == "[]"


def claims_my_run(me: Host, store: Path) -> str:
    """Her copy is called like my run, and holds it."""
    mine = Path(directory.own_folder(me.places))
    theirs, ours = index_of(str(store)), index_of(str(mine))
    index = json.loads(ours.read_text())
    for part in next(iter(index["runs"].values()))["parts"]:
        shutil.copy(ours.parent / part["name"], theirs.parent)
    theirs.write_text(json.dumps({**index, "artifacts": {"token": "", "name": ""}}))
    return "which is yours"


def puts_rows_into_my_run(me: Host, store: Path) -> str:
    """A part of a run of hers holds a stream of mine."""
    index = index_of(str(store))
    (entry,) = json.loads(index.read_text())["runs"].values()
    path = index.parent / entry["parts"][0]["name"]
    with closing(sqlite3.connect(path)) as part, part:
        part.execute("UPDATE axes SET stream = 'somebody'")
    return "another stream's"


def holds_a_view(me: Host, store: Path) -> str:
    index = index_of(str(store))
    (entry,) = json.loads(index.read_text())["runs"].values()
    with closing(sqlite3.connect(index.parent / entry["parts"][0]["name"])) as part, part:
        part.execute("CREATE VIEW bad AS SELECT 1")
    return "more than tables"


def says_nonsense_of_a_stream(me: Host, store: Path) -> str:
    index = index_of(str(store))
    (entry,) = json.loads(index.read_text())["runs"].values()
    with closing(sqlite3.connect(index.parent / entry["parts"][0]["name"])) as part, part:
        part.execute("UPDATE streams SET meta = x'c1'")
    return "what cannot be"


def leads_elsewhere(me: Host, store: Path) -> str:
    index = index_of(str(store))
    content = json.loads(index.read_text())
    (entry,) = content["runs"].values()
    entry["parts"][0]["name"] = "../../../../secret.db"
    index.write_text(json.dumps(content))
    return "means nothing"


def is_a_link(me: Host, store: Path) -> str:
    index = index_of(str(store))
    index.rename(index.with_name("elsewhere"))
    index.symlink_to(index.with_name("elsewhere"))
    return "cannot be read"


def is_a_link_to_a_part(me: Host, store: Path) -> str:
    index = index_of(str(store))
    (entry,) = json.loads(index.read_text())["runs"].values()
    part = index.parent / entry["parts"][0]["name"]
    part.rename(part.with_name("elsewhere"))
    part.symlink_to(part.with_name("elsewhere"))
    return "is a link"


def is_a_pipe(me: Host, store: Path) -> str:
    (store / "alive").unlink()
    os.mkfifo(store / "alive")
    return "not a plain file"


def is_a_pattern(me: Host, store: Path) -> str:
    store.rename(store.with_name("*"))
    return ""


def is_called_like_my_other_store(me: Host, store: Path) -> str:
    """My runs of another host, under a store's name that she takes too, and says to be newer."""
    other = user(me.data.parent.parent, "other")
    logs(other, "elsewhere")
    mine = Path(directory.own_folder(other.places))
    shutil.copytree(store, store.with_name(mine.name))
    given_to(ALICE, store.with_name(mine.name))
    os.utime(store.with_name(mine.name) / "alive", (2e9, 2e9))
    return ""


@pytest.mark.parametrize(
    "lie", [claims_my_run, puts_rows_into_my_run, holds_a_view, leads_elsewhere, is_a_link, is_a_link_to_a_part,
            is_a_pipe, says_nonsense_of_a_stream, is_a_pattern, is_called_like_my_other_store],
)  # fmt: skip
def test_a_copy_that_lies_is_named_and_changes_nobody_elses_runs(tmp_path: Path, alice: Host, lie: Any) -> None:
    me = user(tmp_path, "me")
    logs(me, "mine")
    store = Path(directory.own_folder(alice.places).replace("~0", ""))
    said = lie(me, store)
    given_to(ALICE, store.parent)
    runs, problems = listed(me)
    assert said in problems and "Traceback" not in problems
    assert "owner" not in runs["mine"]
    assert me.cli_here("get", "run", "--project", "p", "--run", "mine")["points"] == 10
    if lie is is_called_like_my_other_store:
        assert "owner" not in runs["elsewhere"]


def test_a_store_that_two_other_users_claim_is_that_which_was_there_first(tmp_path: Path, alice: Host) -> None:
    me = user(tmp_path, "me")
    logs(me, "mine")
    store = Path(directory.own_folder(alice.places).replace("~0", ""))
    twin = tmp_path / "shared" / "evil" / store.name
    shutil.copytree(store, twin)
    given_to(ALICE + 1, twin.parent)
    runs, problems = listed(me)
    assert "hers" not in runs and "Several users say" in problems
    shutil.rmtree(twin.parent)
    assert f"uid {ALICE}" in listed(me)[0]["hers"]["owner"]
    shutil.copytree(store, twin)
    given_to(ALICE + 1, twin.parent)
    assert f"uid {ALICE}" in listed(me)[0]["hers"]["owner"]
