"""What an evaluation is asked for. Loads no engine: the command line shows these defaults before it needs one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asset_store.errors import OnmodelError

CHARACTERS, HELD_OUT_SEEDS = 30, 2


class EvaluationRefused(OnmodelError):
    """What is asked for cannot be measured on this checkpoint, or something that it needs is missing."""


@dataclass(frozen=True)
class EvaluationOrder:
    """What to measure. None and empty take the protocol's own, and the family's where that leaves it open.

    images: the protocol's pictures; clip, dino: folders of the measures; plus: a plus adapter beside the identity one.
    subjects: so many of them; prompts: stagings of each held-out character, texts: prompts for a user's pictures.
    references: pictures of a held-out character that a LoRA learns from; heard: how many of them an adapter hears.
    engine: one of ONMODEL_ENGINES by its name, which the method `native` compares; None: the only one there is.
    lora_steps: of each character's training. out: where pictures and trained models are kept between runs.
    """

    protocol: str = "characters"
    images: Path | None = None
    clip: Path | None = None
    dino: Path | None = None
    plus: Path | None = None
    methods: tuple[str, ...] = ()
    subjects: int | None = None
    prompts: int = 2
    texts: tuple[str, ...] = ()
    seeds: int | None = None
    references: int = 4
    heard: int = 1
    engine: str | None = None
    scale: float | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size_px: int | None = None
    lora_steps: int | None = None
    out: Path | None = None
    sheet: Path | None = None
