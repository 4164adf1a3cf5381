"""Which references a character's model is trained on: 3 to 8 that may be used today, the most typical of more."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, RightsRefused
from asset_store.repositories import libraries, models
from asset_store.rights import licences
from asset_store.tables import Character, Encoder, Reference
from ipadapter_engine.training.errors import TrainingRefused

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine


def choose_references(
    session: Session, made: PictureEngine, character: Character, keys: list[str] | None
) -> tuple[list[Reference], list[str]]:
    """3 to 8 references that may be used today, and a line each that says how it was chosen.

    Of more than 8 the most typical: the nearest to the centre of all of them, as the engine's encoder sees them.
    """
    from ipadapter_engine.training.character import FEWEST, MOST

    if keys:
        return _named(session, character, keys)
    usable = libraries.usable_references(session, character.id, today())
    usable = list({r.sha256: r for r in reversed(usable)}.values())[::-1]  # each picture once
    if len(usable) < FEWEST:
        raise TrainingRefused(
            f"{models.name_of(character)} has {len(usable)} usable identity references, and a training needs {FEWEST}",
            f"add identity references to its library.yaml and ingest it, or name others with --references; at most {MOST} are used",
        )
    if len(usable) <= MOST:
        return usable, [f"{r.key} (all {len(usable)})" for r in usable]
    encoder = made.encoder
    vectors = libraries.embeddings_of(session, {r.sha256 for r in usable}, encoder.sha256)
    if len(vectors) < len(usable):
        raise NotFound(
            "embedding of some references of", models.name_of(character),
            "Ingest its library with the encoder of today's settings.",
        )  # fmt: skip
    units = [np.asarray(vectors[r.sha256].pooled, dtype=np.float32) for r in usable]
    centre = np.mean([u / np.linalg.norm(u) for u in units], axis=0)
    row = session.get_one(Encoder, encoder.sha256)
    by_sha = {r.sha256: r for r in usable}
    ranked = libraries.nearest(session, centre, row, by_sha, MOST)
    return (
        [by_sha[sha] for sha, _ in ranked],
        [f"{by_sha[sha].key} ({likeness:.2f} to the centre of {len(usable)})" for sha, likeness in ranked],
    )


def _named(session: Session, character: Character, keys: list[str]) -> tuple[list[Reference], list[str]]:
    from ipadapter_engine.training.character import FEWEST, MOST

    chosen: dict[str, Reference] = {}
    for key in keys:
        row = session.scalars(
            select(Reference)
            .where(Reference.character_id == character.id, Reference.key == key)
            .order_by((Reference.state == "active").desc(), Reference.made_at.desc())
        ).first()
        if row is None:
            raise NotFound(f"reference of {character.name} called", key, "Name a file of its library, or ingest again.")
        chosen.setdefault(row.sha256, row)
    problems = [p for row in chosen.values() if (p := licences.problem_of(row, today())) is not None]
    if problems:
        raise RightsRefused(problems)
    if not FEWEST <= len(chosen) <= MOST:
        raise TrainingRefused(
            f"{len(chosen)} different references are named", f"name {FEWEST} to {MOST} pictures of {character.name}"
        )
    return list(chosen.values()), [f"{r.key} (named)" for r in chosen.values()]


def today() -> date:
    return datetime.now(UTC).date()
