"""Taking a reference back, by its key or the start of its sha256."""

from __future__ import annotations

from sqlalchemy import or_, select

from asset_store.errors import Ambiguous, NotFound
from asset_store.rights.recall import ImpactReport, withdraw_reference
from asset_store.tables import Reference, ReferenceState
from flows.wiring import open_store

SHORTEST_PREFIX = 8


def withdraw(named: str, *, by: str, reason: str) -> list[ImpactReport]:
    """Withdraw every row of the picture that `named` means, in one transaction; one report a row.

    The same bytes may lie at several keys: rights are of the picture, so all of them are withdrawn.
    """
    with open_store() as store, store.database.transaction() as session:
        matches = [Reference.key == named]
        if len(named) >= SHORTEST_PREFIX:
            matches.append(Reference.sha256.startswith(named.lower(), autoescape=True))
        sha256s = session.scalars(select(Reference.sha256).where(or_(*matches)).distinct()).all()
        if not sha256s:
            raise NotFound("reference", named, "Give its key as in library.yaml, or 8 letters or more of its sha256.")
        if len(sha256s) > 1:
            raise Ambiguous("reference", named, [s[:16] for s in sha256s])
        rows = session.scalars(
            select(Reference.id)
            .where(Reference.sha256 == sha256s[0], Reference.state != ReferenceState.WITHDRAWN)
            .order_by(Reference.id)
        ).all()
        return [withdraw_reference(session, id_, by, reason) for id_ in rows]
