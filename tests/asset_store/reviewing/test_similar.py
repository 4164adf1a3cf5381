"""Pictures like one that is there: the nearest first, of what may be seen, newest versions alone."""

from __future__ import annotations

import numpy as np
from sqlalchemy.orm import Session

from asset_store.repositories import libraries
from asset_store.reviewing import similar
from asset_store.reviewing.grid import Filters
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset
from tests.stories import (
    a_brand,
    a_campaign,
    a_reference,
    a_sha256,
    a_version,
    an_asset,
    an_asset_in_review,
    picture_of,
)

CLIP = a_sha256("clip")


def seen(session: Session, asset: Asset, *vector: float) -> None:
    libraries.save_encoder(session, CLIP, "clip", 3, {})
    similar.remember(session, CLIP, [(picture_of(asset), np.array(vector, dtype=np.float32))])


def like(session: Session, asset: Asset, **filters: object) -> list[tuple[object, float]]:
    near = similar.like_asset(session, asset, Filters(**filters))  # type: ignore[arg-type]
    assert near == similar.like_asset(session, asset, Filters(**filters), exact=True)  # type: ignore[arg-type]
    return [(n.tile.id, round(n.likeness, 3)) for n in near]


def test_the_nearest_come_first_and_itself_does_not(session: Session) -> None:
    asset, near, far = (an_asset(session) for _ in range(3))
    for one, vector in ((asset, (1, 0, 0)), (near, (3, 4, 0)), (far, (0, 1, 0))):
        seen(session, one, *vector)
    an_asset(session)  # that no encoder has seen
    assert like(session, asset) == [(near.id, 0.6), (far.id, 0.0)]


def test_filters_and_rights_hold(session: Session) -> None:
    asset = an_asset(session)
    other = an_asset(session, a_campaign(session, brand="other"))
    waiting = an_asset_in_review(session)
    for i, one in enumerate((asset, other, waiting)):
        seen(session, one, 1, i, 0)
    assert like(session, asset, within=[a_brand(session).id]) == [(waiting.id, 0.447)]
    assert like(session, asset, review=ReviewState.IN_REVIEW) == [(waiting.id, 0.447)]
    assert like(session, asset, within=[]) == []


def test_an_old_version_is_not_found(session: Session) -> None:
    asset, remade = an_asset(session), an_asset(session)
    seen(session, asset, 1, 0, 0)
    seen(session, remade, 1, 0, 0)
    a_version(session, remade)
    session.expire(remade, ["versions"])
    assert like(session, asset) == []
    seen(session, remade, 0, 1, 0)
    assert like(session, asset) == [(remade.id, 0.0)]


def test_what_no_encoder_has_seen_is_like_nothing_and_is_told(session: Session) -> None:
    asset = an_asset(session)
    assert like(session, asset) == []
    assert similar.newest_encoder(session) is None
    assert similar.unseen(session, CLIP, 5) == [picture_of(asset)]
    seen(session, asset, 1, 0, 0)
    seen(session, asset, 0, 1, 0)  # again: the first stays
    assert similar.newest_encoder(session) == CLIP
    lost = an_asset(session)
    similar.remember(session, CLIP, [(picture_of(lost), None)])  # its picture cannot be opened
    assert like(session, asset) == like(session, lost) == []
    assert similar.unseen(session, CLIP, 5) == []


def test_pictures_like_a_reference(session: Session) -> None:
    asset, reference = an_asset(session), a_reference(session)
    assert similar.like_reference(session, reference.sha256, Filters()) == []
    seen(session, asset, 1, 0, 0)
    libraries.save_embeddings(session, CLIP, [(reference.sha256, np.array([1, 1, 0], dtype=np.float32), None)])
    (near,) = similar.like_reference(session, reference.sha256, Filters())
    assert (near.tile.id, round(near.likeness, 3)) == (asset.id, 0.707)
