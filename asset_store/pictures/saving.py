"""Pictures to bytes, the same bytes each time and nothing of where they came from."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

PNG_LEVEL = 6
WEBP_QUALITY = 82


def to_png(image: Image.Image) -> bytes:
    """A PNG of the pixels alone: no profile, EXIF or text. The same pixels give the same bytes (with one zlib)."""
    file = io.BytesIO()
    _bare(image).save(file, "PNG", compress_level=PNG_LEVEL, optimize=False)
    return file.getvalue()


def pixel_sha256(image: Image.Image) -> str:
    """The sha256 of mode, size and pixels: equal for the same picture in different files. 64 hex digits."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def thumbnail_webp(image: Image.Image, side_px: int = 320) -> bytes:
    """A WebP within side_px x side_px, proportions kept, never enlarged, without metadata."""
    small = _bare(image.convert("RGB"))
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=WEBP_QUALITY, method=4)
    return file.getvalue()


def _bare(image: Image.Image) -> Image.Image:
    """A copy without `info`, from which Pillow's writers take profiles and EXIF unasked."""
    copy = image.copy()
    copy.info = {}
    return copy
