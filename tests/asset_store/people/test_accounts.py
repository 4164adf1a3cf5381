"""People, their roles, and who lets whom in."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import AccountRefused, NotFound
from asset_store.people import accounts
from asset_store.people.permissions import Action
from asset_store.tables import AuditRow, Grant, Role
from tests.stories import a_brand


def test_a_handle_is_one_person_however_it_is_written(session: Session) -> None:
    accounts.add_person(session, " Grace@Example.COM ", "Grace", "admin")
    assert accounts.get_person(session, "grace@example.com").name == "Grace"
    with pytest.raises(AccountRefused, match="already"):
        accounts.add_person(session, "GRACE@example.com", "Another", "admin")


@pytest.mark.parametrize(
    "handle", ["", " ", "two words", "key:ci", "agent:ci", "system", "flow:campaign", "<b>", "a" * 255, "a\nb", "nul\0"]
)
def test_a_handle_that_is_none_or_could_be_a_flow_is_refused(session: Session, handle: str) -> None:
    with pytest.raises(AccountRefused):
        accounts.add_person(session, handle, "?", "admin")


def test_a_role_given_twice_is_there_once_and_can_be_taken_back(session: Session) -> None:
    brand = a_brand(session)
    person = accounts.add_person(session, "grace", "Grace", "admin")
    for _ in range(2):
        accounts.grant(session, "grace", Role.REVIEWER, "admin", brand.name, "legal")
    assert len(session.scalars(select(Grant)).all()) == 1
    assert accounts.principal_of(person).may(Action.DECIDE, brand.id, "legal")
    accounts.revoke(session, "grace", Role.REVIEWER, "admin", brand.name, "legal")
    assert not accounts.principal_of(person).may(Action.VIEW, brand.id)
    assert session.scalars(select(AuditRow.action).order_by(AuditRow.seq)).all() == ["add person", "grant", "revoke"]
    with pytest.raises(NotFound):
        accounts.revoke(session, "grace", Role.REVIEWER, "admin", brand.name, "legal")


def test_what_cannot_be_granted_is_told(session: Session) -> None:
    accounts.add_person(session, "grace", "Grace", "admin")
    with pytest.raises(NotFound):
        accounts.grant(session, "nobody", Role.VIEWER, "admin")
    with pytest.raises(NotFound):
        accounts.grant(session, "grace", Role.VIEWER, "admin", "no such brand")
    with pytest.raises(AccountRefused):
        accounts.grant(session, "grace", Role.PRODUCER, "admin", stage="legal")


def test_the_last_admin_stays(session: Session) -> None:
    for handle in ("ada", "grace"):
        accounts.add_person(session, handle, handle, "system")
    accounts.grant(session, "ada", Role.ADMIN, "system")
    with pytest.raises(AccountRefused, match="last admin"):
        accounts.revoke(session, "ada", Role.ADMIN, "ada")
    accounts.grant(session, "grace", Role.ADMIN, "ada")
    accounts.revoke(session, "ada", Role.ADMIN, "grace")


def test_the_last_admin_is_not_disabled_and_a_disabled_one_does_not_count(session: Session) -> None:
    for handle in ("ada", "grace"):
        accounts.add_person(session, handle, handle, "system")
        accounts.grant(session, handle, Role.ADMIN, "system")
    accounts.disable(session, "grace", "ada")
    for attempt in (
        lambda: accounts.disable(session, "ada", "ada"),
        lambda: accounts.revoke(session, "ada", Role.ADMIN, "ada"),
    ):
        with pytest.raises(AccountRefused, match="last admin"):
            attempt()
