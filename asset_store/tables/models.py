"""What was trained here and how well it does: models of characters, evaluations, presets, calibrated thresholds.

All of it is append-only: a new training, search or calibration is a new version, the highest version counts.
"""

from __future__ import annotations

import enum
import uuid
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from asset_store.tables.base import Base, Id, Made, Sha256, text_enum
from asset_store.tables.library import Character


class ModelKind(enum.StrEnum):
    CHARACTER = "character"  # a LoRA of one character (DreamBooth)
    ADAPTER = "adapter"  # an IP-Adapter


class TrainedModel(Base):
    """One training's result: a safetensors blob, known by its sha256, and all that determined it."""

    __tablename__ = "trained_models"
    __table_args__ = (UniqueConstraint("kind", "name", "version"),)
    id: Mapped[Id]
    kind: Mapped[ModelKind] = mapped_column(text_enum(ModelKind))
    name: Mapped[str]  # brand/character, or what the adapter is called
    version: Mapped[int]
    character_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("characters.id"), index=True)
    sha256: Mapped[Sha256] = mapped_column(index=True)
    size_bytes: Mapped[int]
    base_name: Mapped[str]
    base_sha256: Mapped[Sha256]  # of the base's UNet: the model fits no other
    settings: Mapped[dict[str, Any]]
    figures: Mapped[dict[str, Any]]
    made_by: Mapped[str]
    made_at: Mapped[Made]
    character: Mapped[Character | None] = relationship(lazy="joined")


class ModelReference(Base):
    """Which references a trained model learnt from: a recall follows it to every picture that the model made."""

    __tablename__ = "model_references"
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("trained_models.id"), primary_key=True)
    reference_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("library_references.id"), primary_key=True, index=True)


class Evaluation(Base):
    """One table of figures, with the protocol and the models that it was measured on."""

    __tablename__ = "evaluations"
    id: Mapped[Id]
    protocol: Mapped[str]
    settings: Mapped[dict[str, Any]]
    models: Mapped[list[Any]]
    rows: Mapped[list[Any]]
    made_by: Mapped[str]
    made_at: Mapped[Made]


class Preset(Base):
    """How a character is best made with one base and adapter: what a search found, with its curve."""

    __tablename__ = "presets"
    __table_args__ = (UniqueConstraint("character_id", "models_sha256", "version"),)
    id: Mapped[Id]
    character_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("characters.id"))
    models_sha256: Mapped[Sha256]  # of the canonical list of the engine's models
    version: Mapped[int]
    scale: Mapped[float]
    window_start: Mapped[float]
    window_end: Mapped[float]
    target: Mapped[dict[str, Any]]
    curve: Mapped[list[Any]]
    picture_sha256: Mapped[str | None]  # blob of the curve as a PNG
    made_by: Mapped[str]
    made_at: Mapped[Made]


class IdentityThreshold(Base):
    """The likeness to its references that a picture of a character must reach, as one encoder measures it."""

    __tablename__ = "identity_thresholds"
    __table_args__ = (UniqueConstraint("character_id", "encoder_sha256", "version"),)
    id: Mapped[Id]
    character_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("characters.id"))
    encoder_sha256: Mapped[Sha256] = mapped_column(ForeignKey("encoders.sha256"))
    version: Mapped[int]
    threshold: Mapped[float]
    evidence: Mapped[dict[str, Any]]
    made_by: Mapped[str]
    made_at: Mapped[Made]


APPEND_ONLY = ("trained_models", "model_references", "evaluations", "presets", "identity_thresholds")
