"""Hugging Face datasets as a target: `hf://datasets/owner/name`. The only file that knows `huggingface_hub`'s datasets.

`create_commit` does not repeat the commit request itself, and leaves out files that are there already as they are, so a
commit that was taken though its answer was lost is not made twice.
"""

from __future__ import annotations

import os
from typing import Any

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
_QUOTA_SECONDS = 600.0
"""to wait when the quota of commits is used up, of which the Hub does not say for how long"""


class HubSink:
    """A dataset repository."""

    def __init__(self, url: str, token: str | None, endpoint: str | None = None) -> None:
        """`token`, `endpoint`: None for those that `huggingface_hub` finds."""
        self.name = url
        self._repo = url.removeprefix(PREFIX)
        self._token = token or huggingface_hub.get_token() or False
        self._api = HfApi(endpoint, token=self._token)

    @property
    def has_token(self) -> bool:
        return bool(self._token)

    def prepare(self, *, private: bool) -> None:
        try:
            self._api.repo_info(self._repo, repo_type="dataset")
        except RepositoryNotFoundError:
            self._api.create_repo(self._repo, repo_type="dataset", private=private, exist_ok=True)

    def read(self, path: str) -> bytes | None:
        try:
            url = huggingface_hub.hf_hub_url(self._repo, path, repo_type="dataset", endpoint=self._api.endpoint)
            headers = build_hf_headers(token=self._token)
            response = get_session().get(url, headers=headers)
            hf_raise_for_status(response)
            return bytes(response.content)
        except EntryNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            tree = self._api.list_repo_tree(self._repo, folder, repo_type="dataset", recursive=True)
            return [entry.path for entry in tree if hasattr(entry, "size")]
        except EntryNotFoundError:
            return []

    def send(self, change: Change) -> None:
        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in change.adds.items()]
        operations += [CommitOperationDelete(path) for path in change.deletes]
        self._api.create_commit(
            self._repo, operations, commit_message=change.message, repo_type="dataset", num_threads=2
        )

    def classify(self, error: Exception) -> Verdict:
        if isinstance(error, HFValidationError):
            return Verdict(PARK, f"{self.name} is no name of a dataset: {_short(error)}")
        if isinstance(error, OfflineModeIsEnabled):
            return Verdict(PARK, "HF_HUB_OFFLINE is set, so nothing is uploaded.")
        http = _http_error(error)
        status = getattr(getattr(http, "response", None), "status_code", None)
        if http is None or status is None:
            return Verdict(AGAIN, f"The Hub cannot be reached: {_short(error)}")
        if status == 404 and not isinstance(http, RepositoryNotFoundError):
            return Verdict(REBASE, f"{self.name} has changed meanwhile: {_short(http)}")
        if status in (401, 403, 404):
            return Verdict(PARK, _REASONS[status].format(self._repo, _endpoint(self._api)))
        if status in (409, 412):
            return Verdict(REBASE, f"{self.name} has changed meanwhile.")
        if status == 413:
            return Verdict(SMALLER, "The Hub does not take so much at once.")
        if status == 429:
            asked = _seconds_asked(http.response.headers)
            pause = _QUOTA_SECONDS if asked is None else asked
            return Verdict(AGAIN, "The Hub wants fewer commits for a while (429).", pause)
        if status < 500:
            return Verdict(PARK, f"The Hub refuses ({status}): {_short(http)}")
        return Verdict(AGAIN, f"The Hub answers {status}.", _seconds_asked(http.response.headers))


_REASONS = {
    401: "The Hub does not know the token, or there is none: {1} answers 401 for {0}. Set HF_TOKEN or `hf auth login`.",
    403: "The token may not write to {0} (403). It needs the role `write` there.",
    404: "There is no dataset {0}, and the token may not see or make it (404).",
}


def _endpoint(api: HfApi) -> str:
    return str(api.endpoint)


def _http_error(error: BaseException | None) -> HfHubHTTPError | None:
    """The answer behind an error: LFS uploads wrap it."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error
        error = error.__cause__ or error.__context__
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
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def quiet() -> None:
    """No progress bars of the library's; for the process that only uploads."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
