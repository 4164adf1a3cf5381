"""The ways to bring a character back: by words, by an adapter that hears its references, by a model trained on them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ipadapter_engine.evaluation.subjects import Subject
from ipadapter_engine.prompts import IDENTITY, CharacterModel
from ipadapter_engine.requests import GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine


class Method(enum.StrEnum):
    TEXT = "text"
    ADAPTER = "adapter"
    PLUS = "plus"
    LORA = "lora"
    BOTH = "both"
    NATIVE = "native"

    @property
    def label(self) -> str:
        """What tables call it."""
        return _LABELS[self]

    @property
    def hears(self) -> bool:
        """Whether the references are heard: by an adapter, or by another engine's own means."""
        return self in (Method.ADAPTER, Method.PLUS, Method.BOTH, Method.NATIVE)

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
    Method.NATIVE: "another engine",
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
    engine: what makes its pictures, where that is not the engine of all others.
    """

    method: Method
    adapter: str = IDENTITY
    shared_bytes: int = 0
    engine: PictureEngine | None = None

    @property
    def label(self) -> str:
        """What tables call it: another engine by its family."""
        return self.method.label if self.engine is None else self.engine.family.title


@dataclass(frozen=True)
class Making:
    """How pictures are made. heard: how many of a subject's references an adapter hears.

    steps, guidance, scheduler, size_px, max_batch: None takes the family's own. asked_steps, asked_px: what was asked of
    all methods alike, whatever a protocol says of its own checkpoint.
    """

    heard: int = 1
    scale: float = GenerationRequest.scale
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    size_px: int | None = None
    max_batch: int | None = None
    asked_steps: int | None = None
    asked_px: int | None = None


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


def folder_bytes(folder: Path) -> int:
    """What all safetensors of a folder take, those of its parts among them."""
    return sum(map(disk_bytes, folder.rglob("*.safetensors")))


def pixels_sha256(picture: Image.Image) -> str:
    """The hash of what a picture shows: its pixels, size and mode, whatever file it came from."""
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
