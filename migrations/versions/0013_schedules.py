"""Schedules: briefs that run by themselves; which of their times a run is of, and what it used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "schedules",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("brand_id", sa.Uuid(), nullable=False),
        sa.Column("brief", sa.Text(), nullable=False),
        sa.Column("brief_name", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("rhythm", JSONB(), nullable=False),
        sa.Column("budget", JSONB(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=True),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.Column("looked_until", MOMENT, nullable=False),
        sa.Column("next_at", MOMENT, nullable=True),
        sa.Column("paused_at", MOMENT, nullable=True),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("row_version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name="fk_schedules_brand_id_brands"),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_schedules_person_id_people"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_schedules_key_id_api_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
    )
    going = sa.text("ended_at IS NULL")
    op.create_index(
        "uq_schedules_brand_id_name", "schedules", ["brand_id", "name"], unique=True, postgresql_where=going
    )
    waiting = sa.text("ended_at IS NULL AND paused_at IS NULL")
    op.create_index("ix_schedules_next_at", "schedules", ["next_at"], postgresql_where=waiting)
    op.add_column("runs", sa.Column("schedule_id", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("due_at", MOMENT, nullable=True))
    op.add_column("runs", sa.Column("first_sent_at", MOMENT, nullable=True))
    op.add_column("runs", sa.Column("waits", sa.Boolean(), nullable=False, server_default="false"))
    op.add_column("runs", sa.Column("made_pictures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("gpu_s", sa.Float(), nullable=False, server_default="0"))
    op.create_foreign_key("fk_runs_schedule_id_schedules", "runs", "schedules", ["schedule_id"], ["id"])
    op.create_unique_constraint("uq_runs_schedule_id_due_at", "runs", ["schedule_id", "due_at"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_constraint("uq_runs_schedule_id_due_at", "runs")
    op.drop_constraint("fk_runs_schedule_id_schedules", "runs")
    for column in ("gpu_s", "made_pictures", "waits", "first_sent_at", "due_at", "schedule_id"):
        op.drop_column("runs", column)
    op.drop_table("schedules")
