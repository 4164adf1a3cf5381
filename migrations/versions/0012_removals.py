"""Retention: which pictures' bytes were removed, by which policy, and what is still to be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

APPEND_ONLY = ("removals",)
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("assets", sa.Column("removed_at", MOMENT, nullable=True))
    op.create_table(
        "removals",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_removals_version_id_asset_versions"),
        sa.PrimaryKeyConstraint("seq", name="pk_removals"),
        sa.UniqueConstraint("version_id", name="uq_removals_version_id"),
    )
    op.create_index("ix_removals_sha256", "removals", ["sha256"])
    op.create_table(
        "removed_blobs",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.Column("deleted_at", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("sha256", name="pk_removed_blobs"),
    )
    op.create_index(
        "ix_removed_blobs_pending", "removed_blobs", ["sha256"], postgresql_where=sa.text("deleted_at IS NULL")
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_changes()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("removed_blobs")
    op.drop_table("removals")
    op.drop_column("assets", "removed_at")
