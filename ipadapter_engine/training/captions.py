"""What is said of a mascot picture, and the tokenizer that is trained on it."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import CLIPTokenizer

from ipadapter_engine.training.mascots import ATTRIBUTES, Identity, Staging
from ipadapter_engine.training.tokenizer import fitted_tokenizer

EAR_WORDS = {"no": "without ears", "round": "with bear ears", "pointy": "with cat ears", "long": "with bunny ears"}
PATTERN_WORDS = {"plain": "plain body", "belly": "cream belly", "spots": "spots", "stripes": "stripes"}
ACCESSORY_WORDS = {"nothing": "", "scarf": "wearing a scarf", "hat": "wearing a hat", "bowtie": "wearing a bow tie"}
SCENE_WORDS = {
    "studio": "in a studio",
    "beach": "on the beach",
    "forest": "in the forest",
    "night": "at night",
    "city": "in the city",
    "snow": "in the snow",
}
MAX_TOKENS = 32


def describe_identity(who: Identity, rng: random.Random | None = None, drop: float = 0.0) -> str:
    """`a red star mascot with cat ears, spots, wearing a hat`; each attribute dropped with probability `drop`."""

    def keep() -> bool:
        return rng is None or drop <= 0 or rng.random() >= drop

    words = ["a"]
    words += [who.colour] if keep() else []
    words += [who.shape] if keep() else []
    words += ["mascot"]
    words += [EAR_WORDS[who.ears]] if keep() else []
    details = [d for d in (PATTERN_WORDS[who.pattern], ACCESSORY_WORDS[who.accessory]) if d and keep()]
    return ", ".join([" ".join(words), *details])


def describe_staging(staging: Staging) -> str:
    """`waving, happy, front view, on the beach`: what a prompt asks for."""
    return f"{staging.pose}, {staging.expression}, {staging.view} view, {SCENE_WORDS[staging.scene]}"


def prompt_for(staging: Staging) -> str:
    """A prompt that names everything but who: identity must come from the reference."""
    return f"a mascot, {describe_staging(staging)}"


def caption(who: Identity, staging: Staging, rng: random.Random) -> str:
    """A training caption: full, identity only, or staging only, with words left out at random."""
    kind = rng.random()
    if kind < 0.5:
        return f"{describe_identity(who, rng, 0.1)}, {describe_staging(staging)}"
    if kind < 0.75:
        return describe_identity(who, rng, 0.05)
    return prompt_for(staging)


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of the words that captions use."""
    words = sorted({w for a in ATTRIBUTES for v in a.values for w in v.split()})
    phrases = [*EAR_WORDS.values(), *PATTERN_WORDS.values(), *ACCESSORY_WORDS.values(), *SCENE_WORDS.values()]
    spoken = [w for phrase in phrases for w in phrase.split()]
    return fitted_tokenizer(folder, [*words, *spoken, "a", "mascot", "view", ","], MAX_TOKENS)
