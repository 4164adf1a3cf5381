"""The manifest of a stored model: what it is, where it came from, under which licence, and the sha256 of every file."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipadapter_engine.errors import CheckpointRefused

FILE = "onmodel.json"
KINDS = ("base", "adapter", "encoder", "lora", "controlnet", "embedding")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class StoredFile:
    """`path`: below the model's folder, with forward slashes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A model of the store. `licence` None: nobody told it. `encoder`: the image encoder that it needs, if any.

    source: what was given to `onmodel models add`; revision: the hub's commit that it was resolved to.
    pinned: whether who added it said the sha256 of its weights, and it was that.
    """

    name: str
    kind: str
    variant: str
    base: str | None
    encoder: str | None
    licence: str | None
    source: str
    revision: str | None
    pinned: bool
    files: tuple[StoredFile, ...]
    added_by: str
    added_at: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "files": [asdict(f) for f in self.files]}

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


def is_sha256(text: object) -> bool:
    """64 lower-case hex digits."""
    return isinstance(text, str) and _SHA256.match(text) is not None


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a model's folder. Raises CheckpointRefused where there is none, or none that can be read."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        files = tuple(StoredFile(str(f["path"]), str(f["sha256"]), int(f["size_bytes"])) for f in told.pop("files"))
        return Manifest(**told, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(
            f"{folder / FILE} is no manifest of a model: {error}", "add the model again with --replace"
        ) from None


def manifest_beside(path: Path) -> Manifest | None:
    """The manifest in a folder, or beside a file; None where there is none that can be read."""
    folder = path if path.is_dir() else path.parent
    if not (folder / FILE).is_file():
        return None
    try:
        return read_manifest(folder)
    except CheckpointRefused:
        return None
