"""`/v1`: releasing approved assets to places that the settings name."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store import releasing
from asset_store.canonical import sha256_of
from asset_store.people.permissions import Action
from asset_store.repositories.answers import answered_before
from asset_store.tables import Asset
from flows.delivering import deliver, place_named
from studio.api.answers import Answer, AssetOut
from studio.api.assets import Asked
from studio.api.callers import StoreDep, Who
from studio.api.changing import ChangeDep, seen_asset
from studio.api.once import answered

router = APIRouter(tags=["releases"])


class ReleaseIn(Asked):
    place: Annotated[str, Field(min_length=1, max_length=200, examples=["web"])]


class PlacesOut(Answer):
    places: list[str]


@router.get("/places")
def get_places(who: Who, store: StoreDep) -> PlacesOut:
    """Where approved assets may be delivered to, by name."""
    return PlacesOut(places=sorted(store.settings.delivery.places))


@router.post("/assets/{asset_id}/releases", status_code=201)
def release(asset_id: uuid.UUID, body: ReleaseIn, change: ChangeDep) -> AssetOut:
    """Deliver an approved asset's renditions to a place, and make it released. Files are written before the answer; what was
    delivered there before by the same person is not written again."""
    who, store = change.who, change.store
    asked = {"asset": str(asset_id), "version": change.version, "release": body.place}
    with store.database.transaction() as session:  # over before the files are written: nothing is held meanwhile
        seen_asset(session, asset_id, who, Action.RELEASE)
        before = change.key and answered_before(session, who.actor, change.key, sha256_of(asked))
        done = before or releasing.delivered(session, asset_id, body.place, who.actor)
    if not done:
        deliver(store, asset_id, place_named(store.settings, body.place), who.actor, body.place, change.version)

    def act(session: Session) -> AssetOut:
        return AssetOut.of(session.get_one(Asset, asset_id))

    return answered(store, who, change.key, asked, act, AssetOut, change.response)
