"""What users log, made plain."""

from __future__ import annotations

import argparse
import dataclasses
import math
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trackio.values import clean_text, plain_config, plain_metrics


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1, 1),
        (True, True),
        ("x", "x"),
        (1.5, 1.5),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (2**63, 2**63),
        (2**70, float(2**70)),
        (-(2**70), -float(2**70)),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([3.0]), 3.0),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(3), 3),
        (torch.tensor(0.25, requires_grad=True), 0.25),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        ([1, (2, 3)], [1, [2, 3]]),
        ("\ud800", "\\ud800"),
    ],
    ids=repr,
)
def test_a_storable_value_has_this_plain_form(value: Any, stored: Any) -> None:
    kept, left_out = plain_metrics({"k": value})
    assert (kept, left_out) == ({"k": stored}, [])
    assert type(kept["k"]) is type(stored)


def test_nan_stays_nan() -> None:
    assert math.isnan(plain_metrics({"k": float("nan")})[0]["k"])


class Hostile:
    def __float__(self) -> float:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [object(), b"x", 1j, torch.zeros(2), np.zeros(3), Hostile(), {1, 2}, lambda: 0])
def test_what_cannot_be_stored_is_named_and_costs_no_other_key(value: Any) -> None:
    kept, left_out = plain_metrics({"good": 1, "bad": value, "also good": 2})
    assert kept == {"good": 1, "also good": 2}
    assert left_out == [("bad", f"a value of type {type(value).__name__} cannot be stored as a metric")]


def test_none_is_skipped_and_maps_are_flattened() -> None:
    assert plain_metrics({"a": {"b": 1, "c": {"d": 2, "e": None}}, "f": None}) == ({"a/b": 1, "a/c/d": 2}, [])


def test_keys_become_text() -> None:
    assert plain_metrics({1: 2, ("a", 1): 3, "\udfff": 4})[0] == {"1": 2, "('a', 1)": 3, "\\udfff": 4}


@given(st.text(st.characters(exclude_categories=())))
def test_clean_text_can_be_encoded_and_changes_only_what_could_not(text: str) -> None:
    assert clean_text(text).encode().decode() == clean_text(text)
    assert clean_text(text) == text or any(0xD800 <= ord(c) < 0xE000 for c in text)


@dataclasses.dataclass
class Inner:
    rate: float = 0.1


class WithToDict:
    def to_dict(self) -> dict[str, Any]:
        return {"r": 8, "targets": {"q"}}


class OmegaLike:
    """Stands for a pydantic model: `model_dump`."""

    def model_dump(self) -> dict[str, Any]:
        return {"x": 1}


def test_a_config_expands_what_holds_configuration() -> None:
    config = {
        "inner": Inner(),
        "lora": WithToDict(),
        "args": argparse.Namespace(lr=1),
        "space": SimpleNamespace(a=[Inner(2.0)]),
        "model": OmegaLike(),
        "dtype": torch.float32,
        "class": Inner,
    }
    assert plain_config(config) == {
        "inner": {"rate": 0.1},
        "lora": {"r": 8, "targets": ["q"]},
        "args": {"lr": 1},
        "space": {"a": [{"rate": 2.0}]},
        "model": {"x": 1},
        "dtype": "torch.float32",
        "class": repr(Inner),
    }


def test_a_config_never_raises_and_is_bounded() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    plain = plain_config({"loop": loop, "hostile": Hostile(), "long": [object() for _ in range(3)]})
    assert plain["hostile"] == "<Hostile>"
    assert plain["loop"] == {"self": "<dict that holds itself>"}


@dataclasses.dataclass
class Node:
    parent: Any
    children: list[Any]


def test_what_holds_itself_has_an_end() -> None:
    """However often it does: each of these would be looked at for hours."""
    tree = Node(None, [])
    tree.children = [Node(tree, []) for _ in range(300)]
    assert plain_config(tree)["children"][7] == {"parent": "<Node that holds itself>", "children": []}
    many: list[Any] = []
    many.extend([many] * 10)
    assert plain_config(many) == ["<list that holds itself>"] * 10
    loop: dict[str, Any] = {}
    loop.update(dict.fromkeys("abcdefghij", loop))
    kept, left_out = plain_metrics({"loop": loop, "many": many, "ok": 1})
    assert kept == {"ok": 1} and ("loop/a", "it holds itself") in left_out and len(left_out) == 11
    shared: Any = [1]
    for _ in range(12):
        shared = [shared] * 10
    assert plain_metrics({"shared": shared, "ok": 1})[0] == {"ok": 1}
    assert plain_config(list(range(1_000_000))) == list(range(100_000))


class Proxy:
    """As libraries have them that stand for an object which is not there."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise LookupError("not bound")


class OddList(list[Any]):
    def __iter__(self) -> Any:
        raise KeyError("x")


class OddMapping(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("gone")


def test_a_value_that_raises_costs_itself_alone_and_is_named() -> None:
    gone = weakref.proxy(Inner())
    odd = {"proxy": Proxy(), "list": OddList([1]), "gone": gone, "map": OddMapping(a=1), "ok": 1.5}
    kept, left_out = plain_metrics(odd)
    assert kept == {"ok": 1.5}
    assert dict(left_out) == {
        "proxy": "its value raises LookupError",
        "list": "its value raises KeyError",
        "gone": "its value raises ReferenceError",
        "map": "it raises OSError",
    }


def test_of_two_values_with_one_name_the_first_is_kept_and_the_other_named() -> None:
    kept, left_out = plain_metrics({"a/b": 1, "a": {"b": 2}, 1: 3, "1": 4})
    assert kept == {"a/b": 1, "1": 3}
    assert left_out == [(name, "another value of the call has that name") for name in ("a/b", "1")]
