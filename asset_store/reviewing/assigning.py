"""Who is asked to decide on an asset, and what is late."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import FourEyes, NotFound
from asset_store.reviewing.decide import lock_asset, name_of, need_person, person_behind
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, Assignment


def assign(session: Session, asset_id: uuid.UUID, stage: str, person: str, by: str) -> Assignment:
    """Ask `person` to decide at a stage of the asset's campaign; again, it changes nothing. NotFound; FourEyes."""
    asset, _ = lock_asset(session, asset_id)
    _need_stage(asset, stage)
    need_person(person, "be asked to decide")
    if name_of(person) == person_behind(asset.campaign.requested_by):
        raise FourEyes(person, "they asked for it")
    there = _find(session, asset_id, stage, person)
    if there is not None:
        return there
    row = Assignment(asset_id=asset_id, stage=stage, person=person.strip(), by=by)
    session.add(row)
    session.flush()
    audit.record(session, by, "assign", f"asset {asset_id}", {"stage": stage, "person": row.person})
    return row


def unassign(session: Session, asset_id: uuid.UUID, stage: str, person: str, by: str) -> None:
    """Ask them no more. NotFound where they were not asked."""
    lock_asset(session, asset_id)
    there = _find(session, asset_id, stage, person)
    if there is None:
        raise NotFound("assignment of", f"{person} at {stage}", "`onmodel review show` says who is asked.")
    session.delete(there)
    session.flush()
    audit.record(session, by, "unassign", f"asset {asset_id}", {"stage": stage, "person": there.person})


def assignments_of(session: Session, asset_id: uuid.UUID) -> Sequence[Assignment]:
    return session.scalars(
        select(Assignment).where(Assignment.asset_id == asset_id).order_by(Assignment.stage, Assignment.person)
    ).all()


def overdue(session: Session, at: datetime, limit: int = 100) -> Sequence[Asset]:
    """Assets in review whose time to decide was over by then, the longest first."""
    return session.scalars(
        select(Asset)
        .where(Asset.review == ReviewState.IN_REVIEW, Asset.due_at < at)
        .order_by(Asset.due_at, Asset.id)
        .limit(limit)
    ).all()


def _find(session: Session, asset_id: uuid.UUID, stage: str, person: str) -> Assignment | None:
    return session.scalar(
        select(Assignment).where(
            Assignment.asset_id == asset_id,
            Assignment.stage == stage,
            func.lower(Assignment.person) == person.strip().lower(),
        )
    )


def _need_stage(asset: Asset, stage: str) -> None:
    names = [s.name for s in policy_of(asset.campaign).stages]
    if stage not in names:
        raise NotFound("stage", stage, f"The campaign has {', '.join(names)}.")
