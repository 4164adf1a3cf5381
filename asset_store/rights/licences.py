"""Whether references may be used on a day: not withdrawn, still in the library, the licence not over."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import RightsRefused
from asset_store.tables import AssetVersion, Descent, Reference, ReferenceState


def problem_of(reference: Reference, on: date) -> str | None:
    """Why `reference` may not be used on that day, as a sentence; None if it may. A licence's last day counts."""
    if reference.state is ReferenceState.WITHDRAWN:
        return f"{reference.key} was withdrawn"
    if reference.state is ReferenceState.REMOVED:
        return f"{reference.key} is no longer in the library"
    if reference.licence_until is not None and reference.licence_until < on:
        return f"the licence {reference.licence_name} of {reference.key} ended on {reference.licence_until}"
    return None


def check_usable(session: Session, reference_ids: Collection[uuid.UUID], on: date) -> None:
    """RightsRefused, naming each reference that may not be used on that day or is not known.

    Until the transaction ends none of them can be withdrawn. Call it before locking assets, as a recall does.
    """
    found = {
        reference.id: reference
        for reference in session.scalars(
            select(Reference)
            .where(Reference.id.in_(reference_ids))
            .order_by(Reference.id)
            .with_for_update(read=True, of=Reference)
            .execution_options(populate_existing=True)
        )
    }
    problems = [f"reference {id_} is not known" for id_ in sorted(set(reference_ids) - set(found))]
    problems += [problem for reference in found.values() if (problem := problem_of(reference, on))]
    if problems:
        raise RightsRefused(problems)


def releasable(session: Session, version: AssetVersion, on: date) -> None:
    """RightsRefused where a reference that `version` descends from may not be used on that day."""
    check_usable(session, session.scalars(select(Descent.reference_id).filter_by(version_id=version.id)).all(), on)
