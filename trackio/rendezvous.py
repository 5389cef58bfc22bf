"""Agreeing on a run id over torch.distributed's store, where nothing in the environment is shared.

Only for static launches over several nodes. Rank 0 never waits; the others wait a bounded time.
"""

from __future__ import annotations

import sys
from typing import Any

from trackio.interrupts import hand_on

_WAIT_SECONDS = 5


def shared_id(mine: str, key: str, rank: int) -> tuple[str | None, str]:
    """Rank 0's id under `key`; or None, and why there is none."""
    store = _store()
    if store is None:
        return None, "the launcher gives the nodes nothing to tell this job by"
    try:
        from datetime import timedelta

        if rank == 0:
            store.set(f"trackio/{key}", mine)
            return mine, ""
        store.wait([f"trackio/{key}"], timedelta(seconds=_WAIT_SECONDS))
        value: bytes = store.get(f"trackio/{key}")
        return value.decode(), ""
    except Exception as error:  # noqa: BLE001 torch raises its own types; the caller goes on with a run per node
        hand_on(error)
        return None, f"torch's store does not tell the nodes which run this is ({type(error).__name__})"


def _store() -> Any:
    """The default process group's store, without importing torch ourselves."""
    distributed = sys.modules.get("torch.distributed")
    try:
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return None
        return distributed.distributed_c10d._get_default_store()
    except Exception as error:  # noqa: BLE001 another torch: no store then
        hand_on(error)
        return None
