"""Where kept files lie: under their content, in a folder for each project; of this host, or as others copied them."""

from __future__ import annotations

import os

from trackio.names import project_id


def folder_of(blobs: str, project: str) -> str:
    """The folder of a project's files."""
    return os.path.join(blobs, project_id(project))


def folder_beside(database: str) -> str:
    """The same, by the path of the project's database, or of what others copied of it."""
    folder, name = os.path.split(database)
    return os.path.join(os.path.dirname(folder), "blobs", os.path.splitext(name)[0])


def of_others(folder: str) -> str:
    """Where the files of the same project lie that other hosts copied."""
    blobs, project = os.path.split(folder)
    return os.path.join(os.path.dirname(blobs), "elsewhere", "blobs", project)


def path_in(folder: str, digest: str, suffix: str) -> str:
    """A file of that content in a project's folder."""
    return os.path.join(folder, digest[:2], digest + suffix)


def kept_in(folder: str, digest: str, suffix: str) -> str:
    """Where a kept file of a project lies: here, or as another host copied it; there it may be missing."""
    own, copied = path_in(folder, digest, suffix), path_in(of_others(folder), digest, suffix)
    return copied if not os.path.exists(own) and os.path.lexists(copied) else own
