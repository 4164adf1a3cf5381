"""Keeping rejected pictures for as long as ONMODEL_RETENTION__REJECTED_DAYS says, and no longer."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from asset_store import retention
from asset_store.errors import SettingsInvalid, StoreError
from asset_store.pictures.thumbnails import forget_thumbnail
from asset_store.retention import MOST_AT_ONCE, Policy
from flows.settings import Settings
from flows.wiring import Store, open_store

IN_A_ROW = 20  # blobs that cannot be deleted: then the store is away
log = logging.getLogger("onmodel.retention")


def policy_of(settings: Settings) -> Policy | None:
    """The policy of the settings; None where pictures are kept for ever."""
    days = settings.retention.rejected_days
    return None if days is None else Policy(days)


def apply(store: Store, policy: Policy | None, by: str, now: datetime | None = None) -> dict[str, int]:
    """Remove what is due, and finish what was removed and not deleted, also where there is no policy any more. Safe to repeat and to
    kill: versions that lost their bytes, and blobs that were deleted and that could not be, which the next sweep tries again."""
    now = now or datetime.now(UTC)
    removed = 0
    if policy is not None:
        with store.database.transaction() as session:
            due = retention.due(session, policy, now).removed
        for start in range(0, len(due), MOST_AT_ONCE):
            with store.database.transaction() as session:
                removed += retention.remove(session, due[start : start + MOST_AT_ONCE], policy, by, now)
    return {"removed": removed, **finish(store, now)}


def finish(store: Store, now: datetime) -> dict[str, int]:
    """Delete the blobs that were put down for it, with their thumbnails here. One that cannot be deleted is told of in the log and holds
    up no other; after IN_A_ROW of them it raises what the store said."""
    thumbnails = store.settings.home / "thumbnails"

    def delete(sha256: str) -> None:
        forget_thumbnail(sha256, thumbnails)
        store.blobs.delete(sha256)

    deleted, kept, in_a_row, after = 0, 0, 0, ""
    while True:
        with store.database.transaction() as session:
            some = retention.pending(session, after)
        for sha256 in some:
            try:
                with store.database.transaction() as session:
                    deleted += retention.delete_pending(session, sha256, delete, now)
                in_a_row = 0
            except (StoreError, OSError) as error:
                log.warning("blob %s is not deleted: %s", sha256, error)
                kept, in_a_row = kept + 1, in_a_row + 1
                if in_a_row == IN_A_ROW:
                    raise
        if not some:
            return {"deleted": deleted, "undeleted": kept}
        after = some[-1]


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
        done = apply(store, policy, by) if delete else {"removed": 0, "deleted": 0, "undeleted": 0}
    return {
        "policy": policy.told,
        "pictures": len(due.removed),
        "kept": len(due.kept),
        **done,
        "sha256s": list(due.removed),
    }
