"""Records: framing, salvage, and what is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackio import record
from trackio.record import Damage, Kind, Record

payloads = st.lists(st.binary(min_size=1, max_size=200), max_size=12)
offsets = st.integers(0, 1 << 40).map(lambda n: n * 8)


def laid_out(parts: list[bytes], offset: int) -> bytes:
    data = b""
    for part in parts:
        data += record.encode(offset + len(data), part)
    return data


@given(payloads, offsets)
def test_what_is_encoded_is_read_in_order(parts: list[bytes], offset: int) -> None:
    data = laid_out(parts, offset)
    read = list(record.records(data, offset))
    assert [r.payload for r in read] == parts
    assert [r.start for r in read] == [offset, *(r.end for r in read)][: len(read)]
    assert len(data) % 8 == 0


@given(payloads.filter(bool), offsets)
def test_a_record_of_another_offset_does_not_count(parts: list[bytes], offset: int) -> None:
    assert list(record.records(laid_out(parts, offset), offset + 8)) == []


def test_zeros_hold_no_record() -> None:
    assert list(record.records(bytes(4096), 0)) == []


@given(payloads.filter(lambda p: len(p) > 1), offsets, st.data())
def test_a_flipped_byte_costs_one_record_and_is_named(parts: list[bytes], offset: int, data: st.DataObject) -> None:
    whole = laid_out(parts, offset)
    spot = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[spot] ^= 0xFF
    items = list(record.salvage(bytes(broken), offset))
    kept = [i for i in items if isinstance(i, Record)]
    damages = [i for i in items if isinstance(i, Damage)]
    hit = next(r for r in record.records(whole, offset) if r.start <= offset + spot < r.end)
    in_padding = offset + spot >= hit.start + record.HEADER_BYTES + len(hit.payload)
    assert len(kept) == len(parts) - (0 if in_padding else 1)
    assert in_padding or damages == [Damage(hit.start, hit.end)]


@given(st.binary(max_size=600), offsets)
def test_salvage_ends_on_any_bytes_and_covers_them(data: bytes, offset: int) -> None:
    position = offset
    for item in record.salvage(data, offset):
        assert item.start == position and item.end > item.start
        position = item.end
    assert position == offset + len(data)


@given(
    payloads, offsets, st.lists(st.sampled_from([bytes(8), bytes(5000), b"\xff" * 64, b"\1" + bytes(7)]), max_size=6)
)
def test_what_lies_behind_damage_is_found_wherever_it_is(parts: list[bytes], offset: int, junk: list[bytes]) -> None:
    damage = b"".join(junk)
    whole = laid_out(parts, offset + len(damage))
    items = list(record.salvage(damage + whole, offset))
    assert [i for i in items if isinstance(i, Record)] == list(record.records(whole, offset + len(damage)))


def test_a_long_stretch_without_records_is_passed_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a short run leaves of its first segment: a record, and 256 KiB of zeros."""
    looked = []
    at = record.record_at
    monkeypatch.setattr(record, "record_at", lambda *where: looked.append(where[1]) or at(*where))
    data = record.encode(0, b"one") + bytes(256 << 10)
    assert len(list(record.salvage(data, 0))) == 2
    assert len(looked) < 10


def test_a_cut_record_is_not_read() -> None:
    data = laid_out([b"whole", b"cut in the middle"], 0)
    assert [r.payload for r in record.records(data[:-16], 0)] == [b"whole"]


def test_sliced_checksum_is_the_plain_one() -> None:
    import zlib

    data = bytes(range(256)) * 100
    assert record.checksum(data) == zlib.crc32(data)


def test_a_payload_that_is_none_of_ours_is_a_value_error() -> None:
    import pytest

    for bad in (b"", b"\xc1", b"\x93\xa1a\x01\x02", b"\x91\x00", b"\x01", record.pack(Kind.LOG, -5)):
        with pytest.raises(ValueError, match=r".+"):
            record.unpack(bad)
