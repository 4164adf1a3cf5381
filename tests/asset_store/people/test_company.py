"""Who comes by the company's sign-in: whom an account is here, and attempts that one browser finishes once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from asset_store.errors import NotSignedIn, SignInRefused
from asset_store.people import accounts, company, passes
from asset_store.people.company import Attempt, Identity
from asset_store.tables import AuditRow, Person, SignInAttempt

GRACE = Identity("https://id.example", "g1", "grace@lumen.example", "Grace")


def comes_in(session: Session, who: Identity, *admitted: str) -> str:
    return passes.principal_of_session(session, company.sign_in(session, who, admitted)).actor


def test_an_account_is_linked_once_and_known_by_its_subject_from_then_on(session: Session) -> None:
    person = accounts.add_person(session, "grace@lumen.example", "Grace H.", "ada")
    assert comes_in(session, replace(GRACE, email="GRACE@lumen.example")) == "grace@lumen.example"
    assert person.subject == "https://id.example g1"
    for email in (None, "other@lumen.example", "grace@lumen.example"):
        assert comes_in(session, replace(GRACE, email=email)) == "grace@lumen.example"
    assert person.handle == "grace@lumen.example"
    linked = session.scalars(select(AuditRow.action).where(AuditRow.action == "link person")).all()
    assert len(linked) == 1


@pytest.mark.parametrize("other", [{"subject": "g2"}, {"issuer": "https://id2.example"}])
def test_another_account_with_the_address_is_not_linked_until_an_admin_unlinks(
    session: Session, other: dict[str, str]
) -> None:
    accounts.add_person(session, "grace@lumen.example", "Grace", "ada")
    comes_in(session, GRACE)
    usurper = replace(GRACE, **other)
    with pytest.raises(SignInRefused, match="another account"):
        comes_in(session, usurper, "lumen.example")
    accounts.unlink(session, "grace@lumen.example", "ada")
    accounts.unlink(session, "grace@lumen.example", "ada")  # again, it changes nothing
    assert comes_in(session, usurper) == "grace@lumen.example"
    assert len(session.scalars(select(AuditRow).where(AuditRow.action == "unlink person")).all()) == 1


@pytest.mark.parametrize(
    "email", [None, "", "grace", "@lumen.example", "grace@", "grace@evil@lumen.example", "gräce@lumen.example", "\u212a@lumen.example",
              "key:ci@lumen.example", "two words@lumen.example", "nul\0@lumen.example", "system@lumen.example"],
)  # fmt: skip
def test_nobody_comes_in_by_an_address_that_is_none(session: Session, email: str | None) -> None:
    accounts.add_person(session, "grace", "Grace", "ada")
    accounts.add_person(session, "k@lumen.example", "K", "ada")
    with pytest.raises(SignInRefused):
        comes_in(session, replace(GRACE, email=email), "lumen.example")


@pytest.mark.parametrize("subject", ["", "x" * 256, "é", "nul\0", "a\nb"])
def test_a_subject_that_is_none_is_refused(session: Session, subject: str) -> None:
    with pytest.raises(SignInRefused):
        comes_in(session, replace(GRACE, subject=subject), "lumen.example")


@pytest.mark.parametrize("email", ["eve@evil.example", "eve@sub.lumen.example", "eve@lumen.example.evil.example"])
def test_only_people_of_the_very_domain_are_added(session: Session, email: str) -> None:
    with pytest.raises(SignInRefused, match="nobody here"):
        comes_in(session, replace(GRACE, email=email), "lumen.example")
    assert session.scalars(select(Person)).all() == []


def test_who_is_added_has_no_role(session: Session) -> None:
    assert comes_in(session, GRACE, "lumen.example") == "grace@lumen.example"
    person = accounts.get_person(session, "grace@lumen.example")
    assert (person.grants, person.name, person.subject) == ([], "Grace", "https://id.example g1")


def test_who_is_disabled_is_neither_let_in_nor_linked(session: Session) -> None:
    for handle, subject in (("grace@lumen.example", None), ("hedy@lumen.example", "https://id.example h1")):
        accounts.add_person(session, handle, "?", "ada", subject)
        accounts.disable(session, handle, "ada")
    for who in (GRACE, replace(GRACE, subject="h1")):
        with pytest.raises(NotSignedIn):
            comes_in(session, who, "lumen.example")
    assert accounts.get_person(session, "grace@lumen.example").subject is None


def test_an_attempt_is_finished_once_by_the_browser_that_began_it(session: Session) -> None:
    attempt = company.begin_attempt(session, "/campaigns")
    for stranger in ("", "guess", attempt.state):
        with pytest.raises(NotSignedIn, match="another browser"):
            company.use_attempt(session, Attempt(attempt.state, stranger))
    assert company.use_attempt(session, attempt) == "/campaigns"
    for again in (attempt, Attempt("unknown", attempt.secret)):
        with pytest.raises(NotSignedIn, match="used or is over"):
            company.use_attempt(session, again)


def test_an_attempt_that_is_over_is_refused_and_then_forgotten(session: Session) -> None:
    attempt = company.begin_attempt(session, "/")
    session.execute(update(SignInAttempt).values(expires_at=datetime.now(UTC)))
    with pytest.raises(NotSignedIn):
        company.use_attempt(session, attempt)
    company.begin_attempt(session, "/")
    assert len(session.scalars(select(SignInAttempt)).all()) == 1


def test_the_database_holds_nothing_that_finishes_an_attempt(session: Session) -> None:
    attempt = company.begin_attempt(session, "/")
    kept = str(session.execute(text("SELECT * FROM sign_in_attempts")).all())
    secrets = {attempt.state, attempt.secret, attempt.nonce, attempt.code_verifier}
    assert len(secrets) == 4
    assert not any(secret in kept for secret in secrets)
    assert attempt.nonce == Attempt(attempt.state, attempt.secret).nonce
