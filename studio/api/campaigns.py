"""`/v1/campaigns`: which there are, and where their assets stand."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy import func, select

from asset_store.keyset import mark_of, newest
from asset_store.people.permissions import Action
from asset_store.tables import Asset, Brand, Campaign
from studio.api.answers import CampaignOut, CampaignsOut
from studio.api.callers import StoreDep, Who

router = APIRouter(tags=["campaigns"])


@router.get("/campaigns")
def get_campaigns(
    who: Who, store: StoreDep, brand: Annotated[str | None, Query(max_length=200)] = None,
    after: Annotated[str | None, Query(max_length=200)] = None, limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> CampaignsOut:  # fmt: skip
    """Campaigns of the brands that the caller may see, the newest first, with their assets by review state."""
    within = who.brands(Action.VIEW)
    question = select(Campaign).join(Brand, Brand.id == Campaign.brand_id)
    question = newest(question, Campaign.made_at, Campaign.id, after, limit, "campaigns")
    if within is not None:
        question = question.where(Campaign.brand_id.in_(within))
    if brand is not None:
        question = question.where(Brand.name == brand)
    with store.database.reading() as session:
        found = session.scalars(question).all()
        shown = found[:limit]
        states = select(Asset.campaign_id, Asset.review, func.count()).group_by(Asset.campaign_id, Asset.review)
        counted: dict[uuid.UUID, dict[str, int]] = {}
        for id_, state, count in session.execute(states.where(Asset.campaign_id.in_([c.id for c in shown]))):
            counted.setdefault(id_, {})[state.value] = count
        told = [
            CampaignOut(
                id=c.id, name=c.name, brand=c.brand.name, stages=c.stages, requested_by=c.requested_by,
                made_at=c.made_at, review=counted.get(c.id, {}),
            )
            for c in shown
        ]  # fmt: skip
    last = shown[-1] if len(found) > limit else None
    return CampaignsOut(campaigns=told, next_after=None if last is None else mark_of(last.made_at, last.id))
