"""A brief that was built in Python, as the YAML text that the API takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from studio.client.errors import ClientError


def brief_text(brief: str | Path | Mapping[str, Any]) -> str:
    """YAML: of a text as it is, of a file what it says, of a mapping in YAML's flow style."""
    if isinstance(brief, Path):
        return brief.read_text(encoding="utf-8-sig")
    return brief if isinstance(brief, str) else _flow(brief)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(str(k))}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str | bool) or value is None:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        digits, e, power = repr(value).partition("e")
        return digits + ("" if "." in digits else ".0") + e + power  # YAML 1.1 reads 1e-05 as a word
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise ClientError(f"a brief has no {type(value).__name__}", "Give texts, numbers, lists and mappings.")
