"""`/v1`: the bytes of pictures and their thumbnails, at addresses that name their content."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from asset_store.errors import NotFound, PictureRemoved
from asset_store.people.permissions import Principal
from asset_store.pictures.thumbnails import forget_thumbnail, thumbnail
from asset_store.tables import AssetVersion, Reference
from flows.wiring import Store
from studio.api.callers import StoreDep, Who
from studio.api.changing import seen_asset, seen_reference
from studio.api.problems import MEDIA_TYPE

Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
FOR_EVER = "private, max-age=31536000, immutable"
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "bmp": "image/bmp",
         "tiff": "image/tiff"}  # fmt: skip
router = APIRouter(
    tags=["pictures"],
    default_response_class=Response,
    responses={
        200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}},
        410: {"content": {MEDIA_TYPE: {}}, "description": "Its bytes were removed by the retention policy."},
    },
)


@router.get("/assets/{asset_id}/pictures/{sha256}")
def get_picture(asset_id: uuid.UUID, sha256: Sha256, who: Who, store: StoreDep) -> Response:
    """A version's picture, as it was made."""
    with store.database.reading() as session:
        _need_version(session, asset_id, sha256, who, store)
    return _answer(store.blobs.get(sha256), "image/png", sha256)


@router.get("/assets/{asset_id}/thumbnails/{sha256}")
def get_thumbnail(asset_id: uuid.UUID, sha256: Sha256, who: Who, store: StoreDep) -> Response:
    """A version's picture in WebP, 320 px at its longer side."""
    with store.database.reading() as session:
        _need_version(session, asset_id, sha256, who, store)
    return _answer(thumbnail(store.blobs, sha256, store.settings.home / "thumbnails"), "image/webp", sha256)


@router.get("/references/{reference_id}/picture")
def get_reference_picture(reference_id: uuid.UUID, who: Who, store: StoreDep) -> Response:
    """A reference as it lies in its library."""
    reference = _reference(reference_id, who, store)
    kind = TYPES.get(reference.format.casefold(), "application/octet-stream")
    return _answer(store.blobs.get(reference.sha256), kind, reference.sha256)


@router.get("/references/{reference_id}/thumbnail")
def get_reference_thumbnail(reference_id: uuid.UUID, who: Who, store: StoreDep) -> Response:
    """A reference in WebP, 320 px at its longer side."""
    reference = _reference(reference_id, who, store)
    small = thumbnail(store.blobs, reference.sha256, store.settings.home / "thumbnails")
    return _answer(small, "image/webp", reference.sha256)


def _need_version(session: Session, asset_id: uuid.UUID, sha256: str, who: Principal, store: Store) -> None:
    """NotFound; PictureRemoved where its bytes are gone, and with them what is kept here."""
    asset = seen_asset(session, asset_id, who)
    known = select(AssetVersion).where(AssetVersion.asset_id == asset.id, AssetVersion.sha256 == sha256)
    versions = session.scalars(known.options(joinedload(AssetVersion.removal))).all()
    if not versions:
        raise NotFound("picture of this asset", sha256)
    gone = [version.removal for version in versions if version.removal is not None]
    if len(gone) == len(versions):
        forget_thumbnail(gone[0].sha256, store.settings.home / "thumbnails")
        raise PictureRemoved(gone[0].made_at, gone[0].policy)


def _reference(reference_id: uuid.UUID, who: Principal, store: StoreDep) -> Reference:
    with store.database.reading() as session:
        return seen_reference(session, reference_id, who)


def _answer(data: bytes, kind: str, sha256: str) -> Response:
    return Response(data, media_type=kind, headers={"Cache-Control": FOR_EVER, "ETag": f'"{sha256}"'})
