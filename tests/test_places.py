"""Other users of the same host: what they put in our way is not used, not followed, and told nothing.

The host of a test is a mount namespace with a /dev/shm, /tmp and /var/tmp of its own, in which other users, real ones,
make what they like. We are root there, whom no folder's mode stops: what holds for root holds for everybody.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from conftest import PATIENCE, Host, wait_for

from trackio import fallbacks, mounts, opening, places, trust, voice
from trackio.link import ForeignPeer, Link
from trackio.places import Places
from trackio.spool import Spool
from trackiod import orphans

STRANGER = 54321
TRAIN = "import trackio\ntrackio.init(project='p')\n[trackio.log({'a': i}) for i in range(50)]\ntrackio.finish()"
KILLED = """
import os, signal, trackio
trackio.init(project='p')
for i in range(50): trackio.log({'a': i})
print(flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root to be several users, and unshare"
)
PRIVATE = """set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt  # what is kept; the folders above it are root's, and others may pass through them
mkdir /mnt/folder /mnt/project
mount --bind "$FOLDER" /mnt/folder
mount --bind "$PROJECT" /mnt/project
for folder in /dev/shm /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
mkdir -p "$PROJECT" && mount --bind /mnt/project "$PROJECT"
mkdir -p "$FOLDER" && mount --bind /mnt/folder "$FOLDER"
exec "$@"
"""


def in_a_host_of_its_own(scenario: Callable[[Host], None], folder: Path) -> None:
    """Runs a function of this file where /dev/shm, /tmp and /var/tmp are new."""
    tests = str(Path(__file__).parent)
    project = str(Path(__file__).parents[1])
    code = f"import sys; sys.path[:0] = [{tests!r}]; import test_places as t; t.play(t.{scenario.__name__})"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKIO_", "XDG_"))}
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", PRIVATE, "sh", sys.executable, "-c", code], cwd="/", text=True,
        env={**environ, "FOLDER": str(folder), "PROJECT": project, "TRACKIO_TEST_PATIENCE": str(PATIENCE)},
        capture_output=True, timeout=120 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def play(scenario: Callable[[Host], None]) -> None:
    folder = Path(os.environ["FOLDER"])
    host = Host(folder / "data", Path("nowhere"), {"TRACKIO_SPOOL_DIR": ""})
    host.data.mkdir(0o700)
    try:
        scenario(host)
    finally:
        host.close()


def as_stranger(act: Callable[[], Any]) -> str:
    """Does something as another user; returns what it raised, or ""."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            os.umask(0)
            act()
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as file:
        return file.read()


@contextmanager
def listening_stranger(path: str, heard: Path) -> Iterator[None]:
    """Another user's process that answers at `path` and writes down what it is sent."""
    heard.touch()
    heard.chmod(0o666)
    pid = os.fork()
    if not pid:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        os.umask(0)
        router = zmq.Context().socket(zmq.ROUTER)
        router.bind(f"ipc://{path}")
        while True:
            frames = router.recv_multipart()
            with open(heard, "ab") as file:
                file.write(frames[1] + b"\n")
    try:
        wait_for(lambda: os.path.exists(path))
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def take_over(path: str) -> None:
    """Puts another folder in the place of that in which a socket lies; as whoever does it."""
    folder = os.path.dirname(path)
    os.rename(folder, f"{folder}.gone")
    os.mkdir(folder, 0o777)


def is_safe(path: str) -> bool:
    """Whether nobody but root can exchange a file: as the standard says it, not as our code does."""
    for parent in Path(path).parents:
        info = parent.lstat()
        if info.st_uid != 0 or (info.st_mode & 0o022 and not info.st_mode & 0o1000):
            return False
    return True


# -- a folder that was there first -------------------------------------------------------------------------------------


def made_first(host: Host) -> None:
    assert as_stranger(lambda: os.mkdir("/dev/shm/trackio-0", 0o777)) == ""
    host.start()
    path = host.status().daemon["socket"]
    assert path.startswith("/dev/shm/trackio-0-") and is_safe(path)
    assert as_stranger(lambda: take_over(path)) == "PermissionError"
    assert os.listdir("/dev/shm/trackio-0") == []
    done = host.run(TRAIN)
    assert done.returncode == 0 and done.stderr.count("trackio:") <= 1, done.stderr
    assert host.ended_run("p").points == 50


