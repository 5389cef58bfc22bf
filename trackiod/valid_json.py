"""Values as JSON has them."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Valid JSON of whatever was stored."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(valid(value))


def valid(value: Any) -> Any:
    """NaN and the infinities, which JSON has not, become texts; so do bytes, keys and whatever else it cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): valid(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [valid(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
