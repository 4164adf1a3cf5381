"""One byte string for one value, so that a hash of JSON means the same everywhere and after a trip through JSONB."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, in UTF-8.

    A float that is a whole number is written as that number (1.0 as 1, as RFC 8785 does, and as 1e22 comes back from
    PostgreSQL), any other by its shortest decimal form. ValueError for NaN, infinities and half surrogate pairs,
    TypeError for what JSON has no form for and for keys that are not strings.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8"
    )


def sha256_of(value: Any) -> str:
    """The sha256, as 64 hex digits, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no JSON form")
        return int(Decimal(repr(float(value)))) if value.is_integer() else float(value)
    if isinstance(value, Mapping):
        if refused := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"a key must be a string, not {refused[0]!r}")
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
