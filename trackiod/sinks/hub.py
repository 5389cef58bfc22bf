"""What all targets on the Hugging Face Hub have in common: who asks, small files, and what its errors mean."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
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

from trackio import targets
from trackiod.errors import TrackiodError
from trackiod.sinks.interface import AGAIN, PARK, REBASE, SMALLER, Verdict

T = TypeVar("T")
_NETWORK = ("http", "requests", "urllib3")
"""modules whose errors say that nobody answered"""
SILENT_SECONDS = 120.0
"""without an answer, after which it is asked again later"""
_LOG_IN = "Set HF_TOKEN or `hf auth login`."
_AT_ONCE_BYTES = 16 << 20
_QUOTA_SECONDS = 600.0
"""to wait when the quota of commits is used up, of which the Hub does not say for how long"""
_XET_STATUS = re.compile(r"\((\d{3})[^)]*\), domain: (\S+)")
"""what hf_xet, which raises a ConnectionError for everything, says of an answer"""
_XET_TOKEN = re.compile(r"/xet-(read|write)-token\b")
_XET_DEFAULTS = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",  # else it tries for up to five minutes and says nothing
    "HF_XET_CLIENT_AC_MAX_UPLOAD_CONCURRENCY": "2",  # each upload holds 64 MiB
    "HF_XET_DATA_MAX_CONCURRENT_FILE_INGESTION": "1",
}
"""beside training; what the job says of them is kept"""
for _name, _value in _XET_DEFAULTS.items():
    os.environ.setdefault(_name, _value)
NOT_FOUND = (RepositoryNotFoundError, getattr(huggingface_hub.errors, "BucketNotFoundError", RepositoryNotFoundError))


class HubTarget:
    """A repository or bucket. `prefix`: of its URL."""

    prefix: ClassVar[str]
    kind: ClassVar[str] = "target"

    def __init__(self, url: str, token: str | None, endpoint: str | None = None) -> None:
        """`token`, `endpoint`: None for those that `huggingface_hub` finds. Raises TrackiodError for another thing."""
        self.name = url
        given = (token or huggingface_hub.get_token() or "").strip()
        self._token = given or False
        if given and not targets.is_token(given):
            raise TrackiodError("What is set as the Hub's token is none: it has other characters than printable ASCII.")
        _wait_for_no_answer_for_ever()
        self._api = HfApi(endpoint, token=self._token)

    @cached_property
    def title(self) -> str:
        """Its full name."""
        name = self.name.removeprefix(self.prefix)
        if "/" not in name and not self._token:
            raise TrackiodError(f"Whose {self.kind} {name} is, only a token says, and there is none. {_LOG_IN}")
        return name if "/" in name else f"{self._api.whoami()['name']}/{name}"

    def _get(self, url: str) -> bytes | None:
        """A small file; None if there is none."""
        try:
            response = get_session().get(url, headers=build_hf_headers(token=self._token), timeout=SILENT_SECONDS)
            hf_raise_for_status(response)
            return bytes(response.content)
        except HfHubHTTPError as error:
            if error.response.status_code == 404 and not isinstance(error, NOT_FOUND):
                return None
            raise

    def classify(self, error: Exception) -> Verdict:
        """What an error of the Hub's, of its libraries' or of the network's means."""
        verdict = self._classified(error)
        if self._token:
            verdict = verdict._replace(sentence=verdict.sentence.replace(str(self._token), "(the token)"))
        return verdict

    def _classified(self, error: Exception) -> Verdict:
        if isinstance(error, TrackiodError):
            return Verdict(PARK, str(error))
        if isinstance(error, HFValidationError):
            return Verdict(PARK, f"{self.name} is no name of a {self.kind}: {_short(error)}")
        if isinstance(error, OfflineModeIsEnabled):
            return Verdict(AGAIN, "HF_HUB_OFFLINE is set, so nothing is uploaded.")
        if isinstance(error, ImportError):
            return Verdict(PARK, f"{self.name} needs a hf_xet that can be imported here: {_short(error)}")
        if isinstance(error, FileNotFoundError) and error.filename:
            return Verdict(AGAIN, f"What was to be uploaded is gone here: {error.filename}")
        http = _http_error(error)
        response = getattr(http, "response", None)
        if failures := getattr(http, "failures", None):  # of a bucket, whatever the answer's number is
            some = f"{failures[0].get('path')}: {failures[0].get('error')}"
            return Verdict(AGAIN, f"{self.name} did not take {len(failures)} of the files ({_line(some)}).")
        if http is not None and response is not None:
            is_ours = _host(response.url) == _host(self._api.endpoint)
            is_there = not isinstance(http, NOT_FOUND)
            return self._answered(response.status_code, http, response.headers, is_ours=is_ours, is_there=is_there)
        if isinstance(error, ConnectionError) and (said := _XET_STATUS.search(str(error))):
            return self._answered(int(said[1]), error, {}, is_ours=bool(_XET_TOKEN.search(said[2])), is_there=False)
        is_network = isinstance(error, OSError) or type(error).__module__.split(".")[0].startswith(_NETWORK)
        return Verdict(AGAIN, f"The Hub cannot be reached: {_short(error)}" if is_network else
                       f"The upload failed ({type(error).__name__}): {_short(error)}")  # fmt: skip

    def _answered(self, status: int, error: Exception, headers: Any, *, is_ours: bool, is_there: bool) -> Verdict:
        """`is_ours`: whether the Hub itself said so of this target, and not what keeps its files; `is_there`: whether
        only something of the target was not found."""
        if (status in (409, 412) and is_ours) or (status == 404 and is_there):
            return Verdict(REBASE, f"{self.name} has changed meanwhile.")
        said = _line(getattr(error, "server_message", None) or "")
        if status in _REASONS and is_ours:
            name = self.name.removeprefix(self.prefix)
            reason = _REASONS[status].format(name, self._api.endpoint, self.kind)
            return Verdict(PARK, f"{reason} The Hub says: {said}" if said else reason)
        if status == 413:
            return Verdict(SMALLER, "The Hub does not take so much at once.")
        asked = _seconds_asked(headers)
        if status == 429:
            pause = _QUOTA_SECONDS if asked is None else asked
            return Verdict(AGAIN, "The Hub wants fewer commits for a while (429).", pause)
        return Verdict(AGAIN, f"The Hub answers {status}: {said or _short(error)}", asked)


@functools.cache
def _wait_for_no_answer_for_ever() -> None:
    """The library's client has no limit. (Those before 1.0 have one for each request, or none; what stands still for
    too long is ended by the daemon.)"""
    default = getattr(sys.modules["huggingface_hub.utils._http"], "default_client_factory", None)
    if default is not None:

        def client() -> Any:
            made = default()
            made.timeout = SILENT_SECONDS
            return made

        huggingface_hub.set_client_factory(client)


def in_turn(items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """As many at once as hold 16 MiB, or a larger one alone: hf_xet has in memory, twice, what it is given at once."""
    some: list[T] = []
    size = 0
    for item in items:
        if some and size + size_of(item) > _AT_ONCE_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += size_of(item)
    if some:
        yield some


_REASONS = {
    401: "The Hub does not know the token, or there is none: {1} answers 401 for {0}. " + _LOG_IN,
    403: "The Hub does not let this token write to {0} (403): it needs the role `write` there, and room.",
    404: "There is no {2} {0}, and the token may not see or make it (404).",
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
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    """The first line, without what follows a URL: that may be signed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"\?[^\s'\")]*", "", lines[0] if lines else "")[:200]
