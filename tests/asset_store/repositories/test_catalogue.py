"""Looking through the libraries."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.repositories.catalogue import look_through
from asset_store.rights import recall
from asset_store.tables import ReferenceState
from tests.stories import TODAY, a_brand, a_reference, an_asset


def keys(session: Session, **more: object) -> list[str]:
    return [e.reference.key for e in look_through(session, None, TODAY, **more).entries]  # type: ignore[arg-type]


def test_pages_follow_by_key_without_gap(session: Session) -> None:
    for name in "dacbe":
        a_reference(session, f"{name}.png")
    found, after = [], None
    while True:
        page = look_through(session, None, TODAY, after=after, limit=2)
        found += [e.reference.key for e in page.entries]
        if (after := page.next_after) is None:
            break
    assert found == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    with pytest.raises(NotFound):
        look_through(session, None, TODAY, after="never")


def test_only_the_brands_that_may_be_seen(session: Session) -> None:
    a_reference(session, "mine.png")
    a_reference(session, "theirs.png", brand="other")
    page = look_through(session, {a_brand(session).id}, TODAY)
    assert [e.reference.key for e in page.entries] == ["mine.png"]
    assert look_through(session, set(), TODAY).entries == ()
    assert keys(session, brand="other") == ["theirs.png"]


@pytest.mark.parametrize(
    ("days", "ends_soon", "over"),
    [(None, False, False), (15, False, False), (14, True, False), (0, True, False), (-1, False, True)],
)
def test_a_licence_is_warned_of_before_it_ends(session: Session, days: int | None, ends_soon: bool, over: bool) -> None:
    a_reference(session, "a.png", None if days is None else TODAY + timedelta(days=days))
    (entry,) = look_through(session, None, TODAY).entries
    assert (entry.ends_soon, entry.problem is not None) == (ends_soon, over)
    assert (keys(session, ending=True) == ["a.png"]) == (ends_soon or over)


def test_what_was_taken_back_says_so_and_what_came_of_it(session: Session) -> None:
    used, other = a_reference(session, "used.png"), a_reference(session, "other.png")
    for _ in range(2):
        an_asset(session, references=[used])
    recall.withdraw_reference(session, used.id, "rita", "contract ended")
    told = {e.reference.key: (e.pictures, e.problem) for e in look_through(session, None, TODAY).entries}
    assert told == {"used.png": (2, "used.png was withdrawn"), "other.png": (0, None)}
    assert keys(session, state=ReferenceState.WITHDRAWN) == ["used.png"]
    assert other.state is ReferenceState.ACTIVE
