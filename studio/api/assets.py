"""`/v1/assets`: finding them, looking at one, deciding on one or many."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, StoreError
from asset_store.lineage.tree import tree_of
from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import decide as rules
from asset_store.reviewing import grid
from asset_store.reviewing.policy import choose_stage
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, CheckOutcome, Verdict
from studio.api.answers import AssetOut, AssetPage, DecisionOut, DecisionsOut
from studio.api.callers import Idempotency, IfMatch, StoreDep, Who, row_version, visible
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
    who: Who, store: StoreDep, brand: Line = None, campaign: Line = None, review: ReviewState | None = None,
    availability: Availability | None = None, stage: Line = None,
    person: Annotated[str | None, Query(max_length=254, description="Who is asked to decide; `me` is the caller.")] = None,
    check: Line = None, outcome: CheckOutcome | None = None, since: datetime | None = None,
    until: datetime | None = None, text: Line = None, after: Line = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> AssetPage:  # fmt: skip
    """Assets of the brands that the caller may see, the newest first. Give `next_after` as `after` for the next page."""
    filters = grid.Filters(
        who.brands(Action.VIEW), brand, campaign, review, availability, stage, who.actor if person == "me" else person,
        check, outcome, since, until, text,
    )  # fmt: skip
    with store.database.transaction() as session:
        page = grid.page(session, filters, after, limit)
        counts = grid.counts(session, filters)
        return AssetPage(assets=[AssetOut.of(a) for a in page.assets], next_after=page.next_after, counts=counts)


@router.get("/assets/{asset_id}")
def get_asset(asset_id: uuid.UUID, who: Who, store: StoreDep, response: Response) -> AssetOut:
    """One asset; its ETag is what changes are sent with."""
    with store.database.transaction() as session:
        return _told(seen_asset(session, asset_id, who), response)


@router.get("/assets/{asset_id}/lineage")
def get_lineage(asset_id: uuid.UUID, who: Who, store: StoreDep) -> dict[str, Any]:
    """Where every version came from and went: references, models, settings, run, checks, decisions, deliveries."""
    with store.database.transaction() as session:
        return tree_of(session, seen_asset(session, asset_id, who)).as_json()


@router.post("/assets/{asset_id}/decisions", status_code=201)
def decide(
    asset_id: uuid.UUID, body: DecisionIn, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> AssetOut:  # fmt: skip
    """Approve, request changes or reject, at a stage that the caller reviews. 412 where another picture is current."""
    version = row_version(if_match)

    def act(session: Session) -> AssetOut:
        return AssetOut.of(_decided(session, asset_id, body, version, who))

    asked = {"decide": str(asset_id), "version": version, **body.model_dump(mode="json")}
    return answered(store, who, idempotency_key, asked, act, AssetOut, response)


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
                    decided = _decided(session, item.asset_id, item, item.row_version, who)
                    results.append(DecisionOut(asset_id=item.asset_id, asset=AssetOut.of(decided)))
            except StoreError as error:
                session.expire_all()
                results.append(DecisionOut(asset_id=item.asset_id, problem=problem_of(error)))
        return DecisionsOut(results=results)

    return answered(store, who, idempotency_key, {"bulk": body.model_dump(mode="json")}, act, DecisionsOut, response)


@router.post("/assets/{asset_id}/waivers", status_code=201)
def waive(
    asset_id: uuid.UUID, body: ReasonIn, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> AssetOut:  # fmt: skip
    """Let an asset whose checks failed into review, with a reason that stays on record."""
    version = row_version(if_match)

    def act(session: Session) -> AssetOut:
        current_asset(session, asset_id, who, Action.WAIVE, version)
        return AssetOut.of(rules.waive(session, asset_id, who.actor, body.reason))

    asked = {"waive": str(asset_id), "version": version, "reason": body.reason}
    return answered(store, who, idempotency_key, asked, act, AssetOut, response)


@router.post("/assets/{asset_id}/reopenings", status_code=201)
def reopen(
    asset_id: uuid.UUID, body: ReasonIn, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> AssetOut:  # fmt: skip
    """Take a decided asset back into review before its release; what was decided stays on record."""
    version = row_version(if_match)

    def act(session: Session) -> AssetOut:
        current_asset(session, asset_id, who, Action.REOPEN, version)
        return AssetOut.of(rules.reopen(session, asset_id, who.actor, body.reason))

    asked = {"reopen": str(asset_id), "version": version, "reason": body.reason}
    return answered(store, who, idempotency_key, asked, act, AssetOut, response)


@router.post("/assets/{asset_id}/take-backs", status_code=201)
def take_back(
    asset_id: uuid.UUID, who: Who, store: StoreDep, response: Response, if_match: IfMatch = None,
    idempotency_key: Idempotency = None,
) -> AssetOut:  # fmt: skip
    """Undo one's own decision while it is the newest; what others decided before it stands."""
    version = row_version(if_match)

    def act(session: Session) -> AssetOut:
        current_asset(session, asset_id, who, Action.DECIDE, version)
        return AssetOut.of(rules.take_back(session, asset_id, who.actor))

    asked = {"take back": str(asset_id), "version": version}
    return answered(store, who, idempotency_key, asked, act, AssetOut, response)


# ---------------------------------------------------------------------------- what they share


def seen_asset(session: Session, asset_id: uuid.UUID, who: Principal, action: Action = Action.VIEW) -> Asset:
    asset = session.get(Asset, asset_id)
    if asset is None:
        raise NotFound("asset", str(asset_id))
    visible(asset, who, action)
    return asset


def current_asset(session: Session, asset_id: uuid.UUID, who: Principal, action: Action, version: int) -> Asset:
    """The asset, locked, if they may and it is as they saw it."""
    seen_asset(session, asset_id, who, action)
    asset, _ = rules.lock_asset(session, asset_id)
    rules.need_row_version(asset, version)
    return asset


def _decided(session: Session, asset_id: uuid.UUID, said: DecisionIn, version: int, who: Principal) -> Asset:
    """Their decision, at the stage that is named, or at the one that waits and that they review."""
    asset = current_asset(session, asset_id, who, Action.DECIDE, version)
    mine = who.stages(asset.campaign.brand_id)
    waits = [s for s in asset.waits_at if mine is None or s in mine]
    stage = said.stage
    if asset.waits_at:  # else the rules say what is wrong
        stage = choose_stage(asset.waits_at if stage is not None else waits or asset.waits_at, stage)
        who.require(Action.DECIDE, asset.campaign.brand_id, stage)
    return rules.decide(session, asset_id, said.verdict, who.actor, said.reason, said.sha256, version, stage)


def _told(asset: Asset, response: Response) -> AssetOut:
    told = AssetOut.of(asset)
    tag(response, told)
    return told
