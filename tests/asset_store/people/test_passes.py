"""Links, sessions and keys: who they let in, for how long, and what the database keeps of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from asset_store.errors import AccountRefused, FourEyes, NotFound, NotSignedIn
from asset_store.people import accounts, passes
from asset_store.people.permissions import BY_AGENT, NEVER_BY_KEY, Action
from asset_store.tables import ApiKey, BrowserSession, Role, SignInLink
from tests.stories import a_brand, a_campaign, an_asset_in_review, approve

WEEK = timedelta(days=7)


@pytest.fixture
def grace(session: Session) -> str:
    accounts.add_person(session, "grace", "Grace", "admin")
    accounts.grant(session, "grace", Role.PRODUCER, "admin", a_brand(session).name)
    return "grace"


def test_a_link_signs_in_once(session: Session, grace: str) -> None:
    link = passes.make_link(session, grace, "admin")
    cookie = passes.use_link(session, link)
    assert passes.principal_of_session(session, cookie).actor == grace
    with pytest.raises(NotSignedIn):
        passes.use_link(session, link)


def test_a_link_ends_after_its_time(session: Session, grace: str) -> None:
    link = passes.make_link(session, grace, "admin")
    session.execute(update(SignInLink).values(expires_at=datetime.now(UTC)))
    with pytest.raises(NotSignedIn):
        passes.use_link(session, link)


@pytest.mark.parametrize(
    "spent",
    [
        {"expires_at": datetime.now(UTC)},
        {"seen_at": datetime.now(UTC) - passes.SESSION_IDLE},
        {"ended_at": datetime.now(UTC)},
    ],
)
def test_a_session_ends_by_its_time_by_idleness_and_by_signing_out(
    session: Session, grace: str, spent: dict[str, datetime]
) -> None:
    cookie = passes.use_link(session, passes.make_link(session, grace, "admin"))
    session.execute(update(BrowserSession).values(**spent))
    session.expire_all()
    with pytest.raises(NotSignedIn):
        passes.principal_of_session(session, cookie)


def test_who_signs_out_or_is_disabled_is_out_at_once(session: Session, grace: str) -> None:
    first, second = (passes.use_link(session, passes.make_link(session, grace, "admin")) for _ in range(2))
    _, secret = passes.make_key(session, grace, "ci", {Action.VIEW}, WEEK, "admin")
    passes.end_session(session, first)
    with pytest.raises(NotSignedIn):
        passes.principal_of_session(session, first)
    assert passes.principal_of_session(session, second).actor == grace
    waiting = passes.make_link(session, grace, "admin")
    accounts.disable(session, grace, "admin")
    for shown in (
        lambda: passes.principal_of_session(session, second),
        lambda: passes.principal_of_key(session, secret),
        lambda: passes.use_link(session, waiting),
    ):
        with pytest.raises(NotSignedIn):
            shown()


def test_the_database_holds_no_secret(session: Session, grace: str) -> None:
    link = passes.make_link(session, grace, "admin")
    _, secret = passes.make_key(session, grace, "ci", {Action.VIEW}, WEEK, "admin")
    cookie = passes.use_link(session, link)
    session.flush()
    for table in ("sign_in_links", "browser_sessions", "api_keys", "audit"):
        held = "\n".join(session.scalars(text(f"SELECT row_to_json({table})::text FROM {table}")))
        assert held
        for token in (link, cookie, secret, secret.removeprefix(passes.KEY_PREFIX)):
            assert token not in held


def test_a_key_ends_is_revoked_and_is_of_its_brand(session: Session, grace: str) -> None:
    brand, other = a_brand(session), a_brand(session, "other")
    _, secret = passes.make_key(session, grace, "ci", {Action.VIEW, Action.PRODUCE}, WEEK, "admin", brand.name)
    who = passes.principal_of_key(session, secret)
    assert (who.actor, who.is_person) == ("key:ci of grace", False)
    assert who.may(Action.PRODUCE, brand.id)
    assert not who.may(Action.COMMENT, brand.id)
    assert not who.may(Action.VIEW, other.id)
    passes.revoke_key(session, "ci", "admin")
    with pytest.raises(NotSignedIn):
        passes.principal_of_key(session, secret)
    _, over = passes.make_key(session, grace, "old", {Action.VIEW}, WEEK, "admin")
    session.execute(update(ApiKey).values(expires_at=datetime.now(UTC)))
    session.expire_all()
    for unknown in (over, "", "onm_" + "x" * 43, secret[:-1]):
        with pytest.raises(NotSignedIn):
            passes.principal_of_key(session, unknown)


@pytest.mark.parametrize("scope", sorted(NEVER_BY_KEY))
def test_no_key_is_made_that_decides(session: Session, grace: str, scope: Action) -> None:
    with pytest.raises(AccountRefused, match="people do"):
        passes.make_key(session, grace, "ci", {Action.VIEW, scope}, WEEK, "admin")


@pytest.mark.parametrize("scope", sorted(set(Action) - BY_AGENT))
def test_no_agent_s_key_is_made_that_decides_and_one_that_was_changed_does_not(
    session: Session, grace: str, scope: Action
) -> None:
    with pytest.raises(AccountRefused):
        passes.make_key(session, grace, "planner", {Action.VIEW, scope}, WEEK, "admin", agent=True)
    key, secret = passes.make_key(session, grace, "planner", set(BY_AGENT), WEEK, "admin", agent=True)
    for role in Role:
        accounts.grant(session, grace, role, "admin")
    session.execute(update(ApiKey).values(scopes=[a.value for a in Action]))
    session.expire_all()
    who = passes.principal_of_key(session, secret)
    assert (who.actor, who.is_agent, who.is_person, key.agent) == ("agent:planner of grace", True, False, True)
    assert not who.may(scope, a_brand(session).id)
    assert who.may(Action.PRODUCE, a_brand(session).id)


def test_who_owns_the_agent_that_asked_does_not_approve(session: Session, grace: str) -> None:
    _, secret = passes.make_key(session, grace, "planner of hedy", {Action.PRODUCE}, WEEK, "admin", agent=True)
    asked = passes.principal_of_key(session, secret).actor
    asset = an_asset_in_review(session, a_campaign(session, requested_by=asked))
    for by, why in ((grace, "asked for it"), (asked, "only a person")):
        with pytest.raises(FourEyes, match=why):
            approve(session, asset, by)
    approve(session, asset, "hedy")


def test_a_key_has_a_name_scopes_and_an_end(session: Session, grace: str) -> None:
    passes.make_key(session, grace, "ci", {Action.VIEW}, WEEK, "admin")
    for name, scopes, lasts in (
        ("ci", {Action.VIEW}, WEEK), (" ", {Action.VIEW}, WEEK), ("a\nb", {Action.VIEW}, WEEK), ("none", set(), WEEK),
        ("never", {Action.VIEW}, timedelta(0)), ("ever", {Action.VIEW}, timedelta(days=366)),
    ):  # fmt: skip
        with pytest.raises(AccountRefused):
            passes.make_key(session, grace, name, scopes, lasts, "admin")
    with pytest.raises(NotFound):
        passes.revoke_key(session, "no such key", "admin")


def test_who_owns_the_key_that_asked_does_not_approve(session: Session, grace: str) -> None:
    _, secret = passes.make_key(session, grace, "up of to date", {Action.PRODUCE}, WEEK, "admin")
    asked = passes.principal_of_key(session, secret).actor
    asset = an_asset_in_review(session, a_campaign(session, requested_by=asked))
    with pytest.raises(FourEyes, match="asked for it"):
        approve(session, asset, "Grace")
    approve(session, asset, "hedy")
