"""Who is asked to decide on an asset."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import FourEyes, NotFound
from asset_store.people.accounts import find_person
from asset_store.reviewing.decide import is_same, lock_asset, need_person
from asset_store.reviewing.policy import policy_of
from asset_store.tables import Asset, Assignment, Person


def assign(session: Session, asset_id: uuid.UUID, stage: str, person: str, by: str) -> Assignment:
    """Ask `person` to decide at a stage of the asset's campaign; again, it changes nothing. NotFound; FourEyes."""
    asset, _ = lock_asset(session, asset_id)
    _need_stage(asset, stage)
    need_person(person, "be asked to decide")
    _need_known(session, person)
    if is_same(person, asset.campaign.requested_by):
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


def _need_known(session: Session, person: str) -> None:
    """Where people have accounts, only they are asked: mails go to who is asked."""
    known = find_person(session, person)
    if (known is None or known.disabled_at is not None) and session.scalar(select(Person.id).limit(1)) is not None:
        raise NotFound("person", person, "`onmodel people list` names those there are.")
