"""What lists show and ask of an asset stands in its own row: its newest picture, what that looks like, and who is asked to decide."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BIT

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

WAITING = "waits_at <> '{}'::text[]"
COMPARED = ["id", "current_sha256", "look", "look_encoder", "availability", "character"]

# Of the stages that the asset waits at now: who was asked at another one is not asked any more.
ASKED = """
CREATE FUNCTION asset_asked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.asked := ARRAY(
        SELECT DISTINCT lower(person) FROM assignments WHERE asset_id = NEW.id AND stage = ANY (NEW.waits_at) ORDER BY 1);
    RETURN NEW;
END $$
"""
ASSIGNED = """
CREATE FUNCTION asset_assigned() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE assets SET waits_at = waits_at WHERE id IN (OLD.asset_id, NEW.asset_id);
    RETURN NULL;
END $$
"""
# The signs of what the newest encoder said of a picture: the Hamming distance of two is about the angle between what was said.
LOOK = """
CREATE FUNCTION look_of(picture text, OUT look bit varying, OUT encoder text) LANGUAGE sql STABLE AS $$
    SELECT binary_quantize(pooled), encoder_sha256
    FROM picture_embeddings JOIN encoders ON encoders.sha256 = encoder_sha256
    WHERE picture_sha256 = picture AND pooled IS NOT NULL ORDER BY encoders.made_at DESC, encoder_sha256 LIMIT 1
$$
"""
SEEN = """
CREATE FUNCTION asset_seen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE assets SET (look, look_encoder) = (SELECT its.look, its.encoder FROM look_of(current_sha256) AS its)
    WHERE current_sha256 IN (SELECT picture_sha256 FROM fresh);
    RETURN NULL;
END $$
"""
NEWEST = """
CREATE FUNCTION asset_current() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE assets SET current_number = newest.number, current_sha256 = newest.sha256, look = newest.look, look_encoder = newest.encoder
    FROM (
        SELECT DISTINCT ON (asset_id) asset_id, number, sha256, its.* FROM fresh CROSS JOIN LATERAL look_of(sha256) AS its
        ORDER BY asset_id, number DESC
    ) AS newest WHERE assets.id = newest.asset_id AND assets.current_number < newest.number;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("assets", sa.Column("current_number", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("assets", sa.Column("current_sha256", sa.Text(), nullable=True))
    op.add_column("assets", sa.Column("asked", ARRAY(sa.Text()), nullable=False, server_default="{}"))
    op.add_column("assets", sa.Column("look", BIT(varying=True), nullable=True))
    op.add_column("assets", sa.Column("look_encoder", sa.Text(), nullable=True))
    for function in (ASKED, ASSIGNED, LOOK, SEEN, NEWEST):
        op.execute(function)
    op.execute(
        "CREATE TRIGGER asked BEFORE INSERT OR UPDATE OF waits_at ON assets FOR EACH ROW EXECUTE FUNCTION asset_asked()"
    )
    op.execute(
        "CREATE TRIGGER asked AFTER INSERT OR UPDATE OR DELETE ON assignments "
        "FOR EACH ROW EXECUTE FUNCTION asset_assigned()"
    )
    op.execute(
        "CREATE TRIGGER current AFTER INSERT ON asset_versions REFERENCING NEW TABLE AS fresh "
        "FOR EACH STATEMENT EXECUTE FUNCTION asset_current()"
    )
    op.execute(
        "CREATE TRIGGER seen AFTER INSERT ON picture_embeddings REFERENCING NEW TABLE AS fresh "
        "FOR EACH STATEMENT EXECUTE FUNCTION asset_seen()"
    )
    op.execute(  # the trigger says who is asked
        "UPDATE assets SET current_number = newest.number, current_sha256 = newest.sha256, look = newest.look, "
        "look_encoder = newest.encoder, waits_at = waits_at FROM ("
        "SELECT DISTINCT ON (asset_id) asset_id, number, sha256, its.* FROM asset_versions "
        "CROSS JOIN LATERAL look_of(sha256) AS its ORDER BY asset_id, number DESC"
        ") AS newest WHERE assets.id = newest.asset_id"
    )
    op.create_index("ix_assets_asked", "assets", ["asked"], postgresql_using="gin")
    op.create_index("ix_assets_current_sha256", "assets", ["current_sha256"])
    op.create_index("ix_assets_waiting", "assets", ["made_at", "id"], postgresql_where=sa.text(WAITING))
    op.create_index("ix_assets_looks", "assets", ["brand_id", "review"], postgresql_include=COMPARED)
    op.drop_index("ix_assignments_lower_person", "assignments")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_index("ix_assignments_lower_person", "assignments", [sa.text("lower(person)")])
    op.execute("DROP TRIGGER seen ON picture_embeddings")
    op.execute("DROP TRIGGER current ON asset_versions")
    op.execute("DROP TRIGGER asked ON assignments")
    op.execute("DROP TRIGGER asked ON assets")
    for function in ("asset_current()", "asset_seen()", "look_of(text)", "asset_assigned()", "asset_asked()"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_index("ix_assets_looks", "assets")
    op.drop_index("ix_assets_waiting", "assets")
    op.drop_index("ix_assets_current_sha256", "assets")
    op.drop_index("ix_assets_asked", "assets")
    for column in ("look_encoder", "look", "asked", "current_sha256", "current_number"):
        op.drop_column("assets", column)
