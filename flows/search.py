"""The search for a character's adapter scale: a grid, then golden-section refinement, then windows. Pure: it asks for
settings to be measured and is told the figures, whoever measures them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
REFINEMENTS = 4  # settings measured after the grid
WINDOWS = ((0.0, 0.6), (0.0, 0.8), (0.2, 1.0), (0.4, 1.0))  # shares of the steps, beside the whole
ALL_STEPS = (0.0, 1.0)
STRONGER = 1.25  # a shorter window is tried at a larger scale too, which it may make bearable
INVERSE_PHI = (math.sqrt(5) - 1) / 2
DIGITS = 2  # of a scale: finer steps are not seen in a picture


@dataclass(frozen=True, order=True)
class Setting:
    """An adapter's scale, and the share of the steps in which it speaks; scale 0 is text only."""

    scale: float
    window: tuple[float, float] = ALL_STEPS


TEXT_ONLY = Setting(0.0)


@dataclass(frozen=True)
class Point:
    """What pictures of one setting were: means over the pictures, with 95 % intervals (low, high).

    identity: cosine to the references; prompt: how far the words are followed, by the measure that the search was told.
    """

    setting: Setting
    identity: float
    prompt: float
    pictures: int
    identity_interval: tuple[float, float] = (math.nan, math.nan)
    prompt_interval: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class Outcome:
    """All points in the order they were measured, text only first; `met`: whether `best` follows the prompt enough."""

    best: Point
    text_only: Point
    floor: float
    met: bool
    points: tuple[Point, ...] = field(repr=False)

    def as_curve(self) -> list[dict[str, Any]]:
        return [
            {
                "scale": p.setting.scale,
                "window": list(p.setting.window),
                "identity": p.identity,
                "identity_interval": list(p.identity_interval),
                "prompt": p.prompt,
                "prompt_interval": list(p.prompt_interval),
                "pictures": p.pictures,
                "follows_prompt": p.prompt >= self.floor,
            }
            for p in self.points
        ]


def search(
    share: float, *, grid: Sequence[float] = GRID, refinements: int = REFINEMENTS, windows: bool = False
) -> Generator[list[Setting], list[Point], Outcome]:
    """Ask for settings by yielding them, be sent one point each in their order, return the outcome.

    The best setting has the highest identity among those whose prompt figure is at least `share` of the text-only one,
    or where that is negative lies no more than 1 - share of its size below it; where there is none, the highest prompt
    figure. Seeds are shared between settings by whoever measures, so that differences are of the setting and not of the
    noise (common random numbers).
    Refinement is a golden-section search (Kiefer, 1953) between the grid's neighbours of its best scale, in the order
    just told, which has one peak where identity grows and the prompt figure falls with the scale.
    """
    scales = sorted({round(s, DIGITS) for s in grid})
    points = list((yield [TEXT_ONLY, *map(Setting, scales)]))
    text_only = points[0]
    floor = text_only.prompt - (1 - share) * abs(text_only.prompt)

    def rank(p: Point) -> tuple[bool, float, float]:
        follows = p.prompt >= floor
        return follows, p.identity if follows else p.prompt, -p.setting.scale

    known = {p.setting.scale: p for p in points[1:]}
    place = scales.index(max(known.values(), key=rank).setting.scale)
    low, high = scales[max(place - 1, 0)], scales[min(place + 1, len(scales) - 1)]
    left = refinements
    while left > 0:
        inner = [round(high - INVERSE_PHI * (high - low), DIGITS), round(low + INVERSE_PHI * (high - low), DIGITS)]
        if not low < inner[0] < inner[1] < high:
            break
        fresh = [s for s in inner if s not in known][:left]
        if fresh:
            measured = yield [Setting(s) for s in fresh]
            known |= {p.setting.scale: p for p in measured}
            points += measured
            left -= len(fresh)
        if any(s not in known for s in inner):
            break
        low, high = (low, inner[1]) if rank(known[inner[0]]) >= rank(known[inner[1]]) else (inner[0], high)
    if windows:
        best = max(known.values(), key=rank).setting.scale
        tried = sorted({best, round(best * STRONGER, DIGITS)})
        points += yield [Setting(s, w) for w in WINDOWS for s in tried]
    chosen = max(points[1:], key=rank)
    return Outcome(chosen, text_only, floor, chosen.prompt >= floor, tuple(points))
