"""Releasing an approved asset: the guards before its renditions are written, and the rows after."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound, ReleaseRefused, StaleVersion
from asset_store.reviewing.decide import lock_asset, need_row_version, standing_decisions, unfilled
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.states import Availability, AvailabilityEvent, ReviewState, next_state
from asset_store.rights import licences
from asset_store.tables import Asset, AssetVersion, Delivery


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A rendition that was written: where (`address`), what kind (`rendition`), and the sha256 of its bytes."""

    channel: str
    address: str
    rendition: str
    sha256: str


def prepare(session: Session, asset_id: uuid.UUID, by: str, on: date, row_version: int | None = None) -> AssetVersion:
    """The version that may be released on that day; renditions are written from it outside any transaction.

    ReleaseRefused where it is not approved at every stage or its availability forbids it; RightsRefused; StaleVersion where it is not
    as it was seen, if that is said.
    """
    asset, version = _released_version(session, asset_id, by, on)
    if row_version is not None:
        need_row_version(asset, row_version)
    return version


def finish(
    session: Session, asset_id: uuid.UUID, deliveries: Iterable[NewDelivery], by: str, on: date | None = None,
    version_id: uuid.UUID | None = None,
) -> Asset:  # fmt: skip
    """Write down where the renditions went and make the asset released, after the guards of `prepare` once more.

    `on` is today (UTC) unless given. Safe to repeat: an address that is written down already is passed over, and
    ReleaseRefused if other bytes went there now. version_id: the version that they were written from; StaleVersion where another is
    current by now.
    """
    asset, version = _released_version(session, asset_id, by, on or datetime.now(UTC).date())
    if version_id is not None and version.id != version_id:
        raise StaleVersion("version", str(version_id), str(version.id))
    before = {
        (row.channel, row.address): row.sha256
        for row in session.scalars(select(Delivery).where(Delivery.version_id == version.id))
    }
    fresh: dict[tuple[str, str], NewDelivery] = {}
    for delivery in deliveries:
        place = (delivery.channel, delivery.address)
        there = before.get(place) or fresh.setdefault(place, delivery).sha256
        if there != delivery.sha256:
            raise ReleaseRefused(
                f"{delivery.address} was delivered before with other bytes ({there})",
                "Deliver to another address: what was delivered is never rewritten.",
            )
    if not fresh and asset.availability is Availability.RELEASED:
        return asset
    if not before and not fresh:
        raise ReleaseRefused(f"asset {asset_id} was delivered nowhere", "Deliver at least one rendition.")
    session.add_all(Delivery(version_id=version.id, by=by, **asdict(delivery)) for delivery in fresh.values())
    if asset.availability is Availability.UNRELEASED:
        asset.availability = next_state(asset.availability, AvailabilityEvent.RELEASE)
    session.flush()
    detail = {"version": version.number, "sha256": version.sha256, "deliveries": [asdict(d) for d in fresh.values()]}
    audit.record(session, by, AvailabilityEvent.RELEASE.value, f"asset {asset_id}", detail)
    return asset


def delivered(session: Session, asset_id: uuid.UUID, channel: str, by: str) -> bool:
    """Whether the current version of a released asset went to that channel already, by them."""
    asset = session.get(Asset, asset_id)
    if asset is None or asset.availability is not Availability.RELEASED or asset.current is None:
        return False
    there = (Delivery.version_id == asset.current.id, Delivery.channel == channel, Delivery.by == by)
    return session.scalar(select(Delivery.seq).where(*there).limit(1)) is not None


def _released_version(session: Session, asset_id: uuid.UUID, by: str, on: date) -> tuple[Asset, AssetVersion]:
    """Locks references, then the asset: the order of a recall, so that neither waits for the other for ever."""
    looked_at = session.get(Asset, asset_id)
    if looked_at is None:
        raise NotFound("asset", str(asset_id))
    session.expire(looked_at, ["versions"])
    if (seen := looked_at.current) is not None:
        licences.releasable(session, seen, on)
    asset, version = lock_asset(session, asset_id)
    if seen is None or seen.id != version.id:
        raise StaleVersion("version", str(seen.number if seen else 0), str(version.number))
    if not by.strip():
        raise ReleaseRefused("a release needs the name of who releases", "Give a name.")
    if asset.review is not ReviewState.APPROVED:
        raise ReleaseRefused(f"asset {asset_id} is {asset.review}", "Have it approved at every stage first.")
    if lacking := unfilled(policy_of(asset.campaign).stages, standing_decisions(session, version.id)):
        raise ReleaseRefused(
            f"version {version.number} of asset {asset_id} is not approved at: {', '.join(lacking)}",
            "Reopen it and have it approved at every stage.",
        )
    if asset.availability not in (Availability.UNRELEASED, Availability.RELEASED):
        raise ReleaseRefused(
            f"asset {asset_id} is {asset.availability}", "`onmodel lineage` shows what it came from and why."
        )
    return asset, version
