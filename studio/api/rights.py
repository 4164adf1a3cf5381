"""`/v1`: suspending, what takes a second person, and taking a reference back."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.people.permissions import Action, Principal
from asset_store.reviewing.states import AvailabilityEvent
from asset_store.rights import availability, recall
from asset_store.tables import Asset, Library, Proposal, Reference
from studio.api.answers import Answer, AssetOut, ProposalOut
from studio.api.assets import Asked, Reason, ReasonIn, current_asset
from studio.api.callers import Idempotency, IfMatch, StoreDep, Who, row_version
from studio.api.once import answered

router = APIRouter(tags=["rights"])


class ProposalIn(Asked):
    event: Literal["reinstate", "withdraw"]
    reason: Reason


class RecallOut(Answer):
    """What the recall reached: assets, deliveries, cancelled jobs."""

    report: Annotated[dict[str, Any], Field(examples=[{"key": "pip/front.png", "assets": [], "deliveries": []}])]


@router.post("/assets/{asset_id}/suspensions", status_code=201)
def suspend(
    asset_id: uuid.UUID, body: ReasonIn, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> AssetOut:  # fmt: skip
    """Take a released asset out of use at once."""
    version = row_version(if_match)

    def act(session: Session) -> AssetOut:
        current_asset(session, asset_id, who, Action.SUSPEND, version)
        return AssetOut.of(availability.suspend(session, asset_id, who.actor, body.reason))

    asked = {"suspend": str(asset_id), "version": version, "reason": body.reason}
    return answered(store, who, idempotency_key, asked, act, AssetOut, response)


@router.post("/assets/{asset_id}/proposals", status_code=201)
def propose(
    asset_id: uuid.UUID, body: ProposalIn, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> ProposalOut:  # fmt: skip
    """Ask for a suspended asset to be reinstated or withdrawn; another person confirms. Says what that reaches."""
    version = row_version(if_match)

    def act(session: Session) -> ProposalOut:
        current_asset(session, asset_id, who, Action.REINSTATE, version)
        event = AvailabilityEvent(body.event)
        return ProposalOut.of(availability.propose(session, asset_id, event, who.actor, body.reason))

    asked = {"propose": str(asset_id), "version": version, **body.model_dump()}
    return answered(store, who, idempotency_key, asked, act, ProposalOut, response)


@router.post("/proposals/{proposal_id}/confirmation", status_code=201)
def confirm(
    proposal_id: uuid.UUID, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> AssetOut:
    """The second person's yes."""

    def act(session: Session) -> AssetOut:
        _proposal(session, proposal_id, who)
        return AssetOut.of(availability.confirm(session, proposal_id, who.actor))

    return answered(store, who, idempotency_key, {"confirm": str(proposal_id)}, act, AssetOut, response)


@router.post("/proposals/{proposal_id}/refusal", status_code=201)
def decline(
    proposal_id: uuid.UUID, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> AssetOut:
    """Leave it suspended."""

    def act(session: Session) -> AssetOut:
        _proposal(session, proposal_id, who)
        return AssetOut.of(availability.decline(session, proposal_id, who.actor))

    return answered(store, who, idempotency_key, {"decline": str(proposal_id)}, act, AssetOut, response)


@router.post("/references/{reference_id}/recall", status_code=201)
def recall_reference(
    reference_id: uuid.UUID, body: ReasonIn, who: Who, store: StoreDep, response: Response,
    idempotency_key: Idempotency = None,
) -> RecallOut:  # fmt: skip
    """Take a reference back: what came of it is suspended, what is queued with it cancelled. Says what that reached."""

    def act(session: Session) -> RecallOut:
        brand = session.scalar(
            select(Library.brand_id)
            .join(Reference, Reference.library_id == Library.id)
            .where(Reference.id == reference_id)
        )
        if brand is None or not who.may(Action.VIEW, brand):
            raise NotFound("reference", str(reference_id))
        who.require(Action.RECALL, brand)
        return RecallOut(report=recall.withdraw_reference(session, reference_id, who.actor, body.reason).as_json())

    asked = {"recall": str(reference_id), "reason": body.reason}
    return answered(store, who, idempotency_key, asked, act, RecallOut, response)


def _proposal(session: Session, proposal_id: uuid.UUID, who: Principal) -> None:
    row = session.get(Proposal, proposal_id)
    asset = None if row is None else session.get(Asset, row.asset_id)
    if asset is None or not who.may(Action.VIEW, asset.campaign.brand_id):
        raise NotFound("proposal", str(proposal_id))
    who.require(Action.REINSTATE, asset.campaign.brand_id)
