"""Which references may be used on a day."""

from __future__ import annotations

import uuid
from datetime import date, timedelta

import pytest
from sqlalchemy.orm import Session

from asset_store.errors import RightsRefused
from asset_store.rights.licences import check_usable, problem_of, releasable
from asset_store.tables import ReferenceState
from tests.stories import TODAY, a_reference, an_asset

DAY = timedelta(days=1)


@pytest.mark.parametrize(("until", "usable"), [(None, True), (TODAY, True), (TODAY + DAY, True), (TODAY - DAY, False)])
def test_a_licence_holds_through_its_last_day(session: Session, until: date | None, usable: bool) -> None:
    problem = problem_of(a_reference(session, licence_until=until), TODAY)
    assert (problem is None) is usable
    assert usable or "ended on 2026-05-31" in str(problem)


@pytest.mark.parametrize("state", [ReferenceState.WITHDRAWN, ReferenceState.REMOVED])
def test_only_an_active_reference_is_usable(session: Session, state: ReferenceState) -> None:
    reference = a_reference(session)
    reference.state = state
    assert problem_of(reference, TODAY) is not None


def test_every_reference_with_a_problem_is_named(session: Session) -> None:
    good, over = a_reference(session, "good.png"), a_reference(session, "over.png", licence_until=TODAY - DAY)
    unknown = uuid.uuid4()
    check_usable(session, [good.id, good.id], TODAY)
    check_usable(session, [], TODAY)
    with pytest.raises(RightsRefused) as refused:
        check_usable(session, [good.id, over.id, unknown], TODAY)
    assert len(refused.value.problems) == 2
    assert "over.png" in str(refused.value)
    assert str(unknown) in str(refused.value)


def test_a_version_is_releasable_while_all_it_descends_from_is_usable(session: Session) -> None:
    asset = an_asset(session, references=[a_reference(session, licence_until=TODAY)])
    assert asset.current is not None
    releasable(session, asset.current, TODAY)
    with pytest.raises(RightsRefused):
        releasable(session, asset.current, TODAY + DAY)
