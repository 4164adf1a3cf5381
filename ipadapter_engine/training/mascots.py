"""The mascot world: what a character can be, what a picture of it can show, and in which style it is drawn.

A picture is an `Identity` (who) in a `Staging` (doing what, where, drawn how). `drawing.render` draws it, so the truth
of every attribute is known. `Staging` is what prompts speak of; `Identity` must come from a reference.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass, fields
from typing import NamedTuple

SHAPES = ("round", "square", "triangle", "tall", "wide", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
EARS = ("round", "pointy", "long", "antenna")
EYES = ("round", "dot", "one", "sleepy")
PATTERNS = ("belly", "spots", "stripes", "dipped")
MARKINGS = ("cream", "charcoal", "mint", "berry")
ACCESSORIES = ("scarf", "hat", "crown", "bowtie", "cape")
ACCESSORY_COLOURS = ("crimson", "navy", "gold", "white")

VIEWS = ("front", "left", "right", "back")
POSES = ("standing", "waving", "jumping", "sitting", "pointing")
EXPRESSIONS = ("happy", "sad", "surprised", "angry", "laughing", "calm")
SCENES = ("studio", "beach", "forest", "night", "city", "snow", "desert", "meadow")
STYLES = ("outlined", "flat", "pastel", "pixel")


@dataclass(frozen=True)
class Identity:
    """Who is drawn: the attributes that make two pictures the same character."""

    shape: str
    colour: str
    ears: str
    eyes: str
    pattern: str
    marking: str
    accessory: str
    accessory_colour: str


@dataclass(frozen=True)
class Staging:
    """What the picture shows the character doing, and the style of the drawing: what a prompt names."""

    view: str = "front"
    pose: str = "standing"
    expression: str = "happy"
    scene: str = "studio"
    style: str = "outlined"


class Attribute(NamedTuple):
    name: str
    values: tuple[str, ...]


IDENTITY_ATTRIBUTES = (
    Attribute("shape", SHAPES),
    Attribute("colour", COLOURS),
    Attribute("ears", EARS),
    Attribute("eyes", EYES),
    Attribute("pattern", PATTERNS),
    Attribute("marking", MARKINGS),
    Attribute("accessory", ACCESSORIES),
    Attribute("accessory_colour", ACCESSORY_COLOURS),
)
STAGING_ATTRIBUTES = (
    Attribute("view", VIEWS),
    Attribute("pose", POSES),
    Attribute("expression", EXPRESSIONS),
    Attribute("scene", SCENES),
    Attribute("style", STYLES),
)
ATTRIBUTES = IDENTITY_ATTRIBUTES + STAGING_ATTRIBUTES


def truth(identity: Identity, staging: Staging) -> tuple[int, ...]:
    """The class index of every attribute, in the order of `ATTRIBUTES`."""
    values = [getattr(identity, f.name) for f in fields(identity)]
    values += [getattr(staging, f.name) for f in fields(staging)]
    return tuple(a.values.index(v) for a, v in zip(ATTRIBUTES, values, strict=True))


def all_identities() -> list[Identity]:
    """Every character the vocabulary allows, in one fixed order that looks random."""
    everyone = [Identity(*values) for values in itertools.product(*(a.values for a in IDENTITY_ATTRIBUTES))]
    return sorted(everyone, key=lambda who: hashlib.sha256(repr(who).encode()).digest())


HELD_OUT = 400


def held_out_identities() -> list[Identity]:
    """The characters no training stage ever sees; the demo's characters are among them."""
    return all_identities()[:HELD_OUT]


def training_identities() -> list[Identity]:
    return all_identities()[HELD_OUT:]


def random_staging(rng: random.Random) -> Staging:
    return Staging(*(rng.choice(a.values) for a in STAGING_ATTRIBUTES))
