"""Checkpoints: what was logged is what is kept, however its source is written to; nothing staged is thrown away."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
from conftest import Host, wait_for
from failing import Failing

from trackiod.leases import Leases
from trackiod.store.digest import ArtifactSaid, Digest, StagedFile
from trackiod.store.project import ProjectStore

HEAD = """
import hashlib, json, mmap, os, shutil, sys, time, trackio
run = trackio.init(project="p", name="r")
SIZE = 9 << 20
def save(path, n, mode="wb", size=SIZE):
    with open(path, mode) as file: file.write(bytes([n]) * size)
"""

WAYS = """
def in_place(n): save("in_place", n); return "in_place"
def renamed_over(n): save("new", n); os.rename("new", "renamed"); return "renamed"
def updated(n): save("updated", n, "r+b" if n else "wb"); return "updated"
def removed(n): save(f"removed{n}", n); return f"removed{n}"
def folder(n):
    shutil.rmtree("folder", ignore_errors=True); os.mkdir("folder")
    save("folder/shard-0", n); save("folder/shard-1", n + 100); save("folder/config", n, size=10)
    return "folder"
def linked(n):
    save("linked", n)
    if not n: os.link("linked", "also")
    return "also"
def mapped(n):
    if not n: save("mapped", 0)
    global space
    with open("mapped", "r+b") as file: space = mmap.mmap(file.fileno(), 0)
    space[:] = bytes([n]) * SIZE
    return "mapped"
artifacts = []
for n in range(3):
    for way in (in_place, renamed_over, updated, removed, folder, linked, mapped):
        path = way(n)
        artifacts.append(trackio.log_artifact(path, name=way.__name__))
        if way is removed: os.unlink(path)
        if way is mapped: space[:] = bytes([99]) * SIZE
        trackio.save(path) if way is in_place else None
