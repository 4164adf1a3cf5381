"""Models trained here, evaluations, presets and calibrated thresholds; all append-only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = ("trained_models", "model_references", "evaluations", "presets", "identity_thresholds")


def required(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=False, **options)


def made() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return required("made_by", sa.Text()), required(
        "made_at", sa.DateTime(timezone=True), server_default=sa.text("now()")
    )


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "trained_models",
        required("id", sa.Uuid()),
        required("kind", sa.String(24)),
        required("name", sa.Text()),
        required("version", sa.Integer()),
        sa.Column("character_id", sa.Uuid(), nullable=True),
        required("sha256", sa.Text()),
        required("size_bytes", sa.Integer()),
        required("base_name", sa.Text()),
        required("base_sha256", sa.Text()),
        required("settings", JSONB()),
        required("figures", JSONB()),
        *made(),
        sa.ForeignKeyConstraint(["character_id"], ["characters.id"], name="fk_trained_models_character_id_characters"),
        sa.PrimaryKeyConstraint("id", name="pk_trained_models"),
        sa.UniqueConstraint("kind", "name", "version", name="uq_trained_models_kind_name_version"),
    )
    op.create_index("ix_trained_models_character_id", "trained_models", ["character_id"])
    op.create_index("ix_trained_models_sha256", "trained_models", ["sha256"])
    op.create_table(
        "model_references",
        required("model_id", sa.Uuid()),
        required("reference_id", sa.Uuid()),
        sa.ForeignKeyConstraint(
            ["model_id"], ["trained_models.id"], name="fk_model_references_model_id_trained_models"
        ),
        sa.ForeignKeyConstraint(
            ["reference_id"], ["library_references.id"], name="fk_model_references_reference_id_library_references"
        ),
        sa.PrimaryKeyConstraint("model_id", "reference_id", name="pk_model_references"),
    )
    op.create_index("ix_model_references_reference_id", "model_references", ["reference_id"])
    op.create_table(
        "evaluations",
        required("id", sa.Uuid()),
        required("protocol", sa.Text()),
        required("settings", JSONB()),
        required("models", JSONB()),
        required("rows", JSONB()),
        *made(),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
    )
    op.create_table(
        "presets",
        required("id", sa.Uuid()),
        required("character_id", sa.Uuid()),
        required("models_sha256", sa.Text()),
        required("version", sa.Integer()),
        required("scale", sa.Double()),
        required("window_start", sa.Double()),
        required("window_end", sa.Double()),
        required("target", JSONB()),
        required("curve", JSONB()),
        sa.Column("picture_sha256", sa.Text(), nullable=True),
        *made(),
        sa.ForeignKeyConstraint(["character_id"], ["characters.id"], name="fk_presets_character_id_characters"),
        sa.PrimaryKeyConstraint("id", name="pk_presets"),
        sa.UniqueConstraint(
            "character_id", "models_sha256", "version", name="uq_presets_character_id_models_sha256_version"
        ),
    )
    op.create_table(
        "identity_thresholds",
        required("id", sa.Uuid()),
        required("character_id", sa.Uuid()),
        required("encoder_sha256", sa.Text()),
        required("version", sa.Integer()),
        required("threshold", sa.Double()),
        required("evidence", JSONB()),
        *made(),
        sa.ForeignKeyConstraint(
            ["character_id"], ["characters.id"], name="fk_identity_thresholds_character_id_characters"
        ),
        sa.ForeignKeyConstraint(
            ["encoder_sha256"], ["encoders.sha256"], name="fk_identity_thresholds_encoder_sha256_encoders"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_identity_thresholds"),
        sa.UniqueConstraint(
            "character_id",
            "encoder_sha256",
            "version",
            name="uq_identity_thresholds_character_id_encoder_sha256_version",
        ),
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_changes()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    for table in ("identity_thresholds", "presets", "evaluations", "model_references", "trained_models"):
        op.drop_table(table)
