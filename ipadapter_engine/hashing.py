"""Hashes of model files: what lineage names a model by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ipadapter_engine.errors import CheckpointRefused


@dataclass(frozen=True)
class ModelHash:
    """One model that had a part in a picture."""

    role: str
    name: str
    sha256: str
    licence: str


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_weights(folder: Path) -> str:
    """The hash of the weights that are opened from a folder: of the file, or of its shards' hashes in their order.

    A folder often holds copies as well (`….fp16.safetensors`, `….non_ema.safetensors`); they have no part in it.
    """
    files = _opened(folder)
    if not files:
        raise CheckpointRefused(
            f"{folder} has no safetensors weights", "save the model with safetensors; pickled weights are not opened"
        )
    hashes = [sha256_of_file(f) for f in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _opened(folder: Path) -> list[Path]:
    """The files that from_pretrained reads: one of the standard name, else the shards that the index names."""
    for stem in ("model", "diffusion_pytorch_model"):
        whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if whole.exists():
            return [whole]
        if index.exists():
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))
