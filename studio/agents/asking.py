"""Tools that ask people: to decide, and by saying something."""

from __future__ import annotations

import uuid
from typing import Annotated
from uuid import UUID

from pydantic import Field

from studio.agents.telling import Asked, Asking, Remark
from studio.client import Asset, Client, ClientError, Conflict, Forbidden, NotFound, Refused

Note = Annotated[str, Field(min_length=1, max_length=4000)]


def ask_for_review(
    client: Client,
    assets: Annotated[list[UUID], Field(min_length=1, max_length=50)],
    person: Annotated[
        str, Field(max_length=254, description="Who is to decide: a person's handle, as people here sign in.")
    ],
    stage: Annotated[
        str | None, Field(max_length=200, description="Where it waits; needed where it waits at several.")
    ] = None,
    note: Annotated[
        str | None, Field(max_length=4000, description="What they should look at; it is a comment on each.")
    ] = None,
) -> Asked:
    """Ask a person to decide on pictures that are in review, and tell them what to look at. You cannot approve anything yourself: this is
    how your work goes on. Each picture stands alone: one that is refused says why."""
    actor = client.me().actor
    return Asked(results=[_ask(client, id_, person, stage, note, actor) for id_ in assets])


def comment_on(client: Client, asset_id: UUID, text: Note) -> Remark:
    """Say something of a picture as it is now, for people to read: what is right, what is wrong, what should change. It decides nothing."""
    asset = client.asset(asset_id)
    if asset.current is None:
        raise ClientError("there is no picture of it yet", "Look at its run: get_run.")
    said = client.comment(asset.id, asset.current.id, text)
    return Remark(by=said.by, version=said.version, text=said.text)


def _ask(client: Client, asset_id: UUID, person: str, stage: str | None, note: str | None, actor: str) -> Asking:
    try:
        asset = client.asset(asset_id)
        at = _stage(asset, stage)
        client.assign(asset_id, at, person)
        if note and asset.current is not None:
            same = f"{actor}/{asset.current.id}/{person}/{note}"  # asked again, it is said once
            client.comment(asset_id, asset.current.id, note, comment_id=uuid.uuid5(uuid.NAMESPACE_URL, same))
    except (NotWaiting, Conflict, Forbidden, NotFound, Refused) as error:
        return Asking(asset=asset_id, problem=f"{error}. {error.next_step}".strip())
    return Asking(asset=asset_id, stage=at, person=person)


class NotWaiting(ClientError):
    """An asset that nobody can be asked to decide on so."""


def _stage(asset: Asset, stage: str | None) -> str:
    if not asset.waits_at:
        raise NotWaiting(f"it is {asset.review} and waits for nobody", "Ask for review of what is in review.")
    if stage is None and len(asset.waits_at) > 1:
        raise NotWaiting(f"it waits at {' and '.join(asset.waits_at)}", "Give the stage.")
    return stage or asset.waits_at[0]
