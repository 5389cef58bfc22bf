"""Hugging Face datasets as a target: `hf://datasets/owner/name`. The only file that knows `huggingface_hub`'s datasets.

`create_commit` does not repeat the commit request itself, and leaves out files that are there already as they are, so a
commit that was taken though its answer was lost is not made twice.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from trackiod.sinks.interface import AGAIN, PARK, REBASE, SMALLER, Change, Verdict

PREFIX = "hf://datasets/"
_NETWORK = ("http", "requests", "urllib3")
"""modules whose errors say that nobody answered"""
_READ_SECONDS = 60.0
_QUOTA_SECONDS = 600.0
"""to wait when the quota of commits is used up, of which the Hub does not say for how long"""


class HubSink:
    """A dataset repository."""

    def __init__(self, url: str, token: str | None, endpoint: str | None = None) -> None:
        """`token`, `endpoint`: None for those that `huggingface_hub` finds."""
        self.name = url
        self._token = (token or huggingface_hub.get_token() or "").strip() or False
        self._api = HfApi(endpoint, token=self._token)

    @cached_property
    def title(self) -> str:
        repo = self.name.removeprefix(PREFIX)
        return repo if "/" in repo else f"{self._api.whoami()['name']}/{repo}"

    def prepare(self, *, private: bool) -> None:
        if not self._is_there():
            self._api.create_repo(self.title, repo_type="dataset", private=private, exist_ok=True)

    def _is_there(self) -> bool:
        try:
            self._api.repo_info(self.title, repo_type="dataset")
        except RepositoryNotFoundError:
            return False
        return True

    def head(self) -> str:
        return str(self._api.repo_info(self.title, repo_type="dataset").sha or "")

    def read(self, path: str) -> bytes | None:
        try:
            url = huggingface_hub.hf_hub_url(self.title, path, repo_type="dataset", endpoint=self._api.endpoint)
            headers = build_hf_headers(token=self._token)
            response = get_session().get(url, headers=headers, timeout=_READ_SECONDS)
            hf_raise_for_status(response)
            return bytes(response.content)
        except EntryNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            tree = self._api.list_repo_tree(self.title, folder, repo_type="dataset", recursive=True)
            return [entry.path for entry in tree if hasattr(entry, "size")]
        except EntryNotFoundError:
            return []

    def send(self, change: Change) -> None:
        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in change.adds.items()]
        operations += [CommitOperationDelete(path) for path in change.deletes]
        self._api.create_commit(
            self.title, operations, commit_message=change.message, repo_type="dataset", num_threads=2,
            parent_commit=change.parent or None,
        )  # fmt: skip

    def classify(self, error: Exception) -> Verdict:
        verdict = self._classified(error)
        if self._token:
            verdict = verdict._replace(sentence=verdict.sentence.replace(str(self._token), "(the token)"))
        return verdict

    def _classified(self, error: Exception) -> Verdict:
        repo = self.name.removeprefix(PREFIX)
        if isinstance(error, HFValidationError):
            return Verdict(PARK, f"{self.name} is no name of a dataset: {_short(error)}")
        if isinstance(error, OfflineModeIsEnabled):
            return Verdict(AGAIN, "HF_HUB_OFFLINE is set, so nothing is uploaded.")
        http = _http_error(error)
        response = getattr(http, "response", None)
        if http is None or response is None:
            is_network = isinstance(error, OSError) or type(error).__module__.split(".")[0].startswith(_NETWORK)
            return Verdict(AGAIN, f"The Hub cannot be reached: {_short(error)}" if is_network else
                           f"The upload failed ({type(error).__name__}): {_short(error)}")  # fmt: skip
        status, asked = response.status_code, _seconds_asked(response.headers)
        if status in (409, 412) or (status == 404 and not isinstance(http, RepositoryNotFoundError)):
            return Verdict(REBASE, f"{self.name} has changed meanwhile.")
        if status in _REASONS and _host(response.url) == _host(self._api.endpoint):
            return Verdict(PARK, _REASONS[status].format(repo, self._api.endpoint))
        if status == 413:
            return Verdict(SMALLER, "The Hub does not take so much at once.")
        if status == 429:
            pause = _QUOTA_SECONDS if asked is None else asked
            return Verdict(AGAIN, "The Hub wants fewer commits for a while (429).", pause)
        return Verdict(AGAIN, f"The Hub answers {status}: {_short(http)}", asked)


_REASONS = {
    401: "The Hub does not know the token, or there is none: {1} answers 401 for {0}. Set HF_TOKEN or `hf auth login`.",
    403: "The token may not write to {0} (403). It needs the role `write` there.",
    404: "There is no dataset {0}, and the token may not see or make it (404).",
}


def _host(url: Any) -> str:
    return urlsplit(str(url)).netloc


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The answer behind an error: LFS uploads wrap it."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error
        error = error.__cause__
    return None


def _seconds_asked(headers: Any) -> float | None:
    """From `Retry-After: 17`, or `RateLimit: "api";r=0;t=17`."""
    for text in (headers.get("Retry-After"), *_parameters(headers.get("RateLimit"), "t")):
        try:
            return max(0.0, float(text))
        except (TypeError, ValueError):
            continue
    return None


def _parameters(header: str | None, name: str) -> list[str]:
    return [part.strip().removeprefix(f"{name}=") for part in (header or "").split(";")
            if part.strip().startswith(f"{name}=")]  # fmt: skip


def _short(error: BaseException) -> str:
    """Its first line, without what follows a URL: that may be signed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\?[^\s'\")]*", "", lines[0] if lines else type(error).__name__)[:200]
