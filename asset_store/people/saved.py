"""Filters of the grid that a person keeps under a name of their own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import AccountRefused, NotFound
from asset_store.tables import SavedFilter

MOST, LONGEST_NAME, LONGEST_VALUE = 50, 60, 254
LIKE = ("like", "like_reference")  # the likest to a picture, in place of the newest
KNOWN = ("text", "brand", "campaign", "character", "review", "availability", "stage", "person", "check", "outcome", "since",
         "until", *LIKE)  # fmt: skip


def keep(session: Session, person_id: uuid.UUID, name: str, filters: Mapping[str, str]) -> SavedFilter:
    """Keep filters, in the place of those that had the name. AccountRefused for no name, no filters, or too many."""
    name = name.strip()
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise AccountRefused("saved filters need a name of one line", f"Give {LONGEST_NAME} letters or fewer.")
    if not filters or set(filters) - set(KNOWN) or any(not v or len(v) > LONGEST_VALUE for v in filters.values()):
        raise AccountRefused("there is nothing to save in these filters", f"Filter by {', '.join(sorted(KNOWN))}.")
    row = session.scalar(
        select(SavedFilter).where(SavedFilter.person_id == person_id, SavedFilter.name == name).with_for_update()
    )
    if row is None:
        if (session.scalar(select(func.count()).where(SavedFilter.person_id == person_id)) or 0) >= MOST:
            raise AccountRefused(f"{MOST} filters are saved already", "Remove one first.")
        row = SavedFilter(person_id=person_id, name=name, filters={})
        session.add(row)
    row.filters = dict(filters)
    session.flush()
    return row


def kept(session: Session, person_id: uuid.UUID) -> Sequence[SavedFilter]:
    return session.scalars(
        select(SavedFilter).where(SavedFilter.person_id == person_id).order_by(func.lower(SavedFilter.name))
    ).all()


def forget(session: Session, person_id: uuid.UUID, name: str) -> None:
    row = session.scalar(select(SavedFilter).where(SavedFilter.person_id == person_id, SavedFilter.name == name))
    if row is None:
        raise NotFound("saved filter", name)
    session.delete(row)
    session.flush()
