"""A released picture that is suspended, and the two people it takes to reinstate or withdraw it."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import FourEyes, NotFound, ReasonMissing, RightsRefused, TransitionRefused
from asset_store.reviewing.states import Availability, AvailabilityEvent
from asset_store.rights import availability, recall
from asset_store.tables import Asset, AuditRow, Proposal, ProposalState
from tests.stories import TODAY, a_reference, a_released_asset, an_approved_asset

REINSTATE, WITHDRAW = AvailabilityEvent.REINSTATE, AvailabilityEvent.WITHDRAW


def suspended(session: Session) -> Asset:
    asset = a_released_asset(session, [a_reference(session)])
    return availability.suspend(session, asset.id, "rita", "a claim came in")


@pytest.mark.parametrize(("event", "after"), [(REINSTATE, Availability.RELEASED), (WITHDRAW, Availability.WITHDRAWN)])
def test_one_asks_and_another_confirms(session: Session, event: AvailabilityEvent, after: Availability) -> None:
    asset = suspended(session)
    asked = availability.propose(session, asset.id, event, "rita", "settled")
    assert asset.availability is Availability.SUSPENDED
    with pytest.raises(FourEyes, match="they asked"):
        availability.confirm(session, asked.id, " RITA", TODAY)
    for nobody in ("system", "key:ci", "agent:ci of pat", ""):
        with pytest.raises(FourEyes):
            availability.confirm(session, asked.id, nobody, TODAY)
    availability.confirm(session, asked.id, "omar", TODAY)
    assert asset.availability is after
    row = session.scalars(select(Proposal)).one()
    assert (row.state, row.settled_by) == (ProposalState.CONFIRMED, "omar")
    actions = session.scalars(
        select(AuditRow.action).where(AuditRow.subject == f"asset {asset.id}").order_by(AuditRow.seq)
    ).all()
    assert actions[-2:] == [f"ask to {event}", event.value]


def test_the_proposal_says_what_it_reaches(session: Session) -> None:
    asset = suspended(session)
    asked = availability.propose(session, asset.id, WITHDRAW, "rita", "settled")
    assert [d["address"] for d in asked.impact["deliveries"]] == [f"s3://shop/{asset.id}.png"]
    assert [r["key"] for r in asked.impact["references"]] == ["bobo/front.png"]


def test_what_came_of_a_withdrawn_reference_is_not_reinstated(session: Session) -> None:
    reference = a_reference(session)
    asset = a_released_asset(session, [reference])
    recall.withdraw_reference(session, reference.id, "rita", "contract ended")
    session.refresh(asset)
    assert asset.availability is Availability.SUSPENDED
    asked = availability.propose(session, asset.id, REINSTATE, "rita", "a mistake?")
    with pytest.raises(RightsRefused):
        availability.confirm(session, asked.id, "omar", TODAY)
    assert asset.availability is Availability.SUSPENDED
    availability.decline(session, asked.id, "omar")
    withdrawn = availability.propose(session, asset.id, WITHDRAW, "rita", "contract ended")
    availability.confirm(session, withdrawn.id, "omar", TODAY)
    assert asset.availability is Availability.WITHDRAWN


def test_one_proposal_at_a_time_and_none_is_answered_twice(session: Session) -> None:
    asset = suspended(session)
    asked = availability.propose(session, asset.id, WITHDRAW, "rita", "settled")
    with pytest.raises(TransitionRefused, match="rita"):
        availability.propose(session, asset.id, REINSTATE, "omar", "no")
    availability.decline(session, asked.id, "rita")
    with pytest.raises(TransitionRefused, match="declined already"):
        availability.confirm(session, asked.id, "omar", TODAY)
    assert asset.availability is Availability.SUSPENDED


def test_only_what_is_suspended_is_reinstated_or_withdrawn(session: Session) -> None:
    released, approved = a_released_asset(session), an_approved_asset(session)
    for asset in (released, approved):
        for event in (REINSTATE, WITHDRAW):
            with pytest.raises(TransitionRefused):
                availability.propose(session, asset.id, event, "rita", "why not")
    with pytest.raises(TransitionRefused):
        availability.suspend(session, approved.id, "rita", "never released")
    with pytest.raises(TransitionRefused):
        availability.propose(session, suspended(session).id, AvailabilityEvent.RELEASE, "rita", "by the side door")


def test_reasons_people_and_ids_are_asked_for(session: Session) -> None:
    asset = suspended(session)
    with pytest.raises(ReasonMissing):
        availability.propose(session, asset.id, WITHDRAW, "rita", " ")
    with pytest.raises(FourEyes):
        availability.propose(session, asset.id, WITHDRAW, "flow:sweep", "late")
    with pytest.raises(ReasonMissing):
        availability.suspend(session, a_released_asset(session).id, "rita", "")
    with pytest.raises(NotFound):
        availability.confirm(session, uuid.uuid4(), "omar", TODAY)
