"""The calendar beneath: Prefect's schedules are made from the database, its runs act on them, budgets hold while pictures are made."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from sqlalchemy import func, select, update

from asset_store.errors import BudgetSpent
from asset_store.repositories import runs, schedules
from asset_store.tables import Asset, AuditRow, Campaign, CampaignSchedule, Job, JobState, Run, RunState
from flows import dispatch
from flows.campaign import make_campaign, run_campaign
from flows.character_sheet import make_character_sheet
from flows.prefect_schedules import Reconciled, reconcile
from flows.scheduled import act_on_schedule
from flows.scheduling import schedule_campaign
from flows.settings import QuotaSettings
from flows.starting import BriefText, start_campaign
from flows.wiring import engine, open_store
from flows.worker import Worker
from tests.studio_home import Home

BRIEF = """\
campaign: weekly
brand: lumen
seed: 3
defaults: {steps: 2, size: 64x64}
schedule: {cron: 0 9 * * mon, time_zone: Europe/Berlin}
shots:
  - {name: pip, character: Pip, prompt: "a mascot, waving, {date}", variants: 2}
"""
FREE = QuotaSettings(brand=None, asker=None)


def kept(home: Home, brief: str = BRIEF, name: str = "weekly") -> uuid.UUID:
    with home.database.transaction() as session:
        text = BriefText(brief.replace("campaign: weekly", f"campaign: {name}"))
        return schedule_campaign(session, text, datetime.now(UTC), by="pat", reason="the newsletter").id


def unserved() -> None:
    with get_client(sync_client=True) as client:
        for found in client.read_deployments():
            client.delete_deployment(found.id)


@pytest.fixture
def served(ingested: Home) -> Home:
    """The deployment that Prefect's schedules belong to, new."""
    unserved()

    async def apply() -> None:
        deployment: Any = await act_on_schedule.ato_deployment("onmodel")
        await deployment.aapply()

    asyncio.run(apply())
    return ingested


def at_prefect() -> dict[str, tuple[Any, bool]]:
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(dispatch.ACT)
        return {s.slug: (s.schedule, s.active) for s in client.read_deployment_schedules(deployment.id) if s.slug}


def test_prefects_schedules_become_what_the_database_says_and_are_made_again_when_lost(served: Home) -> None:
    first = str(kept(served))
    second = str(kept(served, BRIEF.replace("cron: 0 9 * * mon", "every: 2 weeks, start: 2026-01-05 09:00"), "other"))
    with open_store() as store:
        assert reconcile(store) == Reconciled(made=2, changed=0, removed=0)
        assert reconcile(store) == Reconciled(0, 0, 0)
        there = at_prefect()
        assert (there[first][0].cron, there[first][0].timezone, there[first][1]) == (
            "0 9 * * mon",
            "Europe/Berlin",
            True,
        )
        assert there[second][0].interval == timedelta(weeks=2)
        with store.database.transaction() as session:
            schedules.pause(session, schedules.named(session, "weekly"), "pat", datetime.now(UTC))
            schedules.end(session, schedules.named(session, "other"), "pat", datetime.now(UTC))
        assert reconcile(store) == Reconciled(made=0, changed=1, removed=1)
        assert {slug: active for slug, (_, active) in at_prefect().items()} == {first: False}
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(dispatch.ACT)
            for found in client.read_deployment_schedules(deployment.id):
                client.delete_deployment_schedule(deployment.id, found.id)
        assert reconcile(store) == Reconciled(made=1, changed=0, removed=0)


def test_while_nothing_is_served_there_is_nothing_to_make(ingested: Home) -> None:
    unserved()
    with open_store() as store:
        assert reconcile(store) is None


def test_prefects_run_of_a_schedule_starts_its_campaign_once(served: Home) -> None:
    schedule_id = kept(served)
    with served.database.transaction() as session:
        session.execute(update(CampaignSchedule).values(looked_until=datetime.now(UTC) - timedelta(days=8)))
    started = asyncio.run(act_on_schedule(schedule_id, "lumen/weekly"))
    assert len(started) == 1
    assert asyncio.run(act_on_schedule(schedule_id, "lumen/weekly")) == []
    report = asyncio.run(make_campaign(uuid.UUID(started[0]), 1))
    with served.database.transaction() as session:
        run = session.get_one(Run, uuid.UUID(started[0]))
        campaign = session.get_one(Campaign, run.campaign_id)
        assert run.due_at is not None
        day = run.due_at.strftime("%Y-%m-%d")
        assert (report["state"], report["made"], campaign.name) == ("succeeded", 2, f"weekly-{day}")
        assert (campaign.requested_by, campaign.trigger, campaign.reason) == ("pat", "schedule", "the newsletter")
        assert (run.made_pictures, run.gpu_s > 0, run.state) == (2, True, RunState.SUCCEEDED)
        prompts = session.scalars(select(Job.recipe["prompt"].astext)).all()
    assert set(prompts) == {f"a mascot, waving, {day}"}


