"""What is said of a mascot picture, and the tokenizer that is trained on it."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import CLIPTokenizer

from ipadapter_engine.training.mascots import ATTRIBUTES, Identity, Staging
from ipadapter_engine.training.tokenizer import fitted_tokenizer

EAR_WORDS = {"round": "bear ears", "pointy": "cat ears", "long": "bunny ears", "antenna": "antennas"}
EYE_WORDS = {"round": "big eyes", "dot": "dot eyes", "one": "one eye", "sleepy": "sleepy eyes"}
PATTERN_WORDS = {"belly": "belly", "spots": "spots", "stripes": "stripes", "dipped": "dip"}
SCENE_WORDS = {
    "studio": "in a studio",
    "beach": "on the beach",
    "forest": "in the forest",
    "night": "at night",
    "city": "in the city",
    "snow": "in the snow",
    "desert": "in the desert",
    "meadow": "in a meadow",
}
DEFAULT_STYLE = Staging().style
_SAID = {"ears": EAR_WORDS, "eyes": EYE_WORDS, "pattern": PATTERN_WORDS, "scene": SCENE_WORDS}
_EVERYWHERE = {"in", "on", "the", "a", "at", "ears", "eyes"}
# The words by which a caption names each value of each attribute, in the order of ATTRIBUTES.
NAMING = [[set(_SAID.get(a.name, {}).get(v, v).split()) - _EVERYWHERE for v in a.values] for a in ATTRIBUTES]
MAX_TOKENS = 40


def describe_identity(who: Identity, rng: random.Random | None = None, drop: float = 0.0) -> str:
    """`a red star mascot, cat ears, big eyes, mint spots, gold scarf`; each part dropped with probability `drop`."""
    words = ["a", *_kept([who.colour, who.shape], rng, drop), "mascot"]
    details = [
        EAR_WORDS[who.ears],
        EYE_WORDS[who.eyes],
        f"{who.marking} {PATTERN_WORDS[who.pattern]}",
        f"{who.accessory_colour} {who.accessory}",
    ]
    return ", ".join([" ".join(words), *_kept(details, rng, drop)])


def describe_staging(
    staging: Staging, *, pose: bool = True, style: bool = True, rng: random.Random | None = None, drop: float = 0.0
) -> str:
    """`waving, happy, front view, on the beach, pixel style`: what a prompt asks for; each part but the style dropped
    with probability `drop`."""
    told = [staging.expression, f"{staging.view} view", SCENE_WORDS[staging.scene]]
    told = [staging.pose, *told] if pose else told
    return ", ".join([*_kept(told, rng, drop), *([f"{staging.style} style"] if style else [])])


def _kept(parts: list[str], rng: random.Random | None, drop: float) -> list[str]:
    return [p for p in parts if rng is None or drop <= 0 or rng.random() >= drop]


def prompt_for(staging: Staging, *, pose: bool = True, style: bool = True) -> str:
    """A prompt that names everything but who: identity must come from the reference, and the pose from a control
    picture where it is not named either."""
    return f"a mascot, {describe_staging(staging, pose=pose, style=style)}"


def full_caption(who: Identity, staging: Staging, *, style: bool = True) -> str:
    """Everything: who, doing what, where, and unless it is left out drawn how."""
    return f"{describe_identity(who)}, {describe_staging(staging, style=style)}"


def names_style(staging: Staging, rng: random.Random) -> bool:
    """Whether a training caption names the style: always but for the usual one, so that silence means the usual."""
    return staging.style != DEFAULT_STYLE or rng.random() < 0.5


def caption(who: Identity, staging: Staging, rng: random.Random) -> str:
    """A training caption: full, identity only, or staging only, with words left out at random."""
    kind = rng.random()
    if kind < 0.5:
        return f"{describe_identity(who, rng, 0.1)}, {describe_staging(staging, style=names_style(staging, rng))}"
    if kind < 0.75:
        return describe_identity(who, rng, 0.05)
    return prompt_for(staging, style=names_style(staging, rng))


def train_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of the words that captions use."""
    words = sorted({w for a in ATTRIBUTES for v in a.values for w in v.split()})
    phrases = [*EAR_WORDS.values(), *EYE_WORDS.values(), *PATTERN_WORDS.values(), *SCENE_WORDS.values()]
    spoken = [w for phrase in phrases for w in phrase.split()]
    return fitted_tokenizer(folder, [*words, *spoken, "a", "mascot", "view", "style", ","], MAX_TOKENS)
