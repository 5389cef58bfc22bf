"""What is logged beside numbers and text comes back: media, tables, traces, histograms, figures, saved files."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import psutil
import pytest
from conftest import PATIENCE, Host, wait_for

import trackio

HEAD = "import os, sys, numpy as np, trackio\nrun = trackio.init(project='p', name='r')\n"


def log(host: Host, code: str, **env: str) -> str:
    """Runs a script that logs; returns what it said beside the greeting."""
    done = host.run(f"{HEAD}os.chdir({str(host.data.parent)!r})\n{code}", env=env)
    assert done.returncode == 0, done.stderr
    return "\n".join(line for line in done.stderr.splitlines() if "see it with" not in line)


def kept(host: Host, metric: str) -> list[Any]:
    """The metric's values, once none of them waits for its file."""
    host.ended_run("p")

    def values() -> Any:
        found = host.cli("get", "metric", "--project", "p", "--run", "r", "--metric", metric)["values"]
        return None if "not kept yet" in str(found) else [point["value"] for point in found]

    return wait_for(values, what=f"the files of {metric}")


def picture(value: dict[str, Any]) -> Any:
    assert value["_type"] == "trackio.image"
    data = Path(value["file_path"]).read_bytes()
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (value["sha256"], value["size"])
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


# -- media ---------------------------------------------------------------------------------------------------


def test_images_come_back_pixel_by_pixel(daemon: Host) -> None:
    said = log(daemon, """
import PIL.Image, torch
rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
trackio.log({"rgb": trackio.Image(rgb, caption="a <b>"), "gray": trackio.Image(rgb[:, :, 0]),
             "one": trackio.Image(rgb[:, :, :1]), "float": trackio.Image(rgb / 255.0), "bool": trackio.Image(rgb > 30),
             "rgba": trackio.Image(np.dstack([rgb, rgb[:, :, 0]])),
             "turned": trackio.Image(rgb[::-1, ::2]),
             "tensor": trackio.Image(torch.from_numpy(rgb.transpose(2, 0, 1).copy())),
             "pil": trackio.Image(PIL.Image.fromarray(rgb)), "bare": PIL.Image.fromarray(rgb).convert("P"), "loss": 1})
""")  # fmt: skip
    assert said == ""
    rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    expected = {
        "rgb": rgb, "gray": rgb[:, :, 0], "one": rgb[:, :, 0], "float": rgb, "bool": (rgb > 30) * np.uint8(255),
        "rgba": np.dstack([rgb, rgb[:, :, 0]]), "turned": rgb[::-1, ::2], "tensor": rgb, "pil": rgb,
    }  # fmt: skip
    for name, pixels in expected.items():
        (value,) = kept(daemon, name)
        assert np.array_equal(picture(value), pixels), name
    assert kept(daemon, "rgb")[0]["caption"] == "a <b>"
    assert picture(kept(daemon, "bare")[0]).shape == (4, 6, 4)


def test_sound_video_points_and_pages_come_back(daemon: Host) -> None:
    log(daemon, """
tone = (np.sin(np.arange(800) / 5) * 3000).astype(np.int16)
trackio.log({"int16": trackio.Audio(tone, sample_rate=8000), "float": trackio.Audio(tone / 3000, sample_rate=8000),
             "stereo": trackio.Audio(np.stack([tone, -tone], 1), sample_rate=8000, caption="two")})
frames = np.zeros((5, 3, 8, 12), np.uint8)
frames[:, 0] = np.arange(5)[:, None, None] * 50
trackio.log({"gif": trackio.Video(frames, fps=10), "grid": trackio.Video(np.stack([frames] * 3))})
trackio.log({"points": trackio.Object3D(np.eye(3)), "html": trackio.Html("<b>é</b>", inject=False),
             "page": trackio.Html("<b>x</b>"), "md": trackio.Markdown("# <i>"),
             "long": trackio.Markdown("m" * 100_000)})
""")  # fmt: skip
    tone = (np.sin(np.arange(800) / 5) * 3000).astype(np.int16)
    with wave.open(kept(daemon, "int16")[0]["file_path"]) as file:
        assert (file.getframerate(), file.getnchannels()) == (8000, 1)
        assert np.array_equal(np.frombuffer(file.readframes(800), np.int16), tone)
    with wave.open(kept(daemon, "float")[0]["file_path"]) as file:
        loud = np.frombuffer(file.readframes(800), np.int16)
        assert np.abs(loud).max() == 32767 and np.corrcoef(loud, tone)[0, 1] > 0.9999
    with wave.open(kept(daemon, "stereo")[0]["file_path"]) as file:
        assert (file.getnchannels(), file.getnframes()) == (2, 800)
    with PIL.Image.open(kept(daemon, "gif")[0]["file_path"]) as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((12, 8), 5, 100)
        gif.seek(4)
        assert gif.convert("RGB").getpixel((3, 3)) == (200, 0, 0)
    with PIL.Image.open(kept(daemon, "grid")[0]["file_path"]) as gif:
        assert gif.size == (24, 16)
    ply = Path(kept(daemon, "points")[0]["file_path"]).read_bytes()
    head, _, body = ply.partition(b"end_header\n")
    assert b"element vertex 3" in head and len(body) == 3 * 16
    assert np.array_equal(np.frombuffer(body, "<f4,<f4,<f4,u4")["f1"], [0, 1, 0])
    assert Path(kept(daemon, "html")[0]["file_path"]).read_text() == "<b>é</b>"
    assert "<body><b>x</b></body>" in Path(kept(daemon, "page")[0]["file_path"]).read_text()
    assert kept(daemon, "md") == [{"_type": "trackio.markdown", "_value": "# <i>"}]
    assert kept(daemon, "long") == [{"_type": "trackio.markdown", "_value": "m" * 100_000}]


