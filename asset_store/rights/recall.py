"""Taking a reference back, and everything that came of it."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete, exists, func, select, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound, ReasonMissing
from asset_store.reviewing.states import Availability, AvailabilityEvent, next_state
from asset_store.tables import (
    Asset,
    AssetVersion,
    Delivery,
    Descent,
    Embedding,
    Job,
    JobState,
    Reference,
    ReferenceState,
)


@dataclass(frozen=True, slots=True)
class AffectedAsset:
    """An asset with a version that descends from the reference; `suspended` if this withdrawal suspended it."""

    id: str
    shot: str
    variant: int
    review: str
    availability: str
    suspended: bool


@dataclass(frozen=True, slots=True)
class AffectedDelivery:
    asset_id: str
    version: int
    channel: str
    address: str
    rendition: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ImpactReport:
    """What a withdrawal reached. `running_jobs` are being made now; rights are checked again when they finish."""

    reference_id: str
    key: str
    sha256: str
    reason: str
    assets: tuple[AffectedAsset, ...]
    deliveries: tuple[AffectedDelivery, ...]
    cancelled_jobs: tuple[str, ...]
    running_jobs: tuple[str, ...]
    embeddings_deleted: int

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the pictures went, each address once."""
        return tuple(sorted({delivery.address for delivery in self.deliveries}))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "addresses": list(self.addresses)}


def withdraw_reference(session: Session, reference_id: uuid.UUID, by: str, reason: str) -> ImpactReport:
    """Take a reference back, in the caller's one transaction; safe to repeat.

    Marks it withdrawn, deletes its embeddings unless another active reference has the same bytes, cancels its queued
    jobs and suspends every released asset that descends from it, each with an audit row.
    """
    if not reason.strip():
        raise ReasonMissing("withdraw a reference")
    reference = session.scalar(
        select(Reference)
        .where(Reference.id == reference_id)
        .with_for_update(of=Reference)
        .execution_options(populate_existing=True)
    )
    if reference is None:
        raise NotFound("reference", str(reference_id), "`onmodel lineage` lists references.")
    first_time = reference.state is not ReferenceState.WITHDRAWN
    reference.state = ReferenceState.WITHDRAWN
    session.flush()
    assets = _descendants(session, reference_id)
    running = session.scalars(_jobs_with(reference_id, JobState.RUNNING)).all()
    cancelled = _cancel_jobs(session, reference_id, by, reason)
    forgotten = _forget_embeddings(session, reference.sha256)
    released = {asset.id for asset in assets if asset.availability is Availability.RELEASED}
    for asset in assets:
        if asset.id in released:
            asset.availability = next_state(asset.availability, AvailabilityEvent.SUSPEND)
    session.flush()
    report = ImpactReport(
        reference_id=str(reference_id),
        key=reference.key,
        sha256=reference.sha256,
        reason=reason,
        assets=tuple(
            AffectedAsset(str(a.id), a.shot, a.variant, a.review.value, a.availability.value, a.id in released)
            for a in assets
        ),
        deliveries=_deliveries(session, reference_id),
        cancelled_jobs=cancelled,
        running_jobs=tuple(sorted(running)),
        embeddings_deleted=forgotten,
    )
    if first_time or released or cancelled or forgotten:
        audit.record(session, by, "withdraw", f"reference {reference_id}", report.as_json())
    for id_ in sorted(released):
        audit.record(session, by, "suspend", f"asset {id_}", {"reason": reason, "reference": str(reference_id)})
    return report


def _descendants(session: Session, reference_id: uuid.UUID) -> list[Asset]:
    """Assets with a version that descends from the reference, locked, in the order of their ids."""
    descends = (
        exists()
        .where(AssetVersion.asset_id == Asset.id, AssetVersion.id == Descent.version_id)
        .where(Descent.reference_id == reference_id)
    )
    return list(
        session.scalars(
            select(Asset)
            .where(descends)
            .order_by(Asset.id)
            .with_for_update(of=Asset)
            .execution_options(populate_existing=True)
        )
    )


def _deliveries(session: Session, reference_id: uuid.UUID) -> tuple[AffectedDelivery, ...]:
    rows = session.execute(
        select(Delivery, AssetVersion)
        .join(AssetVersion, AssetVersion.id == Delivery.version_id)
        .join(Descent, Descent.version_id == AssetVersion.id)
        .where(Descent.reference_id == reference_id)
        .order_by(Delivery.seq)
    )
    return tuple(
        AffectedDelivery(str(v.asset_id), v.number, d.channel, d.address, d.rendition, d.sha256) for d, v in rows
    )


def _uses(reference_id: uuid.UUID) -> Any:
    return Job.recipe.contains(type_coerce({"references": [{"id": str(reference_id)}]}, JSONB))


def _jobs_with(reference_id: uuid.UUID, state: JobState) -> Any:
    return select(Job.key).where(Job.state == state, _uses(reference_id))


def _cancel_jobs(session: Session, reference_id: uuid.UUID, by: str, reason: str) -> tuple[str, ...]:
    evidence = [
        {
            "message": f"{by} withdrew a reference: {reason}",
            "cancelled_by": by,
            "reason": reason,
            "reference": str(reference_id),
        }
    ]
    cancelled = session.scalars(
        update(Job)
        .where(Job.state == JobState.QUEUED, _uses(reference_id))
        .values(
            state=JobState.CANCELLED,
            finished_at=func.now(),
            evidence=Job.evidence.op("||")(type_coerce(evidence, JSONB)),
        )
        .returning(Job.key)
        .execution_options(synchronize_session=False)
    ).all()
    return tuple(sorted(cancelled))


def _forget_embeddings(session: Session, sha256: str) -> int:
    still_active = select(Reference.id).where(Reference.sha256 == sha256, Reference.state == ReferenceState.ACTIVE)
    if session.scalar(still_active.limit(1)) is not None:
        return 0
    gone = session.scalars(
        delete(Embedding)
        .where(Embedding.reference_sha256 == sha256)
        .returning(Embedding.encoder_sha256)
        .execution_options(synchronize_session=False)
    ).all()
    return len(gone)
