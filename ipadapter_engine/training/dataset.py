"""Rendered pictures with their truth, drawn once and kept in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.training.mascots import (
    Identity,
    Staging,
    random_staging,
    render,
    training_identities,
    truth,
)


@dataclass(frozen=True)
class PictureSet:
    """`pixels` uint8 (n, size, size, 3); `truths` (n, attributes) class indices; who and staging per picture."""

    pixels: np.ndarray
    truths: np.ndarray
    identities: list[Identity]
    stagings: list[Staging]

    def __len__(self) -> int:
        return len(self.identities)

    def batch(self, index: np.ndarray) -> Tensor:
        """Float pictures (len(index), 3, size, size) in -1…1."""
        return torch.from_numpy(self.pixels[index]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

    def by_identity(self) -> dict[Identity, np.ndarray]:
        groups: dict[Identity, list[int]] = {}
        for i, who in enumerate(self.identities):
            groups.setdefault(who, []).append(i)
        return {who: np.array(rows) for who, rows in groups.items()}


def plan(count: int, seed: int, identities: list[Identity]) -> tuple[list[Identity], list[Staging]]:
    """Who is drawn how: every identity equally often, stagings at random."""
    rng = random.Random(seed)
    who = [identities[i % len(identities)] for i in range(count)]
    return who, [random_staging(rng) for _ in range(count)]


def _draw(job: tuple[list[Identity], list[Staging], int, int]) -> np.ndarray:
    identities, stagings, size_px, first = job
    return np.stack(
        [
            np.asarray(render(w, s, size_px=size_px, seed=first + i))
            for i, (w, s) in enumerate(zip(identities, stagings, strict=True))
        ]
    )


def rendered(
    count: int,
    *,
    seed: int,
    size_px: int = 64,
    identities: list[Identity] | None = None,
    cache: Path | None = None,
) -> PictureSet:
    """Draw `count` pictures, on all cores; `cache` names a .npy file that is reused when it fits."""
    who, stagings = plan(count, seed, identities if identities is not None else training_identities())
    truths = np.array([truth(w, s) for w, s in zip(who, stagings, strict=True)], dtype=np.int64)
    if cache is not None and cache.exists():
        pixels = np.load(cache)
        if pixels.shape == (count, size_px, size_px, 3):
            return PictureSet(pixels, truths, who, stagings)
    step = 500
    jobs = [(who[i : i + step], stagings[i : i + step], size_px, seed * 1_000_003 + i) for i in range(0, count, step)]
    with ProcessPoolExecutor() as pool:
        pixels = np.concatenate(list(pool.map(_draw, jobs)))
    if cache is not None:
        np.save(cache, pixels)
    return PictureSet(pixels, truths, who, stagings)


def batches(count: int, size: int, seed: int, *, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (step, indices) pairs; step k draws the same indices whether or not the run was resumed."""
    step = start
    while True:
        yield step, np.random.default_rng((seed, step)).integers(0, count, size)
        step += 1
