"""Upstream's `trackio.sqlite_storage`: scripts import `SQLiteStorage` from it to read runs."""

from trackio.surface import Absent

SQLiteStorage = Absent("SQLiteStorage", "its store is another; read with trackio.Api, or `trackio get --json`")
