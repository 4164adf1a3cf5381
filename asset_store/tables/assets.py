"""What was made, what was found and said of it, and where it went. All but `Asset` is append-only."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import BigInteger, FetchedValue, ForeignKey, Identity, Index, SmallInteger, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, BIT, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column, relationship

from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables.base import Base, Id, Made, Sha256, text_enum
from asset_store.tables.retention import Removal
from asset_store.tables.work import Campaign


class CheckOutcome(enum.StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_RUN = "not run"


class Verdict(enum.StrEnum):
    APPROVE = "approve"
    REQUEST_CHANGES = "request changes"
    REJECT = "reject"
    WAIVE = "waive"  # of failed checks, by a brand lead
    TAKE_BACK = "take back"  # of the decision before it, by who made it
    REOPEN = "reopen"  # supersedes the decisions before it on the same version


class Asset(Base):
    """A picture that a campaign asked for: a stack of versions, its place in review, its availability.

    `brand_id`, `character`, `words`, `doubt`, `checked`, `current_number`, `current_sha256`, `look`, `look_encoder` and `asked` are what
    lists show, filter and order by. Triggers write them from the campaign, the job, the versions, their checks and embeddings, and the
    assignments, whoever writes those (docs/decisions/0005).
    """

    __tablename__ = "assets"
    __table_args__ = (
        UniqueConstraint("campaign_id", "shot", "variant"),
        Index("ix_assets_waits_at", "waits_at", postgresql_using="gin"),
        Index("ix_assets_words", "words", postgresql_using="gin"),
        Index("ix_assets_checked", "checked", postgresql_using="gin"),
        Index("ix_assets_asked", "asked", postgresql_using="gin"),
        Index("ix_assets_waiting", "made_at", "id", postgresql_where=text("waits_at <> '{}'::text[]")),
        Index(
            "ix_assets_queue", "doubt", text("coalesce(due_at, 'infinity'::timestamptz)"), "made_at", "id",
            postgresql_where=text("review = 'in review'"),
        ),
        Index("ix_assets_made_at_keyset", "made_at", "id"),
        Index(  # all that likeness among a brand's asks: the rows themselves lie on as many pages as there are
            "ix_assets_looks", "brand_id", "review",
            postgresql_include=["id", "current_sha256", "look", "look_encoder", "availability", "character"],
        ),
        *(
            Index(f"ix_assets_{by}_keyset", by, "made_at", "id")
            for by in ("brand_id", "campaign_id", "review", "availability", "character")
        ),
    )  # fmt: skip
    id: Mapped[Id]
    campaign_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("campaigns.id"))
    shot: Mapped[str]
    variant: Mapped[int]
    job_key: Mapped[Sha256] = mapped_column(ForeignKey("jobs.key"), index=True)
    review: Mapped[ReviewState] = mapped_column(text_enum(ReviewState), default=ReviewState.DRAFT)
    stage: Mapped[int] = mapped_column(default=0)  # index of the round of stages that it is in
    waits_at: Mapped[list[str]] = mapped_column(
        ARRAY(Text), default=list, server_default="{}"
    )  # stages of it that lack an approval
    round_at: Mapped[datetime | None]  # when it came to that round
    due_at: Mapped[datetime | None]  # the first time by which one of them is to decide
    availability: Mapped[Availability] = mapped_column(text_enum(Availability), default=Availability.UNRELEASED)
    removed_at: Mapped[datetime | None]  # when the bytes of its newest version were removed by a policy
    row_version: Mapped[int] = mapped_column(default=1)
    made_at: Mapped[Made]
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"), server_default=FetchedValue())
    character: Mapped[str] = mapped_column(server_default="")
    words: Mapped[Any] = mapped_column(TSVECTOR, server_default=text("''::tsvector"), deferred=True)
    doubt: Mapped[int] = mapped_column(SmallInteger, server_default="1")  # of the worst check: DOUBT in reviewing/queue
    checked: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")  # "name", "outcome", "name=outcome"
    current_number: Mapped[int] = mapped_column(server_default="0")  # of the newest version, 0 where there is none yet
    current_sha256: Mapped[str | None] = mapped_column(index=True)
    look: Mapped[Any | None] = mapped_column(BIT(varying=True), deferred=True)  # signs of what the encoder said of it
    look_encoder: Mapped[str | None] = mapped_column(deferred=True)  # the newest that has seen it, by sha256
    asked: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")  # in lower case, at stages it waits at
    campaign: Mapped[Campaign] = relationship(lazy="joined")
    versions: Mapped[list[AssetVersion]] = relationship(order_by="AssetVersion.number", back_populates="asset")

    __mapper_args__ = {"version_id_col": row_version}

    @property
    def current(self) -> AssetVersion | None:
        return self.versions[-1] if self.versions else None


class AssetVersion(Base):
    """One immutable picture."""

    __tablename__ = "asset_versions"
    __table_args__ = (UniqueConstraint("asset_id", "number"), UniqueConstraint("asset_id", "job_key"))
    id: Mapped[Id]
    asset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("assets.id"))
    number: Mapped[int]
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("asset_versions.id"))
    job_key: Mapped[Sha256] = mapped_column(ForeignKey("jobs.key"))
    sha256: Mapped[Sha256] = mapped_column(index=True)
    pixel_sha256: Mapped[Sha256]
    perceptual_hash: Mapped[str] = mapped_column(index=True)
    width_px: Mapped[int]
    height_px: Mapped[int]
    made_at: Mapped[Made]
    asset: Mapped[Asset] = relationship(back_populates="versions")
    checks: Mapped[list[Check]] = relationship(order_by="Check.seq")
    decisions: Mapped[list[Decision]] = relationship(order_by="Decision.seq")
    lineage: Mapped[LineageRecord | None] = relationship(viewonly=True)
    removal: Mapped[Removal | None] = relationship(viewonly=True)


class LineageRecord(Base):
    """Where a version came from: canonical JSON, each record hashing the one before."""

    __tablename__ = "lineage_records"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"), unique=True)
    record: Mapped[dict[str, Any]]
    previous_sha256: Mapped[Sha256]
    sha256: Mapped[Sha256] = mapped_column(unique=True)
    made_at: Mapped[Made]


class Descent(Base):
    """Which references a version descends from: the index that a recall follows."""

    __tablename__ = "descents"
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"), primary_key=True)
    reference_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("library_references.id"), primary_key=True, index=True)


class Check(Base):
    """What an automatic test found of a version."""

    __tablename__ = "checks"
    __table_args__ = (UniqueConstraint("version_id", "name", "policy_version"),)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"))
    name: Mapped[str]
    outcome: Mapped[CheckOutcome] = mapped_column(text_enum(CheckOutcome))
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    message: Mapped[str]
    policy_version: Mapped[str]
    made_at: Mapped[Made]


class Decision(Base):
    """What a person said of a version at a stage, and which bytes they saw."""

    __tablename__ = "decisions"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"), index=True)
    stage: Mapped[str]
    verdict: Mapped[Verdict] = mapped_column(text_enum(Verdict))
    by: Mapped[str]
    reason: Mapped[str]
    seen_sha256: Mapped[Sha256]
    checks_sha256: Mapped[str | None]  # of what the checks had found; null in rows of before
    policy_sha256: Mapped[str | None]  # of the stages that it was made under; null in rows of before
    made_at: Mapped[Made]


class Delivery(Base):
    """A rendition of an approved version, sent to a channel."""

    __tablename__ = "deliveries"
    __table_args__ = (UniqueConstraint("version_id", "channel", "address"),)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"))
    channel: Mapped[str]
    address: Mapped[str]
    rendition: Mapped[str]
    sha256: Mapped[Sha256]
    by: Mapped[str]
    made_at: Mapped[Made]


class PictureEmbedding(Base):
    """What an encoder says of a picture that was made, for finding those like it; null where it cannot be opened. Each encoder has an HNSW
    index of its own."""

    __tablename__ = "picture_embeddings"
    picture_sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    encoder_sha256: Mapped[Sha256] = mapped_column(ForeignKey("encoders.sha256"), primary_key=True)
    pooled: Mapped[Any | None] = mapped_column(Vector())
    made_at: Mapped[Made] = mapped_column(index=True)


class AuditRow(Base):
    """Who did what to what, beside the change itself; names are copied by value, rows are chained by hash."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    detail: Mapped[dict[str, Any]]
    previous_sha256: Mapped[Sha256]
    sha256: Mapped[Sha256] = mapped_column(unique=True)


APPEND_ONLY = ("asset_versions", "lineage_records", "descents", "checks", "decisions", "deliveries", "audit")
