"""Keeping rejected pictures for as long as ONMODEL_RETENTION__REJECTED_DAYS says, and no longer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from asset_store import retention
from asset_store.errors import SettingsInvalid
from asset_store.pictures.thumbnails import forget_thumbnail
from asset_store.retention import MOST_AT_ONCE, Policy
from flows.settings import Settings
from flows.wiring import Store, open_store


def policy_of(settings: Settings) -> Policy | None:
    """The policy of the settings; None where pictures are kept for ever."""
    days = settings.retention.rejected_days
    return None if days is None else Policy(days)


def apply(store: Store, policy: Policy | None, by: str, now: datetime | None = None) -> dict[str, int]:
    """Remove what is due, and finish what was removed and not deleted, also where there is no policy any more. Safe to repeat and to
    kill: versions that lost their bytes, and blobs that were deleted."""
    now = now or datetime.now(UTC)
    removed = 0
    if policy is not None:
        with store.database.transaction() as session:
            due = retention.due(session, policy, now).removed
        for start in range(0, len(due), MOST_AT_ONCE):
            with store.database.transaction() as session:
                removed += retention.remove(session, due[start : start + MOST_AT_ONCE], policy, by, now)
    return {"removed": removed, "deleted": finish(store, now)}


def finish(store: Store, now: datetime) -> int:
    """Delete the blobs that were put down for it, with their thumbnails here; how many."""
    thumbnails, deleted = store.settings.home / "thumbnails", 0

    def delete(sha256: str) -> None:
        nonlocal deleted
        forget_thumbnail(sha256, thumbnails)
        store.blobs.delete(sha256)
        deleted += 1

    while True:
        with store.database.transaction() as session:
            if not retention.delete_pending(session, delete, now):
                return deleted


def remove_rejected(*, delete: bool, by: str) -> dict[str, Any]:
    """Count the pictures that the policy removes, and remove them if asked. SettingsInvalid where there is no policy."""
    with open_store() as store:
        policy = policy_of(store.settings)
        if policy is None:
            raise SettingsInvalid(
                "rejected pictures are kept for ever: there is no policy", "Set ONMODEL_RETENTION__REJECTED_DAYS."
            )
        with store.database.transaction() as session:
            due = retention.due(session, policy, datetime.now(UTC))
        done = apply(store, policy, by) if delete else {"removed": 0, "deleted": 0}
    return {
        "policy": policy.told,
        "pictures": len(due.removed),
        "kept": len(due.kept),
        **done,
        "sha256s": list(due.removed),
    }
