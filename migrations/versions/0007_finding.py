"""Finding assets among many: what lists filter and order by stands in the asset's own row, pictures have embeddings, people keep filters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
KEYSETS = (("made_at", "id"), ("brand_id", "made_at", "id"), ("campaign_id", "made_at", "id"), ("review", "made_at", "id"),
           ("availability", "made_at", "id"), ("character", "made_at", "id"))  # fmt: skip
DUE = "coalesce(due_at, 'infinity'::timestamptz)"
WAITING = "review = 'in review'"

# Marks between letters part words here and in a search alike, so that a shot's name is found by a part of it; what is a letter is not
# asked of the database's locale.
WORDS = r"""
CREATE FUNCTION words_of(said text) RETURNS tsvector LANGUAGE sql IMMUTABLE AS $$
    SELECT to_tsvector('simple', regexp_replace(said, '[-_/\\.,;:!?''"()\[\]{}<>|&#*~^+=$%@`\u00a0-\u00bf\u2010-\u206f\u3000-\u303f]+', ' ', 'g'))
$$
"""
ORIGIN = """
CREATE FUNCTION asset_origin() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    run_name text;
    asked text;
BEGIN
    SELECT name, brand_id, coalesce(
        jsonb_path_query_first(brief, '$.shots[*] ? (@.name == $shot).character', jsonb_build_object('shot', NEW.shot)) #>> '{}', '')
    INTO run_name, NEW.brand_id, NEW.character FROM campaigns WHERE id = NEW.campaign_id;
    SELECT recipe ->> 'prompt' INTO asked FROM jobs WHERE key = NEW.job_key;
    NEW.words := words_of(concat_ws(' ', NEW.shot, NEW.character, run_name, asked));
    RETURN NEW;
END $$
"""
# Of the newest version alone: a version that is not checked yet has none.
FINDINGS = """
UPDATE assets SET doubt = found.doubt, checked = found.checked FROM (
    SELECT newest.asset_id,
        coalesce(min(CASE checks.outcome WHEN 'fail' THEN 0 WHEN 'not run' THEN 1 WHEN 'warn' THEN 2 WHEN 'pass' THEN 3 END), 1) AS doubt,
        coalesce(array_agg(DISTINCT said.said) FILTER (WHERE said.said IS NOT NULL), '{}') AS checked
    FROM (
        SELECT DISTINCT ON (asset_versions.asset_id) asset_versions.asset_id, asset_versions.id FROM asset_versions
        WHERE asset_versions.asset_id IN (TOUCHED)
        ORDER BY asset_versions.asset_id, asset_versions.number DESC
    ) AS newest
    LEFT JOIN checks ON checks.version_id = newest.id
    LEFT JOIN LATERAL unnest(ARRAY[checks.name, checks.outcome, checks.name || '=' || checks.outcome]) AS said ON true
    GROUP BY newest.asset_id
) AS found WHERE assets.id = found.asset_id
"""
TOUCHED = {
    "checks": "SELECT asset_versions.asset_id FROM fresh JOIN asset_versions ON asset_versions.id = fresh.version_id",
    "asset_versions": "SELECT fresh.asset_id FROM fresh",
}

# Of encoders that are known already; those that come get theirs with their row. pgvector indexes at most 2,000 dimensions.
INDEXES = """
DO $$ DECLARE its record; BEGIN
    FOR its IN SELECT sha256, dim FROM encoders WHERE dim <= 2000 LOOP
        EXECUTE format(
            'CREATE INDEX %I ON picture_embeddings USING hnsw ((pooled::vector(%s)) vector_cosine_ops) WHERE encoder_sha256 = %L',
            'picture_embeddings_hnsw_' || left(its.sha256, 16), its.dim, its.sha256);
    END LOOP;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("assets", sa.Column("brand_id", sa.Uuid(), nullable=True))
    op.add_column("assets", sa.Column("character", sa.Text(), nullable=False, server_default=""))
    op.add_column("assets", sa.Column("words", TSVECTOR(), nullable=False, server_default=sa.text("''::tsvector")))
    op.add_column("assets", sa.Column("doubt", sa.SmallInteger(), nullable=False, server_default="1"))
    op.add_column("assets", sa.Column("checked", ARRAY(sa.Text()), nullable=False, server_default="{}"))
    op.execute(WORDS)
    op.execute(ORIGIN)
    op.execute(
        "CREATE TRIGGER origin BEFORE INSERT OR UPDATE OF campaign_id, shot, job_key ON assets "
        "FOR EACH ROW EXECUTE FUNCTION asset_origin()"
    )
    for table, touched in TOUCHED.items():
        op.execute(
            f"CREATE FUNCTION asset_findings_of_{table}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {FINDINGS.replace('TOUCHED', touched)}; RETURN NULL; END $$"
        )
        op.execute(
            f"CREATE TRIGGER findings AFTER INSERT ON {table} REFERENCING NEW TABLE AS fresh "
            f"FOR EACH STATEMENT EXECUTE FUNCTION asset_findings_of_{table}()"
        )
    op.execute("UPDATE assets SET shot = shot")  # the triggers say the rest
    op.execute(FINDINGS.replace("TOUCHED", "SELECT assets.id FROM assets"))
    op.alter_column("assets", "brand_id", nullable=False)
    op.create_foreign_key("fk_assets_brand_id_brands", "assets", "brands", ["brand_id"], ["id"])
    for columns in KEYSETS:
        op.create_index(f"ix_assets_{columns[0]}_keyset", "assets", list(columns))
    op.create_index("ix_assignments_lower_person", "assignments", [sa.text("lower(person)")])
    op.create_index("ix_assets_words", "assets", ["words"], postgresql_using="gin")
    op.create_index("ix_assets_checked", "assets", ["checked"], postgresql_using="gin")
    op.create_index(
        "ix_assets_queue", "assets", ["doubt", sa.text(DUE), "made_at", "id"], postgresql_where=sa.text(WAITING)
    )
    op.create_table(
        "picture_embeddings",
        sa.Column("picture_sha256", sa.Text(), nullable=False),
        sa.Column("encoder_sha256", sa.Text(), nullable=False),
        sa.Column("pooled", Vector(), nullable=True),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.ForeignKeyConstraint(
            ["encoder_sha256"], ["encoders.sha256"], name="fk_picture_embeddings_encoder_sha256_encoders"
        ),
        sa.PrimaryKeyConstraint("picture_sha256", "encoder_sha256", name="pk_picture_embeddings"),
    )
    op.create_index("ix_picture_embeddings_made_at", "picture_embeddings", ["made_at"])
    op.execute(INDEXES)
    op.create_table(
        "saved_filters",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("filters", JSONB(), nullable=False),
        sa.Column("made_at", MOMENT, nullable=False, server_default=sa.text("now()")),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"], name="fk_saved_filters_person_id_people"),
        sa.PrimaryKeyConstraint("id", name="pk_saved_filters"),
        sa.UniqueConstraint("person_id", "name", name="uq_saved_filters_person_id_name"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("saved_filters")
    op.drop_table("picture_embeddings")
    for table in TOUCHED:
        op.execute(f"DROP TRIGGER findings ON {table}")
        op.execute(f"DROP FUNCTION asset_findings_of_{table}()")
    op.execute("DROP TRIGGER origin ON assets")
    op.execute("DROP FUNCTION asset_origin()")
    op.execute("DROP FUNCTION words_of(text)")
    op.drop_index("ix_assignments_lower_person", "assignments")
    op.drop_index("ix_assets_queue", "assets")
    op.drop_index("ix_assets_checked", "assets")
    op.drop_index("ix_assets_words", "assets")
    for columns in KEYSETS:
        op.drop_index(f"ix_assets_{columns[0]}_keyset", "assets")
    op.drop_constraint("fk_assets_brand_id_brands", "assets")
    for column in ("checked", "doubt", "words", "character", "brand_id"):
        op.drop_column("assets", column)
