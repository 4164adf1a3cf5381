"""Pictures small enough to stand in an address, for artifacts that Prefect's UI shows."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE_PX = 1200


def preview_url(picture: Image.Image) -> str:
    """A picture as a data address: WebP, 1200 px at its longer side at most."""
    small, out = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE_PX, SIDE_PX))
    small.save(out, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
