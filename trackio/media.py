"""Pictures and pages that are logged: what they take, and the bytes they become. Sound, video and points: `clips`.

An array is copied as it is; the daemon makes a PNG, GIF or MP4 of it (`trackiod.encoding`), so that a call costs the
trainer a copy and no more. numpy and pillow are imported where one is met.
"""

from __future__ import annotations

import os
from typing import Any

from trackio.figures import is_figure, is_pil, is_plotly, png_of, svg_of
from trackio.rich import Rich, as_array
from trackio.staging import Staged, Staging
from trackio.values import Keep, clean_text, is_given, text_of, type_name

_OVERSHOOT = 0.01
"""what a decoder's output may be beyond 0 and 1"""


class Media(Rich):
    """A file with a caption. Made of a path, or of what its subclass takes."""

    def __init__(self, value: Any, caption: str | None = None) -> None:
        """Raises ValueError if `value` is a path and there is no such file."""
        self.caption = caption
        self._value = value
        if self._is_path:
            self._value = os.fsdecode(value)
        self._format: str | None = None
        self._staged: Staged | None = None
        self._staged_for = ""
        if self._is_path and not os.path.isfile(self._value):
            raise ValueError(f"File not found: {clean_text(self._value)}")

    @property
    def _is_path(self) -> bool:
        return isinstance(self._value, (str, os.PathLike))

    def _stored(self, staging: Staging, keep: Keep) -> dict[str, Any]:
        if self._staged is None or self._staged_for != staging.stream:
            self._staged = staging.take(self._value) if self._is_path else self._write(staging)
            self._staged_for = staging.stream
        caption = None if self.caption is None else text_of(self.caption)
        return {"_type": self.TYPE, "file": self._staged.id, "caption": caption, **self._facts()}

    def _write(self, staging: Staging) -> Staged:
        """Stages what is no path."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        return {}


def _image_array(value: Any) -> Any:
    """An array of (height, width[, channels]) as bytes from 0 to 255. Raises ValueError."""
    import numpy as np

    array = as_array(value)
    is_tensor = array is not value
    array = np.asarray(array)
    if array.ndim == 3 and is_tensor and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # a tensor has its channels first
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise ValueError(
            f"An Image array has the shape (height, width) or (height, width, 1, 3 or 4 channels), not {array.shape}."
        )
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= -_OVERSHOOT and array.max() <= 1 + _OVERSHOOT):
            raise ValueError("An Image array of floats holds values from 0 to 1.")
        return (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
            raise ValueError(f"Invalid value dtype, expected np.uint8, got {array.dtype}.")
        array = array.astype(np.uint8)
    return array


class Image(Media):
    """A picture: a path, a PIL image, or an array or tensor of (height, width[, channels]).

    Arrays hold bytes, or floats from 0 to 1; they and PIL images become PNG. Raises ValueError for anything else.
    """

    TYPE = "trackio.image"

    def __init__(self, value: Any, caption: str | None = None, **unused: Any) -> None:
        """`unused`: wandb's `mode`, `masks` and the like are taken and left alone."""
        super().__init__(value, caption)
        if self._is_path:
            return
        self._format = "png"
        if is_pil(value):
            return
        if is_figure(value):
            return
        if not hasattr(value, "__array__") and not hasattr(value, "detach"):
            raise ValueError(f"An Image is made of a path, an array or a PIL image, not of a {type_name(value)}.")
        self._value = _image_array(value)

    @property
    def image(self) -> Any:
        """The picture as a PIL image, as wandb has it."""
        import PIL.Image

        if self._is_path:
            return PIL.Image.open(self._value)
        if is_pil(self._value):
            return self._value
        array = self._value
        return PIL.Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)

    def _write(self, staging: Staging) -> Staged:
        if is_figure(self._value):
            return staging.write([png_of(self._value)], ".png")
        if is_pil(self._value):
            picture = self._value if self._value.mode in ("L", "RGB", "RGBA") else self._value.convert("RGBA")
            return staging.write([picture.tobytes()], ".png", encode="image", mode=picture.mode, size_px=picture.size)
        array = self._value
        height, width = array.shape[:2]
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[1 if array.ndim == 2 else array.shape[2]]
        data = array.data if array.flags.c_contiguous else array.tobytes()
        return staging.write([data], ".png", encode="image", mode=mode, size_px=(width, height))


class Html(Media):
    """A page: text, the path of an `.html` file, an open file, or a figure of plotly or matplotlib.

    Kept as given, in a plain document of its own unless it is one or `inject` is false. Raises ValueError for anything
    else.
    """

    TYPE = "trackio.html"

    def __init__(
        self, data: Any, inject: bool = True, data_is_not_path: bool = False, caption: str | None = None
    ) -> None:
        super().__init__(None, caption)
        self._format = "html"
        self._html = _as_page(_html_of(data, is_given(data_is_not_path)), is_given(inject))

    def _write(self, staging: Staging) -> Staged:
        return staging.write([self._html.encode("utf-8", "backslashreplace")], ".html")


def _html_of(data: Any, is_text: bool) -> str:
    if is_plotly(data):
        return str(data.to_html(full_html=True, include_plotlyjs="cdn"))
    if is_figure(data):
        return svg_of(data)
    if hasattr(data, "to_jshtml"):
        return str(data.to_jshtml())
    if hasattr(data, "read"):
        content = data.read()
        return content.decode("utf-8", "replace") if isinstance(content, bytes) else text_of(content)
    if not isinstance(data, (str, os.PathLike)):
        raise ValueError(f"Html is made of text, a path, an open file or a figure, not of a {type_name(data)}.")
    path = os.fsdecode(data)
    if not is_text and len(path) < 4096 and path.lower().endswith((".html", ".htm")) and "\0" not in path:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            pass  # text that ends like a file's name
    return str(path)


def _as_page(html: str, inject: bool) -> str:
    if not inject or html.lstrip().lower().startswith(("<!doctype", "<html")):
        return html
    style = "body{margin:0;padding:12px;font-family:sans-serif}img,svg{max-width:100%;height:auto}"
    return f'<!doctype html><html><head><meta charset="utf-8"><style>{style}</style></head><body>{html}</body></html>'
