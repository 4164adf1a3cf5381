"""The lineage record of a version: complete, canonical, chained, and indexed by the references it descends from."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import chain
from asset_store.canonical import canonical_json, sha256_of
from asset_store.chain import ChainReport
from asset_store.errors import LineageIncomplete
from asset_store.tables import AssetVersion, Descent, LineageRecord

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "output": ("sha256", "pixel_sha256", "width_px", "height_px"),
    "references": ("id", "key", "sha256", "licence", "weight"),  # of each; a picture may have none
    "models": ("role", "name", "sha256"),  # of each; at least one
    "settings": ("prompt", "seed", "steps", "scheduler", "guidance", "scale", "width_px", "height_px"),
    "code": ("versions",),
    "run": ("campaign", "brief_sha256", "shot", "variant", "requested_by", "trigger", "attempt"),
}
LISTS = ("references", "models")
MAY_BE_EMPTY = ("settings.prompt", "references")


def incomplete(record: Mapping[str, Any]) -> list[str]:
    """What a record lacks, as dotted paths such as `references[1].licence`; [] if it is complete."""
    missing = []
    for section, keys in REQUIRED.items():
        value = record.get(section)
        if section in LISTS:
            if not isinstance(value, list | tuple) or not (value or section in MAY_BE_EMPTY):
                missing.append(section)
                continue
            for index, item in enumerate(value):
                missing += _lacking(f"{section}[{index}]", item, keys)
        else:
            missing += _lacking(section, value, keys)
    return missing


def _lacking(path: str, value: Any, keys: tuple[str, ...]) -> list[str]:
    if not isinstance(value, Mapping):
        return [path]
    paths = {f"{path}.{key}": value.get(key) for key in keys}
    return [name for name, found in paths.items() if found is None or (_blank(found) and name not in MAY_BE_EMPTY)]


def _blank(value: Any) -> bool:
    return isinstance(value, str | list | tuple | Mapping) and not value


def write(
    session: Session, version_id: uuid.UUID, record: Mapping[str, Any], reference_ids: Collection[uuid.UUID]
) -> LineageRecord:
    """Write the record of a version and its descents, in the transaction that inserts the version.

    LineageIncomplete if a field is missing, if `output` is not the version's picture, or if `references` are not
    those of `reference_ids`. Holds the chain's lock until the transaction ends.
    """
    missing = incomplete(record)
    version = session.get_one(AssetVersion, version_id)
    if not missing and record["output"]["sha256"] != version.sha256:
        missing.append(f"output.sha256 of its picture ({version.sha256})")
    if not missing and {str(item["id"]) for item in record["references"]} != {str(id_) for id_ in reference_ids}:
        missing.append("references as they were used")
    if missing:
        raise LineageIncomplete(f"version {version_id}", missing)
    chain.lock(session, chain.Chain.LINEAGE)
    previous = session.scalar(select(LineageRecord.sha256).order_by(LineageRecord.seq.desc()).limit(1)) or chain.FIRST
    row = LineageRecord(version_id=version_id, record=json.loads(canonical_json(record)), previous_sha256=previous)
    row.sha256 = _hash(row)
    session.add(row)
    session.add_all(
        Descent(version_id=version_id, reference_id=reference_id) for reference_id in sorted(set(reference_ids))
    )
    session.flush()
    return row


def verify_chain(session: Session) -> ChainReport:
    """Walk all records and name the first that does not hold, or whose version or descents say otherwise."""
    rows, head = 0, chain.FIRST
    questions = select(LineageRecord, AssetVersion.sha256).join(
        AssetVersion, AssetVersion.id == LineageRecord.version_id
    )
    for row, picture_sha256 in session.execute(questions.order_by(LineageRecord.seq).execution_options(yield_per=1000)):
        if problem := _problem(session, row, head, picture_sha256):
            return ChainReport(rows, head, row.seq, problem)
        rows, head = rows + 1, row.sha256
    return ChainReport(rows, head)


def _problem(session: Session, row: LineageRecord, head: str, picture_sha256: str) -> str:
    if row.previous_sha256 != head:
        return "it does not follow the record before: one was removed or put between"
    if row.sha256 != _hash(row):
        return "what it says is not what was hashed: it was changed"
    if row.record["output"]["sha256"] != picture_sha256:
        return "its version is of another picture"
    descents = session.scalars(select(Descent.reference_id).where(Descent.version_id == row.version_id))
    if {str(id_) for id_ in descents} != {item["id"] for item in row.record["references"]}:
        return "its descents are not the references it names"
    return ""


def _hash(row: LineageRecord) -> str:
    return sha256_of({"version": str(row.version_id), "record": row.record, "previous": row.previous_sha256})
