"""Remarks on pictures: never lost, never doubled, never somebody else's."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, RemarkRefused
from asset_store.reviewing import comments
from asset_store.reviewing.comments import remarks_of
from asset_store.tables import Asset, Comment
from tests.stories import a_version, an_asset_in_review


def version_of(asset: Asset) -> uuid.UUID:
    assert asset.current is not None
    return asset.current.id


@pytest.fixture
def asset(session: Session) -> Asset:
    return an_asset_in_review(session)


PIN = {"kind": "pin", "x": 0.25, "y": 0.5}
BOX = {"kind": "box", "x": 0.5, "y": 0.5, "width": 0.5, "height": 0.25}
PATH = {"kind": "path", "points": [[0, 0], [0.5, 1], [1, 0]]}


@pytest.mark.parametrize("region", [None, PIN, BOX, PATH])
def test_a_remark_is_kept_as_it_was_drawn(session: Session, asset: Asset, region: dict[str, Any] | None) -> None:
    comments.comment(session, version_of(asset), "grace", " three ears ", region=region)
    session.expire_all()
    (remark,) = remarks_of(session, asset.id)
    assert (remark.by, remark.text, remark.region) == ("grace", "three ears", region)


def test_sent_twice_it_is_written_once(session: Session, asset: Asset) -> None:
    """A page that lost its connection sends again what it has no answer for."""
    id_ = uuid.uuid4()
    for _ in range(2):
        comments.comment(session, version_of(asset), "grace", "three ears", id_=id_, region=PIN)
    assert session.scalars(select(func.count()).select_from(Comment)).one() == 1
    with pytest.raises(RemarkRefused, match="other words"):
        comments.comment(session, version_of(asset), "grace", "two ears", id_=id_, region=PIN)
    with pytest.raises(RemarkRefused, match="other words"):
        comments.comment(session, version_of(asset), "eve", "three ears", id_=id_, region=PIN)


def test_a_correction_keeps_place_time_and_what_was_said_before(session: Session, asset: Asset) -> None:
    first = comments.comment(session, version_of(asset), "grace", "thre ears", region=PIN)
    comments.correct(session, first.id, "Grace", "three ears")
    comments.correct(session, first.id, "grace", "three ears, one too many")
    (remark,) = remarks_of(session, asset.id)
    assert (remark.id, remark.text, remark.region, remark.edited) == (first.id, "three ears, one too many", PIN, True)
    assert session.scalars(select(Comment.text).order_by(Comment.seq)).all() == [
        "thre ears", "three ears", "three ears, one too many",
    ]  # fmt: skip


def test_what_was_taken_back_is_not_shown_and_stays_on_record(session: Session, asset: Asset) -> None:
    first = comments.comment(session, version_of(asset), "grace", "wrong window")
    comments.retract(session, first.id, "grace")
    assert remarks_of(session, asset.id) == []
    assert session.scalars(select(func.count()).select_from(Comment)).one() == 2
    with pytest.raises(RemarkRefused, match="taken back"):
        comments.correct(session, first.id, "grace", "again")


def test_only_its_writer_changes_a_remark(session: Session, asset: Asset) -> None:
    first = comments.comment(session, version_of(asset), "grace", "three ears")
    for change in (lambda: comments.correct(session, first.id, "eve", "fine"), lambda: comments.retract(session, first.id, "eve")):  # fmt: skip
        with pytest.raises(RemarkRefused, match="grace"):
            change()


def test_answers_are_of_the_same_asset(session: Session, asset: Asset) -> None:
    first = comments.comment(session, version_of(asset), "grace", "three ears")
    later = a_version(session, asset)
    answer = comments.comment(session, later.id, "pat", "two now", reply_to=first.id)
    assert [(r.version, r.reply_to) for r in remarks_of(session, asset.id)] == [(1, None), (2, first.id)]
    other = an_asset_in_review(session)
    with pytest.raises(NotFound):
        comments.comment(session, version_of(other), "pat", "here?", reply_to=answer.id)


@pytest.mark.parametrize(
    "region",
    [
        {}, {"kind": "pin"}, {"kind": "pin", "x": 0.5}, {**PIN, "z": 1}, {**PIN, "x": 1.01}, {**PIN, "x": -0.1},
        {**PIN, "x": float("nan")}, {**PIN, "x": "0.5"}, {**PIN, "x": True}, {**BOX, "width": 0.6},
        {"kind": "path", "points": [[0, 0]]}, {"kind": "path", "points": [[0, 0], [1]]}, {"kind": "path", "points": "ab"},
        {"kind": "path", "points": [[0, 0]] * 2001}, {"kind": ["pin"], "x": 0, "y": 0}, {"kind": "circle", "x": 0, "y": 0},
        {**PIN, "x": 10**400},
    ],
)  # fmt: skip
def test_a_region_that_is_none_is_refused(session: Session, asset: Asset, region: dict[str, Any]) -> None:
    with pytest.raises(RemarkRefused):
        comments.comment(session, version_of(asset), "grace", "here", region=region)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 4001, "nul \0 here"])
def test_words_that_cannot_be_kept_are_refused(session: Session, asset: Asset, text: str) -> None:
    with pytest.raises(RemarkRefused):
        comments.comment(session, version_of(asset), "grace", text)
    with pytest.raises(RemarkRefused):
        comments.comment(session, version_of(asset), " ", "who?")


def test_nothing_is_said_of_what_there_is_not(session: Session) -> None:
    with pytest.raises(NotFound):
        comments.comment(session, uuid.uuid4(), "grace", "hello")
    with pytest.raises(NotFound):
        comments.correct(session, uuid.uuid4(), "grace", "hello")
