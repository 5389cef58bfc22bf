"""Media, tables and traces as readers see them: the stored map with its file's path, or what the file holds instead.

The keys are upstream's: `_type`, `file_path`, `caption`, `_value`. A file that is not there yet, or never will be, is
said to be so.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgpack

from trackiod import blobs
from trackiod.store.reader import ProjectReader
from trackiod.store.shelf_reader import FileRow

_TABLE = "trackio.table"


class Exhibits:
    """Shows the rich values of one project."""

    def __init__(self, reader: ProjectReader, *, whole: bool = True) -> None:
        """`whole`: with what files hold of tables, traces and text; else only that they are there."""
        self._reader = reader
        self._folder = blobs.folder_beside(reader.path)
        self._files: dict[str, FileRow] = {}
        self._whole = whole

    def shown(self, value: Any) -> Any:
        """`value` with every rich value in it as readers see it."""
        if not isinstance(value, (dict, list)):
            return value
        missing = [file for file in _files_in(value) if file not in self._files]
        self._files.update(self._reader.files(missing))
        return self._shown(value)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._shown(item) for item in value]
        if not isinstance(value, dict):
            return value
        shown = {key: self._shown(item) for key, item in value.items() if key != "file" or "_type" not in value}
        if "_type" not in value:
            return shown
        if "file" in value:
            shown |= self._described(self._files.get(str(value["file"])))
        if value["_type"] == _TABLE and "rows" in shown:
            shown = {"_type": _TABLE, "_value": _rows(shown)}
        return shown

    def saved(self, runs: Collection[str]) -> list[dict[str, Any]]:
        """The files that the user saved with these runs."""
        return [{"name": name, **self._described(row)} for name, row in self._reader.saved(runs)]

    def _described(self, row: FileRow | None) -> dict[str, Any]:
        if row is None:
            return {"file_path": None, "incomplete": "nothing is known of its file"}
        if row.state is None:
            return {"file_path": None, "incomplete": "it is not kept yet"}
        if row.digest is None:
            return {"file_path": None, "incomplete": row.cause}
        path = blobs.kept_in(self._folder, row.digest, row.suffix)
        if row.state != "kept":  # bytes are kept, and not what was logged
            return {"file_path": path, "size": row.size, "sha256": row.digest, "incomplete": row.cause}
        if row.suffix == ".msgpack":
            return self._content(path) if self._whole else {}
        facts = {"file_path": path, "size": row.size, "sha256": row.digest}
        return (
            facts
            | ({"note": row.cause} if row.cause else {})
            | ({} if os.path.exists(path) else {"incomplete": "its file was removed"})
        )

    def _content(self, path: str) -> dict[str, Any]:
        try:
            with open(path, "rb") as file:
                content = msgpack.unpackb(file.read(), strict_map_key=False)
        except (OSError, ValueError) as error:
            return {"incomplete": f"its file cannot be read ({error})"}
        if not isinstance(content, dict):
            return {"incomplete": "its file cannot be read"}
        inner = self.shown(content)
        return inner if isinstance(inner, dict) else {}


def _rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = value.get("columns", [])
    return [dict(zip(columns, row, strict=False)) for row in value["rows"]]


def _files_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "_type" in value and isinstance(value.get("file"), str):
            yield value["file"]
        for item in value.values():
            yield from _files_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _files_in(item)
