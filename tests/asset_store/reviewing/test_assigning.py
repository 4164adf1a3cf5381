"""Who is asked to decide."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import FourEyes, NotFound
from asset_store.people import accounts
from asset_store.reviewing import assigning
from asset_store.tables import AuditRow
from tests.stories import REQUESTER, an_asset_in_review


def test_asking_twice_is_asking_once(session: Session) -> None:
    asset = an_asset_in_review(session)
    assigning.assign(session, asset.id, "brand", "Grace", "pat")
    assigning.assign(session, asset.id, "brand", " grace ", "pat")
    assert [a.person for a in assigning.assignments_of(session, asset.id)] == ["Grace"]
    assert session.scalars(select(AuditRow.action)).all().count("assign") == 1


def test_who_asked_for_a_picture_is_not_asked_to_approve_it(session: Session) -> None:
    asset = an_asset_in_review(session)
    for nobody in (REQUESTER.upper(), "flow:campaign", "key:ci", "agent:planner of pat", " "):
        with pytest.raises(FourEyes):
            assigning.assign(session, asset.id, "brand", nobody, "pat")


def test_a_stage_that_there_is_not_is_told(session: Session) -> None:
    asset = an_asset_in_review(session)
    with pytest.raises(NotFound) as refused:
        assigning.assign(session, asset.id, "legal", "grace", "pat")
    assert "brand" in refused.value.next_step


def test_who_is_asked_no_more_is_gone_from_the_list(session: Session) -> None:
    asset = an_asset_in_review(session)
    assigning.assign(session, asset.id, "brand", "grace", "pat")
    assigning.unassign(session, asset.id, "brand", "GRACE", "pat")
    assert assigning.assignments_of(session, asset.id) == []
    with pytest.raises(NotFound):
        assigning.unassign(session, asset.id, "brand", "grace", "pat")


def test_where_people_have_accounts_only_they_are_asked(session: Session) -> None:
    asset = an_asset_in_review(session)
    accounts.add_person(session, "grace@lumen.example", "Grace", "system")
    assigning.assign(session, asset.id, "brand", "Grace@lumen.example", "pat")
    for stranger in ("hedy", "x@evil.example", "q@x, victim@evil.example", "a\nb"):
        with pytest.raises(NotFound, match="no person"):
            assigning.assign(session, asset.id, "brand", stranger, "pat")
