"""The tree from a picture to all that it came of and all that became of it, as plain values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.tables import Asset, AssetVersion, Delivery, Embedding, Encoder, LineageRecord, Reference


@dataclass(frozen=True, slots=True)
class EmbeddingNode:
    """What an encoder says of a reference; gone once the reference is withdrawn."""

    encoder: str
    encoder_sha256: str
    dim: int
    made_at: str


@dataclass(frozen=True, slots=True)
class ReferenceNode:
    """A reference as it was used (`key`, `sha256`, `licence`, `weight`, `part`, `chosen`) and its state now.

    part: what it has to do with the picture, such as the adapter that heard it; chosen: how it was chosen.
    """

    id: str
    key: str
    sha256: str
    licence: Any
    weight: float
    role: str | None
    licence_until: str | None
    state: str
    embeddings: tuple[EmbeddingNode, ...]
    part: tuple[str, ...] = ()
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class ModelNode:
    role: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class CheckNode:
    name: str
    outcome: str
    value: float | None
    threshold: float | None
    message: str
    policy_version: str


@dataclass(frozen=True, slots=True)
class DecisionNode:
    stage: str
    verdict: str
    by: str
    reason: str
    seen_sha256: str
    at: str


@dataclass(frozen=True, slots=True)
class DeliveryNode:
    channel: str
    address: str
    rendition: str
    sha256: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class RemovalNode:
    """That a policy removed the picture's bytes."""

    policy: str
    by: str
    at: str


@dataclass(frozen=True, slots=True)
class VersionNode:
    """One picture. `settings`, `run` and `code` are the sections of its lineage record, {} where it has none."""

    id: str
    number: int
    parent_id: str | None
    sha256: str
    pixel_sha256: str
    width_px: int
    height_px: int
    made_at: str
    job_key: str
    record_sha256: str | None
    settings: Mapping[str, Any]
    run: Mapping[str, Any]
    code: Mapping[str, Any]
    references: tuple[ReferenceNode, ...]
    models: tuple[ModelNode, ...]
    checks: tuple[CheckNode, ...]
    decisions: tuple[DecisionNode, ...]
    deliveries: tuple[DeliveryNode, ...]
    removed: RemovalNode | None = None


@dataclass(frozen=True, slots=True)
class LineageTree:
    """An asset with its versions, the current one first."""

    asset_id: str
    brand: str
    campaign: str
    shot: str
    variant: int
    review: str
    availability: str
    versions: tuple[VersionNode, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values all the way down."""
        return asdict(self)


def tree_of(session: Session, asset: Asset) -> LineageTree:
    """Everything known of where the asset came from and went."""
    versions = session.scalars(
        select(AssetVersion).where(AssetVersion.asset_id == asset.id).order_by(AssetVersion.number.desc())
    )
    return LineageTree(
        asset_id=str(asset.id),
        brand=asset.campaign.brand.name,
        campaign=asset.campaign.name,
        shot=asset.shot,
        variant=asset.variant,
        review=asset.review.value,
        availability=asset.availability.value,
        versions=tuple(_version(session, version) for version in versions),
    )


def _version(session: Session, version: AssetVersion) -> VersionNode:
    row = session.scalar(select(LineageRecord).where(LineageRecord.version_id == version.id))
    record = row.record if row else {}
    deliveries = session.scalars(select(Delivery).where(Delivery.version_id == version.id).order_by(Delivery.seq))
    gone = version.removal
    return VersionNode(
        id=str(version.id),
        number=version.number,
        parent_id=str(version.parent_id) if version.parent_id else None,
        sha256=version.sha256,
        pixel_sha256=version.pixel_sha256,
        width_px=version.width_px,
        height_px=version.height_px,
        made_at=version.made_at.isoformat(),
        job_key=version.job_key,
        record_sha256=row.sha256 if row else None,
        settings=record.get("settings", {}),
        run=record.get("run", {}),
        code=record.get("code", {}),
        references=_references(session, record.get("references", [])),
        models=tuple(ModelNode(m["role"], m["name"], m["sha256"]) for m in record.get("models", [])),
        checks=tuple(
            CheckNode(c.name, c.outcome.value, c.value, c.threshold, c.message, c.policy_version)
            for c in version.checks
        ),
        decisions=tuple(
            DecisionNode(d.stage, d.verdict.value, d.by, d.reason, d.seen_sha256, d.made_at.isoformat())
            for d in version.decisions
        ),
        deliveries=tuple(
            DeliveryNode(d.channel, d.address, d.rendition, d.sha256, d.by, d.made_at.isoformat()) for d in deliveries
        ),
        removed=None if gone is None else RemovalNode(gone.policy, gone.by, gone.made_at.isoformat()),
    )


def _references(session: Session, used: list[dict[str, Any]]) -> tuple[ReferenceNode, ...]:
    known = {
        str(reference.id): reference
        for reference in session.scalars(
            select(Reference).where(Reference.id.in_([uuid.UUID(item["id"]) for item in used]))
        )
    }
    embeddings: dict[str, list[EmbeddingNode]] = {}
    for embedding, encoder in session.execute(
        select(Embedding, Encoder)
        .join(Encoder, Encoder.sha256 == Embedding.encoder_sha256)
        .where(Embedding.reference_sha256.in_([item["sha256"] for item in used]))
        .order_by(Encoder.name, Encoder.sha256)
    ):
        node = EmbeddingNode(encoder.name, encoder.sha256, encoder.dim, embedding.made_at.isoformat())
        embeddings.setdefault(embedding.reference_sha256, []).append(node)
    nodes = []
    for item in used:
        now = known.get(item["id"])
        nodes.append(
            ReferenceNode(
                id=item["id"],
                key=item["key"],
                sha256=item["sha256"],
                licence=item["licence"],
                weight=item["weight"],
                role=now.role if now else None,
                licence_until=now.licence_until.isoformat() if now and now.licence_until else None,
                state=now.state.value if now else "unknown",
                embeddings=tuple(embeddings.get(item["sha256"], ())),
                part=tuple(item.get("part", ())),
                chosen=item.get("chosen", ""),
            )
        )
    return tuple(nodes)
