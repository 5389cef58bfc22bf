"""Where a run is to be uploaded, as the training process says it. Pure: the environment is an argument.

What may lie on disk goes with the stream's facts; a token, or a proxy's password, only over the daemon's socket, which
keeps it in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

DATASETS, BUCKETS = "hf://datasets/", "hf://buckets/"
FORMS = "hf://datasets/owner/name or hf://buckets/owner/name"
_REPO = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_TRAVELS = frozenset(
    (
        "HF_ENDPOINT HF_HOME HF_HUB_CACHE HF_TOKEN_PATH HF_HUB_OFFLINE HF_HUB_DISABLE_XET HF_HUB_ETAG_TIMEOUT "
        "HF_HUB_DOWNLOAD_TIMEOUT HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy "
        "REQUESTS_CA_BUNDLE CURL_CA_BUNDLE SSL_CERT_FILE SSL_CERT_DIR"
    ).split()
)
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class Wish(NamedTuple):
    """A target, and what of it may be seen by nobody."""

    facts: dict[str, Any]
    secrets: dict[str, Any]


def url_of(text: str, prefix: str = DATASETS) -> str:
    """The URL behind `owner/name` or `name`, which is one of `prefix`, or behind a URL. Raises ValueError with a
    sentence."""
    given = text.strip()
    prefix = next((one for one in (DATASETS, BUCKETS) if given.startswith(one)), prefix)
    name = given.removeprefix(prefix)
    if not _REPO.fullmatch(name) or "--" in name or ".." in name:
        what = "bucket" if prefix == BUCKETS else "dataset"
        raise ValueError(f"{given!r} is no name of a {what} on the Hub: it is `owner/name`")
    return prefix + name


def is_token(text: str) -> bool:
    """Whether it can be one: it goes into a header, and never into a sentence."""
    return _TOKEN.fullmatch(text) is not None


def travels(name: str, value: str) -> bool:
    """Whether a variable of the job's environment is its target's business, and can be passed on."""
    if name not in _TRAVELS and not name.startswith("HF_XET_"):
        return False
    return "\0" not in value and value == value.encode("utf-8", "ignore").decode()


def wish(url: str, private: bool | None, token: str | None, environ: Mapping[str, str], nodes: tuple[int, int]) -> Wish:
    """`nodes`: how many hosts the job has, and which of them this is. Without a `url` there are no facts, only secrets,
    for targets that the daemon knows."""
    settings = {name: value for name, value in environ.items() if travels(name, value)}
    secret = {name: value for name, value in settings.items() if "@" in value}  # a proxy's password
    given = (text.strip() for text in (token or "", *(environ.get(name, "") for name in _TOKENS)))
    token = next((text for text in given if is_token(text)), None)
    facts = {
        "url": url,
        "private": private is not False,
        "environ": {name: value for name, value in settings.items() if name not in secret},
        "hosts": nodes[0],
        "node": nodes[1],
    }
    secrets = {"token": token, "environ": secret}
    return Wish(facts if url else {}, {name: value for name, value in secrets.items() if value})
