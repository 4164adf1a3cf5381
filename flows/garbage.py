"""Blobs without a row: what work that was killed between storing and recording left behind."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Text, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONPATH

from asset_store.blobs import FolderBlobs
from asset_store.tables import AssetVersion, Embedding, Job, Preset, Reference, Run, TrainedModel
from flows.wiring import open_store


def collect(*, delete: bool) -> dict[str, Any]:
    """Count blobs that no row names, and delete them if asked. Run it while no campaign or ingest is under way:
    a blob is written before its row."""
    with open_store() as store:
        present = set(store.blobs.iter_keys())
        with store.database.transaction() as session:
            named: set[str | None] = set()
            for column in (Reference.sha256, Embedding.hidden_sha256, Job.picture_sha256, AssetVersion.sha256,
                           TrainedModel.sha256, Preset.picture_sha256):  # fmt: skip
                named.update(session.scalars(select(column).distinct()))
            for document, path in (
                (Job.recipe, "$.controls[*].sha256"), (Job.picture, "$.run.candidates[*].sha256"), (Run.result, "$.files.*"),
            ):  # fmt: skip
                found = func.jsonb_path_query(document, cast(path, JSONPATH))
                named.update(session.scalars(select(found.op("#>>")(cast([], ARRAY(Text)))).distinct()))
        garbage = sorted(present - named)
        if delete:
            if isinstance(store.blobs, FolderBlobs):
                store.blobs.remove_leftovers()
            for sha256 in garbage:
                store.blobs.delete(sha256)
    return {
        "blobs": len(present),
        "garbage": len(garbage),
        "deleted": len(garbage) if delete else 0,
        "sha256s": garbage,
    }
