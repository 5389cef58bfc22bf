"""The data folder's own id, in `store.id`: made once, and found again where a loss of power cut its file."""

from __future__ import annotations

import glob
import logging
import os
import re
import sqlite3
import uuid
from collections import Counter
from contextlib import closing
from urllib.parse import quote

from trackio.durability import sync_names
from trackio.lookup import unless_absent
from trackio.places import STORE_ID, Places, replace

log = logging.getLogger(__name__)

_ID = re.compile(rb"[0-9A-Za-z-]{1,64}\Z")
_MOST_BYTES = 4096


def settle(where: Places) -> str:
    """Returns the id; on the disk, with the names that lead to it. Where the file is empty or damaged, the id is the
    one that the databases name: copies and uploads go by it. Raises OSError."""
    path = os.path.join(where.live, STORE_ID)
    content = unless_absent(lambda: _read(path), path)
    if content is not None and _ID.match(content.strip()):
        return content.strip().decode()
    store_id = (_named_by_databases(where) if content is not None else "") or uuid.uuid4().hex
    if content is not None:
        log.warning("%s was damaged (%d bytes); the store's id is %s", path, len(content), store_id)
    replace(path, store_id.encode(), is_safe=True)
    sync_names(where.live)
    return store_id


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MOST_BYTES)


def _named_by_databases(where: Places) -> str:
    """The id that most databases say they were made under; empty if none does."""
    found: Counter[str] = Counter()
    for path in glob.glob(os.path.join(glob.escape(where.projects), "*.db")):
        try:
            with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
                row = connection.execute("SELECT value FROM meta WHERE key = 'store'").fetchone()
        except sqlite3.Error:
            continue  # the others tell
        if row is not None and isinstance(row[0], str) and _ID.match(row[0].encode(errors="replace")):
            found[row[0]] += 1
    return found.most_common(1)[0][0] if found else ""
