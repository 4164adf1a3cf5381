"""Suspending at once, and what takes a second person: back to released, or withdrawn for good."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import FourEyes, NotFound, TransitionRefused
from asset_store.reviewing.decide import is_same, lock_asset, need_person, need_reason
from asset_store.reviewing.states import AvailabilityEvent, next_state
from asset_store.rights import licences
from asset_store.tables import Asset, AssetVersion, Delivery, Descent, Proposal, ProposalState, Reference

BY_TWO = (AvailabilityEvent.REINSTATE, AvailabilityEvent.WITHDRAW)


def suspend(session: Session, asset_id: uuid.UUID, by: str, reason: str) -> Asset:
    """released -> suspended, by one person or a system, at once."""
    asset, version = lock_asset(session, asset_id)
    need_reason(reason, "suspend an asset")
    asset.availability = next_state(asset.availability, AvailabilityEvent.SUSPEND)
    session.flush()
    audit.record(session, by, "suspend", f"asset {asset_id}", {"reason": reason, "version": version.number})
    return asset


def propose(session: Session, asset_id: uuid.UUID, event: AvailabilityEvent, by: str, reason: str) -> Proposal:
    """Ask for a suspended asset to be reinstated or withdrawn; the report of what that reaches is attached.

    TransitionRefused where it cannot happen now or another proposal is open; ReasonMissing; FourEyes.
    """
    asset, version = lock_asset(session, asset_id)
    if event not in BY_TWO:
        raise TransitionRefused(asset.availability, f"{event} by proposal")
    need_person(by, f"ask to {event} an asset")
    need_reason(reason, f"{event} an asset")
    next_state(asset.availability, event)
    if (open_ := open_proposal(session, asset_id)) is not None:
        raise TransitionRefused(f"asked to {open_.event} by {open_.by}", event)
    row = Proposal(
        asset_id=asset_id, event=event, reason=reason, by=by, impact=impact_of(session, version),
        state=ProposalState.OPEN,
    )  # fmt: skip
    session.add(row)
    session.flush()
    detail = {"reason": reason, "proposal": str(row.id), "impact": row.impact}
    audit.record(session, by, f"ask to {event}", f"asset {asset_id}", detail)
    return row


def confirm(session: Session, proposal_id: uuid.UUID, by: str, on: date | None = None) -> Asset:
    """The second person's yes: the asset is reinstated or withdrawn. To reinstate, every reference must be usable again on
    that day (today, UTC, unless given). FourEyes for who asked; RightsRefused; TransitionRefused."""
    row, asset = _locked(session, proposal_id, on or datetime.now(UTC).date())
    need_person(by, f"confirm to {row.event} an asset")
    if is_same(by, row.by):
        raise FourEyes(by, f"they asked to {row.event} it", action=f"{row.event} this asset alone")
    asset.availability = next_state(asset.availability, row.event)
    _settle(session, row, ProposalState.CONFIRMED, by)
    audit.record(session, by, row.event.value, f"asset {asset.id}", {"asked_by": row.by, "proposal": str(row.id)})
    return asset


def decline(session: Session, proposal_id: uuid.UUID, by: str) -> Asset:
    """Leave it suspended; who asked may take it back so."""
    row, asset = _locked(session, proposal_id, None)
    need_person(by, "decline")
    _settle(session, row, ProposalState.DECLINED, by)
    audit.record(session, by, f"decline to {row.event}", f"asset {asset.id}", {"proposal": str(row.id)})
    return asset


def open_proposal(session: Session, asset_id: uuid.UUID) -> Proposal | None:
    return session.scalar(select(Proposal).where(Proposal.asset_id == asset_id, Proposal.state == ProposalState.OPEN))


def impact_of(session: Session, version: AssetVersion) -> dict[str, Any]:
    """Where the picture went, and the references it descends from as they stand now."""
    deliveries = session.scalars(select(Delivery).where(Delivery.version_id == version.id).order_by(Delivery.seq)).all()
    references = session.scalars(
        select(Reference)
        .join(Descent, Descent.reference_id == Reference.id)
        .where(Descent.version_id == version.id)
        .order_by(Reference.key)
    )
    return {
        "deliveries": [{"channel": d.channel, "address": d.address, "sha256": d.sha256} for d in deliveries],
        "references": [{"key": r.key, "state": r.state.value, "sha256": r.sha256} for r in references],
    }


def _locked(session: Session, proposal_id: uuid.UUID, usable_on: date | None) -> tuple[Proposal, Asset]:
    """References first, then the asset, as a recall locks them."""
    row = session.get(Proposal, proposal_id)
    if row is None:
        raise NotFound("proposal", str(proposal_id))
    seen = session.get_one(Asset, row.asset_id).current
    if row.event is AvailabilityEvent.REINSTATE and usable_on is not None and seen is not None:
        licences.releasable(session, seen, usable_on)  # a suspended asset gets no new version meanwhile
    asset, _ = lock_asset(session, row.asset_id)
    session.refresh(row)
    if row.state is not ProposalState.OPEN:
        raise TransitionRefused(f"{row.state} already", f"another answer to the proposal to {row.event}")
    return row, asset


def _settle(session: Session, row: Proposal, state: ProposalState, by: str) -> None:
    row.state, row.settled_by, row.settled_at = state, by, datetime.now(UTC)
    session.flush()
