"""The files that are made of one approved picture."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Rendition:
    """One file of a delivery; `kind` names it in the delivery's row."""

    kind: str
    suffix: str
    content_type: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def renditions(original: bytes, lineage: Mapping[str, Any]) -> Iterator[Rendition]:
    """The approved bytes themselves, a WebP for the web, and the lineage record beside them."""
    yield Rendition("original", ".png", "image/png", original)
    with Image.open(io.BytesIO(original), formats=("PNG",)) as picture:
        out = io.BytesIO()
        picture.convert("RGB").save(out, "WEBP", quality=90, method=6)
    yield Rendition("web", ".webp", "image/webp", out.getvalue())
    text = json.dumps(lineage, indent=2, sort_keys=True, ensure_ascii=False)
    yield Rendition("lineage", ".lineage.json", "application/json", text.encode())