def test_mp4_is_mp4_where_there_is_ffmpeg_and_a_gif_that_says_so_elsewhere(daemon: Host) -> None:
    log(daemon, "trackio.log({'v': trackio.Video(np.zeros((4, 3, 7, 9), np.uint8), format='mp4')})")
    (value,) = kept(daemon, "v")
    if shutil.which("ffmpeg"):
        assert b"ftyp" in Path(value["file_path"]).read_bytes()[:16]
    else:
        assert value["file_path"].endswith(".gif") and value["note"] == (
            "it is GIF and not mp4: there is no ffmpeg on this host"
        )


def test_figures_and_data_frames_are_kept_as_they_are_passed(daemon: Host) -> None:
    said = log(daemon, """
import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt, pandas as pd, plotly.graph_objects as go
figure = plt.figure(); plt.plot([1, 2])
trackio.log({"mpl": figure, "plt": plt, "plotly": go.Figure(go.Scatter(y=[1, 3])), "image": trackio.Image(figure),
             "df": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})})
""")  # fmt: skip
    assert said == ""
    for name in ("mpl", "plt"):
        assert "<svg" in Path(kept(daemon, name)[0]["file_path"]).read_text()
    assert "plotly" in Path(kept(daemon, "plotly")[0]["file_path"]).read_text()
    assert picture(kept(daemon, "image")[0]).ndim == 3
    assert kept(daemon, "df") == [{"_type": "trackio.table", "_value": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}]


# -- tables, traces, histograms --------------------------------------------------------------------------------


def test_tables_come_back_with_what_is_in_their_cells(daemon: Host) -> None:
    said = log(daemon, """
import pandas as pd
image = trackio.Image(np.zeros((2, 2), np.uint8))
trackio.log({"cells": trackio.Table(columns=["n", "t", "o", "i", "l"], data=[
    [np.int64(3), "\\udce9", object, image, [image, image]], [float("nan"), "b", {"k": [1]}, None, []]])})
trackio.log({"bare": trackio.Table(data=[[1, 2], [3]]), "maps": trackio.Table(data=[{"a": 1}, {"b": 2}]),
             "array": trackio.Table(columns=["x"], data=np.array([[1.5]])), "none": trackio.Table(columns=["a"])})
grown = trackio.Table(columns=["a"]); grown.add_data(1); grown.add_column("b", ["x"]); grown.add_row(2, "y")
trackio.log({"grown": grown, "big": trackio.Table(dataframe=pd.DataFrame({"i": range(1000), "t": ["é" * 100] * 1000}))})
chat = [[{"role": "user", "content": "hi"}]]
trackio.log({"chat": trackio.Table(dataframe=pd.DataFrame({"prompt": chat, "reward": [0.5]}))})
""")  # fmt: skip
    assert said == ""
    first, second = kept(daemon, "cells")[0]["_value"]
    assert (first["n"], first["t"]) == (3, "\\udce9") and first["o"].startswith("<class 'object'")
    assert picture(first["i"]).shape == (2, 2) and [picture(i).shape for i in first["l"]] == [(2, 2)] * 2
    assert second == {"n": "NaN", "t": "b", "o": {"k": [1]}, "i": None, "l": []}
    table = "trackio.table"
    assert kept(daemon, "bare") == [{"_type": table, "_value": [{"0": 1, "1": 2}, {"0": 3, "1": None}]}]
    assert kept(daemon, "maps") == [{"_type": table, "_value": [{"a": 1, "b": None}, {"a": None, "b": 2}]}]
    assert kept(daemon, "array") == [{"_type": table, "_value": [{"x": 1.5}]}]
    assert kept(daemon, "none") == [{"_type": table, "_value": []}]
    assert kept(daemon, "grown") == [{"_type": table, "_value": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]}]
    assert kept(daemon, "big")[0]["_value"] == [{"i": i, "t": "é" * 100} for i in range(1000)]
    assert kept(daemon, "chat")[0]["_value"] == [{"prompt": [{"role": "user", "content": "hi"}], "reward": 0.5}]


