"""Delivering one approved asset: its renditions written to a place, then the rows that say so. Whoever asks for it."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

from sqlalchemy import select

from asset_store import releasing
from asset_store.deliveries import open_place, renditions
from asset_store.errors import NotFound
from asset_store.releasing import NewDelivery
from asset_store.tables import Asset, LineageRecord
from flows.settings import Settings
from flows.wiring import Store


def deliver(
    store: Store, asset_id: uuid.UUID, to: str, by: str, channel: str, row_version: int | None = None
) -> list[NewDelivery]:
    """Check the guards, write renditions, check them again and write the rows. Safe to repeat.

    to: s3://bucket/prefix or a folder; row_version: as the asset was seen, if that matters. ReleaseRefused, RightsRefused,
    StaleVersion, DeliveryFailed.
    """
    today = datetime.now(UTC).date()
    with store.database.transaction() as session:
        version = releasing.prepare(session, asset_id, by, today, row_version)
        name = _file_name(session.get_one(Asset, asset_id), version.number)
        record = session.scalars(select(LineageRecord.record).where(LineageRecord.version_id == version.id)).one()
    place = open_place(to, endpoint_url=store.settings.s3.endpoint_url, region=store.settings.s3.region)
    deliveries = []
    for rendition in renditions(store.blobs.get(version.sha256), record):
        address = place.write(name + rendition.suffix, rendition.data, rendition.content_type)
        deliveries.append(NewDelivery(channel, address, rendition.kind, rendition.sha256))
    with store.database.transaction() as session:
        releasing.finish(session, asset_id, deliveries, by, today, version.id)
    return deliveries


def place_named(settings: Settings, name: str) -> str:
    """The address of a place that the settings name: who asks over the network chooses among those, and never an address."""
    if name not in settings.delivery.places:
        known = ", ".join(sorted(settings.delivery.places)) or "none; ONMODEL_DELIVERY__PLACES names them"
        raise NotFound("place to deliver to", name, f"There are: {known}.")
    return settings.delivery.places[name]


def _file_name(asset: Asset, number: int) -> str:
    """brand/campaign/shot-variant-version-id: readable, safe on every file system, never two assets' name."""
    parts = (asset.campaign.brand.name, asset.campaign.name)
    folder = "/".join(re.sub(r"[^a-z0-9-]", "-", p) for p in parts)
    return f"{folder}/{asset.shot}-{asset.variant + 1:03d}-v{number}-{str(asset.id)[:8]}"
