"""Releasing approved assets: renditions written to a folder or a prefix, then the rows that say so."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import select

from asset_store import releasing
from asset_store.deliveries import open_place, renditions
from asset_store.errors import BlobStoreUnreachable, DatabaseUnreachable, DeliveryFailed, StoreError
from asset_store.releasing import NewDelivery
from asset_store.tables import Asset, LineageRecord
from flows.progress import report
from flows.wiring import open_store


@flow(name="release-assets")
async def release_assets(asset_ids: list[uuid.UUID], to: str, by: str, channel: str = "folder") -> dict[str, Any]:
    """Deliver approved assets. Each stands alone: one that is refused does not hold up the others."""
    released: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for i, asset_id in enumerate(asset_ids):
        outcome = await release_asset(asset_id, to, by, channel)
        (refused if "refused" in outcome else released).append(outcome)
        report("released", i + 1, len(asset_ids))
    return {"released": released, "refused": refused}


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10], tags=["release"])
async def release_asset(asset_id: uuid.UUID, to: str, by: str, channel: str) -> dict[str, Any]:
    """Check the guards, write renditions, check them again and write the rows. Safe to repeat."""
    try:
        return await asyncio.to_thread(_release, asset_id, to, by, channel)
    except (BlobStoreUnreachable, DatabaseUnreachable, DeliveryFailed):
        raise  # the place, not the asset: the task is tried again
    except StoreError as error:
        return {"asset": str(asset_id), "refused": error.message, "next_step": error.next_step}


def _release(asset_id: uuid.UUID, to: str, by: str, channel: str) -> dict[str, Any]:
    today = datetime.now(UTC).date()
    with open_store() as store:
        with store.database.transaction() as session:
            version = releasing.prepare(session, asset_id, by, today)
            asset = session.get_one(Asset, asset_id)
            name = _file_name(asset, version.number)
            record = session.scalars(select(LineageRecord.record).where(LineageRecord.version_id == version.id)).one()
        place = open_place(to, endpoint_url=store.settings.s3.endpoint_url, region=store.settings.s3.region)
        deliveries = []
        for rendition in renditions(store.blobs.get(version.sha256), record):
            address = place.write(name + rendition.suffix, rendition.data, rendition.content_type)
            deliveries.append(NewDelivery(channel, address, rendition.kind, rendition.sha256))
        with store.database.transaction() as session:
            releasing.finish(session, asset_id, deliveries, by, today)
    return {"asset": str(asset_id), "files": [d.address for d in deliveries]}


def _file_name(asset: Asset, number: int) -> str:
    """brand/campaign/shot-variant-version-id: readable, safe on every file system, never two assets' name."""
    parts = (asset.campaign.brand.name, asset.campaign.name)
    folder = "/".join(re.sub(r"[^a-z0-9-]", "-", p) for p in parts)
    return f"{folder}/{asset.shot}-{asset.variant + 1:03d}-v{number}-{str(asset.id)[:8]}"


def approved_assets(campaign: str | None) -> Sequence[uuid.UUID]:
    """The approved assets that are not released yet, of one campaign or of all."""
    from asset_store.reviewing.states import Availability, ReviewState
    from asset_store.tables import Campaign

    question = select(Asset.id).where(
        Asset.review == ReviewState.APPROVED, Asset.availability == Availability.UNRELEASED
    )
    if campaign is not None:
        question = question.join(Campaign, Campaign.id == Asset.campaign_id).where(Campaign.name == campaign)
    with open_store() as store, store.database.transaction() as session:
        return session.scalars(question.order_by(Asset.made_at, Asset.id)).all()
