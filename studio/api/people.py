"""`/v1`: signing in and out, who is asking, people, roles, keys, and the audit."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.people import accounts, passes
from asset_store.people.permissions import Action, Principal
from asset_store.tables import AuditRow, Brand, Role
from studio.api.answers import (
    AuditPage,
    AuditRowOut,
    EndedOut,
    KeyOut,
    KeysOut,
    LinkOut,
    MeOut,
    PeopleOut,
    PersonOut,
    abilities,
)
from studio.api.assets import Asked
from studio.api.callers import COOKIE, Admin, Idempotency, OnlyPeople, StoreDep, Who, check_rate, csrf_of
from studio.api.once import answered

router = APIRouter(tags=["people"])
Handle = Annotated[str, Field(min_length=1, max_length=254)]
Name = Annotated[str, Field(max_length=200)]


class LinkIn(Asked):
    link: Annotated[str, Field(min_length=1, max_length=200, description="The token of a sign-in link.")]


class PersonIn(Asked):
    handle: Handle
    name: Name = ""


class RoleIn(Asked):
    role: Role
    brand: Annotated[str | None, Field(max_length=200)] = None
    stage: Annotated[str | None, Field(max_length=200)] = None


class KeyIn(Asked):
    name: Annotated[str, Field(min_length=1, max_length=80)]
    owner: Handle
    scopes: Annotated[set[Action], Field(min_length=1)]
    days: Annotated[int, Field(ge=1, le=365)] = 90
    brand: Annotated[str | None, Field(max_length=200)] = None
    agent: Annotated[bool, Field(description="An AI agent's: it may view, comment, produce and assign at most.")] = (
        False
    )


@router.post("/sessions", status_code=201)
def sign_in(body: LinkIn, store: StoreDep, request: Request, response: Response) -> MeOut:
    """Sign a browser in with a link, once; the session is in a cookie that no script reads."""
    check_rate(request.app.state.sign_ins, request.client.host if request.client else "somebody")
    with store.database.transaction() as session:
        token = passes.use_link(session, body.link)
        who = passes.principal_of_session(session, token)
        told = _me(session, who, csrf_of(token))
    response.set_cookie(
        COOKIE, token, max_age=int(passes.SESSION_FOR.total_seconds()), httponly=True, samesite="lax",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return told


@router.delete("/sessions/current", status_code=204)
def sign_out(who: Who, store: StoreDep, request: Request, response: Response) -> None:
    """End the browser's session."""
    with store.database.transaction() as session:
        passes.end_session(session, request.cookies.get(COOKIE, ""))
    response.delete_cookie(COOKIE)


@router.delete("/sessions")
def sign_out_elsewhere(who: OnlyPeople, store: StoreDep, request: Request) -> EndedOut:
    """End all other sessions of the caller."""
    with store.database.transaction() as session:
        return EndedOut(ended=passes.end_other_sessions(session, who.person_id, request.cookies.get(COOKIE, "")))


@router.get("/me")
def me(who: Who, store: StoreDep, request: Request) -> MeOut:
    """Who is asking, and what they may do where."""
    cookie = request.cookies.get(COOKIE, "") if who.is_person else ""
    with store.database.reading() as session:
        return _me(session, who, csrf_of(cookie) if cookie else None)


@router.get("/people")
def get_people(who: Admin, store: StoreDep) -> PeopleOut:
    """Everybody, with their roles."""
    with store.database.reading() as session:
        return _people(session)


