"""Readable run names, and the ids they belong to. Pure."""

from __future__ import annotations

import base64
import hashlib
import os

HOST = "\0host"
"""The project of the node's samples, which no user's can be called."""
MAX_NAME_CHARS = 128
"""of what a user calls something"""

_ADJECTIVES = (
    "amber ancient autumn bold brave bright brisk calm candid clear clever cosmic crisp curious daring deft "
    "eager early electric fair fearless fine fleet gentle glad golden grand happy hardy humble jolly keen "
    "kind lively lucid lucky mellow merry mighty modest nimble noble patient placid polite proud quick quiet "
    "rapid serene sharp silent silver sleek smooth solid steady sunny swift tidy vivid warm wise"
).split()
_NOUNS = (
    "anchor aspen badger beacon birch brook canyon cedar cliff cloud comet coral crane delta dune eagle "
    "ember falcon fern finch fjord forest galaxy glacier grove harbor heron hill island juniper lagoon lake "
    "lark maple meadow meteor mountain nebula oak ocean orchid otter owl peak pebble pine planet prairie "
    "raven reef ridge river robin sequoia shore sparrow spring star summit thistle tide valley willow"
).split()


def derived_id(*parts: str) -> str:
    """A run id that every process computes alike from the same parts: 12 characters, 60 bits."""
    digest = hashlib.blake2b("\0".join(parts).encode(errors="surrogateescape"), digest_size=8).digest()
    return base64.b32encode(digest).decode().lower()[:12]


def random_id() -> str:
    """A run id that nobody else has."""
    return derived_id(os.urandom(16).hex())


def readable(run_id: str) -> str:
    """The name of a run that was given none, such as `brave-otter-17`: the same in every rank."""
    digest = hashlib.blake2b(run_id.encode(errors="surrogateescape"), digest_size=8).digest()
    adjective = _ADJECTIVES[int.from_bytes(digest[:2], "big") % len(_ADJECTIVES)]
    noun = _NOUNS[int.from_bytes(digest[2:4], "big") % len(_NOUNS)]
    return f"{adjective}-{noun}-{int.from_bytes(digest[4:6], 'big') % 100}"


def project_id(project: str) -> str:
    """What a project's files are named by, so any name is possible."""
    return derived_id("project", project)
