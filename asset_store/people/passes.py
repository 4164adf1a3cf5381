"""What shows who somebody is: a link that signs in once, a browser's session, a program's key.

All are random and long, and the database holds their sha256 alone: who reads it cannot sign in with what they read.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session, joinedload

from asset_store import audit
from asset_store.errors import AccountRefused, NotFound, NotSignedIn
from asset_store.people.accounts import brand_id_of, get_person, principal_of
from asset_store.people.permissions import BY_AGENT, NEVER_BY_KEY, Action, Principal
from asset_store.reviewing.decide import AGENT, KEY
from asset_store.tables import ApiKey, BrowserSession, Person, SignInLink

LINK_FOR = timedelta(minutes=15)
SESSION_FOR, SESSION_IDLE = timedelta(days=7), timedelta(hours=12)
LONGEST_KEY = timedelta(days=365)
SEEN_EVERY = timedelta(minutes=1)  # how exactly it is known when a pass was last used
KEY_PREFIX = "onm_"


def new_token() -> str:
    """256 random bits, for an address or a header."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def make_link(session: Session, handle: str, by: str, lasts: timedelta = LINK_FOR) -> str:
    """The token of a link that signs this person in, once."""
    person = get_person(session, handle)
    token = new_token()
    session.add(SignInLink(sha256=hash_of(token), person_id=person.id, expires_at=datetime.now(UTC) + lasts, by=by))
    session.flush()
    audit.record(session, by, "make sign-in link", f"person {person.id}", {"handle": person.handle})
    return token


def use_link(session: Session, token: str) -> str:
    """Sign in with a link: the token of a new session. NotSignedIn where it is unknown, used or over."""
    now = datetime.now(UTC)
    link = session.scalar(select(SignInLink).where(SignInLink.sha256 == hash_of(token)).with_for_update())
    if link is None or link.used_at is not None or link.expires_at <= now:
        raise NotSignedIn("this link was used or is over", "Ask for another one: `onmodel people link NAME`.")
    link.used_at = now
    return begin_session(session, link.person_id, {"link by": link.by})


def begin_session(session: Session, person_id: uuid.UUID, how: Mapping[str, str] | None = None) -> str:
    """The token of a new browser session, for the cookie; `how` is what the audit says of it besides."""
    now, token = datetime.now(UTC), new_token()
    row = BrowserSession(sha256=hash_of(token), person_id=person_id, expires_at=now + SESSION_FOR, seen_at=now)
    session.add(row)
    session.flush()
    if row.person.disabled_at is not None:
        raise NotSignedIn(f"{row.person.handle} may sign in no more", "Ask an admin.")
    audit.record(session, row.person.handle, "sign in", f"person {person_id}", how)
    return token


def principal_of_session(session: Session, token: str) -> Principal:
    """Who a browser's cookie is; NotSignedIn where its session ended, was idle too long, or its person is disabled."""
    now = datetime.now(UTC)
    whole = joinedload(BrowserSession.person).joinedload(Person.grants)
    row = session.get(BrowserSession, hash_of(token), options=[whole])
    over = row is None or row.ended_at is not None or row.expires_at <= now or row.seen_at + SESSION_IDLE <= now
    if row is None or over or row.person.disabled_at is not None:
        raise NotSignedIn("you are not signed in, or no longer", "Sign in again.")
    if row.seen_at + SEEN_EVERY < now:
        session.execute(update(BrowserSession).where(BrowserSession.sha256 == row.sha256).values(seen_at=now))
    return principal_of(row.person)


def end_session(session: Session, token: str) -> None:
    """Sign out; again, it changes nothing."""
    row = session.get(BrowserSession, hash_of(token))
    if row is not None and row.ended_at is None:
        row.ended_at = datetime.now(UTC)
        session.flush()
        audit.record(session, row.person.handle, "sign out", f"person {row.person_id}")


def end_other_sessions(session: Session, person_id: uuid.UUID, but: str) -> int:
    """Sign a person out in all browsers but the one with this token; how many those were."""
    now, others = datetime.now(UTC), BrowserSession.sha256 != hash_of(but)
    open_ = select(BrowserSession).where(BrowserSession.person_id == person_id, others)
    ended = session.scalars(open_.where(BrowserSession.ended_at.is_(None), BrowserSession.expires_at > now)).all()
    for row in ended:
        row.ended_at = now
    if ended:
        session.flush()
        audit.record(
            session, ended[0].person.handle, "sign out elsewhere", f"person {person_id}", {"sessions": len(ended)}
        )
    return len(ended)


