"""Releasing approved assets: renditions written to a folder or a prefix, then the rows that say so."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field
from sqlalchemy import select

from asset_store.errors import BlobStoreUnreachable, DatabaseUnreachable, DeliveryFailed, StoreError
from asset_store.tables import Asset
from flows.delivering import deliver
from flows.parameters import Actor, Place
from flows.progress import report
from flows.wiring import open_store


@flow(name="release-assets")
async def release_assets(
    asset_ids: list[uuid.UUID],
    to: Place,
    by: Actor,
    channel: Annotated[str, Field(min_length=1, max_length=100)] = "folder",
) -> dict[str, Any]:
    """Deliver approved assets. Each stands alone: one that is refused does not hold up the others.

    Args:
        asset_ids: Ids of the assets.
        to: Where the files go: s3://bucket/prefix or a folder of the machine that runs this.
        by: Who releases them, as the audit will say.
        channel: What the place is called in the record.
    """
    released: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for i, asset_id in enumerate(asset_ids):
        outcome = await release_asset(asset_id, to, by, channel)
        (refused if "refused" in outcome else released).append(outcome)
        report("released", i + 1, len(asset_ids))
    return {"released": released, "refused": refused}


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[2, 10])
async def release_asset(asset_id: uuid.UUID, to: str, by: str, channel: str) -> dict[str, Any]:
    """Check the guards, write renditions, check them again and write the rows. Safe to repeat."""
    try:
        return await asyncio.to_thread(_release, asset_id, to, by, channel)
    except (BlobStoreUnreachable, DatabaseUnreachable, DeliveryFailed):
        raise  # the place, not the asset: the task is tried again
    except StoreError as error:
        return {"asset": str(asset_id), "refused": error.message, "next_step": error.next_step}


def _release(asset_id: uuid.UUID, to: str, by: str, channel: str) -> dict[str, Any]:
    with open_store() as store:
        return {"asset": str(asset_id), "files": [d.address for d in deliver(store, asset_id, to, by, channel)]}


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
