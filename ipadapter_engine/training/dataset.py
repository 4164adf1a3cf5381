"""Rendered pictures with their truth, drawn once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.training.drawing import render
from ipadapter_engine.training.mascots import Identity, Staging, random_staging, training_identities, truth


@dataclass(frozen=True)
class PictureSet:
    """`pixels` uint8 (n, size, size, 3); `truths` (n, attributes) class indices; who and staging per picture.

    first_seed: that the first picture was drawn with; each one's is one more than that before it.
    """

    pixels: np.ndarray
    truths: np.ndarray
    identities: list[Identity]
    stagings: list[Staging]
    first_seed: int = 0

    def __len__(self) -> int:
        return len(self.identities)

    def batch(self, index: np.ndarray) -> Tensor:
        """Float pictures (len(index), 3, size, size) in -1…1."""
        return torch.from_numpy(self.pixels[index]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)

    def first(self, count: int) -> PictureSet:
        return PictureSet(
            self.pixels[:count], self.truths[:count], self.identities[:count], self.stagings[:count], self.first_seed
        )


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
    size_px: int = 128,
    identities: list[Identity] | None = None,
    cache: Path | None = None,
) -> PictureSet:
    """Draw `count` pictures, on all cores; `cache` names a .npy file that is reused when it fits."""
    who, stagings = plan(count, seed, identities if identities is not None else training_identities())
    truths = np.array([truth(w, s) for w, s in zip(who, stagings, strict=True)], dtype=np.int64)
    first = seed * 1_000_003
    if cache is not None and cache.exists():
        pixels = np.load(cache, mmap_mode="r")  # may be as large as memory
        if pixels.shape == (count, size_px, size_px, 3):
            return PictureSet(pixels, truths, who, stagings, first)
    step = 500
    jobs = [(who[i : i + step], stagings[i : i + step], size_px, first + i) for i in range(0, count, step)]
    with ProcessPoolExecutor() as pool:
        pixels = np.concatenate(list(pool.map(_draw, jobs)))
    if cache is not None:
        np.save(cache, pixels)
    return PictureSet(pixels, truths, who, stagings, first)


def batches(count: int, size: int, seed: int, *, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (step, indices) pairs; step k draws the same indices whether or not the run was resumed."""
    step = start
    while True:
        yield step, np.random.default_rng((seed, step)).integers(0, count, size)
        step += 1
