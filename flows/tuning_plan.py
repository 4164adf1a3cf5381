"""What is fixed before a search begins: whom it is of, the prompts and seeds it tries, and the references it rests on."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, StoreError
from asset_store.repositories import libraries
from asset_store.tables import Campaign, Character
from flows import recipes
from flows.choosing import Choice, find_references
from flows.search import Outcome
from flows.text_tower import text_tower
from flows.wiring import Store, engine
from ipadapter_engine.families.studio import STUDIO

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

MOST_PROMPTS = 4
SEEDS, MOST_SEEDS = 2, 32
SHARES = {"CLIP-T": 0.9, "drift": 0.8}  # of the text-only figure
USED = 1  # references in a picture; the others are left out, to measure against
DIGITS = 4


@dataclass(frozen=True)
class Plan:
    """What is fixed for all settings of a search. `used` make the pictures, `measured` say who is on them."""

    character: str
    brand: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    share: float
    measure: str  # CLIP-T or drift
    told: str
    used: tuple[dict[str, Any], ...]  # entries of a recipe
    measured: tuple[dict[str, str], ...]  # key, id and sha256 of each

    def target(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "maximise": "identity, CLIP-I to references that were left out"
            if {r["sha256"] for r in self.measured}.isdisjoint(r["sha256"] for r in self.used)
            else "identity, CLIP-I to the reference that was used, as there is no other",
            "prompt_measure": self.told,
            "prompt_share": self.share,
            "prompt_floor": round(outcome.floor, DIGITS),
            "prompt_text_only": outcome.text_only.prompt,
            "met": outcome.met,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "references_used": [{name: r[name] for name in ("key", "id", "sha256")} for r in self.used],
            "references_measured": list(self.measured),
        }

    @property
    def reference_ids(self) -> list[uuid.UUID]:
        """All references that the search rests on."""
        return [uuid.UUID(r["id"]) for r in (*self.used, *self.measured)]


def plan_tuning(
    store: Store, name: str, brand: str | None, prompts: Sequence[str] | None, seeds: int, share: float | None
) -> Plan:
    """Fix prompts, seeds and references. Raises NotFound, Ambiguous, or StoreError for numbers out of their range."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise StoreError(f"{seeds} seeds cannot be tried", f"Give a number of seeds from 1 to {MOST_SEEDS}.")
    if share is not None and not 0 <= share <= 1:
        raise StoreError(f"{share:g} is no share of the text-only figure", "Give a share from 0 to 1.")
    with store.database.transaction() as session:  # nobody waits for the engine to hear of a name that there is not
        libraries.find_character(session, name, brand)
    made, tower = engine(store.settings), text_tower(store.settings)
    with store.database.transaction() as session:
        character = libraries.find_character(session, name, brand)
        found = find_references(session, store, character, made.encoder.sha256, datetime.now(UTC).date())
        said = tuple(dict.fromkeys(prompts)) if prompts else _prompts_of(session, character, made)
    rows = found.rows
    used, measured = _split(found.rank("", None).kept)
    entries = tuple(
        recipes.reference_entry(rows[c.sha256], rows[c.sha256].weight, chosen=f"tuning, {c.reason}") for c in used
    )
    measure = "drift" if tower is None else "CLIP-T"
    told = "CLIP-T, cosine to the prompt" if tower is not None else (
        "likeness to the text-only picture of the same prompt and seed, less the mean to those of the other prompts"
        if len(said) > 1 else "likeness to the text-only picture of the same prompt and seed"
    )  # fmt: skip
    return Plan(
        character.name, character.brand.name, said, tuple(_seed(character, i) for i in range(seeds)),
        SHARES[measure] if share is None else share, measure, told, entries,
        tuple({"key": c.key, "id": str(rows[c.sha256].id), "sha256": c.sha256} for c in measured),
    )  # fmt: skip


def _split(kept: Sequence[Choice]) -> tuple[Sequence[Choice], Sequence[Choice]]:
    """The references to make pictures with, and those to measure them against: others, where there are any."""
    return kept[:USED], kept[USED:] or kept


def _seed(character: Character, place: int) -> int:
    named = f"tuning of {character.brand.name}/{character.name}, seed {place}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big")


def _prompts_of(session: Session, character: Character, made: PictureEngine) -> tuple[str, ...]:
    """The newest prompts that campaigns had for the character, else some of those that the studio model was trained on.
    NotFound where another base is loaded, of whose subjects nothing is known."""
    briefs = select(Campaign.brief).where(Campaign.brand_id == character.brand_id).order_by(Campaign.made_at.desc())
    found = dict.fromkeys(
        shot["prompt"]
        for brief in session.scalars(briefs.limit(50))
        for shot in brief.get("shots", ())
        if shot.get("character") == character.name
    )
    if found:
        return tuple(found)[:MOST_PROMPTS]
    if made.family.name != STUDIO.name:
        raise NotFound("campaign with a prompt for", character.name, "Say what to try: give --prompt, several times.")
    from ipadapter_engine.training.captions import prompt_for
    from ipadapter_engine.training.mascots import random_staging

    random_of_character = random.Random(_seed(character, 0))
    drawn: dict[str, None] = {}
    while len(drawn) < MOST_PROMPTS:
        drawn[prompt_for(random_staging(random_of_character))] = None
    return tuple(drawn)
