"""Review: stages side by side and with a quorum, due times, comments, assignments, retakes, second persons."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPEND_ONLY = ("comments", "retakes")
MOMENT = sa.DateTime(timezone=True)

# Assets that wait now, or that a stricter word may still be said of: one stage a round was all there was, and its index is in `stage`.
WAITING = """
UPDATE assets SET
    waits_at = ARRAY[coalesce(campaigns.stages ->> assets.stage, campaigns.stages ->> -1, 'brand')],
    round_at = now()
FROM campaigns WHERE campaigns.id = assets.campaign_id AND assets.review IN ('in review', 'changes requested')
"""


def required(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=False, **options)


def optional(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=True, **options)


def made_at() -> sa.Column[Any]:
    return required("made_at", MOMENT, server_default=sa.text("now()"))


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("assets", required("waits_at", ARRAY(sa.Text()), server_default="{}"))
    op.add_column("assets", optional("round_at", MOMENT))
    op.add_column("assets", optional("due_at", MOMENT))
    op.execute(WAITING)
    op.create_index("ix_assets_waits_at", "assets", ["waits_at"], postgresql_using="gin")
    op.add_column("decisions", optional("checks_sha256", sa.Text()))
    op.add_column("decisions", optional("policy_sha256", sa.Text()))
    op.create_table(
        "comments",
        required("id", sa.Uuid()),
        required("seq", sa.BigInteger(), sa.Identity(always=False)),
        required("version_id", sa.Uuid()),
        required("by", sa.Text()),
        required("text", sa.Text()),
        optional("region", JSONB()),
        optional("reply_to", sa.Uuid()),
        optional("replaces", sa.Uuid()),
        required("retracted", sa.Boolean()),
        made_at(),
        sa.ForeignKeyConstraint(["version_id"], ["asset_versions.id"], name="fk_comments_version_id_asset_versions"),
        sa.ForeignKeyConstraint(["reply_to"], ["comments.id"], name="fk_comments_reply_to_comments"),
        sa.ForeignKeyConstraint(["replaces"], ["comments.id"], name="fk_comments_replaces_comments"),
        sa.PrimaryKeyConstraint("id", name="pk_comments"),
        sa.UniqueConstraint("seq", name="uq_comments_seq"),
        sa.UniqueConstraint("replaces", name="uq_comments_replaces"),
    )
    op.create_index("ix_comments_version_id", "comments", ["version_id"])
    op.create_table(
        "assignments",
        required("id", sa.Uuid()),
        required("asset_id", sa.Uuid()),
        required("stage", sa.Text()),
        required("person", sa.Text()),
        required("by", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["asset_id"], ["assets.id"], name="fk_assignments_asset_id_assets"),
        sa.PrimaryKeyConstraint("id", name="pk_assignments"),
        sa.UniqueConstraint("asset_id", "stage", "person", name="uq_assignments_asset_id_stage_person"),
    )
    op.create_index("ix_assignments_person", "assignments", ["person"])
    op.create_table(
        "retakes",
        required("id", sa.Uuid()),
        required("asset_id", sa.Uuid()),
        required("number", sa.Integer()),
        required("parent_id", sa.Uuid()),
        required("job_key", sa.Text()),
        required("changes", JSONB()),
        required("comments", JSONB()),
        required("by", sa.Text()),
        made_at(),
        sa.ForeignKeyConstraint(["asset_id"], ["assets.id"], name="fk_retakes_asset_id_assets"),
        sa.ForeignKeyConstraint(["parent_id"], ["asset_versions.id"], name="fk_retakes_parent_id_asset_versions"),
        sa.ForeignKeyConstraint(["job_key"], ["jobs.key"], name="fk_retakes_job_key_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_retakes"),
        sa.UniqueConstraint("asset_id", "number", name="uq_retakes_asset_id_number"),
    )
    op.create_table(
        "proposals",
        required("id", sa.Uuid()),
        required("asset_id", sa.Uuid()),
        required("event", sa.String(24)),
        required("reason", sa.Text()),
        required("impact", JSONB()),
        required("by", sa.Text()),
        made_at(),
        required("state", sa.String(24)),
        optional("settled_by", sa.Text()),
        optional("settled_at", MOMENT),
        sa.ForeignKeyConstraint(["asset_id"], ["assets.id"], name="fk_proposals_asset_id_assets"),
        sa.PrimaryKeyConstraint("id", name="pk_proposals"),
    )
    op.create_index("ix_proposals_asset_id", "proposals", ["asset_id"])
    op.create_index(
        "uq_proposals_open", "proposals", ["asset_id"], unique=True, postgresql_where=sa.text("state = 'open'")
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_changes()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    for table in ("proposals", "retakes", "assignments", "comments"):
        op.drop_table(table)
    op.drop_column("decisions", "policy_sha256")
    op.drop_column("decisions", "checks_sha256")
    op.drop_index("ix_assets_waits_at", "assets")
    for column in ("due_at", "round_at", "waits_at"):
        op.drop_column("assets", column)
