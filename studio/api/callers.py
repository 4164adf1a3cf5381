"""Who calls: a program by its key, a browser by its cookie, and what else a change has to show."""

from __future__ import annotations

import hashlib
import hmac
import math
import uuid
from typing import Annotated

from fastapi import Depends, Header, Request
from starlette.exceptions import HTTPException

from asset_store.errors import Forbidden, NotFound, NotSignedIn
from asset_store.people import passes
from asset_store.people.permissions import Action, Principal
from asset_store.tables import Asset
from flows.wiring import Store
from studio.api.limits import Limiter

COOKIE = "onmodel_session"
CSRF_HEADER = "X-CSRF-Token"
SAFE = ("GET", "HEAD", "OPTIONS")


async def store_of(request: Request) -> Store:  # as it waits for nothing, it needs no thread
    store: Store = request.app.state.store
    return store


StoreDep = Annotated[Store, Depends(store_of)]


def csrf_of(cookie: str) -> str:
    """What a page of this session sends with a change; another site can neither read nor guess it."""
    return hashlib.sha256(f"csrf {cookie}".encode()).hexdigest()


def caller(request: Request, store: StoreDep) -> Principal:
    """NotSignedIn, 403 for a change without the page's token, 429 for too many requests."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    cookie = request.cookies.get(COOKIE, "")
    with store.database.reading() as session:
        if scheme:
            if scheme.casefold() != "bearer":
                raise NotSignedIn("this kind of authorization is not known", "Send `Authorization: Bearer KEY`.")
            who = passes.principal_of_key(session, secret.strip())
        elif cookie:
            who = passes.principal_of_session(session, cookie)
        else:
            raise NotSignedIn("nobody is signed in", "Send `Authorization: Bearer KEY`, or sign in.")
    if not scheme and request.method not in SAFE:
        sent = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(sent.encode(), csrf_of(cookie).encode()):
            raise HTTPException(403, f"a change from a browser needs the page's token in {CSRF_HEADER}")
    check_rate(request.app.state.callers, who.actor)
    return who


Who = Annotated[Principal, Depends(caller)]


def check_rate(limiter: Limiter, who: str) -> None:
    if (wait_s := limiter.wait_s(who)) > 0:
        raise HTTPException(429, "too many requests", {"Retry-After": str(math.ceil(wait_s))})


def need(who: Principal, action: Action, brand_id: uuid.UUID | None, what: str, asked: object) -> None:
    """NotFound for what there is not (no brand) or what they may not see, so that no id can be guessed; Forbidden for what they
    may not do."""
    if brand_id is None or not who.may(Action.VIEW, brand_id):
        raise NotFound(what, str(asked))
    who.require(action, brand_id)


async def admin(who: Who) -> Principal:
    """A caller who may administer. Forbidden."""
    who.require(Action.ADMINISTER, None)
    return who


Admin = Annotated[Principal, Depends(admin)]


async def person(who: Who) -> Principal:
    """A caller who is no key: what is a person's own is not changed by their programs. Forbidden."""
    if not who.is_person:
        raise Forbidden(who.actor, "change what is its owner's own")
    return who


OnlyPeople = Annotated[Principal, Depends(person)]


def own_stages(asset: Asset, who: Principal) -> list[str]:
    """Those of the stages that the asset waits at at which they decide."""
    mine = who.stages(asset.campaign.brand_id)
    return [s for s in asset.waits_at if mine is None or s in mine]


IfMatch = Annotated[str | None, Header(alias="If-Match", description='The asset\'s ETag, as `"3"`.')]
Idempotency = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200,
        description="A value of your own: the request sent again under it does nothing again and is answered the same.",
    ),
]  # fmt: skip


def row_version(if_match: str | None) -> int:
    """The row version that an If-Match names. 428 without one: a change says what it was decided on."""
    if if_match is None:
        raise HTTPException(428, "send If-Match with the ETag of the asset as you saw it")
    bare = if_match.strip().removeprefix("W/").strip('"')
    if not bare.isascii() or not bare.isdigit() or len(bare) > 9:
        raise HTTPException(412, "this If-Match is no ETag of an asset")
    return int(bare)
