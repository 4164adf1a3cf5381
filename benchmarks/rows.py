"""A figure beside its peer, as one line of JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """`peer`: what the value is compared with, measured in the same run; `target`: what is asked of the value, or of the ratio.

    value, met: None where it was not measured; `note` says why, or what is to be known of how it was.
    """

    name: str
    value: float | None
    unit: str
    target: str
    met: bool | None
    peer: str | None = None
    peer_value: float | None = None
    note: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "value": _rounded(self.value), "unit": self.unit, "peer": self.peer,
            "peer_value": _rounded(self.peer_value), "ratio": self.ratio, "target": self.target, "met": self.met,
            **({} if self.note is None else {"note": self.note}),
        }  # fmt: skip

    @property
    def ratio(self) -> float | None:
        return None if self.value is None or not self.peer_value else round(self.value / self.peer_value, 3)


def at_most(name: str, value: float, limit: float, unit: str) -> Row:
    return Row(name, value, unit, f"<= {limit:g} {unit}", value <= limit)


def at_least(name: str, value: float, limit: float, unit: str, peer: str) -> Row:
    return Row(name, value, unit, f">= {limit:g}", value >= limit, peer)


def grows(name: str, value: float, peer: str, peer_value: float, limit: float, unit: str) -> Row:
    """A value that may be so many times the peer's."""
    return Row(name, value, unit, f"ratio <= {limit:g}", value <= limit * peer_value, peer, peer_value)


def faster(
    name: str,
    value: float,
    unit: str,
    peer: str,
    peer_value: float,
    times: float,
    *,
    equal: bool = True,
    note: str = "",
) -> Row:
    """A rate that is to be so many times the peer's; what is fast and not `equal` to what the peer made counts for nothing."""
    return Row(
        name, value, unit, f"ratio >= {times:g}", equal and value >= times * peer_value, peer, peer_value, note or None
    )


def not_measured(name: str, unit: str, target: str, why: str, peer: str | None = None) -> Row:
    return Row(name, None, unit, target, None, peer, note=f"not measured: {why}")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not pass (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes; what it gives is let go."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def tell(row: Row) -> bool:
    """Print the row; False where its target was missed, which one that was not measured is not."""
    print(json.dumps(row.as_json()), flush=True)
    return row.met is not False


def _rounded(value: float | None) -> float | None:
    """To three decimals; small values to three digits."""
    if value is None or not math.isfinite(value):
        return value
    return round(value, 3) if abs(value) >= 0.1 else float(f"{value:.3g}")
