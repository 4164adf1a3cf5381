"""The ways to bring a character back: by words, by an adapter that hears its references, by a model trained on them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ipadapter_engine.evaluation.subjects import Subject
from ipadapter_engine.prompts import IDENTITY, CharacterModel
from ipadapter_engine.requests import GenerationRequest


class Method(enum.StrEnum):
    TEXT = "text"
    ADAPTER = "adapter"
    PLUS = "plus"
    LORA = "lora"
    BOTH = "both"

    @property
    def label(self) -> str:
        """What tables call it."""
        return _LABELS[self]

    @property
    def hears(self) -> bool:
        """Whether an adapter hears the references."""
        return self in (Method.ADAPTER, Method.PLUS, Method.BOTH)

    @property
    def trained(self) -> bool:
        """Whether a model of the subject is trained first."""
        return self in (Method.LORA, Method.BOTH)


_LABELS = {
    Method.TEXT: "text only",
    Method.ADAPTER: "IP-Adapter",
    Method.PLUS: "IP-Adapter plus",
    Method.LORA: "DreamBooth LoRA",
    Method.BOTH: "LoRA and IP-Adapter",
}


@dataclass(frozen=True)
class TrainedSubject:
    """A model of one subject; `words` is what names the subject in its prompts.

    seconds: what the training took from references to file, class pictures left out. settings: that it was trained
    with, as JSON, but for the subject's own words.
    """

    model: CharacterModel
    words: str
    size_bytes: int
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)


Training = Callable[[Subject, Sequence[Image.Image]], TrainedSubject]


@dataclass(frozen=True)
class Contestant:
    """A method, by the name of the adapter that hears references in it.

    shared_bytes: what it needs on disk beside the base, once for all subjects.
    """

    method: Method
    adapter: str = IDENTITY
    shared_bytes: int = 0


@dataclass(frozen=True)
class Making:
    """How pictures are made. heard: how many of a subject's references an adapter hears.

    steps, guidance, scheduler, size_px, max_batch: None takes the family's own.
    """

    heard: int = 1
    scale: float = GenerationRequest.scale
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size_px: int | None = None
    max_batch: int | None = None


def disk_bytes(file: Path | None) -> int:
    """What a file takes; nothing where there is none."""
    return file.stat().st_size if file is not None and file.exists() else 0


def weights_bytes(folder: Path | None) -> int:
    """What the safetensors take that are opened from a model's folder: one file, or its shards."""
    if folder is None:
        return 0
    whole = folder / "model.safetensors"
    files = [whole] if whole.exists() else sorted(folder.glob("model-*.safetensors"))
    return sum(map(disk_bytes, files or sorted(folder.glob("*.safetensors"))))


def pixels_sha256(picture: Image.Image) -> str:
    """The hash of what a picture shows: its pixels, size and mode, whatever file it came from."""
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
