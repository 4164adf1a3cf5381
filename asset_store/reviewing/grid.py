"""Finding assets among many: filters that stand in an address, a page at a time, newest first.

All is asked of the assets' own rows and their indexes, so that a page costs the same among a thousand and a hundred thousand.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, literal, select, tuple_
from sqlalchemy.orm import Session, joinedload, selectinload

from asset_store.keyset import mark_of, read_mark
from asset_store.reviewing.questions import is_asked
from asset_store.reviewing.queue import Page
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, CheckOutcome

LONGEST_TEXT = 200
COUNTED = 1000  # the newest so many are counted: what that costs does not grow with the rest
PLACES: Any = select(Asset.id, Asset.made_at)  # of any row
BETWEEN_WORDS = (
    r"""[\s\-_/\\.,;:!?'"()\[\]{}<>|&#*~^+=$%@`\0\u00a0-\u00bf\u2010-\u206f\u3000-\u303f]+"""  # as words_of has it
)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a grid shows. within: ids of the brands that may be seen, None for all; text: beginnings of words in shot, character,
    campaign or prompt; check: the name of a check of the newest version, that ended as `outcome` if that is given; person: who is
    asked to decide."""

    within: Collection[uuid.UUID] | None = None
    brand: str | None = None
    campaign: str | None = None
    character: str | None = None
    review: ReviewState | None = None
    availability: Availability | None = None
    stage: str | None = None
    person: str | None = None
    check: str | None = None
    outcome: CheckOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """What a list shows of an asset; sha256 and number are of its newest version, None and 0 where there is none yet.

    doubts: names of the checks of that version that did not pass.
    """

    id: uuid.UUID
    brand: str
    campaign: str
    character: str
    shot: str
    variant: int
    review: ReviewState
    availability: Availability
    waits_at: tuple[str, ...]
    due_at: datetime | None
    row_version: int
    made_at: datetime
    doubts: tuple[str, ...]
    sha256: str | None
    number: int


@dataclass(frozen=True, slots=True)
class TilePage:
    """Tiles; give `next_after` as `after` for those that follow, None at the end."""

    tiles: tuple[Tile, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the newest COUNTED assets that pass, how many are in each review state; more: there are others behind those."""

    by_state: dict[str, int]
    more: bool


def page(session: Session, filters: Filters, after: str | None = None, limit: int = 50) -> Page:
    """The newest assets that pass all filters, whole. NotFound for an `after` that was never given."""
    whole = select(Asset).options(
        selectinload(Asset.versions).selectinload(AssetVersion.checks),
        joinedload(Asset.campaign).defer(Campaign.brief),  # large, and not what a list shows
    )
    question = _placed(whole, session, filters, after, limit + 1)
    found = session.scalars(question).all()
    shown = found[:limit]
    return Page(tuple(shown), mark_of(shown[-1].made_at, shown[-1].id) if len(found) > limit else None)


def tiles(session: Session, filters: Filters, after: str | None = None, limit: int = 50) -> TilePage:
    """The same as tiles."""
    found = session.execute(_placed(PLACES, session, filters, after, limit + 1)).all()
    shown = found[:limit]
    next_after = mark_of(shown[-1].made_at, shown[-1].id) if len(found) > limit else None
    return TilePage(tiles_of(session, [row.id for row in shown]), next_after)


def around(
    session: Session, filters: Filters, asset: Asset, later: int
) -> tuple[Sequence[uuid.UUID], Sequence[uuid.UUID]]:
    """Ids of the one before the place of an asset among those that pass, if any, and of so many behind it."""
    place = mark_of(asset.made_at, asset.id)
    backwards = _placed(PLACES, session, filters, place, 1, backwards=True)
    return session.scalars(backwards).all(), session.scalars(_placed(PLACES, session, filters, place, later)).all()


