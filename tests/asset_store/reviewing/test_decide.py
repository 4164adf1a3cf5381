"""What a person may say of a picture, when, and what it does."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import (
    BlobMissing,
    FourEyes,
    LineageIncomplete,
    NotFound,
    ReasonMissing,
    StaleVersion,
    TransitionRefused,
)
from asset_store.reviewing import decide
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AuditRow, Check, CheckOutcome, Decision, Verdict
from tests.stories import (
    REQUESTER,
    REVIEWER,
    a_campaign,
    a_check,
    a_released_asset,
    a_sha256,
    a_version,
    an_approved_asset,
    an_asset,
    an_asset_in_review,
    approve,
    picture_of,
)


def submitted(session: Session) -> Asset:
    return decide.submit(session, an_asset(session).id, "flow:campaign", blob_known=lambda sha256: True)


def audited(session: Session, asset: Asset) -> list[str]:
    rows = select(AuditRow.action).where(AuditRow.subject == f"asset {asset.id}").order_by(AuditRow.seq)
    return list(session.scalars(rows))


def test_a_picture_goes_from_draft_to_approved_and_leaves_its_tracks(session: Session) -> None:
    asset = an_asset_in_review(session)
    approve(session, asset)
    assert asset.review is ReviewState.APPROVED
    assert audited(session, asset) == ["submit", "checks passed", "approve"]
    said = session.scalars(select(Decision)).one()
    assert (said.stage, said.verdict, said.by, said.seen_sha256) == (
        "brand",
        Verdict.APPROVE,
        REVIEWER,
        picture_of(asset),
    )


def test_a_picture_without_its_blob_is_not_submitted(session: Session) -> None:
    asset = an_asset(session)
    with pytest.raises(BlobMissing) as refused:
        decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: False)
    assert refused.value.sha256 == picture_of(asset)
    assert asset.review is ReviewState.DRAFT


def test_a_picture_without_lineage_is_not_submitted(session: Session) -> None:
    asset = an_asset(session, record=False)
    with pytest.raises(LineageIncomplete):
        decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)


@pytest.mark.parametrize(
    ("outcomes", "after"),
    [
        ([CheckOutcome.PASS], ReviewState.IN_REVIEW),
        ([CheckOutcome.PASS, CheckOutcome.WARN], ReviewState.IN_REVIEW),
        ([CheckOutcome.PASS, CheckOutcome.FAIL], ReviewState.CHECK_FAILED),
        ([CheckOutcome.PASS, CheckOutcome.NOT_RUN], ReviewState.CHECK_FAILED),
        ([], ReviewState.CHECK_FAILED),
    ],
)
def test_only_checks_that_ran_and_passed_lead_to_review(
    session: Session, outcomes: list[CheckOutcome], after: ReviewState
) -> None:
    asset = submitted(session)
    decide.finish_checks(session, asset.id, [a_check(o, f"check {i}") for i, o in enumerate(outcomes)])
    assert asset.review is after
    assert asset.current is not None
    found = select(Check.outcome).where(Check.version_id == asset.current.id).order_by(Check.seq)
    assert list(session.scalars(found)) == outcomes


def test_a_failed_check_is_waived_by_a_person_with_a_reason(session: Session) -> None:
    asset = submitted(session)
    decide.finish_checks(session, asset.id, [a_check(CheckOutcome.FAIL)])
    with pytest.raises(ReasonMissing):
        decide.waive(session, asset.id, "lead", "  ")
    with pytest.raises(FourEyes):
        decide.waive(session, asset.id, "flow:campaign", "it is late")
    decide.waive(session, asset.id, "lead", "the horizon is meant to tilt")
    assert asset.review is ReviewState.IN_REVIEW
    said = session.scalars(select(Decision)).one()
    assert (said.verdict, said.by, said.reason) == (Verdict.WAIVE, "lead", "the horizon is meant to tilt")


def test_a_waiver_is_no_approval(session: Session) -> None:
    asset = an_asset_in_review(session, outcome=CheckOutcome.FAIL)
    assert asset.current is not None
    assert decide.standing_decisions(session, asset.current.id) == []


@pytest.mark.parametrize(
    ("verdict", "after"),
    [(Verdict.REJECT, ReviewState.REJECTED), (Verdict.REQUEST_CHANGES, ReviewState.CHANGES_REQUESTED)],
)
def test_anything_but_an_approval_needs_a_reason_and_takes_effect_at_once(
    session: Session, verdict: Verdict, after: ReviewState
) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", "legal"]))
    with pytest.raises(ReasonMissing):
        decide.decide(session, asset.id, verdict, REVIEWER, "", picture_of(asset))
    assert asset.review is ReviewState.IN_REVIEW
    decide.decide(session, asset.id, verdict, REVIEWER, "three ears", picture_of(asset))
    assert asset.review is after


@pytest.mark.parametrize("verdict", [Verdict.WAIVE, Verdict.REOPEN])
def test_a_waiver_or_reopening_is_no_verdict(session: Session, verdict: Verdict) -> None:
    asset = an_asset_in_review(session)
    with pytest.raises(TransitionRefused):
        decide.decide(session, asset.id, verdict, REVIEWER, "why", picture_of(asset))


def test_stages_are_filled_in_order_by_different_people(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", "legal", "regional"]))
    approve(session, asset, "grace")
    assert (asset.review, asset.stage) == (ReviewState.IN_REVIEW, 1)
    with pytest.raises(FourEyes, match="stage brand"):
        approve(session, asset, "Grace ")
    approve(session, asset, "hedy")
    assert (asset.review, asset.stage) == (ReviewState.IN_REVIEW, 2)
    approve(session, asset, "joan")
    assert asset.review is ReviewState.APPROVED
    assert list(session.scalars(select(Decision.stage).order_by(Decision.seq))) == ["brand", "legal", "regional"]
    assert audited(session, asset)[2:] == ["advance", "advance", "approve"]


def test_a_campaign_without_stages_has_the_brand_stage(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=[]))
    approve(session, asset)
    assert asset.review is ReviewState.APPROVED


@pytest.mark.parametrize(
    "by", [REQUESTER, REQUESTER.upper(), "", "system", "flow:nightly", "key:ci", "agent:planner of pat"]
)
def test_the_requester_and_machines_do_not_approve(session: Session, by: str) -> None:
    asset = an_asset_in_review(session)
    with pytest.raises(FourEyes):
        approve(session, asset, by)
    assert asset.review is ReviewState.IN_REVIEW
    assert session.scalars(select(Decision)).all() == []


def test_the_requester_may_reject(session: Session) -> None:
    asset = an_asset_in_review(session)
    decide.decide(session, asset.id, Verdict.REJECT, REQUESTER, "not what I asked for", picture_of(asset))
    assert asset.review is ReviewState.REJECTED


def test_a_decision_on_another_picture_is_stale(session: Session) -> None:
    asset = an_asset_in_review(session)
    seen = picture_of(asset)
    a_version(session, asset)
    with pytest.raises(StaleVersion) as refused:
        decide.decide(session, asset.id, Verdict.APPROVE, REVIEWER, "", seen)
    assert (refused.value.expected, refused.value.found) == (seen, picture_of(asset))


def test_a_decision_on_a_row_changed_since_is_stale(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", "legal"]))
    looked_at = asset.row_version
    approve(session, asset, "grace")
    assert asset.row_version > looked_at
    with pytest.raises(StaleVersion):
        decide.decide(session, asset.id, Verdict.APPROVE, "hedy", "", picture_of(asset), looked_at)
    decide.decide(session, asset.id, Verdict.APPROVE, "hedy", "", picture_of(asset), asset.row_version)
    assert asset.review is ReviewState.APPROVED


def test_decisions_are_of_one_version(session: Session) -> None:
    asset = an_approved_asset(session)
    version = a_version(session, asset)
    assert decide.standing_decisions(session, version.id) == []


def test_reopening_keeps_the_old_decisions_and_counts_them_no_more(session: Session) -> None:
    asset = an_approved_asset(session, a_campaign(session, stages=["brand", "legal"]))
    decide.reopen(session, asset.id, "lead", "legal saw a draft of the brief")
    assert (asset.review, asset.stage) == (ReviewState.IN_REVIEW, 0)
    assert asset.current is not None
    assert decide.standing_decisions(session, asset.current.id) == []
    assert list(session.scalars(select(Decision.verdict).order_by(Decision.seq))) == [
        Verdict.APPROVE,
        Verdict.APPROVE,
        Verdict.REOPEN,
    ]
    approve(session, asset, f"{REVIEWER} of brand")
    assert asset.stage == 1


def test_what_was_released_is_not_reopened(session: Session) -> None:
    asset = a_released_asset(session)
    with pytest.raises(TransitionRefused):
        decide.reopen(session, asset.id, "lead", "second thoughts")
    assert (asset.review, asset.availability) == (ReviewState.APPROVED, Availability.RELEASED)


EVENTS: list[Any] = [
    lambda s, a: decide.finish_checks(s, a.id, [a_check()]),
    lambda s, a: decide.waive(s, a.id, "lead", "why"),
    lambda s, a: decide.decide(s, a.id, Verdict.APPROVE, REVIEWER, "", picture_of(a)),
    lambda s, a: decide.decide(s, a.id, Verdict.REJECT, REVIEWER, "why", picture_of(a)),
    lambda s, a: decide.reopen(s, a.id, "lead", "why"),
]


@pytest.mark.parametrize("event", EVENTS)
def test_a_draft_can_only_be_submitted(session: Session, event: Any) -> None:
    asset = an_asset(session)
    before = audited(session, asset)
    with pytest.raises(TransitionRefused):
        event(session, asset)
    assert asset.review is ReviewState.DRAFT
    assert audited(session, asset) == before


def test_an_unknown_asset_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        decide.decide(session, uuid.uuid4(), Verdict.APPROVE, REVIEWER, "", a_sha256("nothing"))


@pytest.mark.parametrize(
    ("asked", "approves", "same"),
    [
        ("pat", "pat@lumen.example", True), ("pat@lumen.example", "PAT", True), ("key:ci of pat", "pat@lumen.example", True), ("agent:planner of pat", "pat@lumen.example", True),
        ("pat@lumen.example", "pat@other.example", False), ("pat", "patricia@lumen.example", False),
    ],
)  # fmt: skip
def test_who_asked_at_a_terminal_does_not_approve_in_a_browser(
    session: Session, asked: str, approves: str, same: bool
) -> None:
    asset = an_asset_in_review(session, a_campaign(session, requested_by=asked))
    if same:
        with pytest.raises(FourEyes):
            approve(session, asset, approves)
    else:
        assert approve(session, asset, approves).review is ReviewState.APPROVED
