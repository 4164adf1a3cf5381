"""A picture that was sent back, made anew by the engine from what was said of it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import select, update

from asset_store import audit
from asset_store.errors import FourEyes, RetakeRefused, TransitionRefused
from asset_store.lineage import record as lineage
from asset_store.reviewing import comments
from asset_store.reviewing.decide import decide
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, AssetVersion, Check, Job, LineageRecord, Verdict
from flows import recipes
from flows.campaign import run_campaign
from flows.retake_plan import Wishes, suggest
from flows.retaking import retake_asset, wish_for
from flows.sweep import sweep
from flows.wiring import engine, open_store
from flows.worker import Worker
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")

BRIEF = """\
campaign: one
brand: lumen
retakes: 2
checks: {identity_min: -1.0}
defaults: {steps: 2, scale: 0.8, size: 64x64}
shots:
  - {name: bo, character: Bo, prompt: a mascot on the beach, seeds: [5], references: [bo/front.png]}
"""


@pytest.fixture
def sent_back(ingested: Home) -> tuple[Home, uuid.UUID]:
    asyncio.run(run_campaign(BRIEF, "brief.yaml", "pat"))
    with ingested.database.transaction() as session:
        asset = session.scalars(select(Asset)).one()
        assert asset.current is not None
        pin = {"kind": "pin", "x": 0.5, "y": 0.25}
        comments.comment(session, asset.current.id, "grace", "with a smile.", region=pin)
        decide(session, asset.id, Verdict.REQUEST_CHANGES, "grace", "closer to the water", asset.current.sha256)
    return ingested, asset.id


def retake(asset_id: uuid.UUID, wishes: dict[str, Any] | None = None, by: str = "kim") -> dict[str, Any]:
    return asyncio.run(retake_asset(asset_id, wishes, by))


def asset_of(home: Home, asset_id: uuid.UUID) -> Asset:
    with home.database.transaction() as session:
        asset = session.get_one(Asset, asset_id)
        _ = asset.versions, [v.checks for v in asset.versions]
        return asset


def test_what_was_said_becomes_the_next_version_of_the_same_asset(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    made = retake(id_)
    changes = {c["name"]: c["after"] for c in made["changes"]}
    assert changes.keys() == {"prompt", "seed"}
    assert changes["prompt"] == "a mascot on the beach, with a smile, closer to the water"
    asset = asset_of(home, id_)
    first, second = asset.versions
    assert (second.number, second.parent_id) == (2, first.id)
    assert second.sha256 != first.sha256
    assert asset.review in (ReviewState.IN_REVIEW, ReviewState.CHECK_FAILED)
    assert made["review"] == asset.review
    with home.database.transaction() as session:
        record = session.scalars(select(LineageRecord.record).where(LineageRecord.version_id == second.id)).one()
        assert lineage.verify_chain(session).ok
        assert audit.verify(session).ok
        with pytest.raises(FourEyes, match="made anew"):
            decide(session, id_, Verdict.APPROVE, "kim", "", second.sha256)
    assert record["retake"]["parent"] == str(first.id)
    assert record["retake"]["by"] == "kim"
    assert len(record["retake"]["comments"]) == 1
    assert record["settings"]["prompt"] == changes["prompt"]


def test_the_campaign_again_keeps_what_was_made_anew(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    retake(id_)
    report = asyncio.run(run_campaign(BRIEF, "brief.yaml", "pat"))
    assert (report["pictures"], report["made"], report["reused"], report["problems"]) == (1, 0, 1, [])
    assert len(asset_of(home, id_).versions) == 2


def test_only_what_is_wished_changes_and_it_is_shown_before_it_runs(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    plan = wish_for(id_, Wishes(scale=1.1, same_seed=True))
    assert [c.as_json() for c in plan.changes] == [{"name": "scale", "before": 0.8, "after": 1.1}]
    assert (plan.number, plan.most) == (1, 2)
    assert asset_of(home, id_).review is ReviewState.CHANGES_REQUESTED
    with pytest.raises(RetakeRefused, match="nothing is changed"):
        wish_for(id_, Wishes(same_seed=True))
    other = [wish_for(id_, Wishes()).job.recipe["seed"] for _ in range(3)]
    assert len({*other, 5}) == 4


def test_where_the_job_is_queued_is_where_the_engine_would_queue_it(sent_back: tuple[Home, uuid.UUID]) -> None:
    _, id_ = sent_back
    plan = wish_for(id_, Wishes(steps=3, scale=1.1))
    with open_store() as store:
        assert plan.job.batch_key == recipes.batch_key(engine(store.settings), plan.job.recipe)
        assert "/3/" in plan.job.batch_key


def test_a_doubtful_identity_raises_the_scale(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    with home.database.transaction() as session:
        asset = session.get_one(Asset, id_)
        assert asset.current is not None
        assert suggest(session, asset).scale is None
        session.connection().exec_driver_sql("ALTER TABLE checks DISABLE TRIGGER append_only")
        session.execute(update(Check).where(Check.name == "identity").values(outcome="fail"))
        session.connection().exec_driver_sql("ALTER TABLE checks ENABLE ALWAYS TRIGGER append_only")
        session.expire_all()
        assert suggest(session, session.get_one(Asset, id_)).scale == pytest.approx(0.95)
        session.rollback()


def test_a_retake_whose_process_died_is_made_by_the_next_worker(sent_back: tuple[Home, uuid.UUID]) -> None:
    """Begun and not made: the job waits in the table like any other, and the sweep attaches what was made meanwhile."""
    home, id_ = sent_back
    plan = wish_for(id_, None)
    with home.database.transaction() as session:
        from asset_store.reviewing import retaking

        retaking.begin(session, id_, plan.job, plan.changes, "kim", plan.seen_sha256)
    with open_store() as store:
        worker = Worker(store, engine(store.settings))

        def made() -> bool:
            with home.database.transaction() as session:
                return session.get_one(Job, plan.job.key).state == "succeeded"

        worker.run(until=made)
    asyncio.run(sweep())
    assert [v.number for v in asset_of(home, id_).versions] == [1, 2]


def test_what_waits_for_review_is_not_made_anew(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    retake(id_)
    with home.database.transaction() as session:
        count = len(session.scalars(select(AssetVersion)).all())
    if asset_of(home, id_).review is ReviewState.IN_REVIEW:
        with pytest.raises(TransitionRefused):
            retake(id_)
    with home.database.transaction() as session:
        assert len(session.scalars(select(AssetVersion)).all()) == count
