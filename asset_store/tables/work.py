"""What is to be made: campaigns and the job table, which is the queue."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from asset_store.tables.base import Base, Id, Made, Sha256, text_enum
from asset_store.tables.library import Brand


class JobState(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # set aside after the last attempt, with its evidence
    CANCELLED = "cancelled"  # blocked: a right it needs is gone


class RunKind(enum.StrEnum):
    SHEET = "character sheet"
    CAMPAIGN = "campaign"


class RunState(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # of a schedule: it was time, but a rule of the schedule said not to


class CampaignSchedule(Base):
    """A brief that runs by itself. The rows say what is scheduled; what Prefect has of them is made from them and can be made again.

    `looked_until`: times up to then were acted on; `next_at`: the first after it. `row_version` changes with what Prefect shows of it.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        Index("uq_schedules_brand_id_name", "brand_id", "name", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_schedules_next_at", "next_at", postgresql_where=text("ended_at IS NULL AND paused_at IS NULL")),
    )
    id: Mapped[Id]
    name: Mapped[str]
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    brief: Mapped[str]  # as it was written
    brief_name: Mapped[str]
    folder: Mapped[str | None]  # where the brief lies, for the pictures that it names by a path
    rhythm: Mapped[dict[str, Any]]  # the brief's `schedule`
    budget: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    requested_by: Mapped[str]
    person_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("people.id"))  # whose right to ask is looked at,
    key_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_keys.id"))  # as far as their key has it
    reason: Mapped[str]
    made_at: Mapped[Made]
    looked_until: Mapped[datetime]
    next_at: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    row_version: Mapped[int] = mapped_column(default=1)
    brand: Mapped[Brand] = relationship(lazy="joined")

    __mapper_args__ = {"version_id_col": row_version}


class Run(Base):
    """Work that somebody asked for: by whom, why, what set it off, how far it is and what came of it.

    `sent_at`: when a flow was last started for it, `first_sent_at` for the first time; `beat_at`: when that last said that it is alive.
    `made_pictures`, `gpu_s`: what it used.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_brand_id_keyset", "brand_id", "made_at", "id"),
        Index("ix_runs_requested_by_made_at", "requested_by", "made_at"),
        Index("ix_runs_open", "made_at", postgresql_where=text("state IN ('queued', 'running')")),
        UniqueConstraint("schedule_id", "due_at"),  # each time of a schedule is acted on once
    )
    id: Mapped[Id]
    kind: Mapped[RunKind] = mapped_column(text_enum(RunKind))
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    request: Mapped[dict[str, Any]]
    pictures: Mapped[int]  # that it asks to have drawn, candidates counted: what quotas count
    requested_by: Mapped[str]
    reason: Mapped[str]
    trigger: Mapped[str]  # cli, api, page, schedule, agent, prefect
    state: Mapped[RunState] = mapped_column(text_enum(RunState), default=RunState.QUEUED)
    campaign_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("campaigns.id"), index=True)
    phase: Mapped[str] = mapped_column(default="waiting")
    done: Mapped[int] = mapped_column(default=0)  # pictures that are made, of `total` with those that are tried again
    total: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    problem: Mapped[str | None]
    flow_run_id: Mapped[str | None]
    sent: Mapped[int] = mapped_column(default=0)  # how often a flow was started for it
    sent_at: Mapped[datetime | None]
    first_sent_at: Mapped[datetime | None]
    beat_at: Mapped[datetime | None]
    made_at: Mapped[Made]
    finished_at: Mapped[datetime | None]
    schedule_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("schedules.id"))
    due_at: Mapped[datetime | None]  # the time of the schedule that it is of
    waits: Mapped[bool] = mapped_column(default=False, server_default="false")  # until those before it have ended
    made_pictures: Mapped[int] = mapped_column(default=0, server_default="0")
    gpu_s: Mapped[float] = mapped_column(default=0.0, server_default="0")
    brand: Mapped[Brand] = relationship(lazy="joined")


class Campaign(Base):
    """One brief; the same brief again is the same campaign."""

    __tablename__ = "campaigns"
    __table_args__ = (UniqueConstraint("name", "brief_sha256"),)
    id: Mapped[Id]
    name: Mapped[str]
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    brief: Mapped[dict[str, Any]]
    brief_sha256: Mapped[Sha256]
    stages: Mapped[list[Any]]
    requested_by: Mapped[str]
    trigger: Mapped[str]
    reason: Mapped[str] = mapped_column(server_default="")
    made_at: Mapped[Made]
    brand: Mapped[Brand] = relationship(lazy="joined")


class Job(Base):
    """One recipe to be made, once; `key` is the sha256 of its canonical JSON."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_claim", "batch_key", "seq", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "claimed_by", postgresql_where=text("state = 'running'")),
    )
    key: Mapped[Sha256] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity(), unique=True)
    batch_key: Mapped[str]
    recipe: Mapped[dict[str, Any]]
    state: Mapped[JobState] = mapped_column(text_enum(JobState), default=JobState.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    claimed_by: Mapped[int | None] = mapped_column(BigInteger)  # the worker's advisory lock key
    lease_until: Mapped[datetime | None]
    not_before: Mapped[Made]
    evidence: Mapped[list[Any]] = mapped_column(default=list)  # one entry a failed attempt
    picture_sha256: Mapped[str | None]
    picture: Mapped[dict[str, Any] | None]  # size, pixel and perceptual hash, run: what the version copies
    made_at: Mapped[Made]
    finished_at: Mapped[datetime | None]
