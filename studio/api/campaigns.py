"""`/v1/campaigns`: which there are, where their assets stand and what they used; starting one from a brief."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.keyset import mark_of, newest
from asset_store.people.permissions import Action, Principal
from asset_store.tables import Asset, Brand, Campaign, Run
from flows.starting import BriefText, start_campaign
from studio.api.answers import CampaignOut, CampaignsOut
from studio.api.assets import Asked
from studio.api.callers import Idempotency, StoreDep, Who, need
from studio.api.once import answered
from studio.api.runs import RunOut, producing, trigger_of

router = APIRouter(tags=["campaigns"])
FILE, LONGEST = "brief.yaml", 100_000  # a longer one is run from the terminal; variables make many shots of few lines
BRIEF = """\
campaign: spring
brand: lumen
shots:
  - {name: pip-beach, character: Pip, prompt: "a mascot, waving, on the beach", variants: 4}
"""


class BriefIn(Asked):
    """`brief`: a campaign as YAML. The pictures that it names by a path must lie in the brand's libraries."""

    brief: Annotated[str, Field(min_length=1, max_length=LONGEST, examples=[BRIEF])]
    reason: Annotated[str, Field(max_length=1000, examples=["for the spring newsletter"])] = ""

    def read(self) -> BriefText:
        """The brief, parsed: before a transaction is open. BriefInvalid."""
        brief = BriefText(self.brief, FILE)
        _ = brief.parsed
        return brief


class CampaignPageOut(CampaignOut):
    """`runs`: the newest 50 that made it, with what each used."""

    trigger: str
    reason: str
    made_pictures: int
    gpu_s: float
    runs: list[RunOut]


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
        counted = _counted(session, [c.id for c in shown])
        told = [_told(c, counted.get(c.id, {})) for c in shown]
    last = shown[-1] if len(found) > limit else None
    return CampaignsOut(campaigns=told, next_after=None if last is None else mark_of(last.made_at, last.id))


@router.post("/campaigns", status_code=202)
def make_campaign(
    body: BriefIn, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> RunOut:
    """Start a campaign from a brief: follow the run, and find its assets in the campaign. 422 names each mistake by line; 429 where the
    day's pictures are spent."""

    brief = body.read()

    def act(session: Session) -> RunOut:
        producing(session, brief.parsed.brand, who)
        quota = store.settings.quota
        return RunOut.of(
            start_campaign(session, brief, quota, by=who.actor, trigger=trigger_of(who), reason=body.reason)
        )

    told = answered(store, who, idempotency_key, {"campaign": body.model_dump()}, act, RunOut, response)
    response.headers["Location"] = f"/v1/runs/{told.id}"
    return told


@router.get("/campaigns/{campaign_id}")
def get_campaign(campaign_id: uuid.UUID, who: Who, store: StoreDep) -> CampaignPageOut:
    """A campaign with the runs that made it and what they used."""
    with store.database.reading() as session:
        return campaign_page(session, campaign_id, who)


def campaign_page(session: Session, campaign_id: uuid.UUID, who: Principal) -> CampaignPageOut:
    """NotFound."""
    campaign = session.get(Campaign, campaign_id)
    need(who, Action.VIEW, None if campaign is None else campaign.brand_id, "campaign", campaign_id)
    assert campaign is not None
    its = Run.campaign_id == campaign_id
    made = session.scalars(select(Run).where(its).order_by(Run.made_at.desc()).limit(50)).all()
    used = session.execute(select(func.sum(Run.made_pictures), func.sum(Run.gpu_s)).where(its)).one()
    base = _told(campaign, _counted(session, [campaign_id]).get(campaign_id, {}))
    return CampaignPageOut(
        **base.model_dump(), trigger=campaign.trigger, reason=campaign.reason, made_pictures=used[0] or 0,
        gpu_s=round(used[1] or 0.0, 3), runs=[RunOut.of(run) for run in made],
    )  # fmt: skip


def _counted(session: Session, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[str, int]]:
    """By campaign, how many of its assets are in each state."""
    states = select(Asset.campaign_id, Asset.review, func.count()).group_by(Asset.campaign_id, Asset.review)
    counted: dict[uuid.UUID, dict[str, int]] = {}
    for id_, state, count in session.execute(states.where(Asset.campaign_id.in_(ids))):
        counted.setdefault(id_, {})[state.value] = count
    return counted


def _told(campaign: Campaign, review: dict[str, int]) -> CampaignOut:
    return CampaignOut(
        id=campaign.id, name=campaign.name, brand=campaign.brand.name, stages=campaign.stages, requested_by=campaign.requested_by,
        made_at=campaign.made_at, review=review,
    )  # fmt: skip
