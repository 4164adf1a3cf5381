"""`/v1/assets/{id}/retake`: what making a picture anew would change, and having it made."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store.people.permissions import Action
from asset_store.tables import Asset
from flows.retake_plan import RetakePlan, Wishes, begin, plan_retake
from studio.api.answers import Answer, AssetOut
from studio.api.assets import Asked, Sha
from studio.api.callers import StoreDep, Who
from studio.api.changing import ChangeDep, seen_asset

router = APIRouter(tags=["retakes"])


class ChangeOut(Answer):
    name: str
    before: Any
    after: Any


class RetakePlanOut(Answer):
    """`number` of at most `most` retakes; `comments` are those that the picture is made anew for."""

    number: int
    most: int
    changes: list[ChangeOut]
    settings: Annotated[dict[str, Any], Field(description="what may be wished otherwise, as it would be")]
    comments: list[uuid.UUID]

    @classmethod
    def of(cls, plan: RetakePlan) -> RetakePlanOut:
        open_to_wishes = [n for n in Wishes.model_fields if n not in ("same_seed", "repaint")]
        repaint = None if plan.repaint is None else plan.repaint.model_dump(mode="json")
        return cls(
            number=plan.number, most=plan.most,
            changes=[ChangeOut(name=c.name, before=c.before, after=c.after) for c in plan.changes],
            settings={n: plan.job.recipe.get(n) for n in open_to_wishes} | {"repaint": repaint},
            comments=[c.id for c in plan.comments],
        )  # fmt: skip


class RetakeIn(Asked):
    """Without wishes what was said of the picture says what changes. `sha256`: of the picture that is to be made anew."""

    sha256: Sha
    wishes: Wishes | None = None


@router.get("/assets/{asset_id}/retake")
def plan(asset_id: uuid.UUID, who: Who, store: StoreDep) -> RetakePlanOut:
    """What would change, from the comments and reasons; nothing is made. Another seed is drawn each time."""
    with store.database.reading() as session:
        return RetakePlanOut.of(plan_retake(session, seen_asset(session, asset_id, who, Action.PRODUCE), None))


@router.post("/assets/{asset_id}/retake", status_code=201)
def retake(asset_id: uuid.UUID, body: RetakeIn, change: ChangeDep) -> AssetOut:
    """Queue the next version; a worker makes it and it comes into review like the first."""

    def act(session: Session) -> Asset:
        asset = session.get_one(Asset, asset_id)
        planned = plan_retake(session, asset, body.wishes)
        begin(session, change.store, planned, change.who.actor, body.sha256)
        return asset

    return change.asset(asset_id, Action.PRODUCE, {"retake": body.model_dump(mode="json")}, act)