def tiles_of(session: Session, ids: Sequence[uuid.UUID]) -> tuple[Tile, ...]:
    """These assets as tiles, in this order; what there is not is left out."""
    newest = (
        select(AssetVersion.sha256, AssetVersion.number)
        .where(AssetVersion.asset_id == Asset.id)
        .order_by(AssetVersion.number.desc())
        .limit(1)
        .lateral("newest")
    )
    question = (
        select(
            Asset.id, Brand.name.label("brand"), Campaign.name.label("campaign"), Asset.character, Asset.shot, Asset.variant, Asset.review, Asset.availability,
            Asset.waits_at, Asset.due_at, Asset.row_version, Asset.made_at, Asset.checked, newest.c.sha256, newest.c.number,
        )
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .join(Brand, Brand.id == Asset.brand_id)
        .join(newest, literal(True), isouter=True)
        .where(Asset.id.in_(ids))
    )  # fmt: skip
    by_id = {
        row.id: Tile(
            id=row.id, brand=row.brand, campaign=row.campaign, character=row.character, shot=row.shot, variant=row.variant,
            review=row.review, availability=row.availability, waits_at=tuple(row.waits_at), due_at=row.due_at,
            row_version=row.row_version, made_at=row.made_at, doubts=_doubts(row.checked), sha256=row.sha256,
            number=row.number or 0,
        )
        for row in session.execute(question)
    }  # fmt: skip
    return tuple(by_id[id_] for id_ in ids if id_ in by_id)


def counts(session: Session, filters: Filters) -> Counts:
    """How many of the newest assets that pass the filters are in each review state, the state's own filter left aside."""
    all_states = replace(filters, review=None)
    states: Any = select(Asset.review)
    found = session.scalars(_placed(states, session, all_states, None, COUNTED + 1)).all()
    counted = Counter(found[:COUNTED])
    return Counts({state.value: counted[state] for state in ReviewState if counted[state]}, len(found) > COUNTED)


def _placed(
    question: Select[Any], session: Session, filters: Filters, after: str | None, limit: int, *, backwards: bool = False
) -> Select[Any]:
    place = (Asset.made_at, Asset.id)
    if after is not None:
        here, there = tuple_(*place), tuple_(*map(literal, read_mark(after, "the grid")))
        question = question.where(here > there if backwards else here < there)
    order = place if backwards else [column.desc() for column in place]
    return question.where(*conditions(session, filters)).order_by(*order).limit(limit)


def conditions(session: Session, f: Filters) -> Iterable[ColumnElement[bool]]:
    """The filters as conditions on the asset's own columns; names are looked up before, so that the planner knows how many there are."""
    if f.within is not None:
        yield Asset.brand_id.in_(f.within)
    if f.brand is not None:
        yield Asset.brand_id.in_(session.scalars(select(Brand.id).where(Brand.name == f.brand)).all())
    if f.campaign is not None:
        yield Asset.campaign_id.in_(session.scalars(select(Campaign.id).where(Campaign.name == f.campaign)).all())
    if f.character is not None:
        yield Asset.character == f.character
    if f.review is not None:
        yield Asset.review == f.review
    if f.availability is not None:
        yield Asset.availability == f.availability
    if f.stage is not None:
        yield Asset.waits_at.contains([f.stage])
    if f.person is not None:
        yield is_asked(f.person)
    if f.check is not None or f.outcome is not None:
        yield Asset.checked.contains(["=".join(filter(None, (f.check, f.outcome)))])
    if f.since is not None:
        yield Asset.made_at >= f.since
    if f.until is not None:
        yield Asset.made_at < f.until
    if f.text:
        words = [w for w in re.split(BETWEEN_WORDS, f.text[:LONGEST_TEXT]) if w]
        query = " & ".join(f"'{word}':*" for word in words)
        yield Asset.words.op("@@")(func.to_tsquery("simple", query)) if words else false()


def _doubts(checked: Iterable[str]) -> tuple[str, ...]:
    ended = (said.rpartition("=") for said in checked if "=" in said)
    return tuple(sorted(name for name, _, outcome in ended if outcome != CheckOutcome.PASS))
