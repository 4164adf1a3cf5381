"""What several questions about assets ask alike, as conditions on `Asset`."""

from __future__ import annotations

from sqlalchemy import ColumnElement, any_, exists, func, select

from asset_store.reviewing.decide import name_of
from asset_store.tables import Asset, AssetVersion, Assignment


def is_current() -> ColumnElement[bool]:
    """Whether a version is the newest of the question's asset."""
    newest = select(func.max(AssetVersion.number)).where(AssetVersion.asset_id == Asset.id).correlate(Asset)
    return (AssetVersion.asset_id == Asset.id) & (AssetVersion.number == newest.scalar_subquery())


def is_asked(person: str) -> ColumnElement[bool]:
    """Whether somebody is asked to decide at a stage that the asset waits at."""
    asked = exists().where(Assignment.asset_id == Asset.id, Assignment.stage == any_(Asset.waits_at))
    return asked.where(func.lower(Assignment.person) == name_of(person))
