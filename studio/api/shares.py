"""`/v1/shares`: links for people who have no account."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from asset_store.people import shares
from asset_store.people.permissions import Action
from asset_store.tables import ShareLink
from studio.api.answers import Answer
from studio.api.assets import Asked
from studio.api.callers import StoreDep, Who, need
from studio.api.changing import seen_asset

router = APIRouter(tags=["shares"])


class ShareIn(Asked):
    assets: Annotated[list[uuid.UUID], Field(min_length=1, max_length=shares.MOST_ASSETS)]
    title: Annotated[str, Field(min_length=1, max_length=shares.LONGEST_TITLE)]
    days: Annotated[int, Field(ge=1, le=shares.LONGEST_SHARE.days)] = 14
    can_comment: bool = False
    password: Annotated[str | None, Field(min_length=8, max_length=shares.LONGEST_PASSWORD)] = None


class ShareOut(Answer):
    """`address` is in the answer that made it alone: the database holds its hash."""

    id: uuid.UUID
    title: str
    assets: int
    can_comment: bool
    password: bool
    expires_at: datetime
    revoked: bool
    by: str
    address: str | None = None

    @classmethod
    def of(cls, link: ShareLink, address: str | None = None) -> ShareOut:
        return cls(
            id=link.id, title=link.title, assets=len(link.assets), can_comment=link.can_comment,
            password=link.password_hash is not None, expires_at=link.expires_at, revoked=link.revoked_at is not None,
            by=link.by, address=address,
        )  # fmt: skip


class SharesOut(Answer):
    shares: list[ShareOut]


@router.get("/shares")
def get_shares(who: Who, store: StoreDep) -> SharesOut:
    """The links of the brands that the caller shares, the newest first."""
    with store.database.reading() as session:
        return SharesOut(shares=[ShareOut.of(link) for link in shares.links(session, who.brands(Action.SHARE))])


@router.post("/shares", status_code=201)
def share(body: ShareIn, who: Who, store: StoreDep, request: Request) -> ShareOut:
    """Make a link to pictures of one brand. Its address is in this answer alone, so it is not answered twice."""
    with store.database.transaction() as session:
        for asset_id in body.assets:
            seen_asset(session, asset_id, who, Action.SHARE)
        link, token = shares.share(
            session, body.assets, body.title, timedelta(days=body.days), who.actor, can_comment=body.can_comment,
            password=body.password,
        )  # fmt: skip
        return ShareOut.of(link, str(request.base_url).rstrip("/") + f"/s/{token}")


@router.delete("/shares/{share_id}")
def revoke(share_id: uuid.UUID, who: Who, store: StoreDep) -> ShareOut:
    """Show nothing under it any more, at once."""
    with store.database.transaction() as session:
        link = session.get(ShareLink, share_id)
        need(who, Action.SHARE, None if link is None else link.brand_id, "share link", share_id)
        return ShareOut.of(shares.revoke_link(session, share_id, who.actor))
