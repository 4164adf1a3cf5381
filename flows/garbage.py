"""Blobs without a row: what work that was killed between storing and recording left behind, and pictures whose removal was."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from asset_store import retention
from asset_store.blobs import FolderBlobs
from asset_store.pictures.thumbnails import forget_thumbnail
from asset_store.tables import RemovedBlob
from flows.wiring import open_store


def collect(*, delete: bool) -> dict[str, Any]:
    """Count blobs that no row names, and delete them if asked, with the thumbnails that are kept here of pictures that are gone. Run it
    while no campaign or ingest is under way: a blob is written before its row.

    removed: how many of them are pictures that a policy removed and that are not deleted yet.
    """
    with open_store() as store:
        present = set(store.blobs.iter_keys())
        with store.database.transaction() as session:
            named: set[str | None] = set()
            for question in retention.all_named():
                named.update(session.scalars(question))
            removed = set(session.scalars(select(RemovedBlob.sha256)))
        garbage = sorted(present - named)
        if delete:
            if isinstance(store.blobs, FolderBlobs):
                store.blobs.remove_leftovers()
            for sha256 in garbage:
                store.blobs.delete(sha256)
            for sha256 in removed - named:
                forget_thumbnail(sha256, store.settings.home / "thumbnails")
    return {
        "blobs": len(present),
        "garbage": len(garbage),
        "removed": len(removed.intersection(garbage)),
        "deleted": len(garbage) if delete else 0,
        "sha256s": garbage,
    }
