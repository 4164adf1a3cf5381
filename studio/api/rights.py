"""`/v1`: suspending, what takes a second person, and taking a reference back."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store.people.permissions import Action, Principal
from asset_store.reviewing.states import AvailabilityEvent
from asset_store.rights import availability, recall
from asset_store.tables import Asset, Proposal
from flows.wiring import Store
from studio.api.answers import Answer, AssetOut, ProposalOut
from studio.api.assets import Asked, Reason, ReasonIn
from studio.api.callers import Idempotency, StoreDep, Who, need
from studio.api.changing import ChangeDep, seen_reference
from studio.api.once import answered

router = APIRouter(tags=["rights"])


class ProposalIn(Asked):
    event: Literal["reinstate", "withdraw"]
    reason: Reason


class RecallOut(Answer):
    """What the recall reached: assets, deliveries, cancelled jobs."""

    report: Annotated[dict[str, Any], Field(examples=[{"key": "pip/front.png", "assets": [], "deliveries": []}])]


@router.post("/assets/{asset_id}/suspensions", status_code=201)
def suspend(asset_id: uuid.UUID, body: ReasonIn, change: ChangeDep) -> AssetOut:
    """Take a released asset out of use at once."""
    return change.asset(
        asset_id, Action.SUSPEND, {"suspend": body.reason},
        lambda session: availability.suspend(session, asset_id, change.who.actor, body.reason),
    )  # fmt: skip


@router.post("/assets/{asset_id}/proposals", status_code=201)
def propose(asset_id: uuid.UUID, body: ProposalIn, change: ChangeDep) -> ProposalOut:
    """Ask for a suspended asset to be reinstated or withdrawn; another person confirms. Says what that reaches."""

    def act(session: Session) -> ProposalOut:
        event = AvailabilityEvent(body.event)
        return ProposalOut.of(availability.propose(session, asset_id, event, change.who.actor, body.reason))

    return change.answer(asset_id, Action.REINSTATE, {"propose": body.model_dump()}, act, ProposalOut)


@router.post("/proposals/{proposal_id}/confirmation", status_code=201)
def confirm(
    proposal_id: uuid.UUID, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> AssetOut:
    """The second person's yes."""
    return _settled(availability.confirm, proposal_id, who, store, response, idempotency_key)


@router.post("/proposals/{proposal_id}/refusal", status_code=201)
def decline(
    proposal_id: uuid.UUID, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> AssetOut:
    """Leave it suspended."""
    return _settled(availability.decline, proposal_id, who, store, response, idempotency_key)


@router.post("/references/{reference_id}/recall", status_code=201)
def recall_reference(
    reference_id: uuid.UUID, body: ReasonIn, who: Who, store: StoreDep, response: Response,
    idempotency_key: Idempotency = None,
) -> RecallOut:  # fmt: skip
    """Take a reference back: what came of it is suspended, what is queued with it cancelled. Says what that reached."""

    def act(session: Session) -> RecallOut:
        seen_reference(session, reference_id, who, Action.RECALL)
        return RecallOut(report=recall.withdraw_reference(session, reference_id, who.actor, body.reason).as_json())

    asked = {"recall": str(reference_id), "reason": body.reason}
    return answered(store, who, idempotency_key, asked, act, RecallOut, response)


def _settled(
    answer: Callable[[Session, uuid.UUID, str], Asset], proposal_id: uuid.UUID, who: Principal, store: Store,
    response: Response, key: str | None,
) -> AssetOut:  # fmt: skip
    def act(session: Session) -> AssetOut:
        row = session.get(Proposal, proposal_id)
        brand = None if row is None else session.get_one(Asset, row.asset_id).campaign.brand_id
        need(who, Action.REINSTATE, brand, "proposal", proposal_id)
        return AssetOut.of(answer(session, proposal_id, who.actor))

    return answered(store, who, key, {answer.__name__: str(proposal_id)}, act, AssetOut, response)
