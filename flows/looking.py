"""What is found out of a picture that was made, before any transaction is open: hashes and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from asset_store.checks import perceptual_hash
from asset_store.pictures import pixel_sha256, to_png
from flows.wiring import Store

if TYPE_CHECKING:
    from ipadapter_engine.encoder import ImageEncoder
    from ipadapter_engine.engines import PictureEngine


@dataclass(frozen=True)
class Finished:
    """A picture whose blob is stored, with what its checks need."""

    data: bytes
    image: Image.Image
    sha256: str
    pixels: str
    perceptual: str
    embedding: np.ndarray
    finite: bool


def look_at(data: bytes, image: Image.Image, sha256: str, encoder: ImageEncoder, *, finite: bool) -> Finished:
    """Hashes and embedding of a picture: all that needs the engine, before any transaction is open."""
    vector = encoder.encode([image])[0].pooled
    return Finished(data, image, sha256, pixel_sha256(image), perceptual_hash(image), vector, finite)


def store_picture(store: Store, image: Image.Image, made: PictureEngine, *, finite: bool) -> Finished:
    data = to_png(image)
    return look_at(data, image, store.blobs.put(data, "image/png"), made.encoder, finite=finite)
