"""A database of an earlier release, with assets under way, brought up to this one."""

from __future__ import annotations

import pytest
from alembic import command
from sqlalchemy import text

from asset_store.database import Database
from asset_store.reviewing import decide, grid
from asset_store.reviewing.grid import Filters
from asset_store.tables import Asset, Verdict

BEFORE = """
INSERT INTO brands (id, name, title, palette, rules) VALUES (gen_random_uuid(), 'bobo', 'Bobo', '[]', '[]');
INSERT INTO campaigns (id, name, brand_id, brief, brief_sha256, stages, requested_by, trigger)
    SELECT gen_random_uuid(), 'spring', id, '{"shots": [{"name": "draft", "character": "Bobo"}]}', repeat('0', 64),
        '["brand", "legal"]', 'ada', 'test' FROM brands;
INSERT INTO jobs (key, batch_key, recipe, state, attempt, evidence)
    VALUES (repeat('1', 64), 'k', '{"prompt": "on the beach"}', 'succeeded', 1, '[]');
INSERT INTO assets (id, campaign_id, shot, variant, job_key, review, stage, availability, row_version)
    SELECT gen_random_uuid(), id, review, 0, repeat('1', 64), review, stage, 'unreleased', 3
    FROM campaigns, (VALUES ('in review', 1), ('changes requested', 0), ('approved', 1), ('draft', 0)) AS made (review, stage);
INSERT INTO asset_versions (id, asset_id, number, job_key, sha256, pixel_sha256, perceptual_hash, width_px, height_px)
    SELECT gen_random_uuid(), id, 1, job_key, repeat('2', 64), repeat('3', 64), 'f', 64, 64 FROM assets;
INSERT INTO checks (version_id, name, outcome, message, policy_version)
    SELECT asset_versions.id, 'identity', 'warn', '', '1' FROM asset_versions JOIN assets ON assets.id = asset_id WHERE shot = 'draft';
INSERT INTO encoders (sha256, name, dim, preprocessing) VALUES (repeat('4', 64), 'clip', 3, '{}');
"""


@pytest.fixture
def upgraded(empty_database: Database) -> Database:
    with empty_database._migrating() as config:
        command.upgrade(config, "0002")
    with empty_database.direct() as connection:
        connection.execute(BEFORE.encode())
    empty_database.migrate()
    return empty_database


def test_what_waited_waits_at_the_stage_it_was_at(upgraded: Database) -> None:
    with upgraded.transaction() as session:
        waits = {row[0]: row[1] for row in session.execute(text("SELECT review, waits_at FROM assets"))}
    assert waits == {"in review": ["legal"], "changes requested": ["brand"], "approved": [], "draft": []}


def test_a_decision_goes_on_where_it_was(upgraded: Database) -> None:
    with upgraded.transaction() as session:
        waiting, sent_back = (
            session.query(Asset).filter(Asset.shot == shot).one() for shot in ("in review", "changes requested")
        )
        sha256 = "2" * 64
        assert decide.decide(session, sent_back.id, Verdict.REJECT, "grace", "no", sha256).review == "rejected"
        decided = decide.decide(session, waiting.id, Verdict.APPROVE, "grace", "", sha256)
        assert (decided.review, decided.waits_at) == ("approved", [])


def test_what_there_was_is_found_like_what_comes(upgraded: Database) -> None:
    with upgraded.transaction() as session:
        found = grid.tiles(session, Filters(character="Bobo", brand="bobo", text="beac", check="identity"))
        told = [(tile.shot, tile.doubts, tile.sha256, tile.number) for tile in found.tiles]
        assert told == [("draft", ("identity",), "2" * 64, 1)]
        indexes = session.scalars(text("SELECT indexname FROM pg_indexes WHERE tablename = 'picture_embeddings'")).all()
    assert f"picture_embeddings_hnsw_{'4' * 16}" in indexes


def test_an_earlier_release_that_still_runs_can_add_assets(upgraded: Database) -> None:
    """It knows nothing of the newer columns."""
    with upgraded.direct() as connection:
        connection.execute(
            b"INSERT INTO assets (id, campaign_id, shot, variant, job_key, review, stage, availability, row_version) "
            b"SELECT gen_random_uuid(), id, 'new', 0, repeat('1', 64), 'draft', 0, 'unreleased', 1 FROM campaigns"
        )
