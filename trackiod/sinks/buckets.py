"""Hugging Face buckets as a target: `hf://buckets/owner/name`.

A bucket has no commits: of a request some files may be taken and others not, and nothing is made for a certain state of
it. So what says how far the others go is sent when they are there, and what they replace goes last.
"""

from __future__ import annotations

from urllib.parse import quote

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from trackio.targets import BUCKETS
from trackiod.errors import TrackiodError
from trackiod.sinks.hub import NOT_FOUND, HubTarget, in_turn
from trackiod.sinks.interface import Change, size_of


class BucketSink(HubTarget):
    """A bucket, whose content lies in Xet's store: HF_HUB_DISABLE_XET changes nothing here."""

    prefix = BUCKETS
    kind = "bucket"
    is_atomic = False

    def __init__(self, url: str, token: str | None, endpoint: str | None = None) -> None:
        """Raises TrackiodError where the Hub's library knows no buckets yet, or does not say what one refused."""
        super().__init__(url, token, endpoint)
        if not hasattr(huggingface_hub.errors, "BucketBatchError"):  # the first ones do not say what a bucket refused
            installed = f"huggingface_hub {huggingface_hub.__version__}"
            raise TrackiodError(f"{installed} knows no buckets well enough; {url} needs a newer one.")

    def prepare(self, *, private: bool) -> None:
        try:
            self._api.bucket_info(self.title)
        except NOT_FOUND:
            self._api.create_bucket(self.title, private=private, exist_ok=True)

    def head(self) -> str:
        return ""

    def read(self, path: str) -> bytes | None:
        return self._get(f"{self._api.endpoint}/buckets/{self.title}/resolve/{quote(path)}")

    def names(self, folder: str) -> list[str]:
        try:
            tree = list(self._api.list_bucket_tree(self.title, prefix=f"{folder}/", recursive=True))
        except EntryNotFoundError:
            return []
        return [entry.path for entry in tree if hasattr(entry, "size") and entry.path.startswith(f"{folder}/")]

    def send(self, change: Change) -> None:
        for files in (change.adds, change.seals):
            for some in in_turn(files.items(), lambda file: size_of(file[1])):
                self._api.batch_bucket_files(self.title, add=[(data, path) for path, data in some])
        if change.deletes:
            there = [file.path for file in self._api.get_bucket_paths_info(self.title, list(change.deletes))]
            self._api.batch_bucket_files(self.title, delete=there)
