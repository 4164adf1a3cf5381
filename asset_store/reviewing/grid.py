"""Finding assets among many: filters that stand in an address, a page at a time, newest first."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, selectinload

from asset_store.keyset import mark_of, read_mark
from asset_store.reviewing.questions import is_asked, is_current
from asset_store.reviewing.queue import Page
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, Check, CheckOutcome, Job

LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Filters:
    """What a grid shows. within: ids of the brands that may be seen, None for all; text: in shot, campaign or prompt;
    check: the name of a check that ended as `outcome`; person: who is asked to decide."""

    within: Collection[uuid.UUID] | None = None
    brand: str | None = None
    campaign: str | None = None
    review: ReviewState | None = None
    availability: Availability | None = None
    stage: str | None = None
    person: str | None = None
    check: str | None = None
    outcome: CheckOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


def page(
    session: Session, filters: Filters, after: str | None = None, limit: int = 50, *, backwards: bool = False
) -> Page:
    """The newest assets that pass all filters; backwards, those before `after`, the nearest first. NotFound for an
    `after` that was never given."""
    place = (Asset.made_at, Asset.id)
    question = (
        select(Asset)
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .join(Brand, Brand.id == Campaign.brand_id)
        .where(*_conditions(filters))
        .options(selectinload(Asset.versions).selectinload(AssetVersion.checks))
        .order_by(*(place if backwards else [column.desc() for column in place]))
        .limit(limit + 1)
    )
    if after is not None:
        here, there = tuple_(*place), tuple_(*map(literal, read_mark(after, "the grid")))
        question = question.where(here > there if backwards else here < there)
    found = session.scalars(question).all()
    shown = found[:limit]
    more = len(found) > limit
    return Page(tuple(shown), mark_of(shown[-1].made_at, shown[-1].id) if more else None)


def counts(session: Session, filters: Filters) -> dict[str, int]:
    """How many assets pass the filters in each review state, the state's own filter left aside."""
    question = (
        select(Asset.review, func.count())
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .join(Brand, Brand.id == Campaign.brand_id)
        .where(*_conditions(replace(filters, review=None)))
        .group_by(Asset.review)
    )
    return {row[0].value: row[1] for row in session.execute(question)}


def _conditions(f: Filters) -> Iterable[ColumnElement[bool]]:
    if f.within is not None:
        yield Campaign.brand_id.in_(f.within)
    if f.brand is not None:
        yield Brand.name == f.brand
    if f.campaign is not None:
        yield Campaign.name == f.campaign
    if f.review is not None:
        yield Asset.review == f.review
    if f.availability is not None:
        yield Asset.availability == f.availability
    if f.stage is not None:
        yield Asset.waits_at.contains([f.stage])
    if f.person is not None:
        yield is_asked(f.person)
    if f.check is not None or f.outcome is not None:
        yield _checked(f.check, f.outcome)
    if f.since is not None:
        yield Asset.made_at >= f.since
    if f.until is not None:
        yield Asset.made_at < f.until
    if f.text:
        words = f.text[:LONGEST_TEXT]
        prompt = exists().where(Job.key == Asset.job_key, Job.recipe["prompt"].astext.icontains(words, autoescape=True))
        yield or_(Asset.shot.icontains(words, autoescape=True), Campaign.name.icontains(words, autoescape=True), prompt)


def _checked(name: str | None, outcome: CheckOutcome | None) -> ColumnElement[bool]:
    """Whether a check of the current version ended so."""
    found = exists().where(is_current(), Check.version_id == AssetVersion.id)
    if name is not None:
        found = found.where(Check.name == name)
    return found if outcome is None else found.where(Check.outcome == outcome)
