"""Pictures from anywhere, opened defensively into one plain form: 8-bit sRGB, upright, without alpha."""

from asset_store.pictures.limits import DEFAULT_LIMITS, PictureLimits
from asset_store.pictures.opening import OpenedPicture, open_picture
from asset_store.pictures.saving import pixel_sha256, thumbnail_webp, to_png

__all__ = [
    "DEFAULT_LIMITS",
    "OpenedPicture",
    "PictureLimits",
    "open_picture",
    "pixel_sha256",
    "thumbnail_webp",
    "to_png",
]
