"""Runs: work that somebody asked for, how far it is and what came of it; and why a campaign was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("campaigns", sa.Column("reason", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("brand_id", sa.Uuid(), nullable=False),
        sa.Column("request", JSONB(), nullable=False),
        sa.Column("pictures", sa.Integer(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("campaign_id", sa.Uuid(), nullable=True),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("result", JSONB(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("flow_run_id", sa.Text(), nullable=True),
        sa.Column("sent", sa.Integer(), nullable=False),
        sa.Column("sent_at", MOMENT, nullable=True),
        sa.Column("beat_at", MOMENT, nullable=True),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.Column("finished_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name="fk_runs_brand_id_brands"),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name="fk_runs_campaign_id_campaigns"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_campaign_id", "runs", ["campaign_id"])
    op.create_index("ix_runs_brand_id_keyset", "runs", ["brand_id", "made_at", "id"])
    op.create_index("ix_runs_requested_by_made_at", "runs", ["requested_by", "made_at"])
    op.create_index("ix_runs_open", "runs", ["made_at"], postgresql_where=sa.text("state IN ('queued', 'running')"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("runs")
    op.drop_column("campaigns", "reason")
