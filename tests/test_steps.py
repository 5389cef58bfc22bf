"""Which step a record gets."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from trackio.record import Origin
from trackio.steps import Steps, integral


def test_the_counter_is_the_highest_step_so_far_plus_one() -> None:
    steps = Steps()
    got = []
    for given in (None, 10, None, 5, None, 5, -3, None):
        if given is None:
            got.append(steps.choose({}, None))
        else:
            steps.take(given)
    assert got == [(0, Origin.COUNTER), (11, Origin.COUNTER), (12, Origin.COUNTER), (13, Origin.COUNTER)]


def test_commit_false_leaves_the_counter_where_it_is() -> None:
    steps = Steps()
    assert steps.choose({}, False) == steps.choose({}, False) == steps.choose({}, None) == (0, Origin.COUNTER)
    assert steps.choose({}, None) == (1, Origin.COUNTER)


def test_the_trainers_global_step_is_the_step() -> None:
    steps = Steps()
    assert steps.choose({"train/global_step": 40, "loss": 1.0}, None) == (40, Origin.METRIC)
    assert steps.choose({"loss": 1.0}, None) == (41, Origin.COUNTER)


def test_a_step_metric_that_is_no_whole_number_is_ignored() -> None:
    assert Steps().choose({"train/global_step": 1.5}, None) == (0, Origin.COUNTER)
    assert Steps().choose({"train/global_step": "x"}, None) == (0, Origin.COUNTER)


def test_a_defined_step_metric_goes_before_the_built_in_one() -> None:
    steps = Steps()
    steps.define("val/*", "val/step")
    assert steps.choose({"val/loss": 1, "val/step": 7, "train/global_step": 3}, None) == (7, Origin.METRIC)
    assert steps.choose({"loss": 1, "val_step": 9, "train/global_step": 3}, None) == (3, Origin.METRIC)


@pytest.mark.parametrize(
    ("value", "whole"),
    [(3, 3), (3.0, 3), (True, 1), (np.int32(4), 4), (torch.tensor(5), 5), (torch.tensor(5.0), 5), (-2, -2),
     (1.5, None), ("3", None), (float("nan"), None), (float("inf"), None), (2**63, None), (None, None), ([], None),
     (Decimal(3), 3), (Decimal("1e999999"), None), (Fraction(10**4000, 3), None), (-(2**63), -(2**63))],
)  # fmt: skip
def test_a_step_is_a_whole_number_of_64_bits(value: Any, whole: int | None) -> None:
    assert integral(value) == whole


def test_after_the_greatest_step_there_still_is_a_next() -> None:
    for steps in (Steps(), Steps((1 << 63) - 1)):
        steps.take((1 << 63) - 1)
        for _ in range(3):
            assert steps.choose({}, None)[0] < 1 << 63
