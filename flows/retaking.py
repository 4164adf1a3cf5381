"""Making a picture anew from what its reviewers said: their words become changes, a producer reads them, then it runs."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import select

from asset_store.errors import NotFound
from asset_store.tables import Asset
from flows.campaign import conclude
from flows.making import make_all
from flows.retake_plan import RetakePlan, Wishes, begin, plan_retake
from flows.retrying import if_it_may_pass
from flows.wiring import open_store


def wish_for(asset_id: uuid.UUID, wishes: Wishes | None) -> RetakePlan:
    """The plan of a retake, read only; without wishes what was said of the picture says what changes."""
    with open_store() as store, store.database.transaction() as session:
        asset = session.get(Asset, asset_id)
        if asset is None:
            raise NotFound("asset", str(asset_id))
        return plan_retake(session, asset, wishes)


@flow(name="retake-asset")
async def retake_asset(asset_id: uuid.UUID, wishes: dict[str, Any] | None, by: str, workers: int = 1) -> dict[str, Any]:
    """Plan, begin and make the next version of an asset that was sent back; it comes into review like the first.

    workers: how many run inside this process; 0 leaves the work to `onmodel worker` processes elsewhere.
    """
    plan, campaign_id = await begin_retake(asset_id, wishes, by)
    await make_all([plan["job"]], workers)
    _, problems = await conclude(campaign_id, [plan["job"]])
    return {**plan, "review": await asyncio.to_thread(_state, asset_id), "problems": problems}


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=if_it_may_pass)
async def begin_retake(asset_id: uuid.UUID, wishes: dict[str, Any] | None, by: str) -> tuple[dict[str, Any], uuid.UUID]:
    """Queue the next version's job, in one transaction with the retake; another picture meanwhile is StaleVersion."""

    def work() -> tuple[dict[str, Any], uuid.UUID]:
        plan = wish_for(asset_id, None if wishes is None else Wishes.model_validate(wishes))
        with open_store() as store, store.database.transaction() as session:
            begin(session, store, plan, by, plan.seen_sha256)
            return plan.as_json(), session.get_one(Asset, asset_id).campaign_id

    return await asyncio.to_thread(work)


def _state(asset_id: uuid.UUID) -> str:
    with open_store() as store, store.database.transaction() as session:
        return session.scalars(select(Asset.review).where(Asset.id == asset_id)).one().value
