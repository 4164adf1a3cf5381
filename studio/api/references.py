"""`/v1/characters`, `/v1/references`: what is in the libraries, what may be done with it, and finding it by words and pictures."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Query, UploadFile

from asset_store.people.permissions import Action, Principal
from asset_store.pictures import PictureLimits, open_picture
from asset_store.repositories import cast
from asset_store.repositories.catalogue import Entry, look_through, nearest
from asset_store.tables import ReferenceState
from flows import reading
from flows.wiring import Store
from studio.api.answers import Answer
from studio.api.callers import StoreDep, Who

router = APIRouter(tags=["references"])
LOOKED_AT = PictureLimits(max_bytes=1_000_000, max_pixels=16_000_000, max_frames=50)
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


class CharacterOut(Answer):
    """`references`: how many of each role may be used today, `unusable`: how many may not; `pictures`: its assets by review state."""

    id: uuid.UUID
    brand: str
    name: str
    description: str
    palette: list[Any]
    rules: list[Any]
    references: dict[str, int]
    unusable: int
    pictures: dict[str, int]

    @classmethod
    def of(cls, member: cast.Member) -> CharacterOut:
        c = member.character
        return cls(
            id=c.id, brand=c.brand.name, name=c.name, description=c.description, palette=c.palette, rules=[*c.brand.rules, *c.rules],
            references=member.references, unusable=member.unusable, pictures=member.pictures,
        )  # fmt: skip


class CharactersOut(Answer):
    characters: list[CharacterOut]
    next_after: uuid.UUID | None


class FoundReferenceOut(ReferenceOut):
    """`likeness`: cosine similarity of its CLIP embedding to what was asked for; of words it is low also where it is the best."""

    likeness: float


class FoundReferencesOut(Answer):
    found: list[FoundReferenceOut]


@router.get("/characters")
def get_characters(
    who: Who, store: StoreDep, brand: Line = None, after: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> CharactersOut:  # fmt: skip
    """Characters of the brands that the caller may see, by brand and name, with what there is of each."""
    with store.database.reading() as session:
        today = datetime.now(UTC).date()
        page = cast.look_at(session, who.brands(Action.VIEW), today, brand=brand, after=after, limit=limit)
        return CharactersOut(characters=[CharacterOut.of(m) for m in page.members], next_after=page.next_after)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where references are looked for."""

    who: Principal
    store: Store
    brand: str | None
    character: str | None
    usable: bool
    limit: int

    def nearest(self, encoder: str, vector: Any) -> FoundReferencesOut:
        with self.store.database.reading() as session:
            found = nearest(
                session, self.who.brands(Action.VIEW), datetime.now(UTC).date(), encoder, vector, brand=self.brand,
                character=self.character, usable=self.usable, limit=self.limit,
            )  # fmt: skip
            return FoundReferencesOut(
                found=[
                    FoundReferenceOut.model_validate({**dict(ReferenceOut.of(e)), "likeness": round(likeness, 4)})
                    for e, likeness in found
                ]
            )


async def wanted(
    who: Who, store: StoreDep, brand: Line = None, character: Line = None,
    usable: Annotated[bool, Query(description="Only those that may be used today.")] = True,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Wanted:  # fmt: skip
    return Wanted(who, store, brand, character, usable, limit)


WantedDep = Annotated[Wanted, Depends(wanted)]


@router.get("/references/search")
def find_by_words(asked: WantedDep, text: Annotated[str, Query(min_length=1, max_length=300)]) -> FoundReferencesOut:
    """References that show what words say, the nearest first, by the CLIP that embedded them."""
    return asked.nearest(*reading.read_text(asked.store.settings, text))


@router.post("/references/search")
def find_by_picture(
    asked: WantedDep, picture: Annotated[UploadFile, File(description="A picture of at most 1 MB.")]
) -> FoundReferencesOut:
    """References that look like a picture, the nearest first. The picture is not kept."""
    opened = open_picture(picture.file.read(), LOOKED_AT)
    return asked.nearest(*reading.read_picture(asked.store.settings, opened.image))


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
