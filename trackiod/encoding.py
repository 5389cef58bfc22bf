"""What staged arrays become: PNG and GIF by pillow, MP4, WebM and MP3 by ffmpeg where the host has it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

_FFMPEG_SECONDS = 600
_CODECS = {
    ".mp4": ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-f", "mp4"],
    ".webm": ["-vcodec", "libvpx-vp9", "-f", "webm"],
    ".mp3": ["-f", "mp3"],
}


class NotEncoded(Exception):
    """The staged bytes are not what they are said to be."""


def encode(how: str, source: str, target: str, suffix: str, facts: dict[str, Any]) -> tuple[str, str]:
    """Writes `target`; returns its suffix and what else there is to say. Raises NotEncoded or OSError."""
    if how == "image":
        _write_image(source, target, str(facts.get("mode")), _size(facts))
        return suffix, ""
    if how == "video":
        return _write_video(source, target, suffix, _size(facts), float(facts.get("fps", 24)))
    if how == "ffmpeg":
        if (why := _ffmpeg(["-i", source, *_CODECS[suffix], target])) is None:
            return suffix, ""
        shutil.copyfile(source, target)
        return ".wav", f"it is WAV and not {suffix[1:]}: {why}"
    raise NotEncoded(f"nobody here knows how to make it ({how!r})")


def _size(facts: dict[str, Any]) -> tuple[int, int]:
    try:
        width, height = facts["size_px"]
        return int(width), int(height)
    except (KeyError, TypeError, ValueError) as error:
        raise NotEncoded("its size is not known") from error


def _write_image(source: str, target: str, mode: str, size: tuple[int, int]) -> None:
    from PIL import Image

    with open(source, "rb") as file:
        data = file.read()
    try:
        Image.frombytes(mode, size, data).save(target, "PNG", compress_level=3)
    except (ValueError, KeyError) as error:
        raise NotEncoded(f"no picture can be made of it ({error})") from error


def _write_video(source: str, target: str, suffix: str, size: tuple[int, int], fps: float) -> tuple[str, str]:
    cause = ""
    if suffix in _CODECS:
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", source]
        if (why := _ffmpeg([*raw, *_CODECS[suffix], target])) is None:
            return suffix, ""
        cause = f"it is GIF and not {suffix[1:]}: {why}"
    _write_gif(source, target, size, fps)
    return ".gif", cause


def _write_gif(source: str, target: str, size: tuple[int, int], fps: float) -> None:
    from PIL import Image

    frame_bytes = size[0] * size[1] * 3
    if not frame_bytes or os.stat(source).st_size < frame_bytes:
        raise NotEncoded("no video can be made of it: there is no whole frame")
    with open(source, "rb") as file:

        def frames() -> Any:
            while len(data := file.read(frame_bytes)) == frame_bytes:
                yield Image.frombytes("RGB", size, data).quantize(256)

        rest = frames()
        first = next(rest)
        first.save(target, "GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / fps)), loop=0)


def _ffmpeg(arguments: list[str]) -> str | None:
    """None if it did what it was told, else why not."""
    program = shutil.which("ffmpeg")
    if program is None:
        return "there is no ffmpeg on this host"
    try:
        done = subprocess.run(
            [program, "-y", "-loglevel", "error", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_FFMPEG_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"ffmpeg failed ({error})"
    if done.returncode == 0:
        return None
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"ffmpeg failed ({said[-1] if said else done.returncode})"
