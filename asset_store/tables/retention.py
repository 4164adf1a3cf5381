"""Pictures whose bytes a policy removed: that it did, for ever, and what is still to be deleted."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from asset_store.tables.base import Base, Made, Sha256


class Removal(Base):
    """A version's bytes were removed: when, by which policy and by whom. Append-only; all other rows of the version stay."""

    __tablename__ = "removals"
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"), unique=True)
    sha256: Mapped[Sha256] = mapped_column(index=True)
    policy: Mapped[str]
    by: Mapped[str]
    made_at: Mapped[Made]


class RemovedBlob(Base):
    """A blob that is to be deleted, written with its removal; `deleted_at` once it is. The row goes when a row names it again."""

    __tablename__ = "removed_blobs"
    __table_args__ = (Index("ix_removed_blobs_pending", "sha256", postgresql_where=text("deleted_at IS NULL")),)
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    made_at: Mapped[Made]
    deleted_at: Mapped[datetime | None]


APPEND_ONLY = ("removals",)