"""


_USUAL = ("see it with", "the disk did not keep")
"""the second where a disk is busy with what a test wrote"""


def run(host: Host, code: str, *, complains: bool = False) -> list[str]:
    """Runs a script in the data folder's parent; returns the lines that it prints."""
    done = host.run(f"{HEAD}os.chdir({str(host.data.parent)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not any(usual in line for usual in _USUAL)]
    assert bool(said) == complains, said
    lines: list[str] = done.stdout.splitlines()
    return lines


def versions(host: Host, name: str = "") -> list[dict[str, Any]]:
    found = host.cli_here("list", "artifacts", "--project", "p")["artifacts"]
    return [each for each in found if not name or each["name"] == name]


def digest_of(n: int, size: int = 9 << 20) -> str:
    return hashlib.sha256(bytes([n]) * size).hexdigest()


@pytest.mark.parametrize("has_daemon", [True, False], ids=["a daemon", "no daemon"])
def test_what_is_kept_is_what_was_logged_in_whatever_way_checkpoints_are_written(host: Host, has_daemon: bool) -> None:
    if has_daemon:
        host.start()
    host.extra["TRACKIO_SPILL_MIB"] = "1"  # copies are held against the free disk only
    run(host, WAYS + ("for a in artifacts: a.wait()" if has_daemon else ""))
    host.start()
    host.ended_run("p")
    wait_for(lambda: len(versions(host)) == 21, what="all versions")
    for name in ("in_place", "renamed_over", "updated", "removed", "linked", "mapped"):
        found = versions(host, name)
        assert [each["manifest"][0]["digest"] for each in found] == [digest_of(n) for n in range(3)], name
        assert [each["aliases"] for each in found] == [[], [], ["latest"]], name
        assert not any(each["incomplete"] for each in found)
    for n, found_folder in enumerate(versions(host, "folder")):
        digests = {each["path"]: each["digest"] for each in found_folder["manifest"]}
        assert digests == {"shard-0": digest_of(n), "shard-1": digest_of(n + 100), "config": digest_of(n, 10)}
    wait_for(lambda: not list((host.data / "incoming").iterdir()), what="the last staged file to go")


def test_a_daemon_that_does_not_answer_costs_a_copy_and_nothing_else(daemon: Host) -> None:
    pid = daemon.status().daemon["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        run(daemon, """
for n in range(3):
    save("last.pt", n)
    trackio.log_artifact("last.pt", name="m")
save("last.pt", 9)
""")  # fmt: skip
    finally:
        os.kill(pid, signal.SIGCONT)
    daemon.ended_run("p")
    wait_for(lambda: len(versions(daemon)) == 3, what="all versions")
    assert [each["manifest"][0]["digest"] for each in versions(daemon)] == [digest_of(n) for n in range(3)]


def test_a_file_that_another_process_writes_to_all_the_time_is_kept_and_said_to_be_torn(daemon: Host) -> None:
    run(daemon, """
import subprocess
save("busy", 1, size=SIZE * 8)
write = "import os; fd = os.open('busy', os.O_RDWR); print(flush=True)\\nwhile True: os.pwrite(fd, os.urandom(9), 0)"
writer = subprocess.Popen([sys.executable, "-c", write], stdout=subprocess.PIPE)
writer.stdout.readline()
a = trackio.log_artifact("busy", name="m")
writer.kill(); writer.communicate()
try: a.wait()
except RuntimeError as error: print(error)
""")  # fmt: skip
    (found,) = versions(daemon)
    (entry,) = found["manifest"]
    assert entry["size"] == 72 << 20 and entry["digest"] and found["aliases"] == []
    assert entry["incomplete"] == "it was written to while it was copied"


REWRITTEN = """
import threading
SHARDS, SIZE, LAPS = 6, 4 << 20, 250
os.mkdir("set")
is_over = threading.Event()
def rewrite():
    n = 1
    while not is_over.is_set():
        for shard in range(SHARDS): save(f"set/shard-{shard}", n % LAPS, size=SIZE)
        n += 1
for shard in range(SHARDS): save(f"set/shard-{shard}", 0, size=SIZE)
writer = threading.Thread(target=rewrite)
writer.start()
artifacts = []
for _ in range(10):
    artifacts.append(trackio.log_artifact("set", name="set"))
    time.sleep(0.02)
is_over.set()
writer.join()
written = {hashlib.sha256(bytes([n]) * SIZE).hexdigest(): n for n in range(LAPS)}
for artifact in artifacts:
    try: artifact.wait(60)
    except RuntimeError as error: print(len(artifact.aliases), "written to" in str(error))
    else: print(len(artifact.aliases), *(written.get(entry["digest"]) for entry in artifact.manifest))
trackio.finish()
"""


def test_a_set_of_shards_that_is_rewritten_is_kept_as_it_was_at_one_moment_or_said_to_be_torn(daemon: Host) -> None:
    done = daemon.run(f"{HEAD}os.chdir({str(daemon.data.parent)!r})\n{REWRITTEN}")
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 10, done.stderr
    for aliases, *saves in found:
        if saves == ["True"]:
            assert aliases == "0"
            continue
        whole = [int(save) for save in saves if save != "None"]
        assert len(whole) >= 5, "at most one was being written"
        assert whole == sorted(whole, reverse=True) and whole[0] - whole[-1] <= 1, found


def test_a_log_that_grows_is_kept_as_far_as_it_was_there(daemon: Host) -> None:
    run(daemon, """
import subprocess
save("log", 1, size=SIZE * 2)
write = "import os; fd = os.open('log', os.O_WRONLY | os.O_APPEND); print(flush=True)\\n"
write += "while True: os.write(fd, b'more')"
writer = subprocess.Popen([sys.executable, "-c", write], stdout=subprocess.PIPE)
writer.stdout.readline()
a = trackio.log_artifact("log", name="m")
writer.kill(); writer.communicate()
a.wait().download("out")
content = open("out/log", "rb").read()
old, new = content[: SIZE * 2], content[SIZE * 2 :]
assert old == bytes([1]) * SIZE * 2 and new == b"more" * (len(new) // 4)
""")  # fmt: skip


@pytest.fixture
def faulty(host: Host, tmp_path: Path) -> Iterator[tuple[Host, Failing]]:
    """A daemon whose system calls can be made to fail."""
    failing = Failing(tmp_path / "failing")
    host.extra |= failing.environ
    host.start()
    yield host, failing
    failing.heal()


def keepers(host: Host) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(host.status().daemon["pid"]).children():
        with suppress(psutil.NoSuchProcess):
            if "keep" in child.cmdline():
                found.append(child)
    return found


def test_a_daemon_killed_before_it_has_its_copy_never_keeps_what_was_written_later(
    faulty: tuple[Host, Failing],
) -> None:
    host, failing = faulty
    pid = host.status().daemon["pid"]
    with failing.hang("read", 60, path="/incoming/", process="trackiod keep") as hung:
        run(host, "save('a', 1); save('b', 1); [trackio.log_artifact(n, name=n) for n in 'ab']")
        wait_for(lambda: hung.hits, what="a child that copies")
        children = keepers(host)
        os.kill(pid, signal.SIGKILL)
        for child in children:
            child.kill()
    with open(host.data.parent / "a", "r+b") as file:
        file.write(b"later")
    host.start()
    wait_for(lambda: len(versions(host)) == 2, what="both versions")
    (a,), (b,) = versions(host, "a"), versions(host, "b")
    assert a["incomplete"] == [{"path": "a", "cause": "its source was written to before it could be kept"}]
    assert a["aliases"] == [] and b["aliases"] == ["latest"] and b["manifest"][0]["digest"] == digest_of(1)


def test_a_daemon_that_is_stopped_copies_what_it_protects(daemon: Host) -> None:
    process = daemon.python(
        HEAD + f"""os.chdir({str(daemon.data.parent)!r})
save("a", 1); save("b", 1)
artifacts = [trackio.log_artifact(name, name=name) for name in "ab"]
print("logged", flush=True); sys.stdin.readline()
for a in artifacts: a.wait()
""", stdin=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "logged\n"
    daemon.stop()
    with open(daemon.data.parent / "a", "r+b") as file:
        file.write(b"later")
    daemon.start()
    assert process.communicate("go\n", timeout=120)[1].count("incomplete") == 0 and process.returncode == 0
    assert [each["manifest"][0]["digest"] for each in versions(daemon)] == [digest_of(1)] * 2


def test_an_incomplete_version_takes_no_alias_and_is_said_wherever_one_looks(daemon: Host) -> None:
    said = run(daemon, """
def log(is_whole, **more):
    a = trackio.Artifact("m"); save("kept", 1, size=10); save("gone", 2, size=10)
    a.add_file("kept"); a.add_file("gone")
    if not is_whole: os.unlink("gone")
    return trackio.log_artifact(a, **more)
log(True, aliases=["best"]).wait()
for _ in range(2):
    a = log(False, aliases=["best"], overwrite=True)
    try: a.wait()
    except RuntimeError as error: print(error)
print(a.version, a.aliases, trackio.use_artifact("m").version, trackio.use_artifact("m:best").version)
""", complains=True)  # fmt: skip
    problem = "is incomplete: 'gone' (the file "
    assert said[0].startswith(f"Artifact 'm:v1' {problem}") and said[1].startswith(f"Artifact 'm:v2' {problem}")
    assert said[2] == "v2 () v0 v0"
    assert [each["aliases"] for each in versions(daemon)] == [["best", "latest"], [], []]
    assert len({each["digest"] for each in versions(daemon)}) == 3, "what is missing is equal to nothing"
    daemon.ended_run("p")
    sentences = daemon.cli_here("status")["incomplete"]
    assert [sentence[:30] for sentence in sentences] == [
        "Artifact 'p/m:v1' is incomplet",
        "Artifact 'p/m:v2' is incomplet",
    ]
    assert sentences[1] in daemon.command("trackio", "status").stdout
    assert sentences[1] in daemon.command("trackiod", "doctor").stdout
    drained = daemon.command("trackio", "drain")
    assert drained.returncode == 1 and sentences[0] in drained.stderr


def test_the_last_line_of_a_process_counts_files_that_were_not_kept(daemon: Host) -> None:
    done = daemon.run(HEAD + """
trackio.log({"whole": trackio.Html("<p>")})
run._stream.staging.write([b"x"], ".png", encode="image", mode="RGB", size_px=(9, 9))
a = trackio.Artifact("m"); save("gone", 2, size=10); a.add_file("gone"); os.unlink("gone")
trackio.log_artifact(a)
while not run._stream.shipment.incomplete: time.sleep(0.05)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "trackio: 2 file(s) were not kept whole; trackio status names the artifacts that miss them."


FAULTS = [
    ("open", errno.EMFILE, "/incoming/", "trackiod keep"),
    ("open", errno.ESTALE, "/incoming/", "trackiod keep"),
    ("read", errno.EIO, "/incoming/", "trackiod keep"),
    ("fsync", errno.EIO, "/blobs/", "trackiod keep"),
    ("link", errno.ENOMEM, "/blobs/", "trackiod keep"),
    ("stat", errno.ESTALE, "/incoming/", "trackiod keep"),
    ("fork", errno.EAGAIN, "", "trackiod"),
]


def test_a_staged_file_is_tried_until_it_is_kept_whatever_fails(faulty: tuple[Host, Failing]) -> None:
    host, failing = faulty
    for number, (call, error, path, process) in enumerate(FAULTS):
        for child in keepers(host):
            child.kill()
        with failing.fail(call, error, path, process=process) as rule:
            run(host, f"save('small', {number}, size=1000); trackio.log_artifact('small', name='m')")
            (waiting,) = wait_for(lambda: host.status().daemon["waiting_files"], what=f"{call} to fail")
            assert rule.hits and os.strerror(error) in waiting["problem"], (call, waiting)
            assert "/incoming/" in waiting["path"] and waiting["project"] == "p" and waiting["tries"] >= 1
            if not number:
                shown = host.command("trackio", "status").stdout
                assert f"Not kept yet: {waiting['path']} of project 'p': {os.strerror(error)}" in shown
        wait_for(lambda n=number: len(versions(host)) == n + 1, what=f"the file after {call}")
    assert [each["manifest"][0]["digest"] for each in versions(host)] == [
        digest_of(n, 1000) for n in range(len(FAULTS))
    ]


def test_a_file_that_hangs_holds_up_no_other_and_no_stop(faulty: tuple[Host, Failing]) -> None:
    host, failing = faulty
    with failing.hang("read", 120, path="/incoming/", process="trackiod keep", count=1) as hung:
        run(host, "save('first', 1, size=1000); trackio.log_artifact('first')")
        wait_for(lambda: hung.hits, what="a file that hangs")
        run(host, "save('second', 2, size=1000); trackio.log_artifact('second').wait()")
        assert [each["name"] for each in versions(host)] == ["second"]
        assert host.stop()
    host.start()
    wait_for(lambda: len(versions(host)) == 2, what="the other file")


def test_bytes_of_which_no_picture_can_be_made_are_kept_as_they_were_logged(faulty: tuple[Host, Failing]) -> None:
    host, failing = faulty
    code = "import numpy as np; trackio.log({'image': trackio.Image(np.full((4, 4, 3), 7, np.uint8))})"
    with failing.hang("read", 120, path="/incoming/", process="trackiod keep"):
        run(host, code)
        known: set[int] = set()
        for _ in range(3):
            child = wait_for(lambda: next((c for c in keepers(host) if c.pid not in known), None), what="a child")
            known.add(child.pid)
            wait_for(lambda c=child: c.status() == psutil.STATUS_SLEEPING and c.cpu_times().user > 0, what="its work")
            child.kill()
    host.ended_run("p")

    def image() -> Any:
        (value,) = host.values("p", "image")
        from trackiod.exhibits import Exhibits

        shown = Exhibits(host.readers[-1]).shown(value)
        return shown if "sha256" in shown else None

    shown = wait_for(image, what="the file")
    if "incomplete" in shown:  # else one of the children was killed before it had the file in hand
        assert Path(shown["file_path"]).read_bytes() == b"\7" * 48
        assert "its bytes are kept as they were logged" in shown["incomplete"]


def test_a_staged_file_that_was_cut_short_is_never_called_kept(host: Host) -> None:
    run(host, """
import numpy as np
save("small", 1, size=1000)
trackio.log_artifact("small", name="m"); trackio.save("small")
trackio.log({"image": trackio.Image(np.zeros((4, 4), np.uint8))})
""")  # fmt: skip
    staged = list((host.data / "incoming").glob("*/[0-9]*"))
    assert len(staged) == 3
    for path in staged:
        os.truncate(path, 0)
    host.start()
    host.ended_run("p")
    (found,) = wait_for(lambda: versions(host), what="the version")
    assert found["incomplete"] == [
        {"path": "small", "cause": "its staged file was cut short: 0 of 1,000 bytes are left"}
    ]
    wait_for(lambda: not host.status().daemon["errands"], what="the other files")
    assert not [path for path in (host.data / "blobs").rglob("*") if path.is_file()]


# -- leases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    (tmp_path / "stream").mkdir()
    leases = Leases(str(tmp_path))
    thread = threading.Thread(target=leases.run)
    thread.start()
    yield leases
    leases.stop()
    thread.join()


def asked(leases: Leases, *numbers: int, stream: str = "stream") -> list[int]:
    answers: list[list[int]] = []
    leases.ask(stream, numbers, answers.append)
    return wait_for(lambda: answers, what="the answer")[0]  # type: ignore[no-any-return]


WRITE = "import sys; file = open(sys.argv[1], 'r+b'); file.write(b'later'); file.close(); print('wrote', flush=True)"


def writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, text=True)


def test_a_writer_waits_until_a_lease_is_released(leases: Leases, tmp_path: Path) -> None:
    path = tmp_path / "stream" / "0"
    path.write_bytes(b"logged")
    assert asked(leases, 0, 1) == [0] and asked(leases, 0) == [0]
    process = writer(path)
    wait_for(lambda: leases.wanted == {"stream/0"}, what="somebody who waits")
    leases.take_late("stream/0")
    assert path.read_bytes() == b"logged"
    assert leases.release("stream/0") and not leases.release("stream/0")
    assert process.communicate(timeout=60)[0] == "wrote\n" and path.read_bytes() == b"laterd"
    leases.take_late("stream/0")
    wait_for(lambda: leases.is_held("stream/0"), what="another lease")
    assert not leases.release("stream/0"), "nobody knows what was written before it"


def test_a_lease_that_nobody_will_release_goes_with_its_file(leases: Leases, tmp_path: Path) -> None:
    path, source = tmp_path / "stream" / "0", tmp_path / "source"
    source.write_bytes(b"logged")
    os.link(source, path)
    assert asked(leases, 0) == [0]
    process = writer(source)
    path.unlink()
    assert process.communicate(timeout=60)[0] == "wrote\n"


def test_no_lease_is_taken_on_what_is_written_to_or_lies_elsewhere(leases: Leases, tmp_path: Path) -> None:
    for name in ("stream/0", "1", "elsewhere"):
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path / "elsewhere", tmp_path / "stream" / "2")
    with open(tmp_path / "stream" / "0", "ab"):
        assert asked(leases, 0, 1, 2, -1) == []
    assert asked(leases, 1, stream="..") == asked(leases, 1, stream=".") == asked(leases, 1, stream="") == []


def test_who_owns_a_file_may_lease_it(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to be somebody else")
    path = Path(f"/var/tmp/trackio-test-lease-{os.getpid()}")
    path.write_bytes(b"x")
    os.chown(path, 65534, 65534)
    code = "import fcntl, sys; fcntl.fcntl(open(sys.argv[1], 'rb'), fcntl.F_SETLEASE, fcntl.F_RDLCK); print('leased')"
    try:
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", code, str(path)], user=65534, group=65534, extra_groups=[],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
    finally:
        path.unlink()
    assert done.stdout == "leased\n", done.stderr


# -- many files ----------------------------------------------------------------------------------------------------


def test_the_cost_of_many_files_in_the_trainer_grows_with_their_number(host: Host) -> None:
    (small, large) = (float(line) for line in run(host, """
for count in (2000, 8000):
    for n in range(count):
        if n % 100 == 0: os.makedirs(f"many{count}/{n // 100}")
        save(f"many{count}/{n // 100}/{n}", n % 256, size=1)
    start = time.process_time()
    a = trackio.Artifact("m"); a.add_dir(f"many{count}")
    a.add_reference("file://" + os.path.abspath(f"many{count}"), name="also", checksum=False)
    trackio.log_artifact(a)
    print(time.process_time() - start)
"""))  # fmt: skip
    assert large < 8 * small


def test_the_cost_of_many_files_in_the_store_grows_with_their_number(tmp_path: Path) -> None:
    def work(count: int) -> int:
        """Steps of SQLite's machine for an artifact of so many files, each settled in a transaction of its own."""
        store = ProjectStore(str(tmp_path), f"p{count}", "store")
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        files = [StagedFile(n, n, {"artifact": 3, "path": str(n), "size": 1}) for n in range(count)]
        with store.transaction():
            store.shelf.note("s", Digest(files=files))
            store.shelf.note("s", Digest(artifacts=[ArtifactSaid(3, 1, "output", "m", {"files": count})]))
        store.connection.set_progress_handler(step, 100)
        for n in range(count):
            with store.transaction():
                store.shelf.note_file(f"s/{n}", "kept", f"{n:064x}", 1, "", "")
        store.connection.set_progress_handler(None, 0)
        (version,) = store.connection.execute("SELECT version FROM artifacts").fetchone()
        assert version == 0
        store.close()
        return steps

    assert work(2000) < 8 * work(500)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ProjectStore]:
    store = ProjectStore(str(tmp_path), "p", "store")
    yield store
    store.close()


def say(store: ProjectStore, number: int, files: list[int], *, name: str = "m", unknown: int = 0, **facts: Any) -> None:
    """Store that an artifact of these files, and of so many more, was logged."""
    staged = [StagedFile(n, n, {"artifact": number, "path": str(n), "size": 1}) for n in files]
    said = ArtifactSaid(number, 1, "output", name, {"files": len(files) + unknown, **facts})
    with store.transaction():
        store.shelf.note("s", Digest(files=staged, artifacts=[said]))


def settle(store: ProjectStore, *files: int, state: str = "kept") -> None:
    for n in files:
        store.shelf.note_file(f"s/{n}", state, f"{n:064x}", 1, "", "" if state == "kept" else "it was lost")


def numbered(store: ProjectStore) -> dict[int, int | None]:
    return dict(store.connection.execute("SELECT number, version FROM artifacts ORDER BY number"))


def aliases(store: ProjectStore) -> dict[str, int]:
    return dict(store.connection.execute("SELECT alias, version FROM aliases"))


def test_counts_of_a_transaction_that_was_rolled_back_are_forgotten(store: ProjectStore) -> None:
    say(store, 0, [0, 1, 2])
    with pytest.raises(KeyError), store.transaction():
        settle(store, 0, 1)
        raise KeyError
    for n in range(3):
        assert numbered(store) == {0: None}
        with store.transaction():
            settle(store, n, n)
    assert numbered(store) == {0: 0}


def test_versions_are_numbered_in_the_order_of_logging_whichever_files_are_kept_first(store: ProjectStore) -> None:
    for n in range(4):
        say(store, n, [n])
    say(store, 4, [4], name="other")
    with store.transaction():
        settle(store, 2, 1, 4)
        assert numbered(store) == {0: None, 1: None, 2: None, 3: None, 4: 0}
        settle(store, 0)
    assert numbered(store) == {0: 0, 1: 1, 2: 2, 3: None, 4: 0}


def test_no_version_waits_for_a_file_that_cannot_be_kept_now_and_latest_stays_with_what_was_logged_last(
    store: ProjectStore,
) -> None:
    say(store, 0, [0], aliases=["best"], overwrite=True)
    for n in (1, 2, 3):
        say(store, n, [n], aliases=["best"])
    with store.transaction():
        settle(store, 1, 3)
        store.shelf.pass_over("s/0")
        assert numbered(store) == {0: None, 1: 0, 2: None, 3: None}
        store.shelf.pass_over("s/2")
        assert numbered(store) == {0: None, 1: 0, 2: None, 3: 1}
        settle(store, 0, 2)
    assert numbered(store) == {0: 2, 1: 0, 2: 3, 3: 1} and aliases(store) == {"best": 1, "latest": 1}


def test_files_of_which_nothing_was_stored_make_a_version_incomplete_and_nobody_waits_for_ever(
    store: ProjectStore,
) -> None:
    say(store, 0, [0])
    say(store, 1, [1], unknown=2, parts=2)
    with store.transaction():
        settle(store, 0, 1)
    assert numbered(store) == {0: 0, 1: 1} and aliases(store) == {"latest": 0}
    (packed,) = store.connection.execute("SELECT facts FROM versions WHERE version = 1").fetchone()
    missing = [each["path"] for each in msgpack.unpackb(packed)["incomplete"]]
    assert missing == ["(2 files)", "(references)"]


def test_an_artifact_of_thousands_of_files_and_references_is_one_version(daemon: Host) -> None:
    said = run(daemon, """
os.mkdir("many")
for n in range(3000): save(f"many/{n:05}", n % 256, size=1)
a = trackio.Artifact("m"); a.add_dir("many")
a.add_reference("file://" + os.path.abspath("many"), name="also", checksum=False)
a = trackio.log_artifact(a).wait()
print(a.version, len(a.manifest), len(a.references()), a.download("out") == os.path.abspath("out"))
print(len(os.listdir("out")), len(os.listdir("out/also")))
""")  # fmt: skip
    assert said == ["v0 6000 3000 True", "3001 3000"]
