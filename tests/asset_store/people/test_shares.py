"""Links for people without an account: what they show, to whom, and for how long."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from asset_store.errors import FourEyes, NotFound, PasswordWrong, ShareRefused
from asset_store.people import shares
from asset_store.reviewing import decide
from asset_store.reviewing.comments import remarks_of
from asset_store.rights import recall
from asset_store.tables import Asset, AuditRow, ShareLink, Verdict
from tests.stories import a_campaign, a_reference, a_released_asset, an_asset_in_review, approve, picture_of

DAY = timedelta(days=1)


@pytest.fixture
def asset(session: Session) -> Asset:
    return an_asset_in_review(session)


def link_to(session: Session, *assets: Asset, **more: Any) -> tuple[ShareLink, str]:
    return shares.share(session, [a.id for a in assets], "for the agency", DAY, "pat", **more)


def test_a_link_shows_its_assets_and_nothing_else(session: Session, asset: Asset) -> None:
    other = an_asset_in_review(session)
    link, token = link_to(session, asset, can_comment=True)
    assert [a.id for a in shares.shown(session, shares.open_link(session, token))] == [asset.id]
    assert other.current is not None
    with pytest.raises(NotFound):
        shares.say(session, link, other.current.id, "Kim", "nice", uuid.uuid4())
    for wrong in ("", token[:-1], token + "x"):
        with pytest.raises(NotFound):
            shares.open_link(session, wrong)


def test_a_link_ends_by_its_time_and_by_revoking(session: Session, asset: Asset) -> None:
    link, token = link_to(session, asset)
    shares.revoke_link(session, link.id, "pat")
    with pytest.raises(NotFound):
        shares.open_link(session, token)
    _, over = link_to(session, asset)
    session.execute(update(ShareLink).values(expires_at=datetime.now(UTC)))
    session.expire_all()
    with pytest.raises(NotFound):
        shares.open_link(session, over)
    assert session.scalars(select(AuditRow.action).order_by(AuditRow.seq)).all()[-3:] == [
        "share",
        "revoke share",
        "share",
    ]


def test_a_password_is_asked_for_and_kept_as_a_hash(session: Session, asset: Asset) -> None:
    _, token = link_to(session, asset, password="correct horse")
    for proof in ("", "correct horse", "0" * 64, "é"):
        with pytest.raises(PasswordWrong):
            shares.open_link(session, token, proof)
    for wrong in ("", "Correct horse", "x" * 100_000):
        with pytest.raises(PasswordWrong):
            shares.unlock(session, token, wrong)
    shares.open_link(session, token, shares.unlock(session, token, "correct horse"))
    _, other = link_to(session, asset, password="correct horse")
    with pytest.raises(PasswordWrong):
        shares.open_link(session, other, shares.unlock(session, token, "correct horse"))
    held = "\n".join(session.scalars(text("SELECT row_to_json(share_links)::text FROM share_links")))
    assert "horse" not in held
    assert token not in held


def test_a_guest_comments_where_they_may_and_decides_nothing(session: Session, asset: Asset) -> None:
    assert asset.current is not None
    quiet, _ = link_to(session, asset)
    with pytest.raises(ShareRefused, match="to look at"):
        shares.say(session, quiet, asset.current.id, "Kim", "nice", uuid.uuid4())
    link, _ = link_to(session, asset, can_comment=True)
    id_ = uuid.uuid4()
    for _ in range(2):
        shares.say(session, link, asset.current.id, " Kim  Li ", "nice", id_)
    assert [(r.by, r.text) for r in remarks_of(session, asset.id)] == [("guest:Kim Li", "nice")]
    for name in ("", " ", "x" * 61, "a\0b"):
        with pytest.raises(ShareRefused):
            shares.say(session, link, asset.current.id, name, "nice", uuid.uuid4())
    with pytest.raises(FourEyes):
        approve(session, asset, "guest:Kim Li")


def test_a_link_that_cannot_be_so_is_refused(session: Session, asset: Asset) -> None:
    foreign = an_asset_in_review(session, a_campaign(session, brand="other"))
    refusals: list[dict[str, Any]] = [
        {"assets": []}, {"assets": [asset.id, foreign.id]}, {"title": " "}, {"title": "x" * 121}, {"lasts": timedelta(0)},
        {"lasts": timedelta(days=91)}, {"password": "short"}, {"password": "x" * 201},
    ]  # fmt: skip
    for wrong in refusals:
        asked: dict[str, Any] = {"assets": [asset.id], "title": "t", "lasts": DAY, "by": "pat", **wrong}
        with pytest.raises(ShareRefused):
            shares.share(session, **asked)
    with pytest.raises(NotFound):
        shares.share(session, [uuid.uuid4()], "t", DAY, "pat")
    with pytest.raises(NotFound):
        shares.revoke_link(session, uuid.uuid4(), "pat")


def test_what_may_not_be_used_is_not_shown(session: Session) -> None:
    """Rejected, suspended, or of a reference that was taken back: gone from under the link at once."""
    reference = a_reference(session)
    released, rejected, kept = (
        a_released_asset(session, [reference]),
        an_asset_in_review(session),
        an_asset_in_review(session),
    )
    link, _ = link_to(session, released, rejected, kept)

    def shown() -> set[uuid.UUID]:
        return {a.id for a in shares.shown(session, link)}

    assert shown() == {released.id, rejected.id, kept.id}
    decide.decide(session, rejected.id, Verdict.REJECT, "grace", "no", picture_of(rejected))
    assert shown() == {released.id, kept.id}
    recall.withdraw_reference(session, reference.id, "rita", "contract ended")
    session.expire_all()
    assert shown() == {kept.id}
    assert shares.find_shown(session, link, picture_of(released)) is None
    assert shares.find_shown(session, link, picture_of(kept)) is not None
