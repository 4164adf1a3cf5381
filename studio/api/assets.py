"""`/v1/assets`: finding them, looking at one, deciding on one or many."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from asset_store.errors import StoreError
from asset_store.lineage.tree import tree_of
from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import decide as rules
from asset_store.reviewing import grid
from asset_store.reviewing.policy import choose_stage
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, CheckOutcome, Verdict
from studio.api.answers import AssetOut, AssetPage, CountsOut, DecisionOut, DecisionsOut
from studio.api.callers import Idempotency, StoreDep, Who, own_stages
from studio.api.changing import ChangeDep, current_asset, seen_asset
from studio.api.once import answered, tag
from studio.api.problems import problem_of

router = APIRouter(tags=["assets"])
Reason = Annotated[str, Field(max_length=4000)]
Sha = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="Of the picture that was seen.")]
Line = Annotated[str | None, Query(max_length=200)]
MOST_AT_ONCE = 200


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DecisionIn(Asked):
    """What is said of the picture that was seen; a reason unless it is an approval."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"verdict": "request changes", "reason": "three ears", "sha256": "0" * 64}]}
    )
    verdict: Annotated[Verdict, Field(description="approve, request changes or reject")]
    sha256: Sha
    reason: Reason = ""
    stage: Annotated[str | None, Field(max_length=200)] = None


class BulkItem(DecisionIn):
    asset_id: uuid.UUID
    row_version: Annotated[int, Field(ge=0, le=2**31 - 1)]


class BulkIn(Asked):
    items: Annotated[list[BulkItem], Field(min_length=1, max_length=MOST_AT_ONCE)]


class ReasonIn(Asked):
    reason: Reason


@router.get("/assets")
def find_assets(
    who: Who, store: StoreDep, brand: Line = None, campaign: Line = None, character: Line = None,
    review: ReviewState | None = None, availability: Availability | None = None, stage: Line = None,
    person: Annotated[str | None, Query(max_length=254, description="Who is asked to decide; `me` is the caller.")] = None,
    check: Line = None, outcome: CheckOutcome | None = None, since: datetime | None = None,
    until: datetime | None = None, text: Line = None, after: Line = None, counts: bool = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> AssetPage:  # fmt: skip
    """Assets of the brands that the caller may see, the newest first. Give `next_after` as `after` for the next page."""
    filters = grid.Filters(
        who.brands(Action.VIEW), brand, campaign, character, review, availability, stage, who.actor if person == "me" else person,
        check, outcome, since, until, text,
    )  # fmt: skip
    with store.database.reading() as session:
        page = grid.page(session, filters, after, limit)
        counted = CountsOut.of(grid.counts(session, filters)) if counts else None
        return AssetPage(assets=[AssetOut.listed(a) for a in page.assets], next_after=page.next_after, counts=counted)


@router.get("/assets/{asset_id}")
def get_asset(asset_id: uuid.UUID, who: Who, store: StoreDep, response: Response) -> AssetOut:
    """One asset; its ETag is what changes are sent with."""
    with store.database.reading() as session:
        told = AssetOut.of(seen_asset(session, asset_id, who))
    tag(response, told)
    return told


@router.get("/assets/{asset_id}/lineage")
def get_lineage(asset_id: uuid.UUID, who: Who, store: StoreDep) -> dict[str, Any]:
    """Where every version came from and went: references, models, settings, run, checks, decisions, deliveries."""
    with store.database.reading() as session:
        return tree_of(session, seen_asset(session, asset_id, who)).as_json()


@router.post("/assets/{asset_id}/decisions", status_code=201)
def decide(asset_id: uuid.UUID, body: DecisionIn, change: ChangeDep) -> AssetOut:
    """Approve, request changes or reject, at a stage that the caller reviews. 412 where another picture is current."""
    asked = {"decide": body.model_dump(mode="json")}
    return change.asset(
        asset_id,
        Action.DECIDE,
        asked,
        lambda session: _decided(session, session.get_one(Asset, asset_id), body, change.who),
    )


@router.post("/decisions")
def decide_many(
    body: BulkIn, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> DecisionsOut:
    """Decide on up to 200 assets. Each stands alone: one that is refused does not hold up the others."""

    def act(session: Session) -> DecisionsOut:
        rules.lock_all(session, [item.asset_id for item in body.items])
        results = []
        for item in body.items:
            try:
                with session.begin_nested():
                    asset = current_asset(session, item.asset_id, who, Action.DECIDE, item.row_version)
                    decided = _decided(session, asset, item, who)
                    results.append(DecisionOut(asset_id=item.asset_id, asset=AssetOut.of(decided)))
            except StoreError as error:
                session.expire_all()
                results.append(DecisionOut(asset_id=item.asset_id, problem=problem_of(error)))
        return DecisionsOut(results=results)

    return answered(store, who, idempotency_key, {"bulk": body.model_dump(mode="json")}, act, DecisionsOut, response)


@router.post("/assets/{asset_id}/waivers", status_code=201)
def waive(asset_id: uuid.UUID, body: ReasonIn, change: ChangeDep) -> AssetOut:
    """Let an asset whose checks failed into review, with a reason that stays on record."""
    return change.asset(
        asset_id, Action.WAIVE, {"waive": body.reason},
        lambda session: rules.waive(session, asset_id, change.who.actor, body.reason),
    )  # fmt: skip


@router.post("/assets/{asset_id}/reopenings", status_code=201)
def reopen(asset_id: uuid.UUID, body: ReasonIn, change: ChangeDep) -> AssetOut:
    """Take a decided asset back into review before its release; what was decided stays on record."""
    return change.asset(
        asset_id, Action.REOPEN, {"reopen": body.reason},
        lambda session: rules.reopen(session, asset_id, change.who.actor, body.reason),
    )  # fmt: skip


@router.post("/assets/{asset_id}/take-backs", status_code=201)
def take_back(asset_id: uuid.UUID, change: ChangeDep) -> AssetOut:
    """Undo one's own decision while it is the newest; what others decided before it stands."""
    return change.asset(
        asset_id, Action.DECIDE, {"take back": True},
        lambda session: rules.take_back(session, asset_id, change.who.actor),
    )  # fmt: skip


def _decided(session: Session, asset: Asset, said: DecisionIn, who: Principal) -> Asset:
    """Their decision on an asset that is locked, at the stage that is named, or at the one that waits and that they review."""
    stage = said.stage
    if asset.waits_at:  # else the rules say what is wrong
        waits = asset.waits_at if stage is not None else own_stages(asset, who) or asset.waits_at
        stage = choose_stage(waits, stage)
        who.require(Action.DECIDE, asset.campaign.brand_id, stage)
    return rules.decide(session, asset.id, said.verdict, who.actor, said.reason, said.sha256, stage=stage)
