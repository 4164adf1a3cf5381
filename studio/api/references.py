"""`/v1/references`: what is in the libraries, and what may be done with it."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from asset_store.people.permissions import Action
from asset_store.repositories.catalogue import Entry, look_through
from asset_store.tables import ReferenceState
from studio.api.answers import Answer
from studio.api.callers import StoreDep, Who

router = APIRouter(tags=["references"])
Line = Annotated[str | None, Query(max_length=1200)]


class ReferenceOut(Answer):
    """`problem`: why it may not be used today; `pictures`: how many assets came of it."""

    id: uuid.UUID
    brand: str
    character: str | None
    key: str
    sha256: str
    role: str
    licence: str
    licence_holder: str | None
    licence_until: date | None
    state: ReferenceState
    problem: str | None
    ends_soon: bool
    pictures: int
    thumbnail: str

    @classmethod
    def of(cls, entry: Entry) -> ReferenceOut:
        r = entry.reference
        return cls(
            id=r.id, brand=entry.brand, character=r.character.name if r.character else None, key=r.key, sha256=r.sha256,
            role=r.role, licence=r.licence_name, licence_holder=r.licence_holder, licence_until=r.licence_until, state=r.state,
            problem=entry.problem, ends_soon=entry.ends_soon, pictures=entry.pictures,
            thumbnail=f"/v1/references/{r.id}/thumbnail",
        )  # fmt: skip


class ReferencesOut(Answer):
    references: list[ReferenceOut]
    next_after: str | None


@router.get("/references")
def get_references(
    who: Who, store: StoreDep, brand: Line = None, character: Line = None, state: ReferenceState | None = None,
    ending: bool = False, after: Line = None, limit: Annotated[int, Query(ge=1, le=200)] = 60,
) -> ReferencesOut:  # fmt: skip
    """References of the brands that the caller may see, by key. `ending`: only those whose licence is over within 14 days, or is."""
    with store.database.reading() as session:
        page = look_through(
            session, who.brands(Action.VIEW), datetime.now(UTC).date(), brand=brand, character=character, state=state,
            ending=ending, after=after, limit=limit,
        )  # fmt: skip
        return ReferencesOut(references=[ReferenceOut.of(e) for e in page.entries], next_after=page.next_after)
