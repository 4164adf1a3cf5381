"""From a picture to everything it came of and everything that became of it."""

from __future__ import annotations

import json

from sqlalchemy.orm import Session

from asset_store.lineage.tree import tree_of
from asset_store.reviewing import decide
from asset_store.rights.recall import withdraw_reference
from asset_store.tables import Verdict
from tests.stories import (
    TODAY,
    a_campaign,
    a_reference,
    a_released_asset,
    a_version,
    an_asset,
    an_asset_in_review,
    an_embedding,
    picture_of,
)


def test_a_released_picture_says_where_it_came_from_and_went(session: Session) -> None:
    reference = a_reference(session, licence_until=TODAY)
    an_embedding(session, reference)
    asset = a_released_asset(session, [reference])
    tree = tree_of(session, asset)
    assert (tree.brand, tree.review, tree.availability) == ("bobo", "approved", "released")
    (version,) = tree.versions
    assert version.sha256 == picture_of(asset)
    assert version.settings["seed"] == 7
    assert [(m.role, m.name) for m in version.models] == [("unet", "studio")]
    (used,) = version.references
    assert (used.key, used.sha256, used.licence, used.state) == (reference.key, reference.sha256, "house", "active")
    assert [(e.encoder, e.dim) for e in used.embeddings] == [("clip", 3)]
    assert [c.outcome for c in version.checks] == ["pass"]
    assert [(d.stage, d.verdict) for d in version.decisions] == [("brand", "approve")]
    assert [d.address for d in version.deliveries] == [f"s3://shop/{asset.id}.png"]
    assert json.loads(json.dumps(tree.as_json()))["versions"][0]["references"][0]["key"] == reference.key


def test_it_still_says_so_after_the_reference_was_withdrawn(session: Session) -> None:
    reference = a_reference(session)
    an_embedding(session, reference)
    asset = a_released_asset(session, [reference])
    withdraw_reference(session, reference.id, "rights", "the contract ended")
    (used,) = tree_of(session, asset).versions[0].references
    assert (used.sha256, used.state, used.embeddings) == (reference.sha256, "withdrawn", ())


def test_versions_come_newest_first_with_their_parents(session: Session) -> None:
    asset = an_asset_in_review(session, a_campaign(session))
    decide.decide(session, asset.id, Verdict.REQUEST_CHANGES, "grace", "three ears", picture_of(asset))
    a_version(session, asset)
    new, old = tree_of(session, asset).versions
    assert (new.number, new.parent_id, old.parent_id) == (2, old.id, None)
    assert [d.reason for d in old.decisions] == ["three ears"]
    assert new.decisions == ()


def test_a_version_without_a_record_has_an_empty_tree(session: Session) -> None:
    (version,) = tree_of(session, an_asset(session, record=False)).versions
    assert (version.record_sha256, version.references, version.models, version.settings) == (None, (), (), {})