def test_traces_come_back_alone_and_in_lists_also_from_a_copied_context(daemon: Host) -> None:
    """TRL's async trainers log lists of them from a thread, in a copy of the context."""
    said = log(daemon, """
import contextvars, threading
image = trackio.Image(np.zeros((2, 2), np.uint8))
long = [{"role": "user", "content": "x" * 50_000}]
context = contextvars.copy_context()
work = lambda: context.run(lambda: trackio.log({"rollouts": [
    trackio.Trace(messages=[{"role": "user", "content": [{"type": "image", "image": image}]}], metadata={"reward": 1}),
    trackio.Trace(messages=long, spans=[{"id": "a", "odd": object}])]}, step=3))
thread = threading.Thread(target=work); thread.start(); thread.join()
trackio.log({"one": trackio.Trace([{"role": "assistant", "content": None, 3: np.float32(1)}])})
""")  # fmt: skip
    assert said == ""
    ((first, second),) = kept(daemon, "rollouts")
    assert first["metadata"] == {"reward": 1}
    assert picture(first["messages"][0]["content"][0]["image"]).shape == (2, 2)
    assert second["messages"] == [{"role": "user", "content": "x" * 50_000}] and second["spans"][0]["id"] == "a"
    assert kept(daemon, "one") == [{"_type": "trackio.trace", "messages": [
        {"role": "assistant", "content": None, "3": 1.0}], "metadata": {}, "spans": []}]  # fmt: skip


def test_histograms_hold_counts_and_edges(daemon: Host) -> None:
    log(daemon, """
import torch
trackio.log({"list": trackio.Histogram([1, 2, 2, float("nan"), float("inf")], num_bins=2),
             "tensor": trackio.Histogram(torch.ones(3, 3, dtype=torch.bfloat16, requires_grad=True), num_bins=None),
             "ready": trackio.Histogram(np_histogram=([1, 2], [0, 1, 2])), "none": trackio.Histogram([])})
""")  # fmt: skip
    kind = {"_type": "trackio.histogram"}
    assert kept(daemon, "list") == [kind | {"bins": [1.0, 1.5, 2.0], "values": [1, 2], "non_finite": 2}]
    assert kept(daemon, "ready") == [kind | {"bins": [0, 1, 2], "values": [1, 2]}]
    assert kept(daemon, "none") == [kind | {"bins": [], "values": []}]
    (tensor,) = kept(daemon, "tensor")
    assert len(tensor["values"]) == 64 and sum(tensor["values"]) == 9


