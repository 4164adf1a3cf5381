"""Pictures like one that is there: the nearest first, of what may be seen, newest versions alone."""

from __future__ import annotations

import numpy as np
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from asset_store.repositories import libraries
from asset_store.reviewing import similar
from asset_store.reviewing.grid import Filters
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, Encoder
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


def seen(session: Session, asset: Asset, *vector: float, by: str = CLIP) -> None:
    libraries.save_encoder(session, by, "clip", 3, {})
    similar.remember(session, by, [(picture_of(asset), np.array(vector, dtype=np.float32))])


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


def test_what_an_older_encoder_said_is_compared_among_what_it_saw(session: Session) -> None:
    """While pictures are shown to a newer one, those that it has not seen yet are still found by the older."""
    asset, near, far = (an_asset(session) for _ in range(3))
    for one, vector in ((asset, (1, 0, 0)), (near, (3, 4, 0)), (far, (0, 1, 0))):
        seen(session, one, *vector)
    newer = a_sha256("newer")
    libraries.save_encoder(session, newer, "newer clip", 3, {})
    session.execute(update(Encoder).where(Encoder.sha256 == newer).values(made_at=text("made_at + interval '1 day'")))
    seen(session, near, 0, 0, 1, by=newer)
    only = {"within": [a_brand(session).id]}
    assert like(session, asset) == like(session, asset, **only) == [(near.id, 0.6), (far.id, 0.0)]
    assert like(session, near) == like(session, near, **only) == []  # the newer one has seen no other
    seen(session, far, 0, 3, 4, by=newer)
    assert like(session, near) == like(session, near, **only) == [(far.id, 0.8)]


def test_among_few_that_pass_the_nearest_are_found_however_far_away(session: Session) -> None:
    """As another brand's pictures are: nearer ones that do not pass end no search."""
    rng = np.random.default_rng(5)
    asset = an_asset(session)
    seen(session, asset, 1, 0, 0)
    there = a_campaign(session, brand="other")
    for one in [an_asset(session) for _ in range(60)]:
        seen(session, one, 1, *rng.normal(0, 0.01, 2))
    far = [an_asset(session, there) for _ in range(4)]
    for i, one in enumerate(far):
        seen(session, one, -1, i, 0)
    found = similar.like_asset(session, asset, Filters(brand="other"), 2)
    assert [n.tile.id for n in found] == [far[3].id, far[2].id]
