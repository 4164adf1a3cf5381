"""`/v1`: pictures like one that is there, and filters that a person keeps."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store.people import saved
from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import similar
from asset_store.reviewing.grid import Filters
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import SavedFilter
from studio.api.answers import Answer
from studio.api.assets import Asked, Line
from studio.api.callers import OnlyPeople, StoreDep, Who
from studio.api.changing import seen_asset, seen_reference

router = APIRouter(tags=["finding"])
Limit = Annotated[int, Query(ge=1, le=200)]
Name = Annotated[str, Path(min_length=1, max_length=saved.LONGEST_NAME)]


class LikeOut(Answer):
    """`likeness`: cosine similarity of the two pictures' CLIP embeddings, 1 for the same; `removed_at`: when its bytes were removed."""

    asset_id: uuid.UUID
    brand: str
    campaign: str
    shot: str
    variant: int
    review: str
    availability: str
    sha256: str | None
    removed_at: datetime | None
    likeness: float

    @classmethod
    def of(cls, near: similar.Likeness) -> LikeOut:
        t = near.tile
        return cls(
            asset_id=t.id, brand=t.brand, campaign=t.campaign, shot=t.shot, variant=t.variant, review=t.review.value,
            availability=t.availability.value, sha256=t.sha256, removed_at=t.removed_at,
            likeness=round(near.likeness, 4),
        )  # fmt: skip


class LikenessOut(Answer):
    similar: list[LikeOut]


class FilterIn(Asked):
    filters: Annotated[
        dict[str, Annotated[str, Field(max_length=saved.LONGEST_VALUE)]],
        Field(min_length=1, max_length=len(saved.KNOWN), examples=[{"brand": "lumen", "review": "in review"}]),
    ]


class FilterOut(Answer):
    name: str
    filters: dict[str, str]

    @classmethod
    def of(cls, row: SavedFilter) -> FilterOut:
        return cls(name=row.name, filters=row.filters)


class FiltersOut(Answer):
    filters: list[FilterOut]


async def narrowed(
    who: Who, brand: Line = None, review: ReviewState | None = None, availability: Availability | None = None
) -> Filters:
    """Of what the caller may see, what they want to find."""
    return Filters(who.brands(Action.VIEW), brand=brand, review=review, availability=availability)


Narrowed = Annotated[Filters, Depends(narrowed)]


@router.get("/assets/{asset_id}/similar")
def like_asset(asset_id: uuid.UUID, who: Who, store: StoreDep, filters: Narrowed, limit: Limit = 20) -> LikenessOut:
    """Assets whose newest picture is like this one's, the nearest first; empty while no encoder has seen it."""
    with store.database.reading() as session:
        return _told(similar.like_asset(session, seen_asset(session, asset_id, who), filters, limit))


@router.get("/references/{reference_id}/similar")
def like_reference(
    reference_id: uuid.UUID, who: Who, store: StoreDep, filters: Narrowed, limit: Limit = 20
) -> LikenessOut:
    """Assets whose newest picture is like a reference, the nearest first."""
    with store.database.reading() as session:
        sha256 = seen_reference(session, reference_id, who).sha256
        return _told(similar.like_reference(session, sha256, filters, limit))


@router.get("/filters")
def get_filters(who: Who, store: StoreDep) -> FiltersOut:
    """The caller's own saved filters, by name."""
    with store.database.reading() as session:
        return _kept(session, who)


@router.put("/filters/{name:path}")
def keep_filter(name: Name, body: FilterIn, who: OnlyPeople, store: StoreDep) -> FilterOut:
    """Keep filters of the grid under a name, in the place of those that had it."""
    with store.database.transaction() as session:
        return FilterOut.of(saved.keep(session, who.person_id, name, body.filters))


@router.delete("/filters/{name:path}")
def forget_filter(name: Name, who: OnlyPeople, store: StoreDep) -> FiltersOut:
    """Keep them no more. Answers those that are left."""
    with store.database.transaction() as session:
        saved.forget(session, who.person_id, name)
        return _kept(session, who)


def _told(found: Sequence[similar.Likeness]) -> LikenessOut:
    return LikenessOut(similar=[LikeOut.of(near) for near in found])


def _kept(session: Session, who: Principal) -> FiltersOut:
    return FiltersOut(filters=[FilterOut.of(row) for row in saved.kept(session, who.person_id)])
