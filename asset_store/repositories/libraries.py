"""Brands, characters, references and what encoders say of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from sqlalchemy import delete, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from asset_store.errors import Ambiguous, NotFound
from asset_store.library import LibraryFile, SourceObject
from asset_store.tables import (
    Brand,
    Character,
    Embedding,
    Encoder,
    Library,
    PictureEmbedding,
    Quarantined,
    Reference,
    ReferenceState,
)


@dataclass(frozen=True)
class NewReference:
    """A checked picture of a library, on its way into the database."""

    key: str
    sha256: str
    pixel_sha256: str
    size_bytes: int
    etag: str
    version_id: str | None
    format: str
    width_px: int
    height_px: int
    notes: tuple[str, ...]


def save_library(session: Session, url: str, file: LibraryFile, file_sha256: str) -> tuple[Library, bool]:
    """Make or update brand, characters and library from a library.yaml; True if it is new or was changed."""
    brand = session.scalar(select(Brand).where(Brand.name == file.brand.name).with_for_update())
    if brand is None:
        session.execute(
            insert(Brand)
            .values(id=uuid.uuid4(), name=file.brand.name, title="", palette=[], rules=[])
            .on_conflict_do_nothing()
        )
        brand = session.scalars(select(Brand).where(Brand.name == file.brand.name).with_for_update()).one()
    brand.title, brand.palette, brand.rules = file.brand.title or file.brand.name, list(file.palette), list(file.rules)
    for entry in file.characters:
        character = session.scalar(
            select(Character).where(Character.brand_id == brand.id, Character.name == entry.name)
        )
        if character is None:
            character = Character(brand_id=brand.id, name=entry.name)
            session.add(character)
        character.description = entry.description or ""
        character.palette, character.rules = list(entry.palette), list(entry.rules)
    library = session.scalar(select(Library).where(Library.url == url).with_for_update())
    now = session.scalars(select(func.now())).one()
    if library is None:
        library = Library(url=url, brand_id=brand.id, file_sha256=file_sha256, loaded_at=now)
        session.add(library)
    changed = library.file_sha256 != file_sha256 or library.id is None
    library.brand_id, library.file_sha256, library.loaded_at = brand.id, file_sha256, now
    session.flush()
    return library, changed


def known_references(session: Session, library_id: uuid.UUID) -> dict[str, Reference]:
    """The newest row of every key that is not removed."""
    rows = session.scalars(
        select(Reference)
        .where(Reference.library_id == library_id, Reference.state != ReferenceState.REMOVED)
        .order_by(Reference.made_at)
    )
    return {r.key: r for r in rows}


def known_quarantine(session: Session, library_id: uuid.UUID) -> dict[str, Quarantined]:
    return {q.key: q for q in session.scalars(select(Quarantined).where(Quarantined.library_id == library_id))}


def save_reference(session: Session, library: Library, found: NewReference, file: LibraryFile) -> Reference:
    """Make or update the row of a picture. Safe to repeat: a row is unique on (library, key, sha256)."""
    entry = next((r for r in file.references if r.file == found.key), None)
    row = session.scalar(
        select(Reference).where(
            Reference.library_id == library.id, Reference.key == found.key, Reference.sha256 == found.sha256
        )
    )
    if row is None:
        row = Reference(
            id=uuid.uuid4(), library_id=library.id, key=found.key, sha256=found.sha256, pixel_sha256=found.pixel_sha256,
            size_bytes=found.size_bytes, format=found.format, width_px=found.width_px, height_px=found.height_px,
            notes=list(found.notes), state=ReferenceState.ACTIVE,
        )  # fmt: skip
    elif row.state is ReferenceState.REMOVED:
        row.state = ReferenceState.ACTIVE
    if row.state is ReferenceState.ACTIVE and _withdrawn(session, found.sha256):
        row.state = ReferenceState.WITHDRAWN  # rights are of the picture, at whatever key it lies
    row.etag, row.version_id = found.etag, found.version_id
    describe(session, library, row, file, entry)  # before it is added: a question would flush it half-filled
    session.add(row)
    for older in session.scalars(
        select(Reference).where(
            Reference.library_id == library.id,
            Reference.key == found.key,
            Reference.sha256 != found.sha256,
            Reference.state == ReferenceState.ACTIVE,
        )
    ):
        older.state = ReferenceState.REMOVED
    session.execute(delete(Quarantined).where(Quarantined.library_id == library.id, Quarantined.key == found.key))
    session.flush()
    return row


def _withdrawn(session: Session, sha256: str) -> bool:
    rows = select(Reference.id).where(Reference.sha256 == sha256, Reference.state == ReferenceState.WITHDRAWN)
    return session.scalar(rows.limit(1)) is not None


def describe(session: Session, library: Library, row: Reference, file: LibraryFile, entry: Any) -> None:
    """Set what library.yaml says of a reference: character, role, weight, licence."""
    licence = (entry.licence if entry is not None else None) or file.licence
    name = entry.character if entry is not None else None
    row.character_id = (
        session.scalar(select(Character.id).where(Character.brand_id == library.brand_id, Character.name == name))
        if name
        else None
    )
    row.role = str(entry.role) if entry is not None else "style"
    row.weight = float(entry.weight) if entry is not None else 1.0
    row.licence_name = licence.name if licence is not None else "not stated"
    row.licence_holder = licence.holder if licence is not None else None
    row.licence_until = licence.until if licence is not None else None


def quarantine(
    session: Session, library: Library, found: SourceObject, reason: str, message: str, next_step: str
) -> None:
    """Put a bad object aside; what was active under its key no longer is."""
    values = {
        "etag": found.etag,
        "size_bytes": found.size,
        "reason": reason,
        "message": message,
        "next_step": next_step,
    }
    session.execute(
        insert(Quarantined)
        .values(id=uuid.uuid4(), library_id=library.id, key=found.key, **values)
        .on_conflict_do_update(index_elements=["library_id", "key"], set_=values)
    )
    remove_keys(session, library, [found.key])


def remove_keys(session: Session, library: Library, keys: Iterable[str]) -> int:
    """Mark the active references of keys that are gone from the library; their lineage stays."""
    rows = session.scalars(
        select(Reference).where(
            Reference.library_id == library.id, Reference.key.in_(list(keys)), Reference.state == ReferenceState.ACTIVE
        )
    ).all()
    for row in rows:
        row.state = ReferenceState.REMOVED
    session.flush()
    return len(rows)


def forget_quarantine(session: Session, library: Library, keys: Iterable[str]) -> None:
    session.execute(delete(Quarantined).where(Quarantined.library_id == library.id, Quarantined.key.in_(list(keys))))


# ---------------------------------------------------------------------------- embeddings


def save_encoder(session: Session, sha256: str, name: str, dim: int, preprocessing: Mapping[str, Any]) -> None:
    """Register an encoder and give its embeddings of references and of pictures HNSW indexes of their own. Safe to repeat."""
    made = session.scalars(
        insert(Encoder)
        .values(sha256=sha256, name=name, dim=dim, preprocessing=dict(preprocessing))
        .on_conflict_do_nothing()
        .returning(Encoder.sha256)
    ).all()
    if made:
        index_embeddings(session, sha256, dim)


def index_embeddings(session: Session, sha256: str, dim: int) -> None:
    """Give an encoder's embeddings their HNSW indexes; of more than 2,000 dimensions, which pgvector does not index, none: they are
    searched exactly. Safe to repeat."""
    if dim > 2000:
        return
    for table in (Embedding.__tablename__, PictureEmbedding.__tablename__):
        session.execute(
            text(
                f"CREATE INDEX IF NOT EXISTS {table}_hnsw_{sha256[:16]} ON {table} USING hnsw "
                f"((pooled::vector({dim})) vector_cosine_ops) WHERE encoder_sha256 = '{sha256}'"
            )
        )


def missing_embeddings(session: Session, sha256s: set[str], encoder: str) -> set[str]:
    """The references that `encoder` has not embedded yet."""
    known = select(Embedding.reference_sha256).where(
        Embedding.encoder_sha256 == encoder, Embedding.reference_sha256.in_(sha256s)
    )
    return sha256s - set(session.scalars(known))


def save_embeddings(session: Session, encoder: str, rows: Sequence[tuple[str, np.ndarray, str | None]]) -> int:
    """Store (reference sha256, pooled float32, blob of hidden states) rows; returns how many were new."""
    if not rows:
        return 0
    values = [
        {"reference_sha256": sha, "encoder_sha256": encoder, "pooled": pooled.tolist(), "hidden_sha256": hidden}
        for sha, pooled, hidden in rows
    ]
    statement = insert(Embedding).values(values).on_conflict_do_nothing().returning(Embedding.reference_sha256)
    return len(session.scalars(statement).all())


def embeddings_of(session: Session, sha256s: Iterable[str], encoder: str) -> dict[str, Embedding]:
    rows = session.scalars(
        select(Embedding).where(Embedding.encoder_sha256 == encoder, Embedding.reference_sha256.in_(list(sha256s)))
    )
    return {r.reference_sha256: r for r in rows}


# ---------------------------------------------------------------------------- questions


def get_brand(session: Session, name: str) -> Brand:
    brand = session.scalar(select(Brand).where(Brand.name == name))
    if brand is None:
        known = ", ".join(session.scalars(select(Brand.name).order_by(Brand.name).limit(20))) or "none"
        raise NotFound("brand", name, f"Ingest its library first; known brands: {known}.")
    return brand


def get_character(session: Session, brand: Brand, name: str) -> Character:
    character = session.scalar(select(Character).where(Character.brand_id == brand.id, Character.name == name))
    if character is None:
        names = select(Character.name).where(Character.brand_id == brand.id).order_by(Character.name).limit(20)
        known = ", ".join(session.scalars(names)) or "none"
        raise NotFound(f"character of brand {brand.name}", name, f"Known characters: {known}.")
    return character


def find_character(session: Session, named: str, brand: str | None = None) -> Character:
    """A character by `name` or `brand/name`, or by its name in a brand; NotFound with those there are, Ambiguous where
    several brands have one of the name."""
    if brand is None:
        owner, _, named = named.rpartition("/")
        brand = owner or None
    if brand is not None:
        return get_character(session, get_brand(session, brand), named)
    found = session.scalars(select(Character).join(Brand).where(Character.name == named).order_by(Brand.name)).all()
    if not found:
        known = select(Brand.name, Character.name).join(Character).order_by(Brand.name, Character.name).limit(20)
        names = ", ".join(f"{owner}/{its}" for owner, its in session.execute(known)) or "none; ingest its library first"
        raise NotFound("character", named, f"Known characters: {names}.")
    if len(found) > 1:
        candidates = [f"{c.brand.name}/{c.name}" for c in found]
        raise Ambiguous("character", named, candidates, f"Say whose: {candidates[0]}.")
    return found[0]


def usable_references(session: Session, character_id: uuid.UUID, on: date, role: str = "identity") -> list[Reference]:
    """Active references of a character whose licence covers the day, in the order of their keys."""
    return list(
        session.scalars(
            select(Reference)
            .where(
                Reference.character_id == character_id,
                Reference.state == ReferenceState.ACTIVE,
                Reference.role == role,
                or_(Reference.licence_until.is_(None), Reference.licence_until >= on),
            )
            .order_by(Reference.key, Reference.sha256, Reference.id)
        )
    )


def nearest(
    session: Session, query: np.ndarray, encoder: Encoder, among: Iterable[str], limit: int
) -> list[tuple[str, float]]:
    """(reference sha256, cosine similarity) of the nearest embeddings among those named, best first."""
    rows = session.execute(
        text(
            f"SELECT reference_sha256, 1 - (pooled::vector({encoder.dim}) <=> CAST(:query AS vector({encoder.dim}))) AS likeness "
            "FROM embeddings WHERE encoder_sha256 = :encoder AND reference_sha256 = ANY(:among) "
            "ORDER BY likeness DESC, reference_sha256 LIMIT :limit"
        ),
        {"query": str(query.tolist()), "encoder": encoder.sha256, "among": list(among), "limit": limit},
    )
    return [(r.reference_sha256, float(r.likeness)) for r in rows]
