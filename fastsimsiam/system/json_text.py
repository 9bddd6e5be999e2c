"""JSON that every reader accepts: Python's own has NaN and Infinity, which the standard does not."""

import json
import math
from typing import Any


def to_json(content: object, indent: int | None = None) -> str:
    """Content as JSON; numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
