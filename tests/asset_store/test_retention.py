"""Rejected pictures whose time is over: their bytes go, unless something else names them; their rows stay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit, retention
from asset_store.database import Database
from asset_store.errors import TransitionRefused
from asset_store.lineage import record as lineage
from asset_store.lineage.tree import tree_of
from asset_store.repositories import jobs as job_table
from asset_store.repositories.jobs import NewJob
from asset_store.retention import Policy
from asset_store.reviewing import decide, similar
from asset_store.tables import (
    Asset,
    AuditRow,
    Delivery,
    Job,
    JobState,
    Preset,
    Removal,
    RemovedBlob,
    Run,
    RunKind,
    RunState,
    Verdict,
)
from tests.stories import (
    a_brand,
    a_campaign,
    a_job,
    a_reference,
    a_sha256,
    a_version,
    an_asset,
    an_asset_in_review,
    approve,
    picture_of,
    what_was_trained,
)

MONTH = Policy(30)
SOON, LATER = datetime.now(UTC) + timedelta(days=29), datetime.now(UTC) + timedelta(days=31)


def rejected(session: Session, picture: str | None = None, **more: Any) -> Asset:
    """An asset that was rejected now, whose job names its picture."""
    asset = an_asset_in_review(session, picture=picture, **more)
    decide.decide(session, asset.id, Verdict.REJECT, "grace", "three ears", picture_of(asset))
    job = session.get_one(Job, asset.job_key)
    job.picture_sha256, job.picture = picture_of(asset), {"sha256": picture_of(asset), "run": {}}
    session.flush()
    return asset


def removed(session: Session, now: datetime = LATER) -> int:
    return retention.remove(session, retention.due(session, MONTH, now).removed, MONTH, "flow:sweep", now)


def test_what_stood_rejected_for_so_long_is_removed_and_its_rows_stay(session: Session) -> None:
    asset = rejected(session)
    assert retention.due(session, MONTH, SOON).removed == ()
    assert retention.due(session, MONTH, LATER).removed == (picture_of(asset),)
    assert removed(session) == 1
    assert removed(session) == 0
    (row,) = session.scalars(select(Removal)).all()
    assert (row.version_id, row.policy, row.by) == (
        asset.current and asset.current.id,
        "rejected for 30 days",
        "flow:sweep",
    )
    assert session.scalars(select(RemovedBlob.sha256)).all() == [picture_of(asset)]
    session.refresh(asset)
    assert asset.removed_at == LATER
    (version,) = tree_of(session, asset).as_json()["versions"]
    assert version["removed"] == {"policy": "rejected for 30 days", "by": "flow:sweep", "at": LATER.isoformat()}
    assert [d["verdict"] for d in version["decisions"]] == ["reject"]
    assert version["checks"]
    told = session.scalars(select(AuditRow).where(AuditRow.action == retention.ACTION)).one()
    assert (told.actor, told.subject, told.detail["sha256s"]) == (
        "flow:sweep",
        f"asset {asset.id}",
        [picture_of(asset)],
    )
    assert audit.verify(session).ok
    assert lineage.verify_chain(session).ok


def test_the_time_is_of_the_newest_rejection(session: Session) -> None:
    asset = rejected(session)
    decide.reopen(session, asset.id, "lena", "another look")
    assert retention.due(session, MONTH, LATER) == retention.Due((), ())
    decide.decide(session, asset.id, Verdict.REJECT, "grace", "no", picture_of(asset))
    (again,) = [d for d in session.get_one(Asset, asset.id).current.decisions if d.reason == "no"]  # type: ignore[union-attr]
    assert retention.due(session, MONTH, again.made_at + timedelta(days=30)).removed == (picture_of(asset),)
    assert retention.due(session, MONTH, again.made_at + timedelta(days=29)).removed == ()


def test_all_versions_of_a_rejected_asset_are_removed(session: Session) -> None:
    asset = an_asset(session)
    first = picture_of(asset)
    a_version(session, asset)
    decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [decide.CheckResult("a", decide.CheckOutcome.PASS, "", "1")])
    decide.decide(session, asset.id, Verdict.REJECT, "grace", "three ears", picture_of(asset))
    assert retention.due(session, MONTH, LATER).removed == tuple(sorted([first, picture_of(asset)]))
    assert removed(session) == 2


def by_an_approved_asset(session: Session, sha256: str) -> None:
    approve(session, an_asset_in_review(session, picture=sha256))


def by_an_asset_in_review(session: Session, sha256: str) -> None:
    an_asset_in_review(session, picture=sha256)


def by_a_reference(session: Session, sha256: str) -> None:
    a_reference(session).sha256 = sha256


def by_a_training_set(session: Session, sha256: str) -> None:
    reference = a_reference(session)
    reference.sha256 = sha256
    what_was_trained(session, reference)


def by_a_control(session: Session, sha256: str) -> None:
    job = a_job(session)
    job.recipe = {**job.recipe, "controls": [{"kind": "pose", "sha256": sha256}]}


def by_a_candidate_list_of_a_kept_picture(session: Session, sha256: str) -> None:
    asset = an_asset_in_review(session)
    job = session.get_one(Job, asset.job_key)
    kept = picture_of(asset)
    job.picture_sha256, job.picture = kept, {"run": {"candidates": [{"sha256": kept}, {"sha256": sha256}]}}


def by_a_preset(session: Session, sha256: str) -> None:
    what_was_trained(session, a_reference(session))
    preset = session.scalars(select(Preset)).one()
    session.add(
        Preset(character_id=preset.character_id, models_sha256=preset.models_sha256, version=2, scale=1.0, window_start=0.0,
               window_end=1.0, target={}, curve=[], picture_sha256=sha256, made_by="ada")
    )  # fmt: skip


def by_a_sheet(session: Session, sha256: str) -> None:
    session.add(
        Run(kind=RunKind.SHEET, brand_id=a_brand(session).id, request={}, pictures=1, requested_by="ada", reason="", trigger="api",
            state=RunState.SUCCEEDED, result={"files": {"png": a_sha256("sheet")}, "cells": [{"sha256": sha256}]})
    )  # fmt: skip


def by_a_delivery(session: Session, sha256: str) -> None:
    asset = an_asset_in_review(session)
    assert asset.current is not None
    session.add(
        Delivery(version_id=asset.current.id, channel="web", address="s3://shop/a.png", rendition="full size", sha256=sha256, by="r")
    )  # fmt: skip


def by_a_job_that_no_asset_waited_for(session: Session, sha256: str) -> None:
    a_job(session).picture_sha256 = sha256


def by_an_asset_that_waits_for_its_job(session: Session, sha256: str) -> None:
    job = session.scalars(select(Job).where(Job.picture_sha256 == sha256)).one()
    session.add(Asset(campaign=a_campaign(session, "again"), shot="one", variant=0, job_key=job.key))


@pytest.mark.parametrize(
    "named",
    [
        by_an_approved_asset, by_an_asset_in_review, by_a_reference, by_a_training_set, by_a_control,
        by_a_candidate_list_of_a_kept_picture, by_a_preset, by_a_sheet, by_a_delivery, by_a_job_that_no_asset_waited_for,
        by_an_asset_that_waits_for_its_job,
    ],
)  # fmt: skip
def test_bytes_that_something_else_names_are_never_removed(
    session: Session, named: Callable[[Session, str], None]
) -> None:
    sha256 = picture_of(rejected(session))
    named(session, sha256)
    session.flush()
    assert retention.due(session, MONTH, LATER) == retention.Due((), (sha256,))
    assert retention.remove(session, [sha256], MONTH, "flow:sweep", LATER) == 0
    assert session.scalars(select(RemovedBlob)).all() == []


def test_a_picture_of_two_assets_is_removed_when_both_are_due(session: Session) -> None:
    first = rejected(session)
    second = an_asset_in_review(session, picture=picture_of(first))
    assert removed(session) == 0
    decide.decide(session, second.id, Verdict.REJECT, "grace", "no", picture_of(second))
    assert removed(session) == 2
    assert len(session.scalars(select(RemovedBlob)).all()) == 1


def test_candidates_that_were_not_kept_go_with_the_picture(session: Session) -> None:
    asset = rejected(session)
    job = session.get_one(Job, asset.job_key)
    mine, other = a_sha256("a candidate"), a_sha256("one that is a reference")
    a_reference(session).sha256 = other
    job.picture = {"run": {"candidates": [{"sha256": s} for s in (picture_of(asset), mine, other)]}}
    session.flush()
    assert removed(session) == 1
    assert set(session.scalars(select(RemovedBlob.sha256))) == {picture_of(asset), mine}
    named = {sha for question in retention.all_named() for sha in session.scalars(question)}
    assert named.isdisjoint({picture_of(asset), mine})
    assert other in named


def test_a_picture_that_was_removed_is_not_reviewed_again(session: Session) -> None:
    asset = rejected(session)
    removed(session)
    for again in (
        lambda: decide.reopen(session, asset.id, "lena", "?"),
        lambda: decide.take_back(session, asset.id, "grace"),
    ):
        with pytest.raises(TransitionRefused, match="picture was removed"):
            again()


def test_a_recipe_whose_picture_was_removed_is_made_anew(session: Session) -> None:
    asset = rejected(session)
    job = session.get_one(Job, asset.job_key)
    recipe = NewJob(job.key, job.batch_key, job.recipe)
    assert job_table.submit(session, [recipe]) == 0  # it is there: nobody makes it twice
    removed(session)
    assert (job.state, job.picture_sha256) == (JobState.SUCCEEDED, None)
    assert job_table.make_anew(session) == 0  # nobody waits for it
    assert job_table.submit(session, [recipe]) == 1
    assert job.state is JobState.QUEUED


def test_who_began_to_wait_while_it_was_removed_gets_it_made_anew(session: Session) -> None:
    asset = rejected(session)
    job = session.get_one(Job, asset.job_key)
    removed(session)
    session.add(Asset(campaign=a_campaign(session, "again"), shot="one", variant=0, job_key=job.key))
    session.flush()
    assert job_table.make_anew(session) == 1
    assert job.state is JobState.QUEUED


def test_a_picture_that_was_removed_is_not_looked_at_again(session: Session) -> None:
    asset = rejected(session)
    assert picture_of(asset) in similar.unseen(session, a_sha256("clip"), 100)
    removed(session)
    assert picture_of(asset) not in similar.unseen(session, a_sha256("clip"), 100)


def delete_all(session: Session, delete: Callable[[str], None]) -> int:
    return sum(retention.delete_pending(session, sha256, delete, LATER) for sha256 in retention.pending(session))


def test_a_delete_that_was_lost_is_finished_and_what_is_named_again_is_kept(session: Session) -> None:
    lost, again = picture_of(rejected(session)), picture_of(rejected(session))
    removed(session)
    an_asset(session, picture=again)
    deleted: list[str] = []

    def dies(sha256: str) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError), session.begin_nested():
        delete_all(session, dies)
    assert delete_all(session, deleted.append) == 1
    assert deleted == [lost]
    assert retention.pending(session) == []


def test_who_makes_the_same_picture_again_waits_for_its_deletion_and_stores_it_once_more(
    own_database: Database,
) -> None:
    with own_database.transaction() as session:
        sha256 = picture_of(rejected(session))
        removed(session)
    stored: list[str] = []

    def make_again() -> None:
        with own_database.transaction() as session:
            retention.name_blobs(session, {sha256, a_sha256("new")}, stored.append)
            an_asset(session, picture=sha256)

    maker = threading.Thread(target=make_again)
    with own_database.transaction() as session:
        deleted: list[str] = []
        delete_all(session, deleted.append)
        maker.start()
        maker.join(0.5)
        assert (deleted, stored) == ([sha256], [])
    maker.join(30)
    assert stored == [sha256]
    with own_database.transaction() as session:
        assert delete_all(session, deleted.append) == 0
        assert retention.names(session, {sha256}) == {sha256}


def test_what_is_about_to_be_named_is_not_removed_and_nothing_else_waits_for_that(own_database: Database) -> None:
    with own_database.transaction() as session:
        sha256, other = picture_of(rejected(session)), picture_of(rejected(session))
    counted: list[int] = []

    def sweep(*sha256s: str) -> None:
        with own_database.transaction() as session:
            counted.append(retention.remove(session, sha256s, MONTH, "flow:sweep", LATER))

    sweeper, elsewhere = threading.Thread(target=sweep, args=(sha256,)), threading.Thread(target=sweep, args=(other,))
    with own_database.transaction() as session:
        retention.name_blobs(session, {sha256}, lambda _: None)
        a_reference(session).sha256 = sha256  # what an ingest stores: the very bytes
        session.flush()
        elsewhere.start()
        elsewhere.join(30)
        assert counted == [1]
        sweeper.start()
        sweeper.join(0.5)
        assert counted == [1]  # it waits
    sweeper.join(30)
    assert counted == [1, 0]
    with own_database.transaction() as session:
        assert session.scalars(select(RemovedBlob.sha256)).all() == [other]


def test_who_names_what_is_being_removed_waits_and_stores_it_once_more(own_database: Database) -> None:
    with own_database.transaction() as session:
        sha256 = picture_of(rejected(session))
    stored: list[str] = []

    def name() -> None:
        with own_database.transaction() as session:
            retention.name_blobs(session, {sha256}, stored.append)
            a_reference(session).sha256 = sha256

    namer = threading.Thread(target=name)
    with own_database.transaction() as session:
        assert removed(session) == 1
        namer.start()
        namer.join(0.5)
        assert stored == []
    namer.join(30)
    assert stored == [sha256]
    with own_database.transaction() as session:
        assert session.scalars(select(RemovedBlob.sha256)).all() == []


def test_many_pictures_are_removed_at_once(session: Session) -> None:
    pictures = {picture_of(rejected(session)) for _ in range(12)}
    assert set(retention.due(session, MONTH, LATER).removed) == pictures
    assert removed(session) == 12
    assert set(session.scalars(select(Removal.sha256))) == pictures