@router.post("/people", status_code=201)
def add_person(
    body: PersonIn, who: Admin, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> PersonOut:
    """Add somebody, who may do nothing until a role is granted."""

    def act(session: Session) -> PersonOut:
        return PersonOut.of(accounts.add_person(session, body.handle, body.name, who.actor), {})

    return answered(store, who, idempotency_key, {"add": body.model_dump()}, act, PersonOut, response)


@router.post("/people/{handle}/roles", status_code=201)
def grant(
    handle: str, body: RoleIn, who: Admin, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> PersonOut:
    """Give somebody a role."""

    def act(session: Session) -> PersonOut:
        accounts.grant(session, handle, body.role, who.actor, body.brand, body.stage)
        return PersonOut.of(accounts.get_person(session, handle), _brands(session))

    asked = {"grant": handle, **body.model_dump(mode="json")}
    return answered(store, who, idempotency_key, asked, act, PersonOut, response)


@router.delete("/people/{handle}/roles")
def revoke(
    handle: str, role: Role, who: Admin, store: StoreDep, brand: Annotated[str | None, Query(max_length=200)] = None,
    stage: Annotated[str | None, Query(max_length=200)] = None,
) -> PersonOut:  # fmt: skip
    """Take a role back."""
    with store.database.transaction() as session:
        accounts.revoke(session, handle, role, who.actor, brand, stage)
        return PersonOut.of(accounts.get_person(session, handle), _brands(session))


@router.post("/people/{handle}/links", status_code=201)
def make_link(handle: str, who: Admin, store: StoreDep, request: Request) -> LinkOut:
    """A link that signs somebody in, once, within 15 minutes. It is in this answer alone, so this is not answered twice."""
    with store.database.transaction() as session:
        token = passes.make_link(session, handle, who.actor)
    here = store.settings.telling.address or str(request.base_url)
    return LinkOut(address=f"{here.rstrip('/')}/sign-in#{token}")


@router.put("/people/{handle}/disabled")
def disable(handle: str, who: Admin, store: StoreDep) -> PersonOut:
    """Let somebody in no more."""
    with store.database.transaction() as session:
        return PersonOut.of(accounts.disable(session, handle, who.actor), _brands(session))


@router.delete("/people/{handle}/disabled")
def enable(handle: str, who: Admin, store: StoreDep) -> PersonOut:
    """Let somebody in again."""
    with store.database.transaction() as session:
        return PersonOut.of(accounts.enable(session, handle, who.actor), _brands(session))


@router.get("/keys")
def get_keys(who: Who, store: StoreDep) -> KeysOut:
    """One's own keys; an admin sees all."""
    mine = None if who.may(Action.ADMINISTER, None) else who.person_id
    with store.database.reading() as session:
        return KeysOut(keys=[KeyOut.of(k) for k in passes.keys(session, mine)])


@router.post("/keys", status_code=201)
def make_key(body: KeyIn, who: Admin, store: StoreDep) -> KeyOut:
    """Make a key; its secret is in this answer alone, so this is not answered twice: a lost answer wants another name."""
    with store.database.transaction() as session:
        lasts = timedelta(days=body.days)
        key, secret = passes.make_key(
            session, body.owner, body.name, body.scopes, lasts, who.actor, body.brand, body.agent
        )
        return KeyOut.of(key, secret)


@router.delete("/keys/{name:path}")
def revoke_key(name: str, who: Admin, store: StoreDep) -> KeyOut:
    """Stop a key at once."""
    with store.database.transaction() as session:
        return KeyOut.of(passes.revoke_key(session, name, who.actor))


@router.get("/audit")
def get_audit(
    who: Who, store: StoreDep, subject: Annotated[str | None, Query(max_length=200)] = None,
    actor: Annotated[str | None, Query(max_length=254)] = None, before: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> AuditPage:  # fmt: skip
    """Who did what, the newest first; `onmodel audit verify` walks the whole chain. Rows are of all brands."""
    who.require(Action.AUDIT, None)
    question = select(AuditRow).order_by(AuditRow.seq.desc()).limit(limit + 1)
    if subject is not None:
        question = question.where(AuditRow.subject == subject)
    if actor is not None:
        question = question.where(AuditRow.actor == actor)
    if before is not None:
        question = question.where(AuditRow.seq < before)
    with store.database.reading() as session:
        rows = session.scalars(question).all()
    shown = rows[:limit]
    return AuditPage(rows=[AuditRowOut.of(r) for r in shown], next_before=shown[-1].seq if len(rows) > limit else None)


def _me(session: Session, who: Principal, csrf: str | None) -> MeOut:
    return MeOut(
        actor=who.actor,
        name=who.name,
        is_person=who.is_person,
        is_agent=who.is_agent,
        actions=abilities(who, _brands(session)),
        csrf=csrf,
    )


def _people(session: Session) -> PeopleOut:
    brands = _brands(session)
    return PeopleOut(people=[PersonOut.of(p, brands) for p in accounts.people(session)])


def _brands(session: Session) -> dict[uuid.UUID, str]:
    return {row[0]: row[1] for row in session.execute(select(Brand.id, Brand.name).order_by(Brand.name))}