def two_closed_folders(host: Host) -> None:
    for folder in ("/dev/shm", "/tmp"):
        assert as_stranger(lambda folder=folder: os.mkdir(f"{folder}/trackio-0", 0o700)) == ""
    assert host.run(KILLED).returncode == -9
    (found,) = orphans.find(host.places)
    assert found.folders[0].startswith("/dev/shm/trackio-0-") and is_safe(found.folders[0]), "it is shared memory"
    host.start()
    assert host.status().daemon["socket"].startswith("/dev/shm/trackio-0-")
    assert host.ended_run("p").points == 50
    host.stop()
    shutil.rmtree("/dev/shm/trackio-0")
    assert host.run(KILLED).returncode == -9  # the usual name is free again, and what lies elsewhere is found too
    host.start()
    assert sum(run.points for run in host.ended_runs("p")) == 100


def a_link(host: Host) -> None:
    os.mkdir("/tmp/elsewhere", 0o777)
    assert as_stranger(lambda: os.symlink("/tmp/elsewhere", "/dev/shm/trackio-0")) == ""
    host.start()
    assert is_safe(host.status().daemon["socket"]) and os.listdir("/tmp/elsewhere") == []


def a_folder_of_ours_that_others_can_write(host: Host) -> None:
    os.mkdir("/dev/shm/trackio-0")
    os.chmod("/dev/shm/trackio-0", 0o777)
    host.start()
    assert is_safe(host.status().daemon["socket"])


def a_base_that_is_not_sticky(host: Host) -> None:
    os.chmod("/dev/shm", 0o777)
    host.start()
    assert host.status().daemon["socket"].startswith("/tmp/") and is_safe(host.status().daemon["socket"])
    assert host.run(TRAIN).returncode == 0
    assert host.ended_run("p").points == 50


@needs_root
@pytest.mark.parametrize(
    "scenario", [made_first, two_closed_folders, a_link, a_folder_of_ours_that_others_can_write,
                 a_base_that_is_not_sticky],
)  # fmt: skip
def test_where_another_user_can_exchange_our_folder_another_one_is_used(
    scenario: Callable[[Host], None], tmp_path: Path
) -> None:
    in_a_host_of_its_own(scenario, tmp_path)


# -- who answers -------------------------------------------------------------------------------------------------------


def exchanged_in_a_place_that_the_user_named(host: Host) -> None:
    """The user named a folder that others can write: it is used, and who answers there is looked at."""
    base = Path(tempfile.mkdtemp(prefix="trackio-base-"))  # a short path: sockets have at most 107 bytes
    host.spool, host.extra = base, {"TRACKIO_SPOOL_DIR": str(base), "HF_TOKEN": "secret"}
    base.chmod(0o777)
    host.data.parent.chmod(0o755)
    host.start()
    path = host.status().daemon["socket"]
    heard = host.data.parent / "heard"
    os.rename(os.path.dirname(os.path.dirname(path)), f"{base}/gone")
    assert as_stranger(lambda: os.makedirs(os.path.dirname(path), 0o777)) == ""
    with listening_stranger(path, heard):
        done = host.run(TRAIN.replace("project='p'", "project='p', dataset_id='me/runs'"))
        assert done.returncode == 0 and done.stderr.count(f"belongs to another user (uid {STRANGER})") == 1, done.stderr
        status = host.command("trackio", "status")
        assert f"uid {STRANGER}" in status.stderr
        with pytest.raises(ForeignPeer):
            Link(path)
        assert heard.read_bytes() == b"", "neither token nor data, nor a greeting"
    host.stop()
    host.start()
    assert host.ended_run("p").points == 50


