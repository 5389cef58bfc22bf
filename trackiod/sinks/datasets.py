"""Hugging Face datasets as a target: `hf://datasets/owner/name`.

`create_commit` does not repeat the commit request itself, and leaves out files that are there already as they are, so a
commit that was taken though its answer was lost is not made twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import EntryNotFoundError

from trackio.targets import DATASETS
from trackiod.errors import TrackiodError
from trackiod.sinks.hub import NOT_FOUND, HubTarget, in_turn
from trackiod.sinks.interface import Change


class DatasetSink(HubTarget):
    """A dataset repository."""

    prefix = DATASETS
    kind = "dataset"
    is_atomic = True

    def prepare(self, *, private: bool) -> None:
        if not self._is_there():
            self._api.create_repo(self.title, repo_type="dataset", private=private, exist_ok=True)

    def _is_there(self) -> bool:
        try:
            self._api.repo_info(self.title, repo_type="dataset")
        except NOT_FOUND:
            return False
        return True

    def head(self) -> str:
        return str(self._api.repo_info(self.title, repo_type="dataset").sha or "")

    def read(self, path: str) -> bytes | None:
        return self._get(huggingface_hub.hf_hub_url(self.title, path, repo_type="dataset", endpoint=self._api.endpoint))

    def names(self, folder: str) -> list[str]:
        try:
            tree = self._api.list_repo_tree(self.title, folder, repo_type="dataset", recursive=True)
            return [entry.path for entry in tree if hasattr(entry, "size")]
        except EntryNotFoundError:
            return []

    def _there(self, paths: Sequence[str]) -> list[str]:
        entries = self._api.get_paths_info(self.title, list(paths), repo_type="dataset") if paths else []
        return [entry.path for entry in entries]

    def send(self, change: Change) -> None:
        adds = [CommitOperationAdd(path, data) for path, data in {**change.adds, **change.seals}.items()]
        for some in in_turn(adds, lambda add: int(add.upload_info.size)):
            self._api.preupload_lfs_files(self.title, some, repo_type="dataset", num_threads=2)
        ignored = [add.path_in_repo for add in adds if getattr(add, "_should_ignore", False)]
        if ignored:  # its library leaves them out and says nothing
            raise TrackiodError(f"The .gitignore of {self.name} leaves out {ignored[0]}, which would be lost.")
        operations: list[Any] = [*adds, *(CommitOperationDelete(path) for path in self._there(change.deletes))]
        self._api.create_commit(
            self.title, operations, commit_message=change.message, repo_type="dataset", num_threads=2,
            parent_commit=change.parent or None,
        )  # fmt: skip
