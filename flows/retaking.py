"""Making a picture anew from what its reviewers said: their words become changes, a producer reads them, then it runs."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, RetakeRefused
from asset_store.repositories.jobs import NewJob
from asset_store.reviewing import retaking
from asset_store.reviewing.comments import Remark, remarks_of
from asset_store.reviewing.decide import standing_decisions
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.retaking import Change
from asset_store.tables import Asset, AssetVersion, CheckOutcome, Job, Verdict
from flows import recipes
from flows.brief import Number, Part, Prompt, Seed, Whole, Window, check_window
from flows.campaign import conclude, make_all
from flows.retrying import if_it_may_pass
from flows.wiring import engine, open_store
from ipadapter_engine.requests import MAX_SEED

SCALE_STEP, HIGHEST_SCALE = 0.15, 1.6  # what a failed identity check adds to the scale, and up to where
LONGEST_PROMPT = 2000


class Wishes(Part):
    """What is to be different in the next version; what is not given stays. Without a seed another one is drawn."""

    prompt: Prompt | None = None
    negative_prompt: Prompt | None = None
    scale: Number | None = Field(None, ge=0, le=10)
    window: Window | None = None
    steps: Whole | None = Field(None, ge=1, le=200)
    guidance: Number | None = Field(None, ge=0, le=50)
    seed: Seed | None = None
    same_seed: bool = False


@dataclass(frozen=True)
class RetakePlan:
    """The job of the next version and how it differs, as a producer reads it."""

    asset_id: uuid.UUID
    seen_sha256: str
    job: NewJob
    changes: tuple[Change, ...]
    comments: tuple[Remark, ...]
    number: int
    most: int

    def as_json(self) -> dict[str, Any]:
        return {
            "asset": str(self.asset_id),
            "sha256": self.seen_sha256,
            "retake": self.number,
            "of": self.most,
            "changes": [c.as_json() for c in self.changes],
            "comments": [{"id": str(c.id), "by": c.by, "text": c.text, "region": c.region} for c in self.comments],
            "job": self.job.key,
        }


def suggest(session: Session, asset: Asset) -> Wishes:
    """Changes from what was said: the words of remarks and reasons go behind the prompt, and a failed or doubtful identity
    check raises the scale. Regions are shown to the producer; no engine here repaints a part of a picture yet."""
    version = _current(asset)
    recipe = session.get_one(Job, version.job_key).recipe
    said = [r.text for r in remarks_of(session, asset.id) if r.version_id == version.id]
    said += [d.reason for d in standing_decisions(session, version.id) if d.verdict is Verdict.REQUEST_CHANGES]
    words = [w for text in said if (w := " ".join(text.split()).strip(" .!"))]
    prompt = ", ".join(dict.fromkeys([recipe["prompt"], *words]))[:LONGEST_PROMPT] if words else None
    doubtful = any(c.name == "identity" and c.outcome is not CheckOutcome.PASS for c in version.checks)
    scale = None
    if doubtful and recipes.heard(recipe):
        scale = round(min(max(HIGHEST_SCALE, recipe["scale"]), recipe["scale"] + SCALE_STEP), 2)
    return Wishes(prompt=prompt, scale=scale)


def plan_retake(session: Session, asset: Asset, wishes: Wishes, batch_key: Any) -> RetakePlan:
    """The next version's recipe: the current one's with what is wished. batch_key(recipe): where its job is queued."""
    if wishes.window is not None:
        check_window(wishes.window)
    version = _current(asset)
    before = session.get_one(Job, version.job_key).recipe
    seed = before["seed"] if wishes.same_seed else wishes.seed
    if seed is None:
        seed = random.SystemRandom().randrange(MAX_SEED)
    wished = {k: v for k, v in wishes.model_dump(mode="json", exclude={"same_seed", "seed"}).items() if v is not None}
    after = {**before, **wished, "seed": seed}
    if "scale" in wished or "window" in wished:
        after.pop("preset", None)
    changes = tuple(Change(k, before.get(k), v) for k, v in after.items() if before.get(k) != v)
    if not changes:
        raise RetakeRefused("nothing is changed: the same picture would come", "Change a setting, such as the seed.")
    job = NewJob(recipes.job_key(after), batch_key(after), after)
    remarks = tuple(r for r in remarks_of(session, asset.id) if r.version_id == version.id)
    spent, policy = retaking.retakes_of(session, asset.id), policy_of(asset.campaign)
    return RetakePlan(asset.id, version.sha256, job, changes, remarks, spent + 1, policy.retakes)


def wish_for(asset_id: uuid.UUID, wishes: Wishes | None) -> RetakePlan:
    """The plan of a retake, read only; without wishes those that `suggest` finds."""
    with open_store() as store:
        made = engine(store.settings)
        with store.database.transaction() as session:
            asset = session.get(Asset, asset_id)
            if asset is None:
                raise NotFound("asset", str(asset_id))
            chosen = wishes if wishes is not None else suggest(session, asset)
            return plan_retake(session, asset, chosen, lambda recipe: recipes.batch_key(made, recipe))


@flow(name="retake-asset")
async def retake_asset(asset_id: uuid.UUID, wishes: dict[str, Any] | None, by: str, workers: int = 1) -> dict[str, Any]:
    """Plan, begin and make the next version of an asset that was sent back; it comes into review like the first.

    workers: how many run inside this process; 0 leaves the work to `onmodel worker` processes elsewhere.
    """
    plan, campaign_id = await begin_retake(asset_id, wishes, by)
    await make_all([plan["job"]], workers)
    _, problems = await conclude(campaign_id, [plan["job"]])
    return {**plan, "review": await asyncio.to_thread(_state, asset_id), "problems": problems}


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[1, 5], tags=["retake"], retry_condition_fn=if_it_may_pass)
async def begin_retake(asset_id: uuid.UUID, wishes: dict[str, Any] | None, by: str) -> tuple[dict[str, Any], uuid.UUID]:
    """Queue the next version's job, in one transaction with the retake; another picture meanwhile is StaleVersion."""

    def work() -> tuple[dict[str, Any], uuid.UUID]:
        plan = wish_for(asset_id, None if wishes is None else Wishes.model_validate(wishes))
        with open_store() as store, store.database.transaction() as session:
            comments: Sequence[uuid.UUID] = [c.id for c in plan.comments]
            retaking.begin(session, asset_id, plan.job, plan.changes, by, plan.seen_sha256, comments)
            return plan.as_json(), session.get_one(Asset, asset_id).campaign_id

    return await asyncio.to_thread(work)


def _state(asset_id: uuid.UUID) -> str:
    with open_store() as store, store.database.transaction() as session:
        return session.scalars(select(Asset.review).where(Asset.id == asset_id)).one().value


def _current(asset: Asset) -> AssetVersion:
    if asset.current is None:
        raise NotFound("picture of asset", str(asset.id), "Run its campaign again: the picture is made.")
    return asset.current
