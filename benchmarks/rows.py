"""A figure beside its peer, as one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """`peer`: what the value is compared with, measured in the same run; `target`: what is asked of the value, or of the ratio."""

    name: str
    value: float
    unit: str
    target: str
    met: bool
    peer: str | None = None
    peer_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        ratio = None if not self.peer_value else round(self.value / self.peer_value, 3)
        return {
            "name": self.name, "value": round(self.value, 3), "unit": self.unit, "peer": self.peer,
            "peer_value": None if self.peer_value is None else round(self.peer_value, 3), "ratio": ratio,
            "target": self.target, "met": self.met,
        }  # fmt: skip


def at_most(name: str, value: float, limit: float, unit: str) -> Row:
    return Row(name, value, unit, f"<= {limit:g} {unit}", value <= limit)


def at_least(name: str, value: float, limit: float, unit: str, peer: str) -> Row:
    return Row(name, value, unit, f">= {limit:g}", value >= limit, peer)


def grows(name: str, value: float, peer: str, peer_value: float, limit: float, unit: str) -> Row:
    """A value that may be so many times the peer's."""
    return Row(name, value, unit, f"ratio <= {limit:g}", value <= limit * peer_value, peer, peer_value)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not pass (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def tell(row: Row) -> bool:
    print(json.dumps(row.as_json()), flush=True)
    return row.met