# ---------------------------------------------------------------------------- runs of campaigns

PLAIN = BRIEF.replace("schedule: {cron: 0 9 * * mon, time_zone: Europe/Berlin}\n", "").replace(", {date}", "")


def begun(home: Home, brief: str = PLAIN) -> uuid.UUID:
    with home.database.transaction() as session:
        return start_campaign(session, BriefText(brief), FREE, by="pat", trigger="api", reason="r", sent=True).id


def run_of(home: Home, run_id: uuid.UUID) -> Run:
    with home.database.transaction() as session:
        return session.get_one(Run, run_id)


def test_a_campaign_that_would_make_more_than_its_budget_makes_nothing(ingested: Home) -> None:
    run_id = begun(ingested, PLAIN + "budget: {pictures: 1}\n")
    with pytest.raises(BudgetSpent, match="2 of 1 pictures: its budget is 1 pictures a run"):
        asyncio.run(make_campaign(run_id, 1))
    run = run_of(ingested, run_id)
    assert (run.state, run.made_pictures) == (RunState.FAILED, 0)
    assert "its budget is 1 pictures a run" in (run.problem or "")
    with ingested.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Asset)) == 0


def test_what_is_there_already_costs_no_budget(ingested: Home) -> None:
    asyncio.run(make_campaign(begun(ingested), 1))
    again = begun(ingested, PLAIN + "budget: {pictures: 1}\n")
    assert asyncio.run(make_campaign(again, 1))["state"] == "succeeded"
    assert run_of(ingested, again).made_pictures == 0


def test_when_the_gpu_seconds_are_spent_the_rest_is_not_made(ingested: Home) -> None:
    """The worker makes one picture at a time, so that the budget is spent between two of them."""
    many = PLAIN.replace("variants: 2", "variants: 60").replace("steps: 2", "steps: 12")
    run_id = begun(ingested, many + "budget: {gpu_seconds: 0.01}\n")
    with open_store() as store:
        worker = Worker(store, engine(store.settings), batch_size=1)
        over = {"until": lambda: run_of(ingested, run_id).finished_at is not None}
        thread = threading.Thread(target=worker.run, kwargs=over)
        thread.start()
        try:
            report = asyncio.run(make_campaign(run_id, 0))
        finally:
            worker.stop()
            thread.join(60)
    run = run_of(ingested, run_id)
    assert (run.state, report["state"]) == (RunState.FAILED, "failed")
    assert (run.problem or "").startswith("stopped: the GPU seconds of its budget (0.01 GPU seconds a run) are spent")
    assert 0 < run.made_pictures < 60
    with ingested.database.transaction() as session:
        assert (session.scalar(select(func.count()).where(Job.state == JobState.CANCELLED)) or 0) > 0


def test_a_campaign_that_is_cancelled_stops_and_says_so(ingested: Home) -> None:
    run_id = begun(ingested, PLAIN.replace("variants: 2", "variants: 200"))

    def cancel() -> None:
        while run_of(ingested, run_id).phase != "making":
            time.sleep(0.05)
        with ingested.database.transaction() as session:
            runs.cancel(session, run_id, "max")

    thread = threading.Thread(target=cancel)
    thread.start()
    report = asyncio.run(make_campaign(run_id, 1))
    thread.join()
    assert (run_of(ingested, run_id).state, report["state"]) == (RunState.CANCELLED, "cancelled")
    with ingested.database.transaction() as session:
        assert (session.scalar(select(func.count()).where(Job.state == JobState.CANCELLED)) or 0) > 100


def test_whoever_runs_a_brief_leaves_a_run_with_what_came_of_it(ingested: Home) -> None:
    report = asyncio.run(run_campaign(PLAIN, "brief.yaml", reason="by hand"))
    run = run_of(ingested, uuid.UUID(report["run"]))
    assert (run.trigger, run.requested_by, run.reason, run.state) == (
        "prefect",
        "prefect",
        "by hand",
        RunState.SUCCEEDED,
    )
    assert run.result is not None
    assert (run.result["made"], run.result["campaign"]) == (2, "weekly")


@pytest.mark.parametrize("flow", [make_campaign, run_campaign, make_character_sheet])
def test_who_cancels_the_flow_run_at_prefect_cancels_the_run(ingested: Home, flow: Any) -> None:
    run_id, flow_run_id = begun(ingested), uuid.uuid4()
    with ingested.database.transaction() as session:
        runs.beat(session, run_id, flow_run_id=str(flow_run_id))
    for hook in flow.on_cancellation_hooks:
        hook(flow, SimpleNamespace(id=flow_run_id), None)
        hook(flow, SimpleNamespace(id=uuid.uuid4()), None)  # of a flow run that carries none
    assert run_of(ingested, run_id).state is RunState.CANCELLED
    with ingested.database.transaction() as session:
        assert session.scalars(select(AuditRow.actor).where(AuditRow.action == "cancel run")).all() == ["prefect"]
