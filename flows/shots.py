"""One shot of a brief: how it is made, with which seeds, and which references say who is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.tables import Character, Reference
from flows import recipes
from flows.brief import DEFAULT_VARIANTS, Brief, Making, Shot
from flows.brief_parts import References
from flows.choosing import CharacterReferences
from flows.conditions import find_all_named

DEFAULT_CHOICE = 1


@dataclass(frozen=True)
class Picked:
    """References as a recipe's entries, a line each that says how it was chosen, and a line for each left out."""

    entries: list[dict[str, Any]]
    told: list[str]
    left_out: list[str] = field(default_factory=list)


def merged(defaults: Making, shot: Shot) -> Making:
    """How a shot is made: what it says itself, else what the defaults say."""
    given = {k: v for k, v in shot.model_dump().items() if k in Making.model_fields and v is not None}
    return Making.model_validate({**defaults.model_dump(exclude_none=True), **given})


def seeds_of(brief: Brief, shot: Shot, making: Making) -> list[int]:
    """One seed a variant."""
    if shot.seeds is not None:
        return list(shot.seeds)
    count = making.variants or DEFAULT_VARIANTS
    base = brief.seed if shot.seed is None else shot.seed
    names = [f"{brief.brand}/{brief.campaign}/{shot.name}/{base}/{variant}" for variant in range(count)]
    return [int.from_bytes(hashlib.sha256(n.encode()).digest()[:4], "big") for n in names]


@dataclass(frozen=True)
class Voice:
    """The references of one character in one place. region: where they speak, "" for everywhere."""

    character: str
    references: References
    region: str = ""

    @property
    def chooses(self) -> bool:
        """Whether references are chosen from the ranked library for it."""
        return self.references == "choose"


def voices(shot: Shot, making: Making) -> list[Voice]:
    """The shot's own references, everywhere or in the region that it names for them, then those of every other region;
    none for text only."""
    if making.scale == 0:
        return []
    regions = making.regions or ()
    own = Voice(shot.character, shot.references, (making.region or "") if regions else "")
    further = (Voice(r.character or shot.character, r.references or "choose", r.name) for r in regions)
    return [own, *(voice for voice in further if voice.region != own.region)]


def together(picked: Iterable[tuple[Voice, Picked]]) -> Picked:
    """What all voices of a shot picked, each reference with the region that it speaks in."""
    out = Picked([], [], [])
    for voice, mine in picked:
        place, where = ({"region": voice.region}, f", in region {voice.region}") if voice.region else ({}, "")
        out.entries.extend({**entry, **place} for entry in mine.entries)
        out.told.extend(f"{line}{where}" for line in mine.told)
        out.left_out.extend(f"{line}{where}" for line in mine.left_out)
    return out


def chosen(library: CharacterReferences, prompt: str, text: np.ndarray | None, making: Making) -> Picked:
    """The first ones of the ranking for a prompt; text (d,): the prompt in the encoder's space, or None."""
    ranking = library.rank(prompt, text)
    used = ranking.kept[: making.choose or DEFAULT_CHOICE]
    rows = library.rows
    entries = [
        recipes.reference_entry(rows[c.sha256], rows[c.sha256].weight, chosen=f"chosen, {c.reason}") for c in used
    ]
    left = [f"{c.key} ({c.reason})" for c in ranking.choices if c not in used]
    return Picked(entries, [f"{c.key} (chosen, {c.reason})" for c in used], left)


def named(session: Session, voice: Voice, character: Character, today: date) -> Picked:
    """Those that the brief names for one voice. Raises NotFound, Ambiguous, RightsRefused."""
    if voice.references == "choose":
        return Picked([], [])
    pairs = find_all_named(
        session, select(Reference).where(Reference.character_id == character.id), voice.references, today,
        called=f"reference of {character.name}", next_step="Name a file of its library, or ingest again.",
    )  # fmt: skip
    return Picked(
        [recipes.reference_entry(row, entry.weight, tiled=entry.tiled) for row, entry in pairs],
        [f"{row.key}{' (in tiles)' if entry.tiled else ''}" for row, entry in pairs],
    )
