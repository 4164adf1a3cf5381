"""What may be released, once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import releasing
from asset_store.errors import ReleaseRefused, RightsRefused
from asset_store.reviewing import decide
from asset_store.reviewing.states import Availability
from asset_store.rights.recall import withdraw_reference
from asset_store.tables import AuditRow, Delivery
from tests.stories import (
    TODAY,
    a_campaign,
    a_delivery,
    a_reference,
    a_released_asset,
    a_sha256,
    a_version,
    an_approved_asset,
    an_asset,
    an_asset_in_review,
    approve,
    picture_of,
)


def test_an_approved_asset_is_released_with_its_deliveries(session: Session) -> None:
    asset = an_approved_asset(session, a_campaign(session, stages=["brand", "legal"]), [a_reference(session)])
    version = releasing.prepare(session, asset.id, "releaser", TODAY)
    assert version.sha256 == picture_of(asset)
    assert asset.availability.value == "unreleased"
    releasing.finish(session, asset.id, [a_delivery(asset, "a"), a_delivery(asset, "b")], "releaser", TODAY)
    assert asset.availability.value == "released"
    assert list(session.scalars(select(Delivery.address).order_by(Delivery.seq))) == ["a", "b"]


def test_finishing_twice_is_finishing_once(session: Session) -> None:
    asset = an_approved_asset(session)
    for _ in range(2):
        releasing.finish(session, asset.id, [a_delivery(asset, "a"), a_delivery(asset, "a")], "releaser", TODAY)
    releases = select(AuditRow).where(AuditRow.action == "release")
    assert (len(session.scalars(select(Delivery)).all()), len(session.scalars(releases).all())) == (1, 1)
    releasing.finish(session, asset.id, [a_delivery(asset, "a"), a_delivery(asset, "b")], "releaser", TODAY)
    assert (len(session.scalars(select(Delivery)).all()), len(session.scalars(releases).all())) == (2, 2)


def test_what_was_delivered_is_never_rewritten(session: Session) -> None:
    asset = an_approved_asset(session)
    releasing.finish(session, asset.id, [a_delivery(asset, "a")], "releaser", TODAY)
    other = releasing.NewDelivery("web", "a", "full size", a_sha256("other bytes"))
    with pytest.raises(ReleaseRefused, match="other bytes"):
        releasing.finish(session, asset.id, [other], "releaser", TODAY)


def test_a_release_to_nowhere_or_by_nobody_is_refused(session: Session) -> None:
    asset = an_approved_asset(session)
    with pytest.raises(ReleaseRefused):
        releasing.finish(session, asset.id, [], "releaser", TODAY)
    with pytest.raises(ReleaseRefused):
        releasing.prepare(session, asset.id, " ", TODAY)
    assert asset.availability is Availability.UNRELEASED


def test_only_what_is_approved_is_released(session: Session) -> None:
    halfway = an_asset_in_review(session, a_campaign(session, stages=["brand", "legal"]))
    approve(session, halfway)
    for asset in (an_asset(session), halfway):
        with pytest.raises(ReleaseRefused):
            releasing.prepare(session, asset.id, "releaser", TODAY)


def test_an_approval_of_the_version_before_does_not_count(session: Session) -> None:
    asset = an_approved_asset(session)
    a_version(session, asset)
    with pytest.raises(ReleaseRefused, match="not approved at: brand"):
        releasing.prepare(session, asset.id, "releaser", TODAY)


def test_a_reopened_asset_is_released_only_after_it_is_approved_again(session: Session) -> None:
    asset = an_approved_asset(session)
    decide.reopen(session, asset.id, "lead", "look again")
    with pytest.raises(ReleaseRefused):
        releasing.prepare(session, asset.id, "releaser", TODAY)
    approve(session, asset)
    releasing.prepare(session, asset.id, "releaser", TODAY)


def test_rights_are_asked_before_and_after_the_renditions_are_written(session: Session) -> None:
    asset = an_approved_asset(session, references=[a_reference(session, licence_until=TODAY)])
    releasing.prepare(session, asset.id, "releaser", TODAY)
    for guard in (
        lambda: releasing.prepare(session, asset.id, "releaser", TODAY + timedelta(days=1)),
        lambda: releasing.finish(session, asset.id, [a_delivery(asset)], "releaser", TODAY + timedelta(days=1)),
    ):
        with pytest.raises(RightsRefused):
            guard()
    assert asset.availability is Availability.UNRELEASED


def test_a_suspended_asset_is_not_released_again(session: Session) -> None:
    reference = a_reference(session)
    asset = a_released_asset(session, [reference])
    withdraw_reference(session, reference.id, "rights", "why")
    with pytest.raises(RightsRefused):
        releasing.prepare(session, asset.id, "releaser", TODAY)


@pytest.mark.parametrize(
    "availability", [Availability.SUSPENDED, Availability.WITHDRAWN, Availability.EXPIRED, Availability.SUPERSEDED]
)
def test_availability_forbids_a_release(session: Session, availability: Availability) -> None:
    asset = a_released_asset(session)
    asset.availability = availability
    session.flush()
    with pytest.raises(ReleaseRefused, match=availability.value):
        releasing.finish(session, asset.id, [a_delivery(asset)], "releaser", TODAY)
