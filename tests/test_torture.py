"""A few of the kill schedules of which `make torture` runs a thousand."""

from __future__ import annotations

import pytest
import torture


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_killed_when_nothing_is_lost_or_doubled(seed: int) -> None:
    assert torture.run(torture.schedule(seed)) == ""


def test_a_seed_is_one_schedule() -> None:
    assert torture.schedule(7) == torture.schedule(7) != torture.schedule(8)
