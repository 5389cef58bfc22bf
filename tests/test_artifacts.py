"""Artifacts: versions by content, aliases, references, lineage, download; files that are rotated away or written to."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Host, wait_for

import trackio
from trackio.artifacts import Artifact

HEAD = """
import os, sys, json, time, pathlib, trackio
run = trackio.init(project="p", name="r")
def write(path, text):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True); pathlib.Path(path).write_text(text)
"""


def run(host: Host, code: str) -> list[str]:
    """Runs a script; returns what it prints, a line each. It must not complain."""
    done = host.run(f"{HEAD}os.chdir({str(host.data.parent)!r})\n{code}")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "see it with" not in line] == []
    lines: list[str] = done.stdout.splitlines()
    return lines


def test_each_content_is_a_version_and_latest_and_aliases_follow(daemon: Host) -> None:
    said = run(daemon, """
def log(text, **more):
    write("m/a.bin", text)
    a = trackio.Artifact("model", "weights", description="d", metadata={"acc": 0.5, "odd": object})
    a.add_dir("m"); a.add_file("m/a.bin", name="again/b.bin")
    a = trackio.log_artifact(a, **more)
    return a.version, a.aliases, a.size
said = [log("one", aliases=["best"]), log("two"), log("one", aliases=["old"]), log("three", aliases=["best"])]
print(json.dumps(said))
a = trackio.use_artifact("model:best")
print(a.version, a.type, a.description, a.metadata["acc"], a.qualified_name, trackio.use_artifact("model:v0").version)
print(open(os.path.join(a.download("out"), "again/b.bin")).read(), sorted(os.listdir("out")))
print([(e["path"], e["size"]) for e in a.manifest], a.digest == a.manifest_digest, len(a.digest))
""")  # fmt: skip
    assert said[0] == (
        '[["v0", ["best", "latest"], 6], ["v1", ["latest"], 6], ["v0", ["best", "old"], 6], '
        '["v2", ["best", "latest"], 10]]'
    )
    assert said[1] == "v2 weights d 0.5 p/model:v2 v0"
    assert said[2] == "three ['a.bin', 'again']"
    assert said[3] == "[('a.bin', 5), ('again/b.bin', 5)] True 64"


def test_what_was_just_logged_is_what_is_used(daemon: Host) -> None:
    """Though the daemon has yet to store it: also the first of a project, and the newest of a loop."""
    said = run(daemon, """
for i in range(4):
    write("m.bin", f"content {i}")
    trackio.log_artifact("m.bin", name="policy", aliases=["best"])
    print(open(trackio.use_artifact("policy:best").download(f"out{i}") + "/m.bin").read())
print(trackio.use_artifact("p/policy").version)
""")  # fmt: skip
    assert said == ["content 0", "content 1", "content 2", "content 3", "v3"]


def test_a_path_is_an_artifact_and_overwrite_leaves_one_version(daemon: Host) -> None:
    said = run(daemon, """
write("ckpt 1/x.txt", "1"); write("ckpt 1/sub/y.txt", "2")
a = run.log_artifact("ckpt 1", type="model"); print(a.name, a.version, [e["path"] for e in a.manifest])
write("ckpt 1/x.txt", "3")
print(run.log_artifact("ckpt 1").version, run.log_artifact("ckpt 1/x.txt", name="file").version)
write("ckpt 1/x.txt", "4")
print(run.log_artifact("ckpt 1", overwrite=True).version)
try: trackio.use_artifact("ckpt_1:v0")
except ValueError as error: print(error)
print(trackio.use_artifact("ckpt_1").version, trackio.use_artifact("p/file:latest", type="unspecified").version)
""")  # fmt: skip
    assert said[0] == "ckpt_1 v0 ['sub/y.txt', 'x.txt']" and said[1] == "v1 v0" and said[2] == "v2"
    assert said[3].startswith("Artifact 'ckpt_1:v0' does not exist: ") and said[4] == "v2 v0"


def test_references_are_recorded_and_local_ones_are_read_back(daemon: Host) -> None:
    said = run(daemon, """
