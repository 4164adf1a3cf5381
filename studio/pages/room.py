"""The review room: one picture beside its references, with all that a decision needs, and the way to the next."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy.orm import Session, joinedload

from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import assigning, grid, queue
from asset_store.reviewing.comments import remarks_of
from asset_store.reviewing.grid import Around
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.queue import DOUBT
from asset_store.reviewing.retaking import came_to_nothing
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.rights.availability import open_proposal
from asset_store.tables import Asset, AssetVersion
from studio.api.answers import AssetOut, CommentOut
from studio.api.callers import StoreDep, need, own_stages
from studio.pages import lists
from studio.pages.rendering import page
from studio.pages.versions import changed_settings

AHEAD = 3  # of the pictures that follow, so many are fetched before they are asked for
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/assets/{asset_id}")
def room_page(asset_id: uuid.UUID, request: Request, store: StoreDep) -> Response:
    who = lists.visitor(request, store)
    within = dict(request.query_params)
    with store.database.reading() as session:
        asset = _whole(session, asset_id, who)
        record = {v.id: v.lineage.record for v in asset.versions if v.lineage is not None}
        shown = record.get(asset.current.id, {}) if asset.current else {}
        around = _around(session, asset, within, who)
        return page(
            request, "room.html", who, asset=AssetOut.of(asset).model_dump(mode="json"), card=lists.card(around.tile, ""),
            checks=sorted(asset.current.checks if asset.current else [], key=lambda c: (DOUBT[c.outcome], c.seq)),
            references=[r for r in shown.get("references", []) if r.get("sha256")], settings=shown.get("settings", {}),
            models=shown.get("models", []), versions=_versions(asset, record),
            comments=[CommentOut.of(r).model_dump(mode="json") for r in remarks_of(session, asset.id)],
            asked=assigning.assignments_of(session, asset.id), stages=policy_of(asset.campaign).rounds,
            decisions=[d for v in reversed(asset.versions) for d in reversed(v.decisions)],
            lost=asset.review is ReviewState.DRAFT and asset.current is not None and came_to_nothing(session, asset),
            mine=own_stages(asset, who), may={a.value: who.may(a, asset.brand_id) for a in Action},
            proposal=open_proposal(session, asset.id) if asset.availability is Availability.SUSPENDED else None, places=sorted(store.settings.delivery.places), around=_ways(around, within),
        )  # fmt: skip


def _whole(session: Session, asset_id: uuid.UUID, who: Principal) -> Asset:
    """The asset with all that hangs on its versions, if they may see it. NotFound."""
    versions = joinedload(Asset.versions)
    parts = (
        versions.joinedload(AssetVersion.decisions),
        versions.joinedload(AssetVersion.lineage),
        versions.joinedload(AssetVersion.removal),
        versions.selectinload(AssetVersion.checks),
    )
    asset = session.get(Asset, asset_id, options=parts)
    need(who, Action.VIEW, None if asset is None else asset.brand_id, "asset", asset_id)
    assert asset is not None
    return asset


def _around(session: Session, asset: Asset, within: Mapping[str, str], who: Principal) -> Around:
    """This asset in the list that it was opened from."""
    if within.get("from") == lists.QUEUE:
        return queue.around(session, who.actor, lists.stages_of(who, session), asset, AHEAD)
    filters, _ = lists.read_filters(within, who)
    liked = lists.likest(session, who, filters, within)
    if liked is None:
        return grid.around(session, filters, asset, AHEAD)
    tiles = liked[0]
    here = next((i for i, tile in enumerate(tiles) if tile.id == asset.id), -1)
    (tile,) = grid.tiles_of(session, [asset.id])
    return Around(tile, tiles[max(0, here - 1) : max(0, here)], tiles[here + 1 : here + 1 + AHEAD])


def _ways(around: Around, within: Mapping[str, str]) -> dict[str, Any]:
    """Where the keys lead, and what is fetched before they are pressed."""
    address = urlencode(within)
    back, on = ([lists.card(tile, address).href for tile in tiles] for tiles in (around.before, around.later))
    return {
        "next": on[0] if on else None, "previous": back[0] if back else None, "ahead": on,
        "pictures": [_picture(tile.id, tile.sha256) for tile in around.later if tile.sha256 and tile.removed_at is None],
    }  # fmt: skip


def _picture(asset_id: uuid.UUID, sha256: str) -> str:
    return f"/v1/assets/{asset_id}/pictures/{sha256}"


def _versions(asset: Asset, record: Mapping[uuid.UUID, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stack, the newest first, each with what changed since the one before."""
    told: list[dict[str, Any]] = []
    before: Mapping[str, Any] | None = None
    for version in asset.versions:
        settings = record.get(version.id, {}).get("settings", {})
        changes = [] if before is None else changed_settings(before, settings)
        picture = _picture(asset.id, version.sha256)
        told.append(
            {
                "number": version.number, "picture": picture, "made_at": version.made_at, "changes": changes,
                "removed_at": version.removal and version.removal.made_at,
            }
        )  # fmt: skip
        before = settings
    return told[::-1]
