"""What the studio model is asked for: characters that no training stage saw, staged at random, and how they are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ipadapter_engine.training.drawing import render
from ipadapter_engine.training.mascots import (
    ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    Identity,
    Staging,
    held_out_identities,
    random_staging,
    truth,
)

Portrait = Callable[[Identity, int], Image.Image]

IDENTITY = tuple(a.name for a in IDENTITY_ATTRIBUTES)
PROMPT = ("view", "pose", "expression", "scene")
NAMES = tuple(a.name for a in ATTRIBUTES)
PORTRAIT_SEED = 5
DRAWN_SEED = 900_001  # the drawings that the judge's ceiling is read from


@dataclass(frozen=True)
class Sample:
    """What is asked for: a character it never saw, doing something somewhere, and the noise's seed."""

    who: Identity
    staging: Staging
    seed: int


def samples(characters: int, pictures: int, seed: int = 11) -> list[Sample]:
    """`pictures` of each of the first `characters` held-out ones, each staged at random; a character's lie together."""
    held_out, rng = held_out_identities(), random.Random(seed)
    if not 1 <= characters <= len(held_out):
        raise ValueError(f"{characters} characters cannot be measured: {len(held_out)} were held out of the training")
    return [
        Sample(who, random_staging(rng), 1000 * i + n)
        for i, who in enumerate(held_out[:characters])
        for n in range(pictures)
    ]


def portrait(who: Identity, size_px: int) -> Image.Image:
    """The reference: the character in the studio, from the front."""
    return render(who, Staging(), size_px=size_px, seed=PORTRAIT_SEED)


def reference_stagings(who: Identity, count: int) -> list[Staging]:
    """What a library of `count` references shows: the portrait's staging, then others drawn by lot."""
    rng = random.Random(repr(who))
    return [Staging(), *(random_staging(rng) for _ in range(count - 1))]


def reference_set(who: Identity, size_px: int, count: int) -> list[Image.Image]:
    """The references of `reference_stagings`, the portrait first, as a brand's library would hold them."""
    return [
        render(who, staging, size_px=size_px, seed=PORTRAIT_SEED + n)
        for n, staging in enumerate(reference_stagings(who, count))
    ]


def drawn(asked: Sequence[Sample], size_px: int) -> np.ndarray:
    """The renderer's own pictures of what is asked for, uint8 (n, size, size, 3): what the ceiling is read from."""
    pictures = [render(s.who, s.staging, size_px=size_px, seed=DRAWN_SEED + s.seed) for s in asked]
    return np.stack([np.asarray(p) for p in pictures])


def truths(asked: Sequence[Sample]) -> np.ndarray:
    """Class indices (n, attributes), in the order of ATTRIBUTES."""
    return np.array([truth(s.who, s.staging) for s in asked])


def columns(names: Sequence[str]) -> list[int]:
    """Where attributes stand in ATTRIBUTES."""
    return [NAMES.index(n) for n in names]
