"""Finding pictures like one that is there: by what an encoder said of them, nearest first, through its HNSW index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pgvector.sqlalchemy import Vector
from sqlalchemy import ColumnElement, cast, exists, func, literal_column, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from asset_store.reviewing.grid import Filters, Tile, conditions, tiles_beside
from asset_store.tables import Asset, AssetVersion, Embedding, Encoder, PictureEmbedding, Removal

SEARCHED = 40  # candidates that the index keeps at once (hnsw.ef_search)
BY_SIGNS = 220  # the likest by signs that are compared by all that was said, at least
BY_SIGNS_EACH = 20  # and at least so many for each that is wanted
NEWEST = (Encoder.made_at.desc(), Encoder.sha256)


@dataclass(frozen=True, slots=True)
class Likeness:
    """An asset and the cosine similarity of its newest picture to the one that was given."""

    tile: Tile
    likeness: float


def remember(session: Session, encoder: str, pictures: Iterable[tuple[str, np.ndarray | None]]) -> None:
    """Store what an encoder said of (sha256, pooled float32) pictures, None of one that cannot be opened. Safe to repeat."""
    rows = [
        {"picture_sha256": sha, "encoder_sha256": encoder, "pooled": None if vector is None else vector.tolist()}
        for sha, vector in pictures
    ]
    if rows:
        session.execute(insert(PictureEmbedding).values(rows).on_conflict_do_nothing())


def newest_encoder(session: Session) -> str | None:
    """The encoder that spoke last of a picture, else the newest one that there is."""
    spoke = select(PictureEmbedding.encoder_sha256).order_by(PictureEmbedding.made_at.desc()).limit(1)
    return session.scalar(spoke) or session.scalar(select(Encoder.sha256).order_by(*NEWEST).limit(1))


def unseen(session: Session, encoder: str, limit: int) -> Sequence[str]:
    """sha256 of pictures that an encoder has said nothing of, at most so many."""
    said = select(PictureEmbedding.picture_sha256).where(
        PictureEmbedding.picture_sha256 == AssetVersion.sha256, PictureEmbedding.encoder_sha256 == encoder
    )
    removed = exists().where(Removal.version_id == AssetVersion.id)
    return session.scalars(select(AssetVersion.sha256).where(~said.exists(), ~removed).distinct().limit(limit)).all()


def like_asset(
    session: Session, asset: Asset, filters: Filters, limit: int = 60, *, exact: bool = False
) -> list[Likeness]:
    """Assets that pass the filters and whose newest picture is like that of this one, which is left out; empty where no encoder has
    seen it yet. exact: compared with all, without the index."""
    if asset.current is None:
        return []
    its = PictureEmbedding
    said = (its.picture_sha256 == asset.current.sha256, its.pooled.is_not(None))
    found = _nearest(session, its, said, filters, limit + 1, exact=exact)
    return [near for near in found if near.tile.id != asset.id][:limit]


def like_reference(session: Session, sha256: str, filters: Filters, limit: int = 60) -> list[Likeness]:
    """Assets that pass the filters and whose newest picture is like a reference, by the newest encoder that has seen it and pictures."""
    pictures = exists().where(PictureEmbedding.encoder_sha256 == Embedding.encoder_sha256)
    return _nearest(session, Embedding, (Embedding.reference_sha256 == sha256, pictures), filters, limit)


def _nearest(
    session: Session, its: type[Embedding | PictureEmbedding], said: Collection[ColumnElement[bool]], filters: Filters, limit: int,
    *, exact: bool = False,
) -> list[Likeness]:  # fmt: skip
    """The nearest to what the newest encoder said of a picture (`said` finds it among `its` rows); none where none has spoken.

    Among all assets the index is walked until enough are found that are newest (pgvector's iterative scan). Among those that pass
    filters it would end before it had found them where they lie far away, as another brand's do: there the signs of all that pass are
    compared, which stand in their own rows, and then what was said of the likest by signs.
    """
    passing = tuple(conditions(session, filters))
    by_index = not passing and not exact
    walk = {"ef_search": max(SEARCHED, limit), "iterative_scan": "strict_order"} if by_index else {}
    # For the connection, as a question stands alone: whoever walks an index sets both.
    set_up = (func.set_config(f"hnsw.{name}", str(value), False) for name, value in walk.items())
    other = aliased(Encoder)
    newer = exists().where(tuple_(other.made_at, Encoder.sha256) > tuple_(Encoder.made_at, other.sha256))
    known = select(Encoder.sha256, Encoder.dim, newer, *set_up).join(its, Encoder.sha256 == its.encoder_sha256)
    seen = session.execute(known.where(*said).order_by(*NEWEST)).first()
    if seen is None:
        return []
    encoder, dim, superseded = seen[:3]
    by_signs = not by_index and not exact and not superseded  # rows have the signs of what the newest said
    by_encoder = *said, its.encoder_sha256 == encoder
    some = select(Asset.id, Asset.current_sha256).where(*passing)
    if by_signs:
        its_signs = select(func.binary_quantize(its.pooled)).where(*by_encoder).scalar_subquery()
        signs = func.hamming_distance(Asset.look, its_signs)
        some = some.where(Asset.look_encoder == encoder).order_by(signs).limit(max(BY_SIGNS, BY_SIGNS_EACH * limit))
    # The encoder stands in the text, as it does in its index's condition: a value that is bound would not match that.
    of_encoder = PictureEmbedding.encoder_sha256 == literal_column(f"'{encoder}'")
    vector = select(cast(its.pooled, Vector(dim))).where(*by_encoder).scalar_subquery()
    distance = cast(PictureEmbedding.pooled, Vector(dim)).cosine_distance(vector)
    asset = some.subquery("asset")
    question = (
        select(asset.c.id, (1 - distance).label("likeness"))
        .join(PictureEmbedding, PictureEmbedding.picture_sha256 == asset.c.current_sha256)
        .where(of_encoder, PictureEmbedding.pooled.is_not(None))
        .order_by(distance if by_index else distance + 0)  # a sum is none that the index knows
        .limit(limit)
    )
    return [Likeness(tile, likeness) for tile, likeness in tiles_beside(session, question.subquery("near"))]