def an_endpoint_of_somebody_else(host: Host) -> None:
    endpoint = Path(host.places.endpoint)
    host.start()
    text = endpoint.read_text()
    host.stop()
    host.data.chmod(0o777)
    heard, path = host.data.parent / "heard", "/tmp/theirs.sock"
    theirs = "\n".join(f"socket {path}" if line.startswith("socket ") else line for line in text.splitlines()) + "\n"

    def make() -> None:
        endpoint.write_text(theirs)

    host.data.parent.chmod(0o755)
    with listening_stranger(path, heard):
        assert as_stranger(make) == "" and endpoint.stat().st_uid == STRANGER
        done = host.run(TRAIN)
        assert done.returncode == 0 and f"uid {STRANGER}" in done.stderr and heard.read_bytes() == b"", done.stderr
        os.unlink(endpoint)
        os.symlink("/tmp/endpoint", endpoint)
        Path("/tmp/endpoint").write_text(theirs)
        assert "is a link" in host.run(TRAIN).stderr and heard.read_bytes() == b""
        os.unlink(endpoint)
        endpoint.write_text(theirs)
        endpoint.chmod(0o666)
        assert "can be written by other users" in host.run(TRAIN).stderr and heard.read_bytes() == b""
        os.unlink(endpoint)
        os.mkfifo(endpoint)
        assert host.run(TRAIN).returncode == 0
        os.unlink(endpoint)
        endpoint.write_text(theirs)
        endpoint.chmod(0o600)  # one of ours, from before; somebody else listens there now
        assert f"uid {STRANGER}" in host.run(TRAIN).stderr and heard.read_bytes() == b""
    host.start()
    assert sum(run.points for run in host.ended_runs("p")) == 250


def a_data_folder_of_another_users(host: Host) -> None:
    """Named by the user and open to write: it is used, and nothing that lies there is followed to a file of ours."""
    host.data.chmod(0o777)
    precious = host.data.parent / "precious"
    precious.write_text("kept")
    host.data.parent.chmod(0o755)
    names = ("trackiod.log", "trackiod.start.new", "endpoint.new", "store.id.new", "copy.lock")

    def prepare() -> None:
        for name in names:
            os.symlink(precious, host.data / name)
        os.symlink(host.data.parent, host.data / "deleted")

    assert as_stranger(prepare) == ""
    os.chown(host.data, STRANGER, STRANGER)
    host.extra["TRACKIO_SHARED_DIR"] = "/tmp/shared"
    refused = host.command("trackiod", "start")
    assert refused.returncode == 1 and f"deleted belongs to another user (uid {STRANGER})" in refused.stderr, refused
    os.unlink(host.data / "deleted")
    host.start()
    done = host.run(TRAIN)
    assert done.returncode == 0 and done.stderr.count("trackio:") == 1, done.stderr
    assert host.ended_run("p").points == 50
    drained = host.command("trackio", "drain", "--timeout", "20")
    assert drained.returncode == 0, drained.stdout + drained.stderr
    before = set(os.listdir(host.data.parent))
    deleted = host.run("import trackio\nprint(trackio.delete_project('p', force=True))")
    assert deleted.stdout.endswith("True\n"), deleted
    host.stop()
    daemon = host.python("import sys\nfrom trackiod.daemon import run\nsys.exit(run())")
    wait_for(host.status, what="a daemon in the foreground")
    host.stop()
    assert daemon.wait(20 * PATIENCE) == 0
    assert precious.read_text() == "kept" and set(os.listdir(host.data.parent)) == before
    log = host.data / "trackiod.log"
    assert not log.is_symlink() and " is ready: " in log.read_text()
    doctor = host.command("trackiod", "doctor").stdout
    assert f"The data folder {host.data} belongs to another user (uid {STRANGER})" in doctor, doctor


@needs_root
def test_a_data_folder_that_the_user_named_may_be_another_users(tmp_path: Path) -> None:
    in_a_host_of_its_own(a_data_folder_of_another_users, tmp_path)


def test_only_a_data_folder_that_was_named_may_be_another_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be several users")
    folder = tmp_path / "share" / "trackio"
    folder.mkdir(parents=True)
    os.chown(folder, STRANGER, STRANGER)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    where = places.find("", str(tmp_path))
    assert where.data == str(folder)
    with pytest.raises(PermissionError, match="somebody else"):
        where.make_live()  # as `sudo -E` would have it: what root puts there its owner could not use
    places.find(str(folder), str(tmp_path)).make_live()


