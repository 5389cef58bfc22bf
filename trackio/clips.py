"""Sound, video and 3D points that are logged: what they take, and the bytes they become."""

from __future__ import annotations

import io
import os
from typing import Any

from trackio.media import Media
from trackio.rich import as_array
from trackio.staging import Staged, Staging
from trackio.steps import integral
from trackio.values import clean_text, is_given, short_repr, text_of

_MAX_POINTS = 300_000


class Audio(Media):
    """Sound: a path, or an array of (samples,) or (samples, channels) with its `sample_rate` in Hz.

    Floats are scaled so that the loudest is full, other whole numbers to 16 bits; arrays become WAV, or MP3 where the
    host has ffmpeg. Raises ValueError or TypeError for anything else.
    """

    TYPE = "trackio.audio"

    def __init__(
        self, value: Any, caption: str | None = None, sample_rate: int | None = None, format: str | None = None
    ) -> None:
        super().__init__(value, caption)
        self._sample_rate: int | None = None
        if self._is_path:
            return
        if sample_rate is None:
            raise ValueError("Sample rate is required when value is an ndarray")
        self._sample_rate = integral(sample_rate)
        if self._sample_rate is None or not 0 < self._sample_rate < 1 << 31:
            raise ValueError(f"Invalid sample_rate: {short_repr(sample_rate)}")
        self._format = text_of(format) if is_given(format) else "wav"
        if self._format not in ("wav", "mp3"):
            raise ValueError(f"Unsupported format: {self._format}. Supported: wav, mp3")
        self._value = _pcm(value)

    def _write(self, staging: Staging) -> Staged:
        import wave

        header = io.BytesIO()
        channels = 1 if self._value.ndim == 1 else self._value.shape[1]
        with wave.open(header, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(self._sample_rate or 1)
            file.writeframes(self._value.tobytes())
        encode = {} if self._format == "wav" else {"encode": "ffmpeg"}
        return staging.write([header.getbuffer()], f".{self._format}", **encode)


def _pcm(value: Any) -> Any:
    """Samples as 16-bit numbers. Raises ValueError or TypeError."""
    import numpy as np

    array = np.asarray(as_array(value))
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= 64):
        raise ValueError("Audio data must be 1D (mono) or 2D ([samples, channels])")
    if array.dtype == np.int16:
        return array
    if np.issubdtype(array.dtype, np.floating):
        samples = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
        peak = float(np.abs(samples).max()) if samples.size else 0.0
        return (samples / (peak or 1.0) * 32767).clip(-32768, 32767).astype(np.int16)
    if array.dtype in (np.int8, np.uint8, np.uint16, np.int32):
        info = np.iinfo(array.dtype)
        middle = (int(info.max) + int(info.min) + 1) // 2
        return ((array.astype(np.int64) - middle) * 32768 // (int(info.max) - middle + 1)).astype(np.int16)
    raise TypeError(f"Unsupported audio dtype: {array.dtype}")


class Video(Media):
    """Moving pictures: a path, or an array of bytes of (frames, channels, height, width), or of (batch, frames,
    channels, height, width), whose videos stand side by side in a grid.

    Arrays become GIF, or MP4 or WebM where the host has ffmpeg. Raises ValueError for anything else.
    """

    TYPE = "trackio.video"

    def __init__(
        self, value: Any, caption: str | None = None, fps: float | None = None, format: str | None = None, **unused: Any
    ) -> None:
        super().__init__(value, caption)
        if self._is_path:
            return
        self._format = text_of(format) if is_given(format) else "gif"
        if self._format not in ("gif", "mp4", "webm"):
            raise ValueError(f"Unsupported format: {self._format}. Supported: gif, mp4, webm")
        self._fps = 24.0 if fps is None else float(fps)
        if not 0 < self._fps <= 1000:
            raise ValueError(f"Invalid fps: {short_repr(fps)}")
        self._value = _frames(value)

    def _write(self, staging: Staging) -> Staged:
        _, height, width, _ = self._value.shape
        data = self._value.tobytes()
        return staging.write([data], f".{self._format}", encode="video", size_px=(width, height), fps=self._fps)


def _frames(value: Any) -> Any:
    """Frames as (frames, height, width, 3) bytes, a batch as a grid. Raises ValueError."""
    import numpy as np

    array = np.asarray(as_array(value))
    if array.dtype != np.uint8:
        raise ValueError(f"Invalid value dtype, expected np.uint8, got {array.dtype}")
    if array.ndim not in (4, 5) or array.shape[-3] not in (1, 3, 4) or not array.size:
        raise ValueError(
            f"A Video array has the shape ([batch,] frames, 1, 3 or 4 channels, height, width), not {array.shape}."
        )
    if array.ndim == 4:
        array = array[None]
    array = array[:, :, :3]
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    batch, frames, channels, height, width = array.shape
    columns = int(np.ceil(np.sqrt(batch)))
    rows = -(-batch // columns)
    empty = np.zeros((rows * columns - batch, *array.shape[1:]), np.uint8)
    grid = np.concatenate([array, empty]).reshape(rows, columns, frames, channels, height, width)
    return np.ascontiguousarray(grid.transpose(2, 0, 4, 1, 5, 3)).reshape(frames, rows * height, columns * width, 3)


class Object3D(Media):
    """A 3D object: the path of a glb, gltf, obj, stl, ply or splat file, or points as an array of (points, 3): x, y, z;
    (points, 4): and a category from 1 to 14; or (points, 6): and red, green, blue from 0 to 255.

    Points become PLY; of more than 300,000 every n-th is kept. Raises ValueError for anything else.
    """

    TYPE = "trackio.object3d"
    _FORMATS = ("glb", "gltf", "obj", "stl", "ply", "splat")

    def __init__(self, path_or_array: Any, caption: str | None = None) -> None:
        super().__init__(path_or_array, caption)
        self.original_point_count: int | None = None
        self.rendered_point_count: int | None = None
        if self._is_path:
            self._format = os.path.splitext(self._value)[1][1:].lower()
            if self._format not in self._FORMATS:
                known = ", ".join(self._FORMATS)
                raise ValueError(f"Unsupported 3D format '{clean_text(self._format)}'. Supported: {known}")
            self.kind = "gaussian_splat" if self._format == "splat" else "mesh"
            return
        self._format, self.kind = "ply", "point_cloud"
        self._value, self.original_point_count = _points(path_or_array)
        self.rendered_point_count = len(self._value)

    @classmethod
    def from_file(cls, path: Any, caption: str | None = None) -> Object3D:
        return cls(path, caption)

    @classmethod
    def from_numpy(cls, array: Any, caption: str | None = None) -> Object3D:
        return cls(array, caption)

    def _write(self, staging: Staging) -> Staged:
        fields = "property float x\nproperty float y\nproperty float z\n"
        colors = "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty uchar category\n"
        header = (
            f"ply\nformat binary_little_endian 1.0\nelement vertex {len(self._value)}\n{fields}{colors}end_header\n"
        )
        return staging.write([header.encode(), self._value.tobytes()], ".ply")

    def _facts(self) -> dict[str, Any]:
        counts = {"original_point_count": self.original_point_count, "rendered_point_count": self.rendered_point_count}
        return {"format": self._format, "kind": self.kind, **{k: v for k, v in counts.items() if v is not None}}


def _points(value: Any) -> tuple[Any, int]:
    """Points as PLY's records, and how many there were. Raises ValueError."""
    import numpy as np

    array = np.asarray(as_array(value))
    if array.ndim != 2 or array.shape[1] not in (3, 4, 6) or not len(array):
        raise ValueError(f"Object3D arrays must have shape (N, 3), (N, 4), or (N, 6), got {array.shape}")
    is_number = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    if not is_number or not np.isfinite(array).all() or np.abs(array[:, :3]).max() > np.finfo(np.float32).max:
        raise ValueError("Object3D arrays must contain only finite numeric values")
    extra, low, high = array[:, 3:], (1 if array.shape[1] == 4 else 0), (14 if array.shape[1] == 4 else 255)
    if extra.size and not ((extra == np.floor(extra)) & (extra >= low) & (extra <= high)).all():
        raise ValueError(f"Object3D categories and colors are whole numbers, here from {low} to {high}.")
    count = len(array)
    if count > _MAX_POINTS:
        array = array[np.linspace(0, count - 1, _MAX_POINTS, dtype=np.int64)]
    records = np.zeros(len(array), dtype=[("at", "<f4", (3,)), ("color", "u1", (3,)), ("category", "u1")])
    records["at"] = array[:, :3]
    records["color"] = array[:, 3:6] if array.shape[1] == 6 else (148, 163, 184)
    if array.shape[1] == 4:
        records["category"] = array[:, 3]
    return records, count
