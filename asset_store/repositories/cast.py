"""The characters of all brands, with what there is to make pictures of them."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from sqlalchemy import case, func, select, tuple_
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.repositories.catalogue import is_usable
from asset_store.tables import Asset, Brand, Campaign, Character, Reference


@dataclass(frozen=True, slots=True)
class Member:
    """A character. references: how many of each role may be used; unusable: how many may not; pictures: assets by review state."""

    character: Character
    references: dict[str, int]
    unusable: int
    pictures: dict[str, int]


@dataclass(frozen=True, slots=True)
class CastPage:
    members: tuple[Member, ...]
    next_after: uuid.UUID | None


def look_at(
    session: Session, within: Collection[uuid.UUID] | None, on: date, *, brand: str | None = None, after: uuid.UUID | None = None,
    limit: int = 50,
) -> CastPage:  # fmt: skip
    """Characters of these brands (None: of all) by brand and name. NotFound for an `after` that was never given."""
    question = select(Character).join(Brand, Brand.id == Character.brand_id).order_by(Brand.name, Character.name)
    if within is not None:
        question = question.where(Character.brand_id.in_(within))
    if brand is not None:
        question = question.where(Brand.name == brand)
    if after is not None:
        last = session.get(Character, after)
        if last is None or (within is not None and last.brand_id not in within):
            raise NotFound("page of characters at", str(after), "Begin at the first page.")
        question = question.where(tuple_(Brand.name, Character.name) > (last.brand.name, last.name))
    found = session.scalars(question.limit(limit + 1)).all()
    shown = found[:limit]
    references, unusable = _references(session, [c.id for c in shown], on)
    pictures = _pictures(session, shown)
    members = tuple(
        Member(c, references.get(c.id, {}), unusable.get(c.id, 0), pictures.get((c.brand_id, c.name), {}))
        for c in shown
    )
    return CastPage(members, shown[-1].id if len(found) > limit else None)


def _references(
    session: Session, ids: Collection[uuid.UUID], on: date
) -> tuple[dict[uuid.UUID, dict[str, int]], dict[uuid.UUID, int]]:
    usable = func.count(case((is_usable(on), 1)))
    rows = session.execute(
        select(Reference.character_id, Reference.role, usable, func.count() - usable)
        .where(Reference.character_id.in_(ids))
        .group_by(Reference.character_id, Reference.role)
    )
    may: dict[uuid.UUID, dict[str, int]] = {}
    may_not: dict[uuid.UUID, int] = {}
    for id_, role, good, bad in rows:
        assert id_ is not None
        if good:
            may.setdefault(id_, {})[role] = good
        may_not[id_] = may_not.get(id_, 0) + bad
    return may, may_not


def _pictures(session: Session, shown: Collection[Character]) -> dict[tuple[uuid.UUID, str], dict[str, int]]:
    rows = session.execute(
        select(Campaign.brand_id, Asset.character, Asset.review, func.count())
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .where(Campaign.brand_id.in_({c.brand_id for c in shown}), Asset.character.in_({c.name for c in shown}))
        .group_by(Campaign.brand_id, Asset.character, Asset.review)
    )
    counted: dict[tuple[uuid.UUID, str], dict[str, int]] = {}
    for brand_id, name, review, count in rows:
        counted.setdefault((brand_id, name), {})[review.value] = count
    return counted
