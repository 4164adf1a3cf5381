"""Shares and means with their 95 % intervals, where several pictures show one and the same character.

Pictures of one character succeed and fail together, so they say less than as many characters would. A share's
interval is Wilson's (1927) on the number of pictures divided by the design effect (Kish, 1965); to put an effective
number into a binomial interval is Korn and Graubard's idea (1998), who put it into another one and correct it further.
A mean over pictures is a ratio of two sums over characters, with its linearised variance (Cochran, 1977, sec. 6.4) and
Student's t. Medians have the bootstrap over characters (Efron, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats  # type: ignore[import-untyped]

CONFIDENCE_Z = 1.96
FEWEST = 5  # characters that an interval is told of
RESAMPLES = 2000
SEED = 20_231
_CHUNK = 1_000_000  # numbers drawn at once: 8 MB


@dataclass(frozen=True)
class Figure:
    """A value and its 95 % interval; None where one number has none."""

    value: float
    interval_95: tuple[float, float] | None = None

    def as_json(self) -> dict[str, object]:
        interval = None if self.interval_95 is None else [round(x, 4) for x in self.interval_95]
        return {"value": round(self.value, 4), "interval_95": interval}


def wilson(share: float, count: float) -> tuple[float, float]:
    """The interval of a share of `count` independent trials (Wilson, 1927)."""
    z2 = CONFIDENCE_Z**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def effective_count(right: np.ndarray) -> float:
    """How many independent pictures booleans (characters, pictures of each) are worth, by Kish's design effect."""
    characters, pictures = right.shape
    share = float(right.mean())
    spread = share * (1 - share) / (characters * pictures)  # the variance of the share, were all independent
    if characters < FEWEST or spread == 0:
        return float(characters)
    seen = float(right.mean(1).var(ddof=1)) / characters
    return float(np.clip(characters * pictures * spread / max(seen, 1e-12), characters, characters * pictures))


def share_of(right: np.ndarray) -> Figure:
    """The share of booleans (characters, pictures of each)."""
    share = float(right.mean())
    return Figure(share, wilson(share, effective_count(right)))


def mean_of(sums: np.ndarray, counts: np.ndarray | None = None, *, share: bool = False) -> Figure:
    """The mean over pictures, from each character's sum and number of pictures; both float (characters,).

    share: the values lie within 0 to 1, and so does the interval; where all characters are alike, which has no
    variance to see, it is Wilson's on the characters. Fewer than 5 characters have no interval.
    """
    sums = np.asarray(sums, dtype=np.float64)
    counts = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=np.float64)
    n, total = len(sums), float(counts.sum())
    value = float(sums.sum()) / total
    if n < FEWEST:
        return Figure(value)
    error = math.sqrt(n / (n - 1) * float(((sums - value * counts) ** 2).sum())) / total
    if share and error < 1e-9:
        return Figure(value, wilson(value, n))
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * error
    low, high = value - half, value + half
    return Figure(value, (max(0.0, low), min(1.0, high)) if share else (low, high))


def median_of(groups: Sequence[Sequence[float]]) -> Figure:
    """The median over characters of each one's median time; a group holds a character's times, which go together.

    The bootstrap draws whole characters; the same numbers give the same interval every time.
    """
    medians = np.array([np.median(g) for g in groups if len(g)])
    value = float(np.median(medians))
    if len(medians) < FEWEST:
        return Figure(value)
    rng, drawn = np.random.default_rng(SEED), []
    chunk = max(1, _CHUNK // len(medians))
    for start in range(0, RESAMPLES, chunk):
        rows = rng.integers(0, len(medians), (min(chunk, RESAMPLES - start), len(medians)))
        drawn.append(np.median(medians[rows], axis=1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Figure(value, (float(low), float(high)))
