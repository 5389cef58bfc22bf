"""A few of the schedules of which `make torture` runs a thousand."""

from __future__ import annotations

import pytest
import torture


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_killed_when_nothing_is_lost_or_doubled(seed: int) -> None:
    _, problem = torture.try_seed(seed)
    if problem is None:
        pytest.skip(f"this machine cannot have all of {torture.schedule(seed).kinds}: {torture.missing()}")
    assert problem == ""


def test_a_seed_is_one_schedule() -> None:
    assert torture.schedule(7) == torture.schedule(7) != torture.schedule(8)
