"""How often somebody may ask: a bucket of tokens each, in this process."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """burst: how many at once; per_s: how many a second after that."""

    burst: int
    per_s: float


class Limiter:
    """Token buckets by name; the longest idle are forgotten first."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock = rate, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, when
        self._lock = threading.Lock()

    def wait_s(self, who: str) -> float:
        """Take a token: 0.0, or, where there is none, the seconds until there is."""
        with self._lock:
            now = self._clock()
            tokens, then = self._buckets.pop(who, (float(self.rate.burst), now))
            tokens = min(self.rate.burst, tokens + (now - then) * self.rate.per_s)
            short = max(0.0, 1.0 - tokens)
            self._buckets[who] = (tokens if short else tokens - 1.0, now)
            while len(self._buckets) > MOST_KNOWN:
                self._buckets.popitem(last=False)
        return short / self.rate.per_s
