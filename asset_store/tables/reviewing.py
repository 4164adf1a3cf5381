"""What people say and arrange around a decision: comments, who is asked, retakes, and what needs a second person."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from asset_store.reviewing.states import AvailabilityEvent
from asset_store.tables.base import Base, Id, Made, Sha256, text_enum


class Comment(Base):
    """A remark on a version, or on a region of it. A correction is a row that replaces another, and so is taking it back."""

    __tablename__ = "comments"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)  # chosen by who writes it: sent twice, it is written once
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), unique=True)
    version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"), index=True)
    by: Mapped[str]
    text: Mapped[str]
    region: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # in 0–1 of the picture's sides
    reply_to: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("comments.id"))
    replaces: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("comments.id"), unique=True)
    retracted: Mapped[bool] = mapped_column(default=False)
    made_at: Mapped[Made]


class Assignment(Base):
    """Somebody who is asked to decide on an asset at a stage; the others of the stage may, too."""

    __tablename__ = "assignments"
    __table_args__ = (UniqueConstraint("asset_id", "stage", "person"), Index("ix_assignments_person", "person"))
    id: Mapped[Id]
    asset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("assets.id"))
    stage: Mapped[str]
    person: Mapped[str]
    by: Mapped[str]
    made_at: Mapped[Made]


class Retake(Base):
    """An asset that is made anew: from which version, with what changed and because of which comments."""

    __tablename__ = "retakes"
    __table_args__ = (UniqueConstraint("asset_id", "number"),)
    id: Mapped[Id]
    asset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("assets.id"))
    number: Mapped[int]
    parent_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("asset_versions.id"))
    job_key: Mapped[Sha256] = mapped_column(ForeignKey("jobs.key"))
    changes: Mapped[list[Any]]  # what is changed, each with its value before and after
    comments: Mapped[list[Any]]  # ids of those that asked for it
    by: Mapped[str]
    made_at: Mapped[Made]


class ProposalState(enum.StrEnum):
    OPEN = "open"
    CONFIRMED = "confirmed"
    DECLINED = "declined"


class Proposal(Base):
    """A change of availability that one person asks for and another confirms, with what it would reach."""

    __tablename__ = "proposals"
    __table_args__ = (
        Index("uq_proposals_open", "asset_id", unique=True, postgresql_where=text("state = 'open'")),
    )  # fmt: skip
    id: Mapped[Id]
    asset_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("assets.id"), index=True)
    event: Mapped[AvailabilityEvent] = mapped_column(text_enum(AvailabilityEvent))
    reason: Mapped[str]
    impact: Mapped[dict[str, Any]]
    by: Mapped[str]
    made_at: Mapped[Made]
    state: Mapped[ProposalState] = mapped_column(text_enum(ProposalState), default=ProposalState.OPEN)
    settled_by: Mapped[str | None]
    settled_at: Mapped[datetime | None]


APPEND_ONLY = ("comments", "retakes")
