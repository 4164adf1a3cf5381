"""The first tables: the library, the work, what was made and what is known of it.

What is in APPEND_ONLY can be inserted and read, and nothing else: a trigger refuses UPDATE, DELETE and TRUNCATE,
for the owner of the tables as well, and fires in replication too.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
APPEND_ONLY = ("asset_versions", "lineage_records", "descents", "checks", "decisions", "deliveries", "audit")
TABLES_CHILDREN_FIRST = (
    "audit", "deliveries", "decisions", "checks", "descents", "lineage_records", "asset_versions", "assets", "jobs",
    "campaigns", "embeddings", "encoders", "quarantined", "library_references", "libraries", "characters", "brands",
)  # fmt: skip

REFUSE_CHANGES = """
CREATE FUNCTION refuse_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Add a row that says what changed; rows already written stay as they are.';
END $$
"""


def required(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=False, **options)


def optional(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=True, **options)


def made_at() -> sa.Column[Any]:
    return required("made_at", MOMENT, server_default=sa.text("now()"))


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    create_library()
    create_work()
    create_assets()
    create_evidence()
    op.execute(REFUSE_CHANGES)
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_changes()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")


def downgrade() -> None:
    """Back to empty. The extension stays: other schemas of the database may use it."""
    op.execute("SET LOCAL lock_timeout = '4s'")
    for table in TABLES_CHILDREN_FIRST:
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_changes()")


def create_library() -> None:
    op.create_table(
        "brands",
        required("id", sa.Uuid()),
        required("name", sa.Text()),
        required("title", sa.Text()),
        required("palette", JSONB()),
        required("rules", JSONB()),
        made_at(),
        sa.PrimaryKeyConstraint("id", name="pk_brands"),
        sa.UniqueConstraint("name", name="uq_brands_name"),
    )
    op.create_table(
        "characters",
        required("id", sa.Uuid()),
        required("brand_id", sa.Uuid()),
        required("name", sa.Text()),
        required("description", sa.Text()),
        required("palette", JSONB()),
        required("rules", JSONB()),
        made_at(),
        sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name="fk_characters_brand_id_brands"),
        sa.PrimaryKeyConstraint("id", name="pk_characters"),
        sa.UniqueConstraint("brand_id", "name", name="uq_characters_brand_id_name"),
    )
    op.create_table(
        "libraries",
        required("id", sa.Uuid()),
        required("url", sa.Text()),
        required("brand_id", sa.Uuid()),
        required("file_sha256", sa.Text()),
        required("loaded_at", MOMENT),
        sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name="fk_libraries_brand_id_brands"),
        sa.PrimaryKeyConstraint("id", name="pk_libraries"),
        sa.UniqueConstraint("url", name="uq_libraries_url"),
    )
    op.create_table(
        "library_references",
        required("id", sa.Uuid()),
        required("library_id", sa.Uuid()),
        optional("character_id", sa.Uuid()),
        required("key", sa.Text()),
        required("sha256", sa.Text()),
        required("pixel_sha256", sa.Text()),
        required("size_bytes", sa.Integer()),
        required("etag", sa.Text()),
        optional("version_id", sa.Text()),
        required("role", sa.Text()),
        required("weight", sa.Double()),
        required("licence_name", sa.Text()),
        optional("licence_holder", sa.Text()),
        optional("licence_until", sa.Date()),
        required("format", sa.Text()),
        required("width_px", sa.Integer()),
        required("height_px", sa.Integer()),
        required("notes", JSONB()),
        required("state", sa.String(24)),
        made_at(),
        sa.ForeignKeyConstraint(
            ["character_id"], ["characters.id"], name="fk_library_references_character_id_characters"
        ),
        sa.ForeignKeyConstraint(["library_id"], ["libraries.id"], name="fk_library_references_library_id_libraries"),
        sa.PrimaryKeyConstraint("id", name="pk_library_references"),
        sa.UniqueConstraint("library_id", "key", "sha256", name="uq_library_references_library_id_key_sha256"),
    )
    op.create_index("ix_library_references_character_id", "library_references", ["character_id"])
    op.create_index("ix_library_references_sha256", "library_references", ["sha256"])
    op.create_table(
        "quarantined",
        required("id", sa.Uuid()),
        required("library_id", sa.Uuid()),
        required("key", sa.Text()),
        required("etag", sa.Text()),
        required("size_bytes", sa.Integer()),
        required("reason", sa.Text()),
        required("message", sa.Text()),
        required("next_step", sa.Text()),
        required("seen_at", MOMENT, server_default=sa.text("now()")),
        sa.ForeignKeyConstraint(["library_id"], ["libraries.id"], name="fk_quarantined_library_id_libraries"),
        sa.PrimaryKeyConstraint("id", name="pk_quarantined"),
        sa.UniqueConstraint("library_id", "key", name="uq_quarantined_library_id_key"),
    )
    op.create_table(
        "encoders",
        required("sha256", sa.Text()),
        required("name", sa.Text()),
        required("dim", sa.Integer()),
        required("preprocessing", JSONB()),
        made_at(),
        sa.PrimaryKeyConstraint("sha256", name="pk_encoders"),
    )
    op.create_table(
        "embeddings",
        required("reference_sha256", sa.Text()),
        required("encoder_sha256", sa.Text()),
        required("pooled", Vector()),
        optional("hidden_sha256", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["encoder_sha256"], ["encoders.sha256"], name="fk_embeddings_encoder_sha256_encoders"),
        sa.PrimaryKeyConstraint("reference_sha256", "encoder_sha256", name="pk_embeddings"),
    )


def create_work() -> None:
    op.create_table(
        "campaigns",
        required("id", sa.Uuid()),
        required("name", sa.Text()),
        required("brand_id", sa.Uuid()),
        required("brief", JSONB()),
        required("brief_sha256", sa.Text()),
        required("stages", JSONB()),
        required("requested_by", sa.Text()),
        required("trigger", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name="fk_campaigns_brand_id_brands"),
        sa.PrimaryKeyConstraint("id", name="pk_campaigns"),
        sa.UniqueConstraint("name", "brief_sha256", name="uq_campaigns_name_brief_sha256"),
    )
    op.create_table(
        "jobs",
        required("key", sa.Text()),
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("batch_key", sa.Text()),
        required("recipe", JSONB()),
        required("state", sa.String(24)),
        required("attempt", sa.Integer()),
        optional("claimed_by", sa.BigInteger()),
        optional("lease_until", MOMENT),
        required("not_before", MOMENT, server_default=sa.text("now()")),
        required("evidence", JSONB()),
        optional("picture_sha256", sa.Text()),
        optional("picture", JSONB()),
        made_at(),
        optional("finished_at", MOMENT),
        sa.PrimaryKeyConstraint("key", name="pk_jobs"),
        sa.UniqueConstraint("seq", name="uq_jobs_seq"),
    )
    op.create_index("ix_jobs_claim", "jobs", ["batch_key", "seq"], postgresql_where=sa.text("state = 'queued'"))
    op.create_index("ix_jobs_running", "jobs", ["claimed_by"], postgresql_where=sa.text("state = 'running'"))


def create_assets() -> None:
    op.create_table(
        "assets",
        required("id", sa.Uuid()),
        required("campaign_id", sa.Uuid()),
        required("shot", sa.Text()),
        required("variant", sa.Integer()),
        required("job_key", sa.Text()),
        required("review", sa.String(24)),
        required("stage", sa.Integer()),
        required("availability", sa.String(24)),
        required("row_version", sa.Integer()),
        made_at(),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_assets_campaign_id_campaigns"),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name="fk_assets_job_key_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_assets"),
        sa.UniqueConstraint("campaign_id", "shot", "variant", name="uq_assets_campaign_id_shot_variant"),
    )
    op.create_index("ix_assets_job_key", "assets", ["job_key"])
    op.create_table(
        "asset_versions",
        required("id", sa.Uuid()),
        required("asset_id", sa.Uuid()),
        required("number", sa.Integer()),
        optional("parent_id", sa.Uuid()),
        required("job_key", sa.Text()),
        required("sha256", sa.Text()),
        required("pixel_sha256", sa.Text()),
        required("perceptual_hash", sa.Text()),
        required("width_px", sa.Integer()),
        required("height_px", sa.Integer()),
        made_at(),
        sa.ForeignKeyConstraint(["asset_id"], ["assets.id"], name="fk_asset_versions_asset_id_assets"),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name="fk_asset_versions_job_key_jobs"),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["asset_versions.id"], name="fk_asset_versions_parent_id_asset_versions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_asset_versions"),
        sa.UniqueConstraint("asset_id", "job_key", name="uq_asset_versions_asset_id_job_key"),
        sa.UniqueConstraint("asset_id", "number", name="uq_asset_versions_asset_id_number"),
    )
    op.create_index("ix_asset_versions_perceptual_hash", "asset_versions", ["perceptual_hash"])
    op.create_index("ix_asset_versions_sha256", "asset_versions", ["sha256"])


def create_evidence() -> None:
    op.create_table(
        "lineage_records",
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("version_id", sa.Uuid()),
        required("record", JSONB()),
        required("previous_sha256", sa.Text()),
        required("sha256", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(
            ["version_id"], ["asset_versions.id"], name="fk_lineage_records_version_id_asset_versions"
        ),
        sa.PrimaryKeyConstraint("seq", name="pk_lineage_records"),
        sa.UniqueConstraint("sha256", name="uq_lineage_records_sha256"),
        sa.UniqueConstraint("version_id", name="uq_lineage_records_version_id"),
    )
    op.create_table(
        "descents",
        required("version_id", sa.Uuid()),
        required("reference_id", sa.Uuid()),
        sa.ForeignKeyConstraint(
            ["reference_id"], ["library_references.id"], name="fk_descents_reference_id_library_references"
        ),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_descents_version_id_asset_versions"),
        sa.PrimaryKeyConstraint("version_id", "reference_id", name="pk_descents"),
    )
    op.create_index("ix_descents_reference_id", "descents", ["reference_id"])
    op.create_table(
        "checks",
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("version_id", sa.Uuid()),
        required("name", sa.Text()),
        required("outcome", sa.String(24)),
        optional("value", sa.Double()),
        optional("threshold", sa.Double()),
        required("message", sa.Text()),
        required("policy_version", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_checks_version_id_asset_versions"),
        sa.PrimaryKeyConstraint("seq", name="pk_checks"),
        sa.UniqueConstraint("version_id", "name", "policy_version", name="uq_checks_version_id_name_policy_version"),
    )
    op.create_table(
        "decisions",
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("version_id", sa.Uuid()),
        required("stage", sa.Text()),
        required("verdict", sa.String(24)),
        required("by", sa.Text()),
        required("reason", sa.Text()),
        required("seen_sha256", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_decisions_version_id_asset_versions"),
        sa.PrimaryKeyConstraint("seq", name="pk_decisions"),
    )
    op.create_index("ix_decisions_version_id", "decisions", ["version_id"])
    op.create_table(
        "deliveries",
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("version_id", sa.Uuid()),
        required("channel", sa.Text()),
        required("address", sa.Text()),
        required("rendition", sa.Text()),
        required("sha256", sa.Text()),
        required("by", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_deliveries_version_id_asset_versions"),
        sa.PrimaryKeyConstraint("seq", name="pk_deliveries"),
        sa.UniqueConstraint("version_id", "channel", "address", name="uq_deliveries_version_id_channel_address"),
    )
    op.create_table(
        "audit",
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("at", MOMENT),
        required("actor", sa.Text()),
        required("action", sa.Text()),
        required("subject", sa.Text()),
        required("detail", JSONB()),
        required("previous_sha256", sa.Text()),
        required("sha256", sa.Text()),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sa.UniqueConstraint("sha256", name="uq_audit_sha256"),
    )
