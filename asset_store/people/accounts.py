"""People and their roles: who is there, who was let in or out, and what each may do."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from asset_store import audit
from asset_store.errors import AccountRefused, NotFound
from asset_store.people.permissions import Granted, Principal
from asset_store.repositories.libraries import get_brand
from asset_store.reviewing.decide import NOT_A_PERSON
from asset_store.tables import BrowserSession, Grant, Person, Role

LONGEST_HANDLE = 254  # of an e-mail address


def add_person(session: Session, handle: str, name: str, by: str, subject: str | None = None) -> Person:
    """Somebody new, who may do nothing yet. AccountRefused where the handle is taken or is none."""
    handle = checked_handle(handle)
    if find_person(session, handle) is not None:
        raise AccountRefused(f"there is a person {handle} already", "Choose another name.")
    person = Person(handle=handle, name=name.strip() or handle, subject=subject)
    session.add(person)
    session.flush()
    audit.record(session, by, "add person", f"person {person.id}", {"handle": handle, "name": person.name})
    return person


def find_person(session: Session, handle: str) -> Person | None:
    return session.scalar(select(Person).where(Person.handle == handle.strip().casefold()))


def get_person(session: Session, handle: str) -> Person:
    found = find_person(session, handle)
    if found is None:
        raise NotFound("person", handle, "`onmodel people list` names those there are.")
    return found


def people(session: Session) -> Sequence[Person]:
    return session.scalars(select(Person).options(selectinload(Person.grants)).order_by(Person.handle)).all()


def disable(session: Session, handle: str, by: str) -> Person:
    """Let somebody in no more: their sessions end, their keys stop. What they did stays theirs."""
    person = get_person(session, handle)
    if person.disabled_at is None:
        _keep_an_admin(session, person)
        person.disabled_at = now = datetime.now(UTC)
        for open_ in session.scalars(select(BrowserSession).where(BrowserSession.person_id == person.id)):
            open_.ended_at = open_.ended_at or now
        session.flush()
        audit.record(session, by, "disable person", f"person {person.id}", {"handle": person.handle})
    return person


def enable(session: Session, handle: str, by: str) -> Person:
    person = get_person(session, handle)
    if person.disabled_at is not None:
        person.disabled_at = None
        session.flush()
        audit.record(session, by, "enable person", f"person {person.id}", {"handle": person.handle})
    return person


def unlink(session: Session, handle: str, by: str) -> Person:
    """Forget which account of the company's sign-in somebody is; their next one by e-mail is linked again."""
    person = get_person(session, handle)
    if person.subject is not None:
        was, person.subject = person.subject, None
        session.flush()
        audit.record(session, by, "unlink person", f"person {person.id}", {"handle": person.handle, "subject": was})
    return person


def grant(
    session: Session, handle: str, role: Role, by: str, brand: str | None = None, stage: str | None = None
) -> Grant:
    """Give a role, for one brand or for all; again, it changes nothing. A stage is a reviewer's alone."""
    person, brand_id = get_person(session, handle), brand_id_of(session, brand)
    if stage is not None and role is not Role.REVIEWER:
        raise AccountRefused(f"a {role} has no stage", "Give a stage to reviewers alone.")
    there = _find_grant(session, person.id, role, brand_id, stage)
    if there is not None:
        return there
    row = Grant(person_id=person.id, role=role, brand_id=brand_id, stage=stage, by=by)
    session.add(row)
    session.flush()
    session.expire(person, ["grants"])
    audit.record(session, by, "grant", f"person {person.id}", _told(person, role, brand, stage))
    return row


def revoke(
    session: Session, handle: str, role: Role, by: str, brand: str | None = None, stage: str | None = None
) -> None:
    """Take a role back. AccountRefused for the last admin of all: nobody could let anybody in."""
    person = get_person(session, handle)
    there = _find_grant(session, person.id, role, brand_id_of(session, brand), stage)
    if there is None:
        raise NotFound("role of", f"{person.handle}: {role}", "`onmodel people list` shows the roles of all.")
    if role is Role.ADMIN and there.brand_id is None:
        _keep_an_admin(session, person)
    session.delete(there)
    session.flush()
    session.expire(person, ["grants"])
    audit.record(session, by, "revoke", f"person {person.id}", _told(person, role, brand, stage))


def principal_of(person: Person) -> Principal:
    """A person as one who acts."""
    granted = tuple(Granted(g.role, g.brand_id, g.stage) for g in person.grants)
    return Principal(person.handle, person.name, person.id, granted)


def checked_handle(handle: str) -> str:
    """An e-mail address or a local name, in lower case. AccountRefused for what could be taken for no person."""
    handle = handle.strip().casefold()
    if not 0 < len(handle) <= LONGEST_HANDLE or not re.fullmatch(r"[\w.+@-]+", handle):
        raise AccountRefused("this is no name to sign in by", "Give an e-mail address, or letters, digits, . + @ - _.")
    if handle.startswith(NOT_A_PERSON):
        raise AccountRefused(f"{handle} would be taken for a flow or a key", "Choose another name.")
    return handle


def brand_id_of(session: Session, brand: str | None) -> uuid.UUID | None:
    """The brand that something is for, None for all. NotFound."""
    return None if brand is None else get_brand(session, brand).id


def _find_grant(
    session: Session, person_id: uuid.UUID, role: Role, brand_id: uuid.UUID | None, stage: str | None
) -> Grant | None:
    return session.scalar(
        select(Grant).where(
            Grant.person_id == person_id,
            Grant.role == role,
            Grant.brand_id.is_not_distinct_from(brand_id),
            Grant.stage.is_not_distinct_from(stage),
        )
    )


def _keep_an_admin(session: Session, leaving: Person) -> None:
    """AccountRefused where nobody else could let anybody in."""
    admins = session.scalars(
        select(Grant.person_id)
        .join(Person, Person.id == Grant.person_id)
        .where(Grant.role == Role.ADMIN, Grant.brand_id.is_(None), Person.disabled_at.is_(None))
        .with_for_update(of=Grant)
    ).all()
    if set(admins) == {leaving.id}:
        raise AccountRefused(f"{leaving.handle} is the last admin", "Make another person admin first.")


def _told(person: Person, role: Role, brand: str | None, stage: str | None) -> dict[str, str | None]:
    return {"handle": person.handle, "role": role.value, "brand": brand, "stage": stage}
