"""Stages side by side, quorums, due times, and what a decision is bound to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import releasing
from asset_store.errors import FourEyes, ReleaseRefused, StageRefused, TransitionRefused
from asset_store.reviewing import assigning, decide
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.queue import in_review
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, CheckOutcome, Decision, Verdict
from tests.stories import TODAY, a_campaign, a_check, an_asset_in_review, picture_of


def in_review_at(session: Session, *stages: Any, outcome: CheckOutcome = CheckOutcome.PASS) -> Asset:
    return an_asset_in_review(session, a_campaign(session, stages=stages), outcome=outcome)


def say(session: Session, asset: Asset, by: str, stage: str | None = None, verdict: Verdict = Verdict.APPROVE) -> Asset:
    return decide.decide(session, asset.id, verdict, by, "why", picture_of(asset), stage=stage)


def test_stages_side_by_side_are_filled_in_any_order(session: Session) -> None:
    asset = in_review_at(session, "brand", ["legal", "regional"], "final")
    say(session, asset, "grace")
    assert asset.waits_at == ["legal", "regional"]
    with pytest.raises(StageRefused, match="legal and regional"):
        say(session, asset, "hedy")
    say(session, asset, "hedy", "regional")
    assert (asset.waits_at, asset.review) == (["legal"], ReviewState.IN_REVIEW)
    say(session, asset, "joan")
    assert asset.waits_at == ["final"]
    say(session, asset, "mary")
    assert (asset.waits_at, asset.review) == ([], ReviewState.APPROVED)


def test_a_quorum_is_so_many_people(session: Session) -> None:
    asset = in_review_at(session, {"name": "brand", "quorum": 3})
    say(session, asset, "grace")
    with pytest.raises(FourEyes, match="stage brand"):
        say(session, asset, " GRACE")
    say(session, asset, "hedy")
    assert asset.review is ReviewState.IN_REVIEW
    say(session, asset, "joan")
    assert asset.review is ReviewState.APPROVED


def test_one_person_fills_one_stage_of_those_side_by_side(session: Session) -> None:
    asset = in_review_at(session, ["legal", "regional"])
    say(session, asset, "grace", "legal")
    with pytest.raises(FourEyes, match="stage legal"):
        say(session, asset, "grace", "regional")


def test_a_stage_that_is_filled_or_yet_to_come_takes_no_decision(session: Session) -> None:
    asset = in_review_at(session, ["legal", "regional"], "final")
    say(session, asset, "grace", "legal")
    for stage in ("legal", "final", "nowhere"):
        with pytest.raises(StageRefused):
            say(session, asset, "hedy", stage)


@pytest.mark.parametrize(
    ("verdict", "after"),
    [(Verdict.REQUEST_CHANGES, ReviewState.CHANGES_REQUESTED), (Verdict.REJECT, ReviewState.REJECTED)],
)
def test_the_strictest_wins_over_approvals_that_were_there(
    session: Session, verdict: Verdict, after: ReviewState
) -> None:
    asset = in_review_at(session, [{"name": "legal", "quorum": 2}, "regional"])
    say(session, asset, "grace", "legal")
    say(session, asset, "hedy", "regional")
    say(session, asset, "joan", "legal", verdict)
    assert asset.review is after


def test_a_rejection_may_follow_a_request_for_changes_and_nothing_milder(session: Session) -> None:
    asset = in_review_at(session, ["legal", "regional"])
    say(session, asset, "grace", "legal", Verdict.REQUEST_CHANGES)
    with pytest.raises(TransitionRefused):
        say(session, asset, "hedy", "regional")
    with pytest.raises(TransitionRefused):
        say(session, asset, "hedy", "regional", Verdict.REQUEST_CHANGES)
    say(session, asset, "hedy", "regional", Verdict.REJECT)
    assert asset.review is ReviewState.REJECTED


def test_nobody_s_approval_counts_after_reopening(session: Session) -> None:
    asset = in_review_at(session, [{"name": "legal", "quorum": 2}, "regional"])
    say(session, asset, "grace", "legal")
    say(session, asset, "hedy", "regional", Verdict.REJECT)
    decide.reopen(session, asset.id, "lead", "the wrong picture was looked at")
    assert asset.waits_at == ["legal", "regional"]
    say(session, asset, "grace", "regional")
    assert asset.waits_at == ["legal"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quorums=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=3), data=st.data())
def test_approved_means_that_every_stage_has_its_people_and_none_is_counted_twice(
    session: Session, quorums: list[list[int]], data: st.DataObject
) -> None:
    stages = [[{"name": f"s{r}-{i}", "quorum": q} for i, q in enumerate(side)] for r, side in enumerate(quorums)]
    asset = in_review_at(session, *stages)
    people = [f"person {i}" for i in range(40)]
    while asset.review is ReviewState.IN_REVIEW:
        stage, by = data.draw(st.sampled_from(asset.waits_at)), people.pop()
        say(session, asset, by, stage)
    assert asset.current is not None
    said = session.scalars(select(Decision).where(Decision.version_id == asset.current.id)).all()
    assert len({d.by for d in said}) == len(said) == sum(map(sum, quorums))
    assert decide.unfilled(policy_of(asset.campaign).stages, said) == ()


def test_a_release_asks_for_the_whole_quorum(session: Session) -> None:
    """Were an asset called approved with one approval too few, it would still not be released."""
    asset = in_review_at(session, {"name": "brand", "quorum": 2})
    say(session, asset, "grace")
    asset.review = ReviewState.APPROVED
    session.flush()
    with pytest.raises(ReleaseRefused, match="brand"):
        releasing.prepare(session, asset.id, "lee", TODAY)


def test_what_is_due_first_counts_from_when_the_round_began(session: Session) -> None:
    asset = in_review_at(session, "brand", [{"name": "legal", "due_hours": 4}, {"name": "regional", "due_hours": 48}])
    assert asset.due_at is None
    say(session, asset, "grace")
    assert asset.round_at is not None
    assert asset.due_at == asset.round_at + timedelta(hours=4)
    say(session, asset, "hedy", "legal")
    assert asset.due_at == asset.round_at + timedelta(hours=48)
    say(session, asset, "joan", "regional", Verdict.REQUEST_CHANGES)
    assert asset.due_at is None


def test_a_decision_says_which_checks_and_which_policy_it_was_made_under(session: Session) -> None:
    plain, warned = in_review_at(session, "brand"), in_review_at(session, "brand", outcome=CheckOutcome.WARN)
    strict = in_review_at(session, {"name": "brand", "quorum": 2})
    for asset in (plain, warned, strict):
        say(session, asset, "grace")
    first, other_checks, other_policy = session.scalars(select(Decision).order_by(Decision.seq)).all()
    assert first.policy_sha256 == policy_of(plain.campaign).sha256 == other_checks.policy_sha256
    assert first.policy_sha256 != other_policy.policy_sha256
    assert first.checks_sha256 == other_policy.checks_sha256
    assert first.checks_sha256 != other_checks.checks_sha256


def test_a_person_s_queue_is_what_they_are_asked_at_stages_that_wait(session: Session) -> None:
    asset, other = in_review_at(session, "brand", "legal"), in_review_at(session, "brand")
    assigning.assign(session, asset.id, "legal", "Hedy", "pat")
    assert in_review(session, person="hedy").assets == ()
    say(session, asset, "grace")
    assert [a.id for a in in_review(session, person="hedy").assets] == [asset.id]
    assert {a.id for a in in_review(session, stage="legal").assets} == {asset.id}
    assert {a.id for a in in_review(session, stage="brand").assets} == {other.id}


def test_checks_that_fail_leave_nothing_waiting(session: Session) -> None:
    asset = in_review_at(session, "brand")
    assert asset.waits_at == ["brand"]
    decided = say(session, asset, "grace", verdict=Verdict.REJECT)
    assert decided.waits_at == []
    assert a_check().outcome is CheckOutcome.PASS
