"""A campaign run: plan, submit jobs, have them made, put them into review, show them."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from sqlalchemy import func, select

from asset_store.errors import RunOver
from asset_store.repositories import runs
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, AssetVersion, Job, JobState, RunState
from flows import finishing
from flows.carrying import cancelled_at_prefect, carried, state_of
from flows.contact_sheet import campaign_sheet
from flows.making import make_all
from flows.parameters import Actor, BriefAsYaml, Name, Workers
from flows.planning import plan_campaign, submit_campaign
from flows.preview import preview_url
from flows.retrying import if_it_may_pass
from flows.spending import Purse
from flows.starting import BriefText, asked_of, campaign_of, start_campaign
from flows.wiring import engine, open_store

TRIGGER = "prefect"  # of a brief that was given to Prefect


@dataclass
class CampaignReport:
    """A run's outcome; `review` counts assets by their state."""

    campaign: str
    campaign_id: str
    pictures: int
    made: int
    reused: int
    review: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    contact_sheet: str | None = None
    engine_s: float = 0.0

    @classmethod
    def nothing(cls, submitted: Submitted | None) -> CampaignReport:
        """Of a run that was ended before it had made anything."""
        return (
            cls("", "", 0, 0, 0)
            if submitted is None
            else cls(submitted.campaign, str(submitted.campaign_id), submitted.pictures, 0, 0)
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@flow(name="run-campaign", flow_run_name="{brief_name}", on_cancellation=[cancelled_at_prefect])
async def run_campaign(
    brief: BriefAsYaml, brief_name: Name = "brief.yaml", by: Actor = "prefect", workers: Workers = 1,
    sheet: str | None = None, folder: str | None = None, reason: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Make what a brief asks for. Killed and started again it makes what is missing, nothing twice.

    Args:
        brief: The campaign as YAML.
        brief_name: What the brief is called where its mistakes are told.
        by: Who asks for it: they may not approve its pictures.
        workers: How many run inside this process; 0 leaves the work to `onmodel worker` processes elsewhere.
        sheet: Where to write the contact sheet PNG; it is an artifact of the run in any case.
        folder: Where the brief lies, for the control pictures that it names by a path.
        reason: What it is for; it stands in the lineage.
    """
    text = BriefText(brief, brief_name, folder)
    run_id = await asyncio.to_thread(_begun, text, by, reason)
    return await carry_campaign(run_id, workers, sheet)


@flow(name="make-campaign", flow_run_name="campaign-{run_id}", on_cancellation=[cancelled_at_prefect])
async def make_campaign(run_id: uuid.UUID, workers: Workers = 0, sheet: str | None = None) -> dict[str, Any]:
    """Carry a run that was asked for to its end. Killed and started again it makes what is missing, nothing twice.

    Args:
        run_id: The run, which says what is asked for, by whom and why.
        workers: How many run inside this process; 0 leaves the work to `onmodel worker` processes elsewhere.
        sheet: Where to write the contact sheet PNG; it is an artifact of the run in any case.
    """
    return await carry_campaign(run_id, workers, sheet)


def _begun(brief: BriefText, by: str, reason: str) -> uuid.UUID:
    _ = brief.parsed  # outside of the transaction
    with open_store() as store, store.database.transaction() as session:
        quota = store.settings.quota
        return start_campaign(session, brief, quota, by=by, trigger=TRIGGER, reason=reason, sent=True).id


async def carry_campaign(run_id: uuid.UUID, workers: int, sheet: str | None = None) -> dict[str, Any]:
    """Make the pictures of a run, within its budget; what came of it. `state` is the run's, `problem` why it failed."""
    result: CampaignReport | None = None
    purse = await asyncio.to_thread(_purse, run_id)
    async with carried(run_id, None if purse is None else purse.look):
        submitted = await submit(run_id)
        if submitted is not None:
            result = await _made(run_id, submitted, workers, sheet)
            await asyncio.to_thread(_conclude, run_id, result)
    told = await asyncio.to_thread(state_of, run_id)
    report = (result or CampaignReport.nothing(submitted)).as_json()
    return {**report, "run": told["run"], "state": told["state"], "problem": told["problem"]}


def _purse(run_id: uuid.UUID) -> Purse | None:
    with open_store() as store, store.database.transaction() as session:
        request = runs.get(session, run_id).request
    return Purse.of(asked_of(request))


async def _made(run_id: uuid.UUID, submitted: Submitted, workers: int, sheet: str | None) -> CampaignReport:
    campaign_id, keys = submitted.campaign_id, submitted.keys
    result = CampaignReport(submitted.campaign, str(campaign_id), submitted.pictures, 0, submitted.before)
    result.engine_s = await make_all(keys, workers)
    result.review, result.problems = await conclude(campaign_id, keys)
    result.made = sum(result.review.values()) - result.review.get(ReviewState.DRAFT, 0) - result.reused
    path, png_url = await asyncio.to_thread(_draw_sheet, campaign_id, sheet)
    result.contact_sheet = path
    if png_url is not None:
        await acreate_image_artifact(png_url, key="contact-sheet", description=f"Contact sheet of {result.campaign}")
    await acreate_markdown_artifact(_markdown(result), key="campaign-report", description=f"Run of {result.campaign}")
    return result


def _conclude(run_id: uuid.UUID, result: CampaignReport) -> None:
    """The end of the run with its report, unless it was ended meanwhile: cancelled, or stopped by its budget."""
    with open_store() as store, store.database.transaction() as session:
        problem = "; ".join(dict.fromkeys(result.problems))[:2000] or None
        nothing = sum(result.review.values()) == result.review.get(ReviewState.DRAFT, 0)
        state = RunState.FAILED if problem and nothing else RunState.SUCCEEDED
        if not runs.end(session, run_id, state, result=result.as_json(), problem=problem):
            runs.get(session, run_id).result = result.as_json()


@dataclass(frozen=True)
class Submitted:
    """What a campaign waits for; `before`: pictures that there were."""

    campaign: str
    campaign_id: uuid.UUID
    keys: list[str]
    pictures: int
    before: int


@task(retries=2, retry_delay_seconds=[1, 5], cache_policy=NO_CACHE, retry_condition_fn=if_it_may_pass)
async def submit(run_id: uuid.UUID) -> Submitted | None:
    """Plan the run's brief and queue its jobs. None where it was cancelled. BudgetSpent where it would make more than it may.

    Safe to repeat: job keys are unique.
    """
    return await asyncio.to_thread(_submitted, run_id, runtime.flow_run.get_id())


def _submitted(run_id: uuid.UUID, flow_run_id: str | None) -> Submitted | None:
    with open_store() as store:
        with store.database.transaction() as session:
            run = runs.get(session, run_id)
            request, by, reason, trigger = run.request, run.requested_by, run.reason, run.trigger
            if not runs.beat(session, run_id, phase="planning", flow_run_id=flow_run_id):
                return None
        asked, folder = asked_of(request), request.get("folder")
        plan = plan_campaign(store, campaign_of(request, asked), folder=None if folder is None else Path(folder))
        if (purse := Purse.of(asked)) is not None:
            with store.database.transaction() as session:
                purse.check_plan(session, runs.get(session, run_id), plan)
        try:
            campaign_id, keys = submit_campaign(store, plan, by=by, trigger=trigger, reason=reason, run_id=run_id)
        except RunOver:
            return None
        with store.database.transaction() as session:
            there = select(func.count(AssetVersion.asset_id.distinct())).join(Asset, Asset.id == AssetVersion.asset_id)
            before = session.scalars(there.where(Asset.campaign_id == campaign_id)).one()
        return Submitted(plan.brief.campaign, campaign_id, keys, len(plan.pictures), before)


@task(cache_policy=NO_CACHE, retries=2, retry_condition_fn=if_it_may_pass)
async def conclude(campaign_id: uuid.UUID, keys: list[str]) -> tuple[dict[str, int], list[str]]:
    """Give assets whose job was done before their version, then count where all of them stand."""

    def work() -> tuple[dict[str, int], list[str]]:
        with open_store() as store:
            attached = finishing.attach_waiting(store, keys, engine(store.settings))
            with store.database.transaction() as session:
                rows = session.execute(
                    select(Asset.review, func.count()).where(Asset.campaign_id == campaign_id).group_by(Asset.review)
                ).all()
                bad = session.scalars(select(Job).where(Job.key.in_(keys), Job.state != JobState.SUCCEEDED)).all()
            problems = [
                f"{j.state.value}: {j.evidence[-1].get('message', '') if j.evidence else 'no evidence'}" for j in bad
            ]
            return {state.value: count for state, count in rows}, [*problems, *attached.refused]

    return await asyncio.to_thread(work)


def _draw_sheet(campaign_id: uuid.UUID, path: str | None) -> tuple[str | None, str | None]:
    """Write the contact sheet; its path, and a data address that Prefect's UI can show."""
    with open_store() as store:
        sheet = campaign_sheet(store, campaign_id)
        if sheet is None:
            return None, None
        folder = store.settings.home / "sheets"
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(path) if path else folder / f"{campaign_id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target, optimize=True)
        return str(target), preview_url(sheet)


def _markdown(result: CampaignReport) -> str:
    lines = [
        f"# {result.campaign}",
        "",
        f"{result.pictures} pictures: {result.made} made, {result.reused} made before.",
    ]
    lines += [f"- {state}: {count}" for state, count in sorted(result.review.items())]
    lines += [f"- problem: {p}" for p in result.problems]
    return "\n".join(lines)
