"""Who comes by the company's sign-in: attempts that one browser finishes once, and whom an identity is here.

An account of the provider is known by issuer and subject. A verified e-mail address finds a person the first time only; from
then on the subject does, so that an address that is given to somebody else lets nobody else in.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import AccountRefused, NotSignedIn, SignInRefused
from asset_store.people import accounts
from asset_store.people.passes import begin_session, hash_of, new_token
from asset_store.reviewing.decide import SYSTEM
from asset_store.tables import Person, SignInAttempt

ATTEMPT_FOR = timedelta(minutes=10)
LONGEST_SUBJECT, LONGEST_NAME, LONGEST_PATH = 255, 200, 1000


@dataclass(frozen=True, slots=True)
class Attempt:
    """`state` goes to the provider and comes back with the browser; `secret` stays in the browser's cookie.

    What the provider is told besides is derived of both, so that the database holds nothing to finish an attempt with.
    """

    state: str
    secret: str

    @property
    def nonce(self) -> str:
        return self._derived("nonce")

    @property
    def code_verifier(self) -> str:
        """64 of the letters that RFC 7636 allows."""
        return self._derived("code verifier")

    def _derived(self, what: str) -> str:
        return hmac.new(self.secret.encode(), f"{what} {self.state}".encode(), sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified id_token says of somebody; `email` is None unless the provider says that it verified it."""

    issuer: str
    subject: str
    email: str | None
    name: str


def begin_attempt(session: Session, next_path: str) -> Attempt:
    """A new attempt, to end at `next_path`; those that are over are forgotten."""
    now, attempt = datetime.now(UTC), Attempt(new_token(), new_token())
    session.execute(delete(SignInAttempt).where(SignInAttempt.expires_at <= now))
    session.add(
        SignInAttempt(
            sha256=hash_of(attempt.state), browser_sha256=hash_of(attempt.secret), next_path=local_path(next_path),
            expires_at=now + ATTEMPT_FOR,
        )
    )  # fmt: skip
    session.flush()
    return attempt


def use_attempt(session: Session, attempt: Attempt) -> str:
    """Finish an attempt, once: where it was to end. NotSignedIn where it is unknown, used, over, or another browser's, which
    does not use it up."""
    row = session.scalar(select(SignInAttempt).where(SignInAttempt.sha256 == hash_of(attempt.state)).with_for_update())
    if row is None or row.used_at is not None or row.expires_at <= datetime.now(UTC):
        raise NotSignedIn("this sign-in was used or is over", "Sign in again.")
    if not hmac.compare_digest(row.browser_sha256, hash_of(attempt.secret)):
        raise NotSignedIn("this sign-in was begun in another browser", "Sign in again, in this one.")
    row.used_at = datetime.now(UTC)
    return row.next_path


def sign_in(session: Session, who: Identity, admitted: Collection[str]) -> str:
    """The token of a new session of the person whom this identity is; `admitted` are the e-mail domains whose people are
    added. SignInRefused; NotSignedIn for who is disabled."""
    subject = f"{who.issuer} {who.subject}"
    if not 0 < len(who.subject) <= LONGEST_SUBJECT or not who.subject.isascii() or not who.subject.isprintable():
        raise SignInRefused("the company's sign-in names no account", "Ask an admin.")
    person = session.scalar(select(Person).where(Person.subject == subject).with_for_update())
    if person is None:
        person = _first_time(session, who, subject, admitted)
    return begin_session(session, person.id, {"issuer": who.issuer, "subject": who.subject})


def local_path(path: str) -> str:
    """A path of these pages other than of signing in; for whatever else, their first. Browsers take a backslash for a slash."""
    local = path.startswith("/") and not path.startswith(("//", "/sign-in")) and "\\" not in path
    return path if local and path.isprintable() and len(path) <= LONGEST_PATH else "/"


def _first_time(session: Session, who: Identity, subject: str, admitted: Collection[str]) -> Person:
    email = _address(who)
    person = session.scalar(select(Person).where(Person.handle == email).with_for_update())
    if person is None:
        person = _admit(session, who, email, subject, admitted)
    elif person.disabled_at is not None:
        raise NotSignedIn(f"{person.handle} may sign in no more", "Ask an admin.")
    elif person.subject is not None:
        raise SignInRefused(
            f"{email} is another account of the company's sign-in here",
            f"Ask an admin: if the account was made anew, `onmodel people unlink {email}` lets the new one in.",
        )
    else:
        person.subject = subject
        session.flush()
    told = {"handle": email, "issuer": who.issuer, "subject": who.subject}
    audit.record(session, email, "link person", f"person {person.id}", told)
    return person


def _address(who: Identity) -> str:
    """The verified e-mail address in lower case. ASCII alone: letters of other scripts can become the same letter in lower
    case, and a name without a domain could be that of somebody who was added by another."""
    email = (who.email or "").strip()
    name, _, domain = email.partition("@")
    if not email:
        raise SignInRefused("the company's sign-in gives no e-mail address that it verified", "Ask an admin.")
    if email.isascii() and name and domain and "@" not in domain:
        with suppress(AccountRefused):
            return accounts.checked_handle(email)
    raise SignInRefused("the company's sign-in gives an e-mail address that cannot be used here", "Ask an admin.")


def _admit(session: Session, who: Identity, email: str, subject: str, admitted: Collection[str]) -> Person:
    """Somebody new of a domain that is let in. They have no role: what they may see is for an admin to say."""
    if email.partition("@")[2] not in admitted:
        raise SignInRefused(
            f"nobody here is known as {email}", f"Ask an admin to add you: `onmodel people add {email}`."
        )
    name = "".join(c for c in " ".join(who.name.split()) if c.isprintable())[:LONGEST_NAME]
    return accounts.add_person(session, email, name, SYSTEM, subject)
