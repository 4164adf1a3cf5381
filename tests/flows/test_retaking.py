"""A picture that was sent back, made anew by the engine from what was said of it."""

from __future__ import annotations

import asyncio
import io
import uuid
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sqlalchemy import select, update

from asset_store import audit
from asset_store.errors import FourEyes, RetakeRefused, TransitionRefused
from asset_store.lineage import record as lineage
from asset_store.reviewing import comments
from asset_store.reviewing.decide import GUEST, decide
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, AssetVersion, Check, Job, LineageRecord, Verdict
from flows import recipe_keys, recipes
from flows.campaign import run_campaign
from flows.repainting import Repaint, mask_of_places
from flows.retake_plan import Wishes, placed, plan_retake, suggest
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


def stored(sha256: str) -> np.ndarray:
    with open_store() as store:
        return np.asarray(Image.open(io.BytesIO(store.blobs.get(sha256))))


BOX = {"kind": "box", "x": 0.5, "y": 0.0, "width": 0.5, "height": 0.5}


def test_what_is_marked_is_repainted_and_the_rest_stays(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    with home.database.transaction() as session:
        current = session.get_one(Asset, id_).current
        assert current is not None
        comments.comment(session, current.id, "grace", "two ears", region=BOX)
        comments.comment(session, current.id, f"{GUEST}mallory", "all of it", region={**BOX, "x": 0.0})
    plan = wish_for(id_, None)
    told = {c.name: c.after for c in plan.changes}
    assert told.keys() == {"prompt", "seed", "source"}
    assert told["source"] == "version 1, strength 0.75, repainted within a marked place"
    assert plan.repaint == Repaint(places=[BOX])
    made = retake(id_)
    assert made["problems"] == []
    first, second = asset_of(home, id_).versions
    pixels = [stored(v.sha256).astype(np.float32) for v in (first, second)]
    changed = np.abs(pixels[0] - pixels[1]).mean(-1)
    inside, outside = changed[:28, 36:].mean(), changed[36:].mean()
    assert inside > 5 * outside
    with home.database.transaction() as session:
        record = session.scalars(select(LineageRecord.record).where(LineageRecord.version_id == second.id)).one()
        assert session.get_one(Job, made["job"]).recipe["source"]["sha256"] == first.sha256
    source = record["settings"]["source"]
    assert (source["picture"], source["mask"], source["strength"]) == ("version 1", "a marked place", 0.75)
    assert np.array_equal(stored(source["mask_sha256"]) > 0, np.pad(np.ones((32, 32), bool), ((0, 32), (32, 0))))

    with home.database.transaction() as session:
        decide(session, id_, Verdict.REQUEST_CHANGES, "grace", "no, another one", second.sha256)
    whole = wish_for(id_, None)
    assert "source" not in whole.job.recipe  # nothing is marked in it
    assert whole.job.recipe["recipe"] == recipe_keys.PLAIN
    assert {c.name: c.after for c in whole.changes}["source"] is None


def test_the_whole_picture_is_made_anew_on_demand(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    with home.database.transaction() as session:
        asset = session.get_one(Asset, id_)
        with pytest.raises(RetakeRefused, match="no place is marked"):
            placed(session, asset, None, repaint=True, strength=None)  # a pin is no area
        assert asset.current is not None
        comments.comment(session, asset.current.id, "grace", "two ears", region=BOX)
        whole = placed(session, asset, None, repaint=False, strength=None)
        assert (whole.repaint, whole.prompt) == (None, suggest(session, asset).prompt)
        assert placed(session, asset, Wishes(scale=1.0), repaint=None, strength=0.4) == Wishes(
            scale=1.0, repaint=Repaint(places=[BOX], strength=0.4)
        )
    everywhere = Repaint(places=[{"kind": "box", "x": 0, "y": 0, "width": 1, "height": 1}])
    with pytest.raises(RetakeRefused, match="the whole picture"):
        wish_for(id_, Wishes(repaint=everywhere))
    with home.database.transaction() as session:
        asset = session.get_one(Asset, id_)
        assert asset.current is not None
        comments.comment(session, asset.current.id, "grace", "all wrong", region=everywhere.places[0])
        assert suggest(session, asset).repaint is None  # what can only be made anew as a whole is not refused


def test_a_family_that_starts_from_no_picture_repaints_none(sent_back: tuple[Home, uuid.UUID]) -> None:
    home, id_ = sent_back
    with home.database.transaction() as session:
        asset = session.get_one(Asset, id_)
        assert asset.current is not None
        comments.comment(session, asset.current.id, "grace", "two ears", region=BOX)
        job = session.get_one(Job, asset.current.job_key)
        job.recipe = {**job.recipe, "family": "kontext"}
        session.flush()
        assert suggest(session, asset).repaint is None
        with pytest.raises(RetakeRefused, match="family kontext cannot be repainted"):
            plan_retake(session, asset, Wishes(repaint=Repaint(places=[BOX])))
        session.rollback()


def test_boxes_and_drawings_become_a_mask() -> None:
    drawing = {"kind": "path", "points": [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]}
    stroke = {"kind": "path", "points": [[0.1, 0.9], [0.9, 0.9]]}
    speck = {"kind": "box", "x": 0.0, "y": 0.0, "width": 0.001, "height": 0.001}
    for place, white, black in (
        (drawing, [(50, 50), (20, 20), (80, 79)], [(10, 50), (90, 50)]),  # with what it goes around
        (stroke, [(50, 90), (10, 90)], [(50, 80), (50, 97)]),
        (speck, [(2, 2)], [(12, 12)]),  # less would be lost
    ):
        mask = np.asarray(Image.open(io.BytesIO(mask_of_places([place], 100, 100))))
        assert all(mask[y, x] == 255 for x, y in white), place
        assert all(mask[y, x] == 0 for x, y in black), place
    with pytest.raises(ValidationError, match="a pin is no area"):
        Repaint(places=[{"kind": "pin", "x": 0.5, "y": 0.5}])
    with pytest.raises(ValidationError, match="box leaves the picture"):
        Repaint(places=[{**BOX, "x": 0.9}])


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
