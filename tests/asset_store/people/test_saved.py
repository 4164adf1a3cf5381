"""Filters that a person keeps: their own, by name, and only what the grid knows."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from asset_store.errors import AccountRefused, NotFound
from asset_store.people import accounts, saved


def test_they_are_kept_by_name_and_are_one_s_own(session: Session) -> None:
    ada, bob = (accounts.add_person(session, n, n, "system").id for n in ("ada", "bob"))
    saved.keep(session, ada, " to do ", {"review": "in review"})
    saved.keep(session, ada, "to do", {"review": "approved", "brand": "lumen"})
    saved.keep(session, ada, "A", {"text": "beach"})
    assert [(s.name, s.filters) for s in saved.kept(session, ada)] == [
        ("A", {"text": "beach"}), ("to do", {"review": "approved", "brand": "lumen"}),
    ]  # fmt: skip
    assert saved.kept(session, bob) == []
    with pytest.raises(NotFound):
        saved.forget(session, bob, "A")
    saved.forget(session, ada, "A")
    assert [s.name for s in saved.kept(session, ada)] == ["to do"]


@pytest.mark.parametrize(
    ("name", "filters"),
    [
        ("", {"text": "x"}),
        ("x" * 61, {"text": "x"}),
        ("a\nb", {"text": "x"}),
        ("x", {}),
        ("x", {"within": "all"}),
        ("x", {"text": ""}),
        ("x", {"text": "y" * 255}),
    ],
)
def test_what_is_no_filter_is_not_kept(session: Session, name: str, filters: dict[str, str]) -> None:
    ada = accounts.add_person(session, "ada", "Ada", "system").id
    with pytest.raises(AccountRefused):
        saved.keep(session, ada, name, filters)


def test_there_is_an_end_to_how_many(session: Session) -> None:
    ada = accounts.add_person(session, "ada", "Ada", "system").id
    for i in range(saved.MOST):
        saved.keep(session, ada, str(i), {"text": "x"})
    with pytest.raises(AccountRefused, match="saved already"):
        saved.keep(session, ada, "one more", {"text": "x"})
    saved.keep(session, ada, "0", {"text": "y"})
