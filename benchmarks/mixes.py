"""Requests as a campaign mixes them: no two alike in prompt and seed; references, scales and windows drawn by lot.

A fifth has no reference, and some share references and scale, as shots of one character do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest

SCALES = (0.5, 0.7, 1.0)
WINDOWS = ((0.0, 1.0), (0.0, 1.0), (0.0, 0.75), (0.25, 1.0))
_POSES = ("standing", "waving", "running", "jumping", "sitting")
_VIEWS = ("from the front", "from the side", "from behind", "in a three quarter view")
_SCENES = ("in the snow", "in a forest", "in the studio", "on a beach", "at night", "in a city")


def mixed(count: int, embeddings: Sequence[np.ndarray], **numbers: Any) -> list[GenerationRequest]:
    """`count` requests whose references are of `embeddings`; `numbers` are what all share, such as steps and size."""
    rng = random.Random(7)
    characters = [(e,) for e in embeddings] + list(zip(embeddings[::2], embeddings[1::2], strict=False))
    out = []
    for seed in range(count):
        shown = () if seed % 5 == 4 else rng.choice(characters)
        out.append(
            GenerationRequest(
                prompt=f"a mascot {rng.choice(_POSES)} {rng.choice(_VIEWS)} {rng.choice(_SCENES)}, shot {seed}",
                seed=seed,
                references=tuple(ReferencePrompt(e) for e in shown),
                scale=rng.choice(SCALES) if shown else 1.0,
                window=rng.choice(WINDOWS) if shown else (0.0, 1.0),
                **numbers,
            )
        )
    return out


def drawn_embeddings(count: int, dim: int) -> list[np.ndarray]:
    """Vectors as an encoder gives them, of no pictures: what a speed needs."""
    draw = np.random.default_rng(11).standard_normal((count, dim), dtype=np.float32)
    return list(draw)
