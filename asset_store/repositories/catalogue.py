"""The references of all libraries as people look through them, with what may be done with each today."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from pgvector.sqlalchemy import Vector
from sqlalchemy import ColumnElement, and_, cast, exists, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.rights.licences import problem_of
from asset_store.tables import (
    AssetVersion,
    Brand,
    Character,
    Descent,
    Embedding,
    Encoder,
    Library,
    Reference,
    ReferenceState,
)

SOON = timedelta(days=14)  # before its end a licence is warned of


@dataclass(frozen=True, slots=True)
class Entry:
    """A reference. problem: why it may not be used today; ends_soon: its licence is over within 14 days; pictures: how many
    assets came of it."""

    reference: Reference
    brand: str
    problem: str | None
    ends_soon: bool
    pictures: int


@dataclass(frozen=True, slots=True)
class CataloguePage:
    entries: tuple[Entry, ...]
    next_after: str | None


def look_through(
    session: Session, within: Collection[uuid.UUID] | None, on: date, *, brand: str | None = None, character: str | None = None,
    state: ReferenceState | None = None, ending: bool = False, after: str | None = None, limit: int = 60,
) -> CataloguePage:  # fmt: skip
    """References of these brands (None: of all) by key. ending: only those that are warned of. NotFound for an `after` that was
    never given."""
    question = (
        select(Reference, Brand.name)
        .join(Library, Library.id == Reference.library_id)
        .join(Brand, Brand.id == Library.brand_id)
        .outerjoin(Character, Character.id == Reference.character_id)
        .order_by(Reference.key, Reference.id)
        .limit(limit + 1)
    )
    if within is not None:
        question = question.where(Library.brand_id.in_(within))
    if brand is not None:
        question = question.where(Brand.name == brand)
    if character is not None:
        question = question.where(Character.name == character)
    if state is not None:
        question = question.where(Reference.state == state)
    if ending:
        question = question.where(Reference.state == ReferenceState.ACTIVE, Reference.licence_until <= on + SOON)
    if after is not None:
        question = question.where(tuple_(Reference.key, Reference.id) > tuple_(*map(literal, _read(after))))
    found = session.execute(question).all()
    shown = found[:limit]
    counted = _pictures(session, [row[0].id for row in shown])
    entries = tuple(
        Entry(r, name, problem_of(r, on), _ends_soon(r, on), counted.get(r.id, 0)) for r, name in shown
    )  # fmt: skip
    return CataloguePage(entries, f"{shown[-1][0].id}|{shown[-1][0].key}" if len(found) > limit else None)


def nearest(
    session: Session, within: Collection[uuid.UUID] | None, on: date, encoder: str, vector: np.ndarray, *, brand: str | None = None,
    character: str | None = None, usable: bool = True, limit: int = 20,
) -> list[tuple[Entry, float]]:  # fmt: skip
    """References of these brands with the cosine similarity of what `encoder` said of them to a vector float32 (dim,), the nearest
    first. usable: only those that may be used on that day. Compared with all that pass, without an index."""
    dim = session.scalar(select(Encoder.dim).where(Encoder.sha256 == encoder))
    if dim is None:
        return []
    distance = cast(Embedding.pooled, Vector(dim)).cosine_distance(vector.tolist())
    question = (
        select(Reference, Brand.name, (1 - distance).label("likeness"))
        .join(Library, Library.id == Reference.library_id)
        .join(Brand, Brand.id == Library.brand_id)
        .join(Embedding, and_(Embedding.reference_sha256 == Reference.sha256, Embedding.encoder_sha256 == encoder))
        .outerjoin(Character, Character.id == Reference.character_id)
        .order_by(distance + 0, Reference.key, Reference.id)  # a sum is none that an index knows
        .limit(limit)
    )
    if within is not None:
        question = question.where(Library.brand_id.in_(within))
    if brand is not None:
        question = question.where(Brand.name == brand)
    if character is not None:
        question = question.where(Character.name == character)
    if usable:
        question = question.where(is_usable(on))
    found = session.execute(question).all()
    counted = _pictures(session, [row[0].id for row in found])
    return [
        (Entry(r, name, problem_of(r, on), _ends_soon(r, on), counted.get(r.id, 0)), float(likeness))
        for r, name, likeness in found
    ]


def characters(session: Session, within: Collection[uuid.UUID] | None) -> Sequence[str]:
    """The names of characters of these brands that have references."""
    question = select(Character.name).distinct().order_by(Character.name)
    question = question.where(exists().where(Reference.character_id == Character.id))
    return session.scalars(question if within is None else question.where(Character.brand_id.in_(within))).all()


def is_usable(on: date) -> ColumnElement[bool]:
    """As `problem_of` a reference is None on that day."""
    return and_(
        Reference.state == ReferenceState.ACTIVE, or_(Reference.licence_until.is_(None), Reference.licence_until >= on)
    )


def _ends_soon(reference: Reference, on: date) -> bool:
    until = reference.licence_until
    return reference.state is ReferenceState.ACTIVE and until is not None and on <= until <= on + SOON


def _pictures(session: Session, ids: Collection[uuid.UUID]) -> dict[uuid.UUID, int]:
    rows = session.execute(
        select(Descent.reference_id, func.count(AssetVersion.asset_id.distinct()))
        .join(AssetVersion, AssetVersion.id == Descent.version_id)
        .where(Descent.reference_id.in_(ids))
        .group_by(Descent.reference_id)
    )
    return {row[0]: row[1] for row in rows}


def _read(mark: str) -> tuple[str, uuid.UUID]:
    id_, _, key = mark.partition("|")
    try:
        return key, uuid.UUID(id_)
    except ValueError:
        raise NotFound("page of references at", mark, "Begin at the first page.") from None