@pytest.mark.parametrize("make", [
    lambda: trackio.Image("/no/such.png"), lambda: trackio.Image([[0]]), lambda: trackio.Image(np.zeros((2, 2, 5))),
    lambda: trackio.Image(np.full((2, 2), 7.0)), lambda: trackio.Image(np.full((2, 2), 300)),
    lambda: trackio.Image(np.array([["a"]])), lambda: trackio.Image(np.zeros((0, 2))), lambda: trackio.Image("a\0b"),
    lambda: trackio.Audio(np.zeros(3)), lambda: trackio.Audio(np.zeros((2, 2, 2)), sample_rate=1),
    lambda: trackio.Audio(np.zeros(3), sample_rate=-1), lambda: trackio.Audio(np.zeros(3, complex), sample_rate=1),
    lambda: trackio.Audio(np.zeros(3), sample_rate=8, format="ogg"),
    lambda: trackio.Video(np.zeros((2, 2))), lambda: trackio.Video(np.zeros((2, 3, 4, 4), float)),
    lambda: trackio.Video(np.zeros((2, 3, 4, 4), np.uint8), format="avi"),
    lambda: trackio.Video(np.zeros((2, 3, 4, 4), np.uint8), fps=0),
    lambda: trackio.Html(3), lambda: trackio.Markdown(3), lambda: trackio.Object3D(np.zeros((2, 5))),
    lambda: trackio.Object3D(np.full((2, 3), np.nan)), lambda: trackio.Object3D(__file__),
    lambda: trackio.Object3D(np.full((2, 4), 15)), lambda: trackio.Histogram(), lambda: trackio.Histogram(["a"]),
    lambda: trackio.Histogram([1], ([1], [0, 1])), lambda: trackio.Histogram(np_histogram=([1, 2], [0, 1])),
    lambda: trackio.Histogram(np_histogram=(range(513), range(514))), lambda: trackio.Histogram(np_histogram=3),
    lambda: trackio.Table(data="abc"), lambda: trackio.Table(data=[1]), lambda: trackio.Table(dataframe=3),
    lambda: trackio.Trace("x"), lambda: trackio.Trace([1]), lambda: trackio.Trace([], spans=[1]),
])  # fmt: skip
def test_what_no_value_can_be_made_of_raises_one_sentence(make: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    assert 5 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_source_that_is_gone_costs_that_value_and_one_sentence(daemon: Host) -> None:
    said = log(daemon, """
open("gone.png", "wb").write(b"x")
image = trackio.Image("gone.png")
os.unlink("gone.png")
trackio.log({"image": image, "fine": 1})
os.mkdir("folder.png")
image._value = "folder.png"
trackio.log({"folder": image, "table": trackio.Table(data=[[image]])})
""")  # fmt: skip
    assert said.count("was left out") == 3 and "gone.png cannot be read (No such file or directory)" in said
    assert kept(daemon, "fine") == [1]


def test_files_are_kept_under_their_content_and_nothing_stays_behind(daemon: Host) -> None:
    log(daemon, """
for step in range(3):
    trackio.log({"same": trackio.Image(np.zeros((2, 2), np.uint8))})
    trackio.log({"other": trackio.Image(np.full((2, 2), step, np.uint8))})
""")  # fmt: skip
    same, other = kept(daemon, "same"), kept(daemon, "other")
    assert len({v["file_path"] for v in same}) == 1 and len({v["file_path"] for v in other}) == 3
    assert len([p for p in (daemon.data / "blobs").rglob("*") if p.is_file()]) == 3
    wait_for(lambda: not list((daemon.data / "incoming").iterdir()), what="the last staged file to go")


def test_a_file_that_is_rotated_away_or_written_anew_at_once_is_kept_as_it_was(host: Host) -> None:
    """No daemon runs while they are logged: what the call itself does must do."""
    said = log(host, """
def write(name, size): open(name, "wb").write(name.encode()[:1] * size)
for name, size in (("rotated", 7), ("anew", 7), ("large", 9 << 20), ("left", 9 << 20), ("changed", 9 << 20)):
    write(f"{name}.png", size)
    trackio.log({name: trackio.Image(f"{name}.png")})
os.unlink("rotated.png"); os.unlink("large.png")
write("anew.png", 8); write("changed.png", 8)
""")  # fmt: skip
    assert said == ""
    host.start()
    assert Path(kept(host, "rotated")[0]["file_path"]).read_bytes() == b"r" * 7
    assert Path(kept(host, "anew")[0]["file_path"]).read_bytes() == b"a" * 7
    assert Path(kept(host, "large")[0]["file_path"]).read_bytes() == b"l" * (9 << 20)
    (changed,), (left,) = kept(host, "changed"), kept(host, "left")
    assert Path(changed["file_path"]).read_bytes() == b"c" * (9 << 20)
    with open(host.data.parent / "left.png", "r+b") as file:
        file.write(b"X")
    assert Path(left["file_path"]).read_bytes() == b"l" * (9 << 20), "what is kept does not change with its source"


def test_a_large_file_on_another_file_system_is_copied_within_the_call(host: Host) -> None:
    large = host.spool / "large.png"
    said = log(host, f"""
with open({str(large)!r}, "wb") as file: file.truncate((64 << 20) + 1)
trackio.log({{"large": trackio.Image({str(large)!r})}})
os.unlink({str(large)!r})
""")  # fmt: skip
    assert said == ""
    host.start()
    assert kept(host, "large")[0]["size"] == (64 << 20) + 1


def test_what_finds_no_room_is_named_and_the_rest_is_kept(daemon: Host) -> None:
    said = log(daemon, """
trackio.log({"big": trackio.Image(np.zeros((2000, 2000), np.uint8)), "loss": 1})
""", TRACKIO_SPILL_MIB="1")  # fmt: skip
    assert said == "trackio: 'big' was left out: there was no room for its 4,000,000 bytes."
    assert kept(daemon, "loss") == [1]


def test_media_of_a_killed_process_are_kept_by_a_daemon_that_is_killed_again_and_again(host: Host) -> None:
    process = host.python(HEAD + """
import signal
for i in range(200):
    trackio.log({"image": trackio.Image(np.full((200, 200), i, np.uint8)), "i": i}, step=i)
print("logged", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")  # fmt: skip
    for _ in range(4):
        pid = host.start()
        wait_for(lambda: list((host.data / "blobs").rglob("*.png")), what="a first file")
        os.kill(pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    host.start()
    values = kept(host, "image")
    assert len(values) == 200 and all((picture(v) == i).all() for i, v in enumerate(values))
    host.stop()
    left = [p for p in (host.data / "blobs").rglob("*") if p.is_file() and p.suffix != ".png"]
    assert left == [] and not list((host.data / "incoming").iterdir())


def keepers(pid: int) -> list[psutil.Process]:
    """The daemon's children that keep files; one that has not become that yet still has the daemon's command line."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if "keep" in child.cmdline():
                found.append(child)
    return found


def test_a_child_killed_while_it_keeps_a_file_is_started_again(daemon: Host) -> None:
    log(daemon, """
for i in range(12): trackio.log({"image": trackio.Image(np.full((900, 900, 3), i, np.uint8))}, step=i)
""")  # fmt: skip
    pid = daemon.status().daemon["pid"]
    for _ in range(2):
        (child,) = wait_for(lambda: keepers(pid), what="a keeper")
        child.kill()
        wait_for(lambda known=child: keepers(pid) != [known], what="its end")
    values = kept(daemon, "image")
    assert len(values) == 12 and all((picture(v) == i).all() for i, v in enumerate(values))


def test_files_that_were_staged_and_never_spoken_of_are_removed_with_their_stream(daemon: Host) -> None:
    log(daemon, """
staging = run._stream.staging
trackio.log({"image": trackio.Image(np.zeros((2, 2), np.uint8))})
open(os.path.join(staging._folder, "7"), "wb").write(b"a process that died between two steps")
""")  # fmt: skip
    assert len(kept(daemon, "image")) == 1
    wait_for(lambda: not list((daemon.data / "incoming").iterdir()), what="the stray file to go")


def test_a_daemon_that_was_away_at_the_end_of_a_process_leaves_no_folder_of_staged_files(daemon: Host) -> None:
    code = "trackio.log({'i': trackio.Image(np.zeros((2, 2), np.uint8))})\nrun.finish(wait='stored')\n"
    training = daemon.python(HEAD + code + "print(flush=True); input()", stdin=subprocess.PIPE)
    training.stdout.readline()
    os.kill(daemon.start(), signal.SIGKILL)
    training.communicate("\n", timeout=60 * PATIENCE)
    daemon.start()
    wait_for(lambda: not list((daemon.data / "incoming").iterdir()), what="the folder to go")
    assert daemon.ended_run("p").state.state == "finished"


def test_saved_files_are_kept_under_their_names(daemon: Host) -> None:
    said = log(daemon, """
os.makedirs("save/sub", exist_ok=True)
for name in ("a.txt", "sub/b.txt"): open(f"save/{name}", "w").write(name)
os.chdir("save")
folder = trackio.save("**/*.txt")
assert folder.startswith(os.environ["TRACKIO_DIR"]), folder
run.save("a.txt", base_path="/")
try: trackio.save("none*")
except ValueError as error: print(error)
""")  # fmt: skip
    assert said == ""
    daemon.ended_run("p")

    def files() -> Any:
        found = daemon.cli("get", "run", "--project", "p", "--run", "r")["files"]
        return found if all(file["file_path"] for file in found) else None

    found = wait_for(files, what="the saved files")
    names = [file["name"] for file in found]
    assert names[:2] == ["a.txt", "sub/b.txt"] and names[2].endswith("save/a.txt")
    assert [Path(file["file_path"]).read_text() for file in found] == ["a.txt", "sub/b.txt", "a.txt"]
