"""A character sheet: its cells are made in shared batches, those that are off model again with other seeds, then it is drawn."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import Any

from prefect import flow, runtime, task
from prefect.artifacts import acreate_image_artifact
from prefect.cache_policies import NO_CACHE
from sqlalchemy import select

from asset_store.errors import RetakeRefused, RunOver, TransitionRefused
from asset_store.pictures import open_picture
from asset_store.repositories import runs
from asset_store.retention import name_blobs
from asset_store.reviewing import retaking
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, CheckOutcome, Job, JobState, Run, RunState
from flows.campaign import conclude
from flows.carrying import cancelled_at_prefect, carried, state_of
from flows.making import make_all
from flows.parameters import Workers
from flows.planning import plan_campaign, submit_campaign
from flows.preview import preview_url
from flows.retake_plan import Wishes, plan_retake
from flows.retrying import if_it_may_pass
from flows.sheet_request import request_of
from flows.sheet_result import conclude_sheet
from flows.wiring import engine, open_store


@flow(name="make-character-sheet", flow_run_name="sheet-{run_id}", on_cancellation=[cancelled_at_prefect])
async def make_character_sheet(run_id: uuid.UUID, workers: Workers = 0) -> dict[str, Any]:
    """Carry a run to its end: its result, or what it came to. Killed and started again it goes on where it was.

    Args:
        run_id: The run, which says what is asked for, by whom and why.
        workers: How many run inside this process; 0 leaves the work to `onmodel worker` processes elsewhere.
    """
    async with carried(run_id):
        await _made(run_id, workers)
    return await asyncio.to_thread(state_of, run_id)


async def _made(run_id: uuid.UUID, workers: int) -> None:
    planned = await plan_sheet(run_id)
    if planned is None:
        return  # cancelled
    campaign_id, keys, attempts = planned
    for attempt in range(attempts):
        await make_all(keys, workers)
        await conclude(campaign_id, keys)
        keys = [] if attempt + 1 == attempts else await try_again(run_id, campaign_id)
        if not keys:
            break
    png = await draw_sheet(run_id)
    if png is not None:
        await acreate_image_artifact(png, key="character-sheet", description=f"Character sheet of run {run_id}")


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=if_it_may_pass)
async def plan_sheet(run_id: uuid.UUID) -> tuple[uuid.UUID, list[str], int] | None:
    """Queue the jobs of all cells: campaign, keys, and how often a cell may be tried. None where the run was cancelled."""

    def work() -> tuple[uuid.UUID, list[str], int] | None:
        with open_store() as store:
            with store.database.transaction() as session:
                run = runs.get(session, run_id)
                request, by, reason, trigger = request_of(run.request), run.requested_by, run.reason, run.trigger
                if not runs.beat(session, run_id, phase="planning", flow_run_id=runtime.flow_run.get_id()):
                    return None
            plan = plan_campaign(store, request.brief(run_id))
            try:
                campaign_id, keys = submit_campaign(store, plan, by=by, trigger=trigger, reason=reason, run_id=run_id)
            except RunOver:
                return None
            return campaign_id, keys, request.attempts

    return await asyncio.to_thread(work)


@task(cache_policy=NO_CACHE, retries=2, retry_condition_fn=if_it_may_pass)
async def try_again(run_id: uuid.UUID, campaign_id: uuid.UUID) -> list[str]:
    """Have cells whose checks failed made anew, each with another seed; the keys of all jobs that cells wait for. A cell that no seed
    helps is left. Safe to repeat: what was begun before is waited for, too."""

    def work() -> list[str]:
        with open_store() as store:
            with store.database.transaction() as session:
                failed = session.scalars(
                    select(Asset.id).where(Asset.campaign_id == campaign_id, Asset.review == ReviewState.CHECK_FAILED)
                ).all()
                run = runs.get(session, run_id)
                by, most = run.requested_by, request_of(run.request).attempts
            for asset_id in failed:
                with suppress(RetakeRefused, TransitionRefused), store.database.transaction() as session:
                    if not runs.beat(session, run_id, phase="trying again"):
                        return []  # it was cancelled: nothing more is begun
                    asset = session.get_one(Asset, asset_id)
                    if len(asset.versions) < most and _may_help(asset):
                        plan = plan_retake(session, asset, Wishes())
                        retaking.begin(session, asset_id, plan.job, plan.changes, by, plan.seen_sha256)
                        runs.beat(session, run_id, pictures=Run.pictures + 1)  # of the day's
            with store.database.transaction() as session:
                if not runs.beat(session, run_id):
                    return []
                lost = (JobState.FAILED, JobState.CANCELLED)
                waits = select(Asset.job_key).join(Job, Job.key == Asset.job_key).where(Job.state.not_in(lost))
                ours = waits.where(Asset.campaign_id == campaign_id, Asset.review == ReviewState.DRAFT)
                return list(session.scalars(ours.distinct()))

    return await asyncio.to_thread(work)


def _may_help(asset: Asset) -> bool:
    """Whether another seed may pass where this one failed: a check that could not run fails with any."""
    checks = [] if asset.current is None else asset.current.checks
    return any(c.outcome is CheckOutcome.FAIL for c in checks)


@task(cache_policy=NO_CACHE, retries=2, retry_condition_fn=if_it_may_pass)
async def draw_sheet(run_id: uuid.UUID) -> str | None:
    """Draw what was made and end the run with it; a small picture for Prefect's UI. None where the run was cancelled."""

    def work() -> str | None:
        with open_store() as store:
            with store.database.transaction() as session:
                if not runs.beat(session, run_id, phase="drawing"):
                    return None
            told, files = conclude_sheet(store, run_id, engine(store.settings).encoder.sha256)
            made = any(cell["sha256"] for cell in told["cells"])
            off = [c["label"] for c in told["cells"] if not c["on_model"]]
            problem = f"off model or not made: {', '.join(off)}" if off else None
            with store.database.transaction() as session:
                name_blobs(session, files.stored, lambda sha256: files.put(store, sha256))
                ended = runs.end(
                    session, run_id, RunState.SUCCEEDED if made else RunState.FAILED, result=told, problem=problem
                )
            return preview_url(open_picture(store.blobs.get(told["files"]["png"])).image) if ended else None

    return await asyncio.to_thread(work)
