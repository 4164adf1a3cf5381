"""Who the pictures are of, and the references that show them."""

from __future__ import annotations

import enum
import uuid
from datetime import date, datetime
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from asset_store.tables.base import Base, Id, Made, Sha256, text_enum


class ReferenceState(enum.StrEnum):
    ACTIVE = "active"
    WITHDRAWN = "withdrawn"  # rights were taken back
    REMOVED = "removed"  # no longer in the library


class Brand(Base):
    __tablename__ = "brands"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    palette: Mapped[list[Any]] = mapped_column(default=list)
    rules: Mapped[list[Any]] = mapped_column(default=list)
    made_at: Mapped[Made]


class Character(Base):
    __tablename__ = "characters"
    __table_args__ = (UniqueConstraint("brand_id", "name"),)
    id: Mapped[Id]
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(default="")
    palette: Mapped[list[Any]] = mapped_column(default=list)
    rules: Mapped[list[Any]] = mapped_column(default=list)
    made_at: Mapped[Made]
    brand: Mapped[Brand] = relationship(lazy="joined")


class Library(Base):
    """An S3 prefix or folder with a library.yaml, known by its address."""

    __tablename__ = "libraries"
    id: Mapped[Id]
    url: Mapped[str] = mapped_column(unique=True)
    brand_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("brands.id"))
    file_sha256: Mapped[Sha256]
    loaded_at: Mapped[datetime]


class Reference(Base):
    """One approved picture at one key of a library; another content at the same key is another row."""

    __tablename__ = "library_references"
    __table_args__ = (UniqueConstraint("library_id", "key", "sha256"),)
    id: Mapped[Id]
    library_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("libraries.id"))
    character_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("characters.id"), index=True)
    key: Mapped[str]
    sha256: Mapped[Sha256] = mapped_column(index=True)
    pixel_sha256: Mapped[Sha256]
    size_bytes: Mapped[int]
    etag: Mapped[str]
    version_id: Mapped[str | None]
    role: Mapped[str]
    weight: Mapped[float]
    licence_name: Mapped[str]
    licence_holder: Mapped[str | None]
    licence_until: Mapped[date | None]
    format: Mapped[str]
    width_px: Mapped[int]
    height_px: Mapped[int]
    notes: Mapped[list[Any]] = mapped_column(default=list)
    state: Mapped[ReferenceState] = mapped_column(text_enum(ReferenceState), default=ReferenceState.ACTIVE)
    made_at: Mapped[Made]
    character: Mapped[Character | None] = relationship(lazy="joined")


class Quarantined(Base):
    """An object of a library that could not be used, with the reason and what to do about it."""

    __tablename__ = "quarantined"
    __table_args__ = (UniqueConstraint("library_id", "key"),)
    id: Mapped[Id]
    library_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("libraries.id"))
    key: Mapped[str]
    etag: Mapped[str]
    size_bytes: Mapped[int]
    reason: Mapped[str]
    message: Mapped[str]
    next_step: Mapped[str]
    seen_at: Mapped[Made]


class Encoder(Base):
    """An image encoder, known by the sha256 of its weights and its preprocessing."""

    __tablename__ = "encoders"
    sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    name: Mapped[str]
    dim: Mapped[int]
    preprocessing: Mapped[dict[str, Any]]
    made_at: Mapped[Made]


class Embedding(Base):
    """What an encoder says of a reference. Each encoder has its own dimension and its own HNSW index."""

    __tablename__ = "embeddings"
    reference_sha256: Mapped[Sha256] = mapped_column(primary_key=True)
    encoder_sha256: Mapped[Sha256] = mapped_column(ForeignKey("encoders.sha256"), primary_key=True)
    pooled: Mapped[Any] = mapped_column(Vector())
    hidden_sha256: Mapped[str | None]  # blob of float16 hidden states, for adapters that read them
    made_at: Mapped[Made]