write("set/a.txt", "aaa"); write("set/b/c.txt", "cc")
a = trackio.Artifact("set", "dataset")
a.add_reference(pathlib.Path("set").resolve().as_uri(), name="train")
a.add_reference("s3://bucket/key.parquet")
a = trackio.log_artifact(a)
print(a.version, a.size, [(e["path"], e["size"]) for e in a.references()], a.get_entry_uri("key.parquet"))
try: a.download("out")
except RuntimeError as error: print(error)
print(open("out/train/b/c.txt").read())
""")  # fmt: skip
    assert said[0] == ("v0 5 [('key.parquet', 0), ('train/a.txt', 3), ('train/b/c.txt', 2)] s3://bucket/key.parquet")
    assert said[1] == "'key.parquet' is a reference; fetch it yourself from s3://bucket/key.parquet"
    assert said[2] == "cc"


def test_lineage_says_who_logged_and_who_used_a_version(daemon: Host) -> None:
    run(daemon, "write('w', '1'); trackio.log_artifact('w', name='m').wait()")
    run(daemon, "trackio.init(project='q', name='s'); a = trackio.use_artifact('p/m'); print(a.version)")
    run(daemon, "trackio.init(project='p', name='t'); trackio.use_artifact('m:v0')")
    daemon.ended_runs("p")
    (found,) = daemon.cli("list", "artifacts", "--project", "p")["artifacts"]
    assert (found["name"], found["version"], found["aliases"], found["type"]) == ("m", "v0", ["latest"], "unspecified")
    assert found["logged_by"] == ["r"] and found["used_by"] == ["t"]
    one = daemon.cli("get", "artifact", "--project", "p", "--name", "m:latest")
    digest = hashlib.sha256(b"1").hexdigest()
    assert one["manifest"] == [{"path": "w", "digest": digest, "size": 1}]
    assert "m:v0" in daemon.command("trackio", "list", "artifacts", "--project", "p").stdout
    assert digest in daemon.command("trackio", "get", "artifact", "--project", "p", "--name", "m").stdout
    missing = daemon.command("trackio", "get", "artifact", "--project", "p", "--name", "n")
    assert missing.returncode == 1 and "Error: Artifact 'n:latest' not found" in missing.stderr


def test_log_artifact_returns_at_once_with_no_daemon_and_rotated_files_are_kept(host: Host) -> None:
    """Trainers remove the last but one checkpoint without asking (`save_total_limit`)."""
    said = run(host, """
import shutil
for step in range(4):
    write(f"checkpoint-{step}/model.bin", str(step) * 100_000)
    start = time.monotonic()
    trackio.log_artifact(f"checkpoint-{step}", name="ckpt", type="model")
    assert time.monotonic() - start < 5
    if step: shutil.rmtree(f"checkpoint-{step - 1}")
artifact = trackio.log_artifact("checkpoint-3", name="same")
try: artifact.wait(timeout=0)
except TimeoutError as error: print(error)
try: trackio.Artifact("x").wait()
except RuntimeError as error: print(error)
""")  # fmt: skip
    assert said[0] == "The daemon does not have all files of this artifact yet; nothing is lost."
    host.start()
    host.ended_run("p")
    wait_for(lambda: len(host.cli("list", "artifacts", "--project", "p")["artifacts"]) == 5, what="all versions")
    said = run(host, """
for step in range(4):
    folder = trackio.use_artifact(f"ckpt:v{step}").download(f"out{step}")
    print(open(folder + "/model.bin").read() == str(step) * 100_000)
""")  # fmt: skip
    assert said == ["True"] * 4


def test_a_file_removed_before_it_is_logged_makes_the_version_incomplete(host: Host) -> None:
    done = host.run(f"""{HEAD}os.chdir({str(host.data.parent)!r})
gone = trackio.Artifact("gone"); write("gone.bin", "x"); write("kept.bin", "y")
gone.add_file("gone.bin"); gone.add_file("kept.bin"); os.unlink("gone.bin")
trackio.log_artifact(gone)
""")
    assert done.returncode == 0, done.stderr
    assert "'gone.bin' of artifact 'gone' is missing: the file " in done.stderr
    host.start()
    (found,) = wait_for(lambda: all_kept(host, 1), what="the version")
    lost = {e["path"]: e.get("incomplete") for e in found["manifest"]}
    assert lost["kept.bin"] is None and "cannot be read (No such file or directory)" in lost["gone.bin"]
    (said,) = run(host, """
try: trackio.use_artifact("gone").download("out")
except ValueError as error: print(error)
""")  # fmt: skip
    assert (
        said.startswith("Artifact 'gone' does not exist: ") and "Artifact 'gone:v0' is incomplete: 'gone.bin'" in said
    )


def test_a_daemon_killed_while_it_keeps_gives_each_version_once(host: Host) -> None:
    run(host, """
