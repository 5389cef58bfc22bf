"""A store that speaks Xet's protocol to the real `hf_xet`: chunks come in xorbs, shards say which of them make a file.

Content is kept as bytes. Hashes of chunks are believed; lengths, and the SHA-256 that a file is said to have, are not.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow

_CHUNK = struct.Struct("<B3sB3s")
_ENTRY = struct.Struct("<32sIIII")
"""of a shard: every entry begins with a hash"""
_EMPTY = "0" * 64
"""the file without bytes, of which nothing is sent"""
_END = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_SHARD_HEADER_BYTES = 48
_STORED, _LZ4, _GROUPED_LZ4 = range(3)


class Chunk(NamedTuple):
    data: bytes
    start: int
    end: int
    """where it lies in the xorb, compressed"""


class Term(NamedTuple):
    """A stretch of a file: chunks of a xorb, from the first to before the last."""

    xorb: str
    first: int
    last: int


@dataclass
class Xet:
    """What was sent."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    xorbs: dict[str, list[Chunk]] = field(default_factory=dict)
    files: dict[str, list[Term]] = field(default_factory=lambda: {_EMPTY: []})
    digests: dict[str, str] = field(default_factory=dict)
    """the files' hashes by SHA-256, of those that say it"""

    def put_xorb(self, name: str, body: bytes) -> bool:
        """Returns whether it is new."""
        is_new = name not in self.xorbs
        self.bodies[name], self.xorbs[name] = body, _chunks(body)
        return is_new

    def put_shard(self, body: bytes) -> None:
        """Takes over the files it describes. Raises ValueError for one of chunks that were never sent."""
        at = _SHARD_HEADER_BYTES
        while body[at : at + 32] != _END:
            name, flags, count, _, _ = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            terms = []
            for _ in range(count):
                xorb, _, size, first, last = _ENTRY.unpack_from(body, at)
                at += _ENTRY.size
                terms.append(Term(_hex(xorb), first, last))
                if sum(len(chunk.data) for chunk in self.chunks(terms[-1])) != size:
                    raise ValueError("a term has another length")
            at += _ENTRY.size * count * bool(flags & _WITH_VERIFICATION)
            self.files[_hex(name)] = terms
            if flags & _WITH_METADATA:
                self._take_digest(_hex(name), _hex(body[at : at + 32]))
                at += _ENTRY.size

    def _take_digest(self, file: str, digest: str) -> None:
        if hashlib.sha256(self.content(file)).hexdigest() != digest:
            raise ValueError("the file has another SHA-256")
        self.digests[digest] = file

    def chunks(self, term: Term) -> list[Chunk]:
        """Raises ValueError if they were never sent."""
        chunks = self.xorbs.get(term.xorb, [])[term.first : term.last]
        if len(chunks) != term.last - term.first:
            raise ValueError("a term names chunks that are not there")
        return chunks

    def content(self, file: str) -> bytes:
        return b"".join(chunk.data for term in self.files[file] for chunk in self.chunks(term))

    def reconstruction(self, file: str, base_url: str, start: int = 0, end: int | None = None) -> dict[str, Any]:
        """How a file is put together from `start` to before `end`, as its reader wants to know it."""
        terms: list[dict[str, Any]] = []
        fetch: dict[str, list[dict[str, Any]]] = {}
        at, skipped = 0, 0
        for term in self.files[file]:
            chunks = self.chunks(term)
            size = sum(len(chunk.data) for chunk in chunks)
            if at + size > start and (end is None or at < end):
                if not terms:
                    skipped = max(0, start - at)
                numbers = {"start": term.first, "end": term.last}
                where = {"start": chunks[0].start, "end": chunks[-1].end - 1}
                terms.append({"hash": term.xorb, "unpacked_length": size, "range": numbers})
                url = f"{base_url}/xet/xorbs/{term.xorb}"
                fetch.setdefault(term.xorb, []).append({"range": numbers, "url": url, "url_range": where})
            at += size
        return {"offset_into_first_range": skipped, "terms": terms, "fetch_info": fetch}


def _hex(hash_: bytes) -> str:
    """As Xet writes a hash: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))


def _chunks(body: bytes) -> list[Chunk]:
    """Of a xorb; what it may have behind them is an index."""
    chunks: list[Chunk] = []
    at = 0
    while at + _CHUNK.size <= len(body) and not body.startswith(b"XETBLOB", at):
        _, packed, scheme, plain = _CHUNK.unpack_from(body, at)
        size, wanted = int.from_bytes(packed, "little"), int.from_bytes(plain, "little")
        end = at + _CHUNK.size + size
        data = _plain(body[at + _CHUNK.size : end], scheme, wanted)
        if len(data) != wanted:
            raise ValueError("a chunk has another length")
        chunks.append(Chunk(data, at, end))
        at = end
    return chunks


def _plain(data: bytes, scheme: int, size: int) -> bytes:
    if scheme == _STORED:
        return data
    plain = bytes(pyarrow.decompress(data, size, codec="lz4"))
    return plain if scheme == _LZ4 else _ungrouped(plain)


def _ungrouped(data: bytes) -> bytes:
    """First bytes, second bytes, third and fourth ones of four each, in their places again."""
    plain = bytearray(len(data))
    at = 0
    for place in range(4):
        size = len(range(place, len(data), 4))
        plain[place::4] = data[at : at + size]
        at += size
    return bytes(plain)