def make_key(
    session: Session, owner: str, name: str, scopes: Collection[Action], lasts: timedelta, by: str, brand: str | None = None,
    agent: bool = False,
) -> tuple[ApiKey, str]:  # fmt: skip
    """A key for a program, or for an AI agent, and its secret, which is shown this once. AccountRefused where it would be for ever,
    for nothing, or for what no key, or no agent, may."""
    person = get_person(session, owner)
    name = name.strip()
    if not name or len(name) > 80 or not name.isprintable():
        raise AccountRefused("a key needs a name of one line", "Say what it is for, such as calendar-sync.")
    if session.scalar(select(ApiKey.id).where(ApiKey.name == name)) is not None:
        raise AccountRefused(f"there is a key {name} already", "Choose another name: names stay in the record.")
    if refused := sorted(set(scopes) & NEVER_BY_KEY):
        raise AccountRefused(f"no key may {', '.join(refused)}: people do", "Leave these scopes out.")
    if agent and (refused := sorted(set(scopes) - BY_AGENT)):
        raise AccountRefused(
            f"no agent may {', '.join(refused)}: agents ask, people decide",
            f"Give it some of {', '.join(sorted(BY_AGENT))}.",
        )
    if not scopes or not timedelta(0) < lasts <= LONGEST_KEY:
        raise AccountRefused("a key needs scopes, and an end within a year", "Give both.")
    brand_id = brand_id_of(session, brand)
    secret = KEY_PREFIX + new_token()
    key = ApiKey(
        name=name, sha256=hash_of(secret), owner_id=person.id, scopes=sorted(s.value for s in scopes), brand_id=brand_id,
        expires_at=datetime.now(UTC) + lasts, agent=agent,
    )  # fmt: skip
    session.add(key)
    session.flush()
    told = {
        "name": name,
        "owner": person.handle,
        "scopes": key.scopes,
        "brand": brand,
        "until": key.expires_at.isoformat(),
        "agent": agent,
    }
    audit.record(session, by, "make key", f"key {key.id}", told)
    return key, secret


def principal_of_key(session: Session, secret: str) -> Principal:
    """What a key may: its scopes, of what its owner may, and of what agents may where it is one's. NotSignedIn where it is unknown, revoked or over."""
    now = datetime.now(UTC)
    whole = joinedload(ApiKey.owner).joinedload(Person.grants)
    key = session.scalars(select(ApiKey).where(ApiKey.sha256 == hash_of(secret)).options(whole)).unique().one_or_none()
    who = None if key is None else of_key(key, now)
    if key is None or who is None:
        raise NotSignedIn("this key is not known, or no longer", "Ask for another one: `onmodel keys make`.")
    if key.used_at is None or key.used_at + SEEN_EVERY < now:
        session.execute(update(ApiKey).where(ApiKey.id == key.id).values(used_at=now))
    return who


def of_key(key: ApiKey, now: datetime) -> Principal | None:
    """Who acts with a key; None where it is revoked or over, or its owner is let in no more."""
    if key.revoked_at is not None or key.expires_at <= now or key.owner.disabled_at is not None:
        return None
    scopes = frozenset(Action(s) for s in key.scopes if s in set(Action))
    return replace(
        principal_of(key.owner), actor=f"{AGENT if key.agent else KEY}{key.name} of {key.owner.handle}", scopes=scopes,
        only_brand=key.brand_id, is_agent=key.agent, key_id=key.id,
    )  # fmt: skip


def revoke_key(session: Session, name: str, by: str) -> ApiKey:
    key = session.scalar(select(ApiKey).where(ApiKey.name == name))
    if key is None:
        raise NotFound("key", name, "`onmodel keys list` names those there are.")
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        session.flush()
        audit.record(session, by, "revoke key", f"key {key.id}", {"name": name})
    return key


def keys(session: Session, owner_id: uuid.UUID | None = None) -> Sequence[ApiKey]:
    """All keys, or one person's, by name."""
    question = select(ApiKey).order_by(ApiKey.name)
    return session.scalars(question if owner_id is None else question.where(ApiKey.owner_id == owner_id)).all()
