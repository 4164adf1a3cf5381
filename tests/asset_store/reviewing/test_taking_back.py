"""Undoing one's own decision: what others decided before it stands."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import releasing
from asset_store.errors import TransitionRefused
from asset_store.reviewing import decide
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, Decision, Verdict
from tests.stories import TODAY, a_campaign, a_delivery, an_approved_asset, an_asset_in_review, picture_of


def say(session: Session, asset: Asset, by: str, stage: str | None = None, verdict: Verdict = Verdict.APPROVE) -> None:
    decide.decide(session, asset.id, verdict, by, "why", picture_of(asset), stage=stage)


@pytest.mark.parametrize("verdict", [Verdict.APPROVE, Verdict.REQUEST_CHANGES, Verdict.REJECT])
def test_what_was_said_last_is_undone_and_what_others_said_stands(session: Session, verdict: Verdict) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", ["legal", "regional"]]))
    say(session, asset, "grace")
    say(session, asset, "hedy", "legal")
    say(session, asset, "joan", "regional", verdict)
    decide.take_back(session, asset.id, " Joan")
    assert (asset.review, asset.waits_at, asset.stage) == (ReviewState.IN_REVIEW, ["regional"], 1)
    assert asset.current is not None
    assert [d.by for d in decide.standing_decisions(session, asset.current.id)] == ["grace", "hedy"]
    say(session, asset, "joan", "regional")
    assert asset.review is ReviewState.APPROVED
    assert len(session.scalars(select(Decision)).all()) == 5  # nothing is ever removed


def test_a_round_that_an_approval_opened_is_closed_again(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", {"name": "legal", "due_hours": 4}]))
    say(session, asset, "grace")
    assert asset.due_at is not None
    decide.take_back(session, asset.id, "grace")
    assert (asset.waits_at, asset.stage, asset.due_at) == (["brand"], 0, None)


def test_one_of_a_quorum_is_undone(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=[{"name": "brand", "quorum": 2}]))
    say(session, asset, "grace")
    decide.take_back(session, asset.id, "grace")
    say(session, asset, "hedy")
    assert asset.review is ReviewState.IN_REVIEW
    say(session, asset, "grace")
    assert asset.review is ReviewState.APPROVED


def test_another_s_an_older_or_a_missing_decision_is_not_undone(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session, stages=["brand", "legal"]))
    with pytest.raises(TransitionRefused):
        decide.take_back(session, asset.id, "grace")
    say(session, asset, "grace")
    say(session, asset, "hedy")
    for who in ("grace", "eve"):
        with pytest.raises(TransitionRefused):
            decide.take_back(session, asset.id, who)
    decide.take_back(session, asset.id, "hedy")
    decide.take_back(session, asset.id, "grace")  # now hers is the newest that counts
    assert asset.waits_at == ["brand"]
    with pytest.raises(TransitionRefused):
        decide.take_back(session, asset.id, "grace")


def test_what_is_released_is_not_undone(session: Session) -> None:
    asset = an_approved_asset(session)
    releasing.finish(session, asset.id, [a_delivery(asset)], "lee", on=TODAY)
    with pytest.raises(TransitionRefused):
        decide.take_back(session, asset.id, "grace of brand 0")
