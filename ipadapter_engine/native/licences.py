"""Under which licence a folder's weights are, as far as the folder tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipadapter_engine.native.families import NativeFamily

_LINE = re.compile(r"^(license_name|license):\s*['\"]?([^'\"#]+?)['\"]?\s*$", re.MULTILINE)


def licence_of(base: Path, index: Mapping[str, Any], native: NativeFamily) -> str:
    """What model_index.json says as `_onmodel_licence`, else the front matter of the folder's README.md as model hubs
    write it (`license_name`, else `license`), else what is known of the family."""
    if (told := index.get("_onmodel_licence")) is not None:
        return str(told)
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return native.licence
    opening, _, rest = text.partition("---")
    front, closing, _ = rest.partition("\n---")
    named = dict(_LINE.findall(front)) if not opening.strip() and closing else {}
    return named.get("license_name") or named.get("license") or native.licence
