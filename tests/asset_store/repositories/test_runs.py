"""Runs: quotas, flows that are lost, ends that stand, and cancelling what nobody else waits for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, QuotaSpent, RunOver
from asset_store.repositories import runs
from asset_store.repositories.runs import Quota, Wanted
from asset_store.tables import Asset, AuditRow, Job, JobState, Run, RunKind, RunState
from tests.stories import a_brand, a_campaign, an_asset


def wanted(session: Session, pictures: int = 4, by: str = "ada", brand: str = "bobo") -> Wanted:
    return Wanted(RunKind.SHEET, a_brand(session, brand), {"views": ["front"]}, pictures, by, "for the book", "api")


def a_run(session: Session, **asked: Any) -> Run:
    return runs.begin(session, wanted(session, **asked), Quota())


def later(session: Session, run: Run, column: str, seconds: float) -> None:
    """As if this had happened so long ago."""
    moment = func.now() - timedelta(seconds=seconds)
    session.execute(update(Run).where(Run.id == run.id).values({column: moment}))
    session.expire_all()


def test_what_is_asked_for_is_on_record_with_who_why_and_how(session: Session) -> None:
    run = a_run(session)
    told = session.scalars(select(AuditRow).where(AuditRow.action == "start run")).one()
    assert (told.actor, told.subject) == ("ada", f"run {run.id}")
    assert told.detail == {
        "kind": "character sheet",
        "brand": "bobo",
        "pictures": 4,
        "reason": "for the book",
        "trigger": "api",
    }


def test_quotas_are_of_a_day_by_brand_and_by_who_asks(session: Session) -> None:
    quota = Quota(of_brand=10, of_asker=6)
    first = runs.begin(session, wanted(session, 4), quota)
    with pytest.raises(QuotaSpent, match="ada has left: 2 of 6") as spent:
        runs.begin(session, wanted(session, 4), quota)
    assert 86_000 < spent.value.wait_s <= 86_400
    runs.begin(session, wanted(session, 6, by="max"), quota)
    with pytest.raises(QuotaSpent, match="brand bobo has left: 0 of 10"):
        runs.begin(session, wanted(session, 1, by="zoe"), quota)
    runs.begin(session, wanted(session, 6, by="zoe", brand="other"), quota)
    later(session, first, "made_at", 86_000)
    with pytest.raises(QuotaSpent) as spent:
        runs.begin(session, wanted(session, 4), quota)
    assert 390 < spent.value.wait_s <= 401
    later(session, first, "made_at", 86_401)
    runs.begin(session, wanted(session, 4), quota)
    with pytest.raises(QuotaSpent) as spent:
        runs.begin(session, wanted(session, 7, by="eve", brand="third"), quota)  # more than a whole day has
    assert spent.value.wait_s == 86_400


def test_a_run_is_taken_once_and_again_when_its_flow_is_lost(session: Session) -> None:
    run = a_run(session)
    assert runs.take(session) == (run, 0)
    assert runs.take(session) is None
    later(session, run, "sent_at", 1000)
    assert runs.take(session) == (run, 1)
    assert run.sent == 1  # it may wait for its turn: it is asked for again, and is the same
    assert runs.beat(session, run.id, phase="making")
    later(session, run, "sent_at", 1000)
    assert runs.take(session) is None  # it is alive
    later(session, run, "beat_at", 121)
    assert runs.take(session) == (run, 1)
    assert (run.sent, run.beat_at) == (2, None)
    runs.unsend(session, run.id, 1)
    session.expire_all()
    assert run.sent == 1
    later(session, run, "first_sent_at", 3700)
    later(session, run, "sent_at", 121)
    assert runs.take(session) == (run, 1)
    assert run.sent == 2  # nothing began within an hour
    run.sent = runs.MOST_SENT
    session.flush()
    later(session, run, "first_sent_at", 20_000)
    later(session, run, "sent_at", 121)
    assert runs.take(session) is None
    assert (run.state, run.problem) == (RunState.FAILED, "its flow was lost 5 times")


def test_a_run_that_waited_for_days_before_it_was_sent_has_its_hour_like_any_other(session: Session) -> None:
    run = a_run(session)
    later(session, run, "made_at", 500_000)
    assert runs.take(session) == (run, 0)
    for _ in range(3):
        later(session, run, "sent_at", 121)
        assert runs.take(session) == (run, 1)
    assert run.sent == 1


def test_a_run_that_ends_takes_no_pictures_from_another_of_the_same_campaign(session: Session) -> None:
    mine, theirs = a_run(session), a_run(session, by="max")
    asset = an_asset(session, a_campaign(session))
    for run in (mine, theirs):
        assert runs.beat(session, run.id, campaign_id=asset.campaign_id)
    job = session.get_one(Job, asset.job_key)
    job.state = JobState.QUEUED
    session.flush()
    runs.cancel(session, mine.id, "ada")
    assert job.state is JobState.QUEUED
    runs.cancel(session, theirs.id, "max")
    assert job.state is JobState.CANCELLED


def test_one_that_its_caller_carries_is_not_taken(session: Session) -> None:
    runs.begin(session, wanted(session), Quota(), sent=True)
    assert runs.take(session) is None


def test_the_first_end_stands(session: Session) -> None:
    run = a_run(session)
    assert runs.end(session, run.id, RunState.SUCCEEDED, result={"files": {}})
    assert not runs.end(session, run.id, RunState.FAILED, problem="late")
    assert not runs.beat(session, run.id, phase="making")
    session.expire_all()
    assert (run.state, run.problem, run.phase) == (RunState.SUCCEEDED, None, "succeeded")
    with pytest.raises(RunOver, match="succeeded already"):
        runs.cancel(session, run.id, "ada")


def test_cancelling_ends_the_jobs_that_nobody_else_waits_for(session: Session) -> None:
    run, mine, theirs = a_run(session), a_campaign(session), a_campaign(session, "autumn")
    own, shared, done = (an_asset(session, mine, with_version=False) for _ in range(3))
    other = an_asset(session, theirs, with_version=False)
    other.job_key = shared.job_key
    states = {own: JobState.RUNNING, shared: JobState.QUEUED, done: JobState.SUCCEEDED}
    for asset, state in states.items():
        session.execute(update(Job).where(Job.key == asset.job_key).values(state=state))
    session.flush()
    session.expire_all()
    runs.beat(session, run.id, campaign_id=mine.id)
    cancelled = runs.cancel(session, run.id, "max")
    assert (cancelled.state, cancelled.phase) == (RunState.CANCELLED, "cancelled")
    assert runs.cancel(session, run.id, "max") is cancelled  # again: nothing happens
    found = {asset.id: session.get_one(Job, asset.job_key, populate_existing=True) for asset in states}
    assert [found[a.id].state for a in states] == [JobState.CANCELLED, JobState.QUEUED, JobState.SUCCEEDED]
    assert found[own.id].evidence[-1]["message"] == "max cancelled the run"
    assert session.scalars(select(AuditRow.detail).where(AuditRow.action == "cancel run")).all() == [{"jobs": 1}]


def test_pages_are_of_the_brands_that_may_be_seen(session: Session) -> None:
    made = {a_run(session).id for _ in range(3)}
    a_run(session, brand="other")
    first = runs.page(session, [a_brand(session).id], None, 2)
    second = runs.page(session, [a_brand(session).id], first.next_after, 2)
    assert {run.id for run in first.runs + second.runs} == made
    assert (second.next_after, len(runs.page(session, None).runs)) == (None, 4)
    assert runs.page(session, []).runs == ()
    with pytest.raises(NotFound):
        runs.page(session, None, "nonsense")


def test_there_is_no_run_of_that_id(session: Session) -> None:
    run = a_run(session)
    session.delete(run)
    session.flush()
    for act in (runs.get, lambda s, id_: runs.cancel(s, id_, "ada")):
        with pytest.raises(NotFound, match="run"):
            act(session, run.id)


def test_an_asset_of_a_run_says_so_in_its_campaign(session: Session) -> None:
    assert session.get_one(Asset, an_asset(session).id).campaign.reason == ""
