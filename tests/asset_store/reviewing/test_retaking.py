"""An asset that is made anew: when, how often, and who may approve it then."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import FourEyes, RetakeRefused, StaleVersion, TransitionRefused
from asset_store.repositories.jobs import NewJob
from asset_store.reviewing import decide, retaking
from asset_store.reviewing.retaking import Change
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, CheckOutcome, Job, JobState, Retake, Verdict
from tests.stories import a_campaign, a_check, a_sha256, a_version, an_asset, an_asset_in_review, approve, picture_of

SEED = Change("seed", 7, 8)


def job(number: int) -> NewJob:
    return NewJob(a_sha256(f"retake {number}"), "embedded", {"seed": number, "references": []})


def sent_back(session: Session, retakes: int | None = None) -> Asset:
    campaign = a_campaign(session)
    if retakes is not None:
        campaign.brief = {**campaign.brief, "retakes": retakes}
        session.flush()
    asset = an_asset_in_review(session, campaign)
    decide.decide(session, asset.id, Verdict.REQUEST_CHANGES, "grace", "three ears", picture_of(asset))
    return asset


def test_a_retake_waits_for_its_job_and_keeps_what_was_said(session: Session) -> None:
    asset = sent_back(session)
    assert asset.current is not None
    before = asset.current.id
    retaking.begin(session, asset.id, job(1), [SEED], "pat", picture_of(asset))
    assert (asset.review, asset.job_key, asset.waits_at) == (ReviewState.DRAFT, job(1).key, [])
    assert session.get_one(Job, job(1).key).state is JobState.QUEUED
    row = session.scalars(select(Retake)).one()
    assert (row.parent_id, row.number, row.changes) == (before, 1, [SEED.as_json()])


def test_the_next_version_begins_without_decisions_and_its_maker_may_not_approve(session: Session) -> None:
    asset = sent_back(session)
    retaking.begin(session, asset.id, job(1), [SEED], "Pat", picture_of(asset))
    a_version(session, asset)
    decide.submit(session, asset.id, "flow:retake", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [a_check()])
    with pytest.raises(FourEyes, match="made anew"):
        approve(session, asset, "pat")
    with pytest.raises(StaleVersion):
        decide.decide(session, asset.id, Verdict.APPROVE, "hedy", "", a_sha256("the picture before"))
    approve(session, asset, "grace")
    assert asset.review is ReviewState.APPROVED


def test_a_failed_check_may_be_answered_by_a_retake(session: Session) -> None:
    asset = an_asset(session)
    decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [a_check(CheckOutcome.FAIL)])
    retaking.begin(session, asset.id, job(1), [SEED], "pat", picture_of(asset))
    assert asset.review is ReviewState.DRAFT


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_campaign_caps_its_retakes(session: Session, most: int) -> None:
    asset = sent_back(session, most)
    for number in range(most):
        retaking.begin(session, asset.id, job(number), [SEED], "pat", picture_of(asset))
        a_version(session, asset)
        decide.submit(session, asset.id, "flow:retake", blob_known=lambda sha256: True)
        decide.finish_checks(session, asset.id, [a_check()])
        decide.decide(session, asset.id, Verdict.REQUEST_CHANGES, "grace", "still three", picture_of(asset))
    with pytest.raises(RetakeRefused, match=f"{most} times"):
        retaking.begin(session, asset.id, job(99), [SEED], "pat", picture_of(asset))
    assert asset.review is ReviewState.CHANGES_REQUESTED


@pytest.mark.parametrize(("state", "again"), [(JobState.FAILED, True), (JobState.CANCELLED, True), (JobState.QUEUED, False), (JobState.RUNNING, False)])  # fmt: skip
def test_a_retake_that_came_to_nothing_may_be_asked_for_again(session: Session, state: JobState, again: bool) -> None:
    asset = sent_back(session)
    retaking.begin(session, asset.id, job(1), [SEED], "pat", picture_of(asset))
    session.get_one(Job, job(1).key).state = state
    session.flush()
    if again:
        retaking.begin(session, asset.id, job(2), [SEED], "pat", picture_of(asset))
        assert (asset.review, asset.job_key) == (ReviewState.DRAFT, job(2).key)
    else:
        with pytest.raises(TransitionRefused):
            retaking.begin(session, asset.id, job(2), [SEED], "pat", picture_of(asset))


def test_what_came_to_nothing_does_not_count_towards_the_cap(session: Session) -> None:
    asset = sent_back(session, 1)
    for number in range(3):
        retaking.begin(session, asset.id, job(number), [SEED], "pat", picture_of(asset))
        session.get_one(Job, job(number).key).state = JobState.FAILED
        session.flush()
    assert retaking.retakes_of(session, asset.id) == 0


def test_what_waits_or_was_decided_otherwise_is_not_made_anew(session: Session) -> None:
    waiting = an_asset_in_review(session)
    with pytest.raises(TransitionRefused):
        retaking.begin(session, waiting.id, job(1), [SEED], "pat", picture_of(waiting))
    approve(session, waiting)
    with pytest.raises(TransitionRefused):
        retaking.begin(session, waiting.id, job(1), [SEED], "pat", picture_of(waiting))


def test_the_same_again_and_another_s_picture_are_refused(session: Session) -> None:
    asset = sent_back(session)
    same = NewJob(asset.job_key, "embedded", {"references": []})
    for wanted, changes in ((job(1), []), (same, [SEED])):
        with pytest.raises(RetakeRefused, match="nothing is changed"):
            retaking.begin(session, asset.id, wanted, changes, "pat", picture_of(asset))
    with pytest.raises(StaleVersion):
        retaking.begin(session, asset.id, job(1), [SEED], "pat", a_sha256("another"))
    assert asset.review is ReviewState.CHANGES_REQUESTED


def test_who_owns_the_key_that_had_it_made_anew_does_not_approve(session: Session) -> None:
    asset = sent_back(session)
    retaking.begin(session, asset.id, job(1), [SEED], "key:agent of pat", picture_of(asset))
    a_version(session, asset)
    decide.submit(session, asset.id, "flow:retake", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [a_check()])
    with pytest.raises(FourEyes, match="made anew"):
        approve(session, asset, "Pat")
