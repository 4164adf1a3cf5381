"""One shot of a brief: how it is made, with which seeds, and which references say who is shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.tables import Character, Reference
from flows import recipes
from flows.brief import DEFAULT_VARIANTS, Brief, Making, NamedReference, Shot
from flows.choosing import CharacterReferences
from flows.conditions import check_rights, find_named

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


def chooses(shot: Shot, making: Making) -> bool:
    """Whether references are chosen from the ranked library for it."""
    return shot.references == "choose" and making.scale != 0


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


def named(session: Session, shot: Shot, making: Making, character: Character, today: date) -> Picked:
    """Those that the shot names; none for text only. Raises NotFound, Ambiguous, RightsRefused."""
    if making.scale == 0 or shot.references == "choose":
        return Picked([], [])
    pairs: list[tuple[Reference, float]] = []
    for item in shot.references:
        entry = item if isinstance(item, NamedReference) else NamedReference(file=item)
        row = find_named(session, select(Reference).where(Reference.character_id == character.id), entry.file)
        if row is None:
            raise NotFound(
                f"reference of {character.name} called", entry.file, "Name a file of its library, or ingest again."
            )
        pairs.append((row, entry.weight))
    check_rights((row for row, _ in pairs), today)
    return Picked([recipes.reference_entry(row, weight) for row, weight in pairs], [row.key for row, _ in pairs])
