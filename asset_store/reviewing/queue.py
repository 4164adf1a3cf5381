"""What waits for a person, the doubtful first, and finding one asset by the start of its id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased, selectinload

from asset_store.errors import Ambiguous, NotFound
from asset_store.reviewing.decide import OWNED, name_of
from asset_store.reviewing.grid import Around, beside
from asset_store.reviewing.questions import is_asked, is_current
from asset_store.reviewing.states import ReviewState
from asset_store.tables import (
    Asset,
    AssetVersion,
    Brand,
    Campaign,
    CheckOutcome,
    Decision,
    Retake,
    Verdict,
)

SHORTEST_PREFIX = 4
CANDIDATES_SHOWN = 10
NEVER = text("'infinity'::timestamptz")  # when what has no due time is due
BEGIN = text("'-infinity'::timestamptz")
QUEUE_ORDER = (Asset.doubt, func.coalesce(Asset.due_at, NEVER), Asset.made_at, Asset.id)
DOUBT = {CheckOutcome.FAIL: 0, CheckOutcome.NOT_RUN: 1, CheckOutcome.WARN: 2, CheckOutcome.PASS: 3}


@dataclass(frozen=True, slots=True)
class Page:
    """Assets; give `next_after` as `after` for those that follow, None at the end."""

    assets: tuple[Asset, ...]
    next_after: str | None


def in_review(
    session: Session,
    brand: str | None = None,
    campaign: str | None = None,
    stage: str | None = None,
    after: str | None = None,
    limit: int = 50,
    person: str | None = None,
) -> Page:
    """Assets in review, by brand name, campaign name or id, stage, and the person who is asked to decide.

    Ordered by the worst check of the current version (failed, not run, warned, passed), then the longest waiting.
    """
    order = (Asset.doubt, Asset.made_at, Asset.id)
    question = (
        select(Asset)
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .join(Brand, Brand.id == Campaign.brand_id)
        .where(Asset.review == ReviewState.IN_REVIEW)
        .options(selectinload(Asset.versions).selectinload(AssetVersion.checks))
        .order_by(*order)
        .limit(limit + 1)
    )
    if brand is not None:
        question = question.where(Brand.name == brand)
    if campaign is not None:
        id_ = _uuid(campaign)
        question = question.where(Campaign.name == campaign if id_ is None else Campaign.id == id_)
    if stage is not None:
        question = question.where(Asset.waits_at.contains([stage]))
    if person is not None:
        question = question.where(is_asked(person))
    if after is not None:
        question = question.where(tuple_(*order) > tuple_(*map(literal, _read(after))))
    found = session.scalars(question).all()
    page = found[:limit]
    return Page(tuple(page), _mark(page[-1]) if len(found) > limit and page else None)


def queue_of(
    session: Session, person: str, stages: Mapping[uuid.UUID, Collection[str] | None] | None, limit: int = 200
) -> Sequence[uuid.UUID]:
    """Ids of what waits for one person's own decision: the doubtful first, then what is due first, then the longest waiting.

    stages: by brand, at which the person decides; None is all, of a brand or altogether. What they asked for, had made anew, or have
    approved since it was last reopened is left out: it is not theirs to approve.
    """
    return session.scalars(_waiting_for(person, stages).order_by(*QUEUE_ORDER).limit(limit)).all()


def around(
    session: Session, person: str, stages: Mapping[uuid.UUID, Collection[str] | None] | None, asset: Asset, later: int
) -> Around:
    """An asset with the one before its place in that queue, and so many behind it. Of one that is not in review any more nobody knows
    when it was due: what is as doubtful as it was begins behind it."""
    waiting = _waiting_for(person, stages)
    due = (
        literal(asset.due_at) if asset.due_at is not None else NEVER if asset.review is ReviewState.IN_REVIEW else BEGIN
    )
    here = tuple_(literal(asset.doubt), due, literal(asset.made_at), literal(asset.id))
    backwards = waiting.where(tuple_(*QUEUE_ORDER) < here).order_by(*(c.desc() for c in QUEUE_ORDER)).limit(1)
    forwards = waiting.where(tuple_(*QUEUE_ORDER) > here).order_by(*QUEUE_ORDER).limit(later)
    return beside(session, asset.id, backwards, forwards, QUEUE_ORDER)


def _is_theirs(actor: ColumnElement[str] | InstrumentedAttribute[str], name: str) -> ColumnElement[bool]:
    """Whether it is them, or a key or an agent of theirs."""
    owned = or_(*(actor.startswith(kind) for kind in OWNED))
    return or_(func.lower(actor) == name, and_(owned, func.lower(actor).endswith(f" of {name}", autoescape=True)))


def _waiting_for(person: str, stages: Mapping[uuid.UUID, Collection[str] | None] | None) -> Select[uuid.UUID]:
    name = name_of(person)
    asked_for = exists().where(Campaign.id == Asset.campaign_id, _is_theirs(Campaign.requested_by, name))
    retaken = exists().where(Retake.asset_id == Asset.id, _is_theirs(Retake.by, name))
    current = select(AssetVersion.id).where(is_current()).correlate(Asset).scalar_subquery()
    later = aliased(Decision)
    undone = exists().where(
        later.version_id == Decision.version_id,
        later.seq > Decision.seq,
        or_(later.verdict == Verdict.REOPEN, and_(later.verdict == Verdict.TAKE_BACK, func.lower(later.by) == name)),
    )
    approved = exists().where(
        Decision.version_id == current,
        Decision.verdict == Verdict.APPROVE,
        func.lower(Decision.by) == name,
        not_(undone),
    )
    waiting = select(Asset.id).where(
        Asset.review == ReviewState.IN_REVIEW, not_(asked_for), not_(retaken), not_(approved)
    )
    return waiting if stages is None else waiting.where(_decided_by(stages))


def _decided_by(stages: Mapping[uuid.UUID, Collection[str] | None]) -> ColumnElement[bool]:
    """Whether an asset waits at one of these stages of its brand."""
    whole = [brand for brand, at in stages.items() if at is None]
    some = (
        and_(Asset.brand_id == brand, Asset.waits_at.overlap(cast(list(at), ARRAY(Text))))
        for brand, at in stages.items()
        if at is not None
    )
    return or_(Asset.brand_id.in_(whole), *some)


def find_asset(session: Session, id_or_prefix: str) -> Asset:
    """The one asset whose id begins so (4 hex digits or more, dashes free). NotFound, or Ambiguous with candidates."""
    digits = id_or_prefix.strip().lower().replace("-", "")
    if not re.fullmatch(r"[0-9a-f]{1,32}", digits):
        raise NotFound("asset", id_or_prefix)
    if len(digits) < SHORTEST_PREFIX:
        raise NotFound("asset", id_or_prefix, f"Give at least {SHORTEST_PREFIX} letters of the id.")
    first, last = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    found = session.scalars(
        select(Asset).where(Asset.id.between(first, last)).order_by(Asset.id).limit(CANDIDATES_SHOWN)
    ).all()
    if not found:
        raise NotFound("asset", id_or_prefix)
    if len(found) > 1:
        raise Ambiguous("asset", id_or_prefix, [str(asset.id) for asset in found])
    return found[0]


def _mark(asset: Asset) -> str:
    return f"{asset.doubt}|{asset.made_at.isoformat()}|{asset.id}"


def _read(mark: str) -> tuple[int, datetime, uuid.UUID]:
    try:
        doubt, made_at, id_ = mark.split("|")
        return int(doubt), datetime.fromisoformat(made_at), uuid.UUID(id_)
    except ValueError:
        raise NotFound("page of the review queue at", mark, "Begin at the first page.") from None


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
