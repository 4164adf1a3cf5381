"""What changed from one version of a picture to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings that differ, by name, each with its value before and after; what one of them lacks is None there."""
    names = sorted({*before, *after})
    return [{"name": n, "before": before.get(n), "after": after.get(n)} for n in names if before.get(n) != after.get(n)]