for n in range(30):
    write(f"f{n}.bin", str(n) * 300_000)
    trackio.log_artifact(f"f{n}.bin", name="m")
""")  # fmt: skip
    for _ in range(4):
        pid = host.start()
        time.sleep(0.15)
        os.kill(pid, signal.SIGKILL)
    host.start()
    found = wait_for(lambda: all_kept(host, 30), what="all versions")
    assert [a["version"] for a in found] == [f"v{n}" for n in range(30)]
    for n, each in enumerate(found):
        assert each["manifest"][0]["digest"] == hashlib.sha256((str(n) * 300_000).encode()).hexdigest()
    wait_for(lambda: not list((host.data / "incoming").iterdir()), what="the last staged file to go")


def all_kept(host: Host, count: int) -> Any:
    found = host.cli("list", "artifacts", "--project", "p")["artifacts"]
    return found if len(found) == count else None


@pytest.mark.parametrize("make", [
    lambda: Artifact("a/b"), lambda: Artifact(".." + "x" * 200), lambda: Artifact(""), lambda: Artifact("\N{SNOWMAN}"),
    lambda: Artifact("a\0"), lambda: Artifact(3),  # type: ignore[arg-type]
    lambda: Artifact("a").add_file("/no/such"), lambda: Artifact("a").add_dir("/no/such"),
    lambda: Artifact("a").add_file(__file__, name="../x"), lambda: Artifact("a").add_file(__file__, name="/x"),
    lambda: Artifact("a").add_file(__file__, name="x\0"), lambda: Artifact("a").add_reference("no-scheme"),
    lambda: Artifact("a").add_reference("file:///no/such"), lambda: twice("x", "x"), lambda: twice("x", "x/y"),
])  # fmt: skip
def test_what_no_artifact_can_be_made_of_raises_one_sentence(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^.{5,300}$"):
        make()


def twice(*names: str) -> None:
    artifact = trackio.Artifact("a")
    for name in names:
        artifact.add_file(Path(__file__), name=name)


def test_what_cannot_be_logged_raises_before_anything_is_kept(daemon: Host) -> None:
    said = run(daemon, """
def tell(*a, **k):
    try: trackio.log_artifact(*a, **k)
    except (ValueError, RuntimeError) as error: print(error)
write("w", "1")
tell(trackio.Artifact("empty")); tell("w", aliases="best"); tell("w", aliases=["v3"]); tell("/no/such")
a = trackio.Artifact("m"); a.add_file("w"); tell(a, name="n"); trackio.log_artifact(a); tell(a)
a.wait()
try: trackio.use_artifact("m", type="other")
except ValueError as error: print(error)
""")  # fmt: skip
    assert said == [
        "Artifact 'empty' has no files or references; call add_file first.",
        "aliases must be a list of strings, not a str.",
        "Alias 'v3' is reserved for version pointers (vN); choose another.",
        "Not a regular file: /no/such",
        "name/type can only be passed when logging a path; set them on the Artifact instead.",
        "Artifact has already been logged or fetched; make a new Artifact to log again.",
        "Artifact 'm' has type 'unspecified', not 'other'.",
    ]


def test_deleting_a_run_leaves_its_artifacts_and_what_another_run_shares(daemon: Host) -> None:
    said = run(daemon, """
import numpy as np
write("w.bin", "weights"); trackio.log_artifact("w.bin", name="m").wait()
trackio.save("w.bin")
picture = lambda n: trackio.Image(np.full((2, 2), n, np.uint8))
trackio.log({"mine": picture(1), "ours": picture(2)})
with trackio.init(project="p", name="other"): trackio.log({"ours": picture(2)})
""")  # fmt: skip
    daemon.ended_runs("p")
    wait_for(lambda: not daemon.status().daemon["errands"], what="the files")
    assert len([p for p in (daemon.data / "blobs").rglob("*") if p.is_file()]) == 3
    said = run(daemon, """
api = trackio.Api()
print(api.runs("p")[0].delete(), [r.name for r in api.runs("p")])
""")  # fmt: skip
    assert said == ["True ['other', 'r']"], "the second r is the script's own run"
    assert len([p for p in (daemon.data / "blobs").rglob("*") if p.is_file()]) == 2
    said = run(daemon, """
print(open(trackio.use_artifact("m").download("out") + "/w.bin").read())
""")  # fmt: skip
    assert said == ["weights"]
