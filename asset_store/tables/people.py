"""Who may do what: people with roles, API keys, sessions of a browser, and what was asked for once already."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint, Uuid, false
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from asset_store.tables.base import Base, Id, Made, Sha256, text_enum


class Role(enum.StrEnum):
    VIEWER = "viewer"
    PRODUCER = "producer"
    REVIEWER = "reviewer"  # of a stage
    BRAND_LEAD = "brand lead"
    RELEASER = "releaser"
    RIGHTS_MANAGER = "rights manager"
    ADMIN = "admin"


class Person(Base):
    """Somebody who signs in. `handle` is what decisions and audit rows call them: an e-mail address or a local name."""

    __tablename__ = "people"
    id: Mapped[Id]
    handle: Mapped[str] = mapped_column(unique=True)  # lower case
    name: Mapped[str]
    subject: Mapped[str | None] = mapped_column(unique=True)  # "issuer subject" of a company's sign-in
    disabled_at: Mapped[datetime | None]
    made_at: Mapped[Made]
    grants: Mapped[list[Grant]] = relationship(back_populates="person", order_by="Grant.made_at")


class Grant(Base):
    """A role of a person, for one brand or for all; a reviewer's is for one stage or for all."""

    __tablename__ = "grants"
    __table_args__ = (
        UniqueConstraint("person_id", "role", "brand_id", "stage", postgresql_nulls_not_distinct=True),
    )  # fmt: skip
    id: Mapped[Id]
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("people.id"))
    role: Mapped[Role] = mapped_column(text_enum(Role))
    brand_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("brands.id"))
    stage: Mapped[str | None]
    by: Mapped[str]
    made_at: Mapped[Made]
    person: Mapped[Person] = relationship(back_populates="grants")


class ApiKey(Base):
    """A program's key, or an AI agent's, known by the hash of its secret. It may what its scopes say and its owner may, and never
    approves."""

    __tablename__ = "api_keys"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[Sha256] = mapped_column(unique=True)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("people.id"))
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    brand_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("brands.id"))
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    agent: Mapped[bool] = mapped_column(default=False, server_default=false())
    made_at: Mapped[Made]
    owner: Mapped[Person] = relationship(lazy="joined")


class SignInLink(Base):
    """A link that signs one person in, once."""

    __tablename__ = "sign_in_links"
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("people.id"))
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    by: Mapped[str] = mapped_column(server_default="system")  # who made it
    made_at: Mapped[Made]


class SignInAttempt(Base):
    """A browser on its way to the company's sign-in and back, known by the hashes of what the provider hands back and of what
    the browser alone holds."""

    __tablename__ = "sign_in_attempts"
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)  # of the state
    browser_sha256: Mapped[Sha256]
    next_path: Mapped[str]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]
    made_at: Mapped[Made]


class BrowserSession(Base):
    """A browser that is signed in, known by the hash of its cookie."""

    __tablename__ = "browser_sessions"
    __table_args__ = (Index("ix_browser_sessions_person_id", "person_id"),)
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("people.id"))
    expires_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    made_at: Mapped[Made]
    person: Mapped[Person] = relationship(lazy="joined")


class Answered(Base):
    """What a request with an Idempotency-Key was answered: sent again, it is answered so again and does nothing."""

    __tablename__ = "answered"
    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[Sha256]
    body: Mapped[dict[str, Any]]
    made_at: Mapped[Made] = mapped_column(index=True)


class ShareLink(Base):
    """A link under which people who have no account see some pictures of one brand, until it ends or is revoked."""

    __tablename__ = "share_links"
    __table_args__ = (Index("ix_share_links_brand_id", "brand_id"),)
    id: Mapped[Id]
    sha256: Mapped[Sha256] = mapped_column(unique=True)
    title: Mapped[str]
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    assets: Mapped[list[uuid.UUID]] = mapped_column(ARRAY(Uuid))
    can_comment: Mapped[bool]
    password_hash: Mapped[str | None]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    by: Mapped[str]
    made_at: Mapped[Made]


class SavedFilter(Base):
    """A person's own name for filters of the grid."""

    __tablename__ = "saved_filters"
    __table_args__ = (UniqueConstraint("person_id", "name"),)
    id: Mapped[Id]
    person_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("people.id"))
    name: Mapped[str]
    filters: Mapped[dict[str, Any]]
    made_at: Mapped[Made]
