"""People, roles, API keys, sign-in links, browser sessions, and answers by Idempotency-Key."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def required(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=False, **options)


def optional(name: str, *arguments: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, *arguments, nullable=True, **options)


def made_at() -> sa.Column[Any]:
    return required("made_at", MOMENT, server_default=sa.text("now()"))


def person(table: str, column: str = "person_id") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["people.id"], name=f"fk_{table}_{column}_people")


def brand(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["brand_id"], ["brands.id"], name=f"fk_{table}_brand_id_brands")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "people",
        required("id", sa.Uuid()),
        required("handle", sa.Text()),
        required("name", sa.Text()),
        optional("subject", sa.Text()),
        optional("disabled_at", MOMENT),
        made_at(),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("handle", name="uq_people_handle"),
        sa.UniqueConstraint("subject", name="uq_people_subject"),
    )
    op.create_table(
        "grants",
        required("id", sa.Uuid()),
        required("person_id", sa.Uuid()),
        required("role", sa.String(24)),
        optional("brand_id", sa.Uuid()),
        optional("stage", sa.Text()),
        required("by", sa.Text()),
        made_at(),
        person("grants"),
        brand("grants"),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
        sa.UniqueConstraint(
            "person_id", "role", "brand_id", "stage", name="uq_grants_person_id_role_brand_id_stage",
            postgresql_nulls_not_distinct=True,
        ),
    )  # fmt: skip
    op.create_table(
        "api_keys",
        required("id", sa.Uuid()),
        required("name", sa.Text()),
        required("sha256", sa.Text()),
        required("owner_id", sa.Uuid()),
        required("scopes", ARRAY(sa.Text())),
        optional("brand_id", sa.Uuid()),
        required("expires_at", MOMENT),
        optional("revoked_at", MOMENT),
        optional("used_at", MOMENT),
        made_at(),
        person("api_keys", "owner_id"),
        brand("api_keys"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("name", name="uq_api_keys_name"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_table(
        "sign_in_links",
        required("sha256", sa.Text()),
        required("person_id", sa.Uuid()),
        required("expires_at", MOMENT),
        optional("used_at", MOMENT),
        made_at(),
        person("sign_in_links"),
        sa.PrimaryKeyConstraint("sha256", name="pk_sign_in_links"),
    )
    op.create_table(
        "browser_sessions",
        required("sha256", sa.Text()),
        required("person_id", sa.Uuid()),
        required("expires_at", MOMENT),
        required("seen_at", MOMENT),
        optional("ended_at", MOMENT),
        made_at(),
        person("browser_sessions"),
        sa.PrimaryKeyConstraint("sha256", name="pk_browser_sessions"),
    )
    op.create_index("ix_browser_sessions_person_id", "browser_sessions", ["person_id"])
    op.create_table(
        "answered",
        required("actor", sa.Text()),
        required("key", sa.Text()),
        required("request_sha256", sa.Text()),
        required("body", JSONB()),
        made_at(),
        sa.PrimaryKeyConstraint("actor", "key", name="pk_answered"),
    )
    op.create_index("ix_answered_made_at", "answered", ["made_at"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    for table in ("answered", "browser_sessions", "sign_in_links", "api_keys", "grants", "people"):
        op.drop_table(table)