@needs_root
@pytest.mark.parametrize("scenario", [exchanged_in_a_place_that_the_user_named, an_endpoint_of_somebody_else])
def test_nothing_is_sent_to_another_users_process(scenario: Callable[[Host], None], tmp_path: Path) -> None:
    in_a_host_of_its_own(scenario, tmp_path)


def test_a_socket_of_ours_is_spoken_to(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ours.sock"))
        listener.listen()
        Link(str(tmp_path / "ours.sock")).close()


@needs_root
def test_a_socket_of_roots_is_spoken_to_by_other_users(in_memory: Path) -> None:
    """As one that the system's systemd holds for a user is: the kernel tells who listens, not who will answer."""
    in_memory.chmod(0o755)
    path = str(in_memory / "roots.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen()
        assert as_stranger(lambda: Link(path).close()) == ""
    in_memory.chmod(0o777)
    theirs = str(in_memory / "theirs.sock")
    with listening_stranger(theirs, in_memory / "heard"), pytest.raises(ForeignPeer, match=f"uid {STRANGER}"):
        Link(theirs)


# -- the live store of a network home ----------------------------------------------------------------------------------


def on_network(path: str) -> mounts.Mount:
    return mounts.Mount("/", "nfs4" if "/data" in path else "ext4")


def network_home(host: Host) -> None:
    mounts.of = on_network
    usual = host.places.live
    assert usual.startswith("/var/tmp/trackio-0/")
    assert as_stranger(lambda: os.mkdir("/var/tmp/trackio-0", 0o777)) == ""
    live = host.places.live
    assert live.startswith("/var/tmp/trackio-0-")
    assert [each.name for each in host.data.iterdir()] == [f"places-{places.host_key()}"], "it is recorded first"
    places.make_private(live)
    assert is_safe(live + "/x") and host.places.live == live
    shutil.rmtree("/var/tmp/trackio-0")
    assert host.places.live == live, "all processes keep to the one that was recorded"
    shutil.rmtree(os.path.dirname(live))
    assert as_stranger(lambda: os.mkdir(os.path.dirname(live), 0o777)) == "", "after a reboot others know the name"
    again = host.places.live
    assert again not in (live, usual) and again.startswith("/var/tmp/trackio-0-")


@needs_root
def test_the_live_store_of_a_network_home_is_not_put_into_another_users_folder(tmp_path: Path) -> None:
    in_a_host_of_its_own(network_home, tmp_path)


# -- file systems ------------------------------------------------------------------------------------------------------

LOCAL = (
    "ext4 ext3 xfs btrfs zfs f2fs bcachefs overlay tmpfs fuseblk fuse.fuse-overlayfs ecryptfs ntfs3 vfat unknown"
).split()
NETWORK = (
    "nfs nfs4 cifs smb3 lustre gpfs beegfs ceph 9p afs glusterfs virtiofs fuse.sshfs fuse.mfs fuse.lustre "
    "fuse.blobfuse fuse.blobfuse2 quobyte fuse.quobyte dvs acfs fuse.dfuse fuse.s3ql fuse.goofys fuse.davfs2 "
    "davfs coda ncpfs fuse.gvfsd-fuse fuse.moosefs fuse.seaweedfs fuse.alluxio fuse.cernvm-fs fuse.cvmfs2 "
    "fuse.hdfs fuse.curlftpfs fuse.pvfs2 ocfs2 gfs2 stornext cvfs snfs vxfs mvfs autofs fuse fuse.unheard-of "
    "unheard-of"
).split()


@pytest.mark.parametrize(("types", "is_network"), [(LOCAL, False), (NETWORK, True)])
def test_what_is_not_known_as_a_disk_of_this_host_counts_as_a_network(types: list[str], is_network: bool) -> None:
    assert [kind for kind in types if mounts.Mount("/", kind).is_network != is_network] == []


def test_every_character_of_a_mount_point_is_read() -> None:
    (mount,) = mounts.parse("30 22 0:30 / /a\\040b\\012c\\134040\\043d\x0b\x85 rw shared:5 - fuse.mfs mfs:/ rw\n")
    assert mount == mounts.Mount("/a b\nc\\040#d\x0b\x85", "fuse.mfs")


@pytest.fixture
def mfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, not made yet, on a file system that used to count as local."""
    data, live = tmp_path / "home" / "trackio", tmp_path / "live"
    live.mkdir()
    table = [mounts.Mount("/", "ext4"), mounts.Mount(str(tmp_path / "home"), "fuse.mfs")]
    monkeypatch.setattr(mounts, "of", lambda path: mounts.mount_of(os.path.realpath(path), table))
    monkeypatch.setattr(places, "_LIVE_BASE", str(live))
    return data


def test_a_store_on_what_used_to_count_as_local_stays_in_use(
    mfs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice, "_said", {})
    new = places.find(str(mfs), "")
    assert new.live.startswith(str(tmp_path / "live")) and new.shared == str(mfs / "hosts")
    assert "may be a network file system (fuse.mfs)" in opening._of_network(new)
    (mfs / "spill" / "s").mkdir(parents=True)
    where = places.find(str(mfs), "")
    assert where.live == where.data == str(mfs) and where.network == "fuse.mfs" and not where.shared
    opening._warn_of_folder(where)
    opening._warn_of_folder(where)
    assert capsys.readouterr().err.count("fuse.mfs") == 1
    os.makedirs(new.live)
    Path(new.live, "store.id").write_text("x")
    assert places.find(str(mfs), "").live == new.live, "two stores: that of this host"


def test_the_store_stays_where_no_folder_of_this_host_is_better(mfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "of", lambda path: mounts.Mount("/", "fuse.whatever"))
    assert places.find(str(mfs), "").live == str(mfs)
    monkeypatch.setattr(mounts, "of", lambda path: mounts.Mount("/", "nfs4"))
    assert places.find(str(mfs), "").live != str(mfs)


# -- the record --------------------------------------------------------------------------------------------------------


def test_of_many_who_need_a_name_at_once_all_use_the_first(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(fallbacks.add(str(tmp_path), 0))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len({*found}) == 1 and fallbacks.read(str(tmp_path)) == found[:1]
    assert os.listdir(tmp_path) == ["1"]
    assert fallbacks.add(str(tmp_path), 1) != found[0] and len(fallbacks.read(str(tmp_path))) == 2
    (tmp_path / "1").write_text("../../etc\n")
    assert fallbacks.read(str(tmp_path))[0] == ""


def test_without_hard_links_the_first_wins_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(1, "not on this file system")

    monkeypatch.setattr(os, "link", link)
    name = fallbacks.add(str(tmp_path), 0)
    assert fallbacks.add(str(tmp_path), 0) == name and fallbacks.read(str(tmp_path)) == [name]


def test_a_random_folder_is_made_once_its_name_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, data = tmp_path / "base", tmp_path / "data"
    base.mkdir()
    (base / f"trackio-{os.geteuid()}").symlink_to(tmp_path)
    where = places.find(str(data), str(base))

    def add(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fallbacks, "add", add)
        with pytest.raises(OSError, match="No space"):
            where.make_root(where.roots[0])
        assert os.listdir(base) == [f"trackio-{os.geteuid()}"]
    root = where.make_root(where.roots[0])
    assert root not in where.roots and root in places.find(str(data), str(base)).own_roots()
    assert where.make_root(where.roots[0]) == root


def test_a_process_that_has_no_shared_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = Places(str(tmp_path), str(tmp_path), "", ())
    Spool(where, "s", {"stream": "s"}, limit_bytes=2 << 20, spill_bytes=1 << 20).close()
    assert capsys.readouterr().err.count("a kill loses what is not yet sent") == 1


@needs_root
def test_each_folder_above_is_looked_at(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = str(inner / "c")
    assert trust.problem_above(path) == ""
    (tmp_path / "a").chmod(0o775)
    assert "not sticky" in trust.problem_above(path)
    (tmp_path / "a").chmod(0o1777)
    assert trust.problem_above(path) == ""
    os.chown(tmp_path / "a", STRANGER, STRANGER)
    assert f"uid {STRANGER}" in trust.problem_above(path)


# -- modes -------------------------------------------------------------------------------------------------------------

LOGS_ALL = """
import os, sys, pathlib, numpy, trackio
os.umask(0)
trackio.init(project='p')
trackio.log({'a': 1, 'image': trackio.Image(numpy.zeros((4, 4, 3), 'uint8')), 'text': 'x'})
pathlib.Path(sys.argv[1]).write_bytes(b'x' * (9 << 20))
trackio.log_artifact(sys.argv[1], name='model')
pathlib.Path(sys.argv[1]).unlink()
for i in range(3000): trackio.log({'a': i})
trackio.alert('x', level='warn')
trackio.finish()
"""


def open_to_others(*folders: Path) -> list[str]:
    """What others could read in folders of ours, but for links."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            info = path.lstat()
            if info.st_mode & 0o077 and not path.is_symlink():
                found.append(f"{info.st_mode & 0o777:o} {path}")
    return found


def test_whatever_the_umask_nothing_of_ours_is_open_to_others(host: Host, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    host.extra |= {"TRACKIO_SHARED_DIR": str(shared)}
    host.data.chmod(0o755)
    (host.data / "projects").mkdir(mode=0o755)
    for name in ("trackiod.log", "projects/old.db.damaged-1"):  # of an earlier release
        (host.data / name).touch(mode=0o644)
    assert host.run(LOGS_ALL, str(tmp_path / "model.bin")).returncode == 0  # what it leaves lies on disk
    daemon = host.python("import sys\nfrom trackiod.daemon import run\nsys.exit(run())", umask=0)
    wait_for(host.status, what="the daemon")
    (found,) = host.data.glob("trackiod.log")
    assert found.stat().st_mode & 0o777 == 0o600 and host.data.stat().st_mode & 0o777 == 0o700
    assert host.run(LOGS_ALL, str(tmp_path / "model.bin")).returncode == 0
    host.ended_runs("p")
    assert host.command("trackio", "drain", "--timeout", str(30 * PATIENCE)).returncode == 0
    assert open_to_others(host.data, host.spool, shared) == []
    os.umask(0)
    try:
        other = Host(tmp_path / "other", host.spool, {**host.extra})
        assert "p" in str(other.cli_here("list", "projects"))  # what it takes in of the first
    finally:
        os.umask(0o022)
    assert open_to_others(other.data) == []
    host.stop()
    assert daemon.wait(20 * PATIENCE) == 0


def test_a_folder_in_which_something_else_lies_keeps_its_mode(host: Host) -> None:
    (host.data / "notes.txt").touch(mode=0o644)
    host.data.chmod(0o755)
    host.start()
    assert host.data.stat().st_mode & 0o777 == 0o755 and (host.data / "notes.txt").stat().st_mode & 0o777 == 0o644


# -- doctor ------------------------------------------------------------------------------------------------------------


@needs_root
def test_doctor_names_each_folder_that_others_can_write_with_its_fix(host: Host, tmp_path: Path) -> None:
    host.extra["TRACKIO_SHARED_DIR"] = str(tmp_path / "shared")
    (tmp_path / "shared").mkdir()

    def check() -> dict[str, str]:
        done = host.command("trackiod", "doctor", "--json")
        (found,) = (each for each in json.loads(done.stdout)["checks"] if each["name"] == "other users")
        return dict(found)

    assert check()["verdict"] == "ok"
    for folder, fix in ((host.data, "go-w"), (tmp_path, "+t"), (host.spool, "+t"), (tmp_path / "shared", "+t")):
        before = folder.stat().st_mode & 0o7777
        folder.chmod(0o777)
        found = check()
        assert found["verdict"] == "warning" and str(folder) in found["sentence"], folder
        assert f"chmod {fix} {folder}" in found["fix"]
        folder.chmod(before)
    os.mkdir(Path(host.places.roots[0]).parent)
    os.chown(Path(host.places.roots[0]).parent, STRANGER, STRANGER)
    assert f"belongs to another user (uid {STRANGER})" in check()["sentence"]
