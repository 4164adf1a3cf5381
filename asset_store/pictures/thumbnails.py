"""Small WebP pictures, made once from a blob and kept under its sha256: their content never changes."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image

from asset_store.blobs import BlobStore
from asset_store.pictures.limits import DEFAULT_LIMITS, PictureLimits
from asset_store.pictures.opening import open_picture

SIDE_PX, QUALITY = 320, 82


def thumbnail(blobs: BlobStore, sha256: str, folder: Path, limits: PictureLimits = DEFAULT_LIMITS) -> bytes:
    """WebP of the picture, 320 px at its longer side, never larger than it is. Raises BlobMissing, PictureRefused."""
    target = _place(sha256, folder)
    try:
        return target.read_bytes()
    except FileNotFoundError:
        pass
    image = open_picture(blobs.get(sha256), limits).image
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=4)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{sha256[:16]}.", delete=False) as file:
        file.write(out.getvalue())
    os.replace(file.name, target)  # whole or not at all
    return out.getvalue()


def forget_thumbnail(sha256: str, folder: Path) -> None:
    """Delete what is kept of a picture; no error if nothing is."""
    _place(sha256, folder).unlink(missing_ok=True)


def _place(sha256: str, folder: Path) -> Path:
    return folder / sha256[:2] / f"{sha256}.webp"
