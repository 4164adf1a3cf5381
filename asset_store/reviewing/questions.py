"""What several questions about assets ask alike, as conditions on `Asset`."""

from __future__ import annotations

from sqlalchemy import ColumnElement, select, text
from sqlalchemy.orm import aliased

from asset_store.reviewing.decide import name_of
from asset_store.tables import Asset, AssetVersion


def is_current() -> ColumnElement[bool]:
    """Whether a version is the newest of the question's asset."""
    return (AssetVersion.asset_id == Asset.id) & (AssetVersion.number == Asset.current_number)


def is_asked(person: str) -> ColumnElement[bool]:
    """Whether somebody is asked to decide at a stage that the asset waits at.

    Those are few, and all looked up first (the offset sees to that): the planner, who does not know how few, would go through all
    that waits for somebody who is asked nowhere.
    """
    theirs = aliased(Asset)
    return Asset.id.in_(select(theirs.id).where(theirs.asked.contains([name_of(person)])).offset(0))


def waits_anywhere() -> ColumnElement[bool]:
    """Whether it waits at a stage, in the words of the index of those that do."""
    return Asset.waits_at != text("'{}'::text[]")
