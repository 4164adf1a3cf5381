"""What every engine answers, and which one opens a folder.

`Engine` (pipeline.py) makes pictures of Stable Diffusion's UNets with our own attention, `NativeEngine` those of the
families that diffusers' own pipelines make. What plans, makes, checks and compares pictures asks for no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ipadapter_engine.acceleration import Acceleration
from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.encoder import EncodedPicture, ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.native.engine import NativeEngine
from ipadapter_engine.native.families import FAMILIES
from ipadapter_engine.native.opening import is_native
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import CharacterModel, ReferencePrompt
from ipadapter_engine.requests import BatchKey, GeneratedImage, GenerationRequest
from ipadapter_engine.weights import read_config


class OpenCheckpoint(Protocol):
    """What is loaded beside the base: adapters and ControlNets by name, and the hashes of those by role."""

    @property
    def adapters(self) -> Mapping[str, Any]: ...

    @property
    def controls(self) -> Mapping[str, Any]: ...

    @property
    def beside(self) -> Mapping[str, ModelHash]: ...


class PictureEngine(Protocol):
    """Requests in, pictures out. One generation at a time; calls from other threads wait."""

    @property
    def checkpoint(self) -> OpenCheckpoint: ...

    @property
    def family(self) -> Family:
        """Its name, its own size, steps, guidance and schedulers."""

    @property
    def models(self) -> tuple[ModelHash, ...]:
        """What every picture comes from."""

    def models_of(self, request: GenerationRequest) -> tuple[ModelHash, ...]:
        """All models that have a part in a request's picture."""

    @property
    def encoder(self) -> ImageEncoder:
        """What libraries are read and pictures are checked with; raises RequestRefused where there is none."""

    @property
    def needs_hidden(self) -> bool:
        """Whether references are to be encoded with their hidden states."""

    def reads_hidden(self, adapter: str) -> bool: ...

    def reference(self, encoded: EncodedPicture, weight: float = ..., adapter: str = ...) -> ReferencePrompt:
        """A reference by what the encoder said of it; RequestRefused where the family reads pictures."""

    def look_at(self, picture: Image.Image, weight: float = ..., adapter: str = ...) -> ReferencePrompt:
        """A picture as a reference of a request."""

    def batch_key(self, request: GenerationRequest) -> BatchKey:
        """The numbers that a request is made by; raises RequestRefused for what the family cannot do."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        max_batch: int | None = ...,
        on_step: Callable[[int, int], None] | None = ...,
    ) -> list[GeneratedImage]:
        """One picture a request, in their order, the same alone or in any company.

        Raises RequestRefused before anything is made; GenerationFailed when memory runs out.
        """

    def load_character(self, character: CharacterModel) -> float:
        """Load a model of one character; the seconds that it took."""

    def close(self) -> None: ...


def open_engine(
    paths: CheckpointPaths,
    *,
    encoder: ImageEncoder | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    acceleration: Acceleration | None = None,
) -> PictureEngine:
    """The engine that a base needs, open. Raises CheckpointRefused.

    encoder: what libraries are read with, for families that do not read embeddings themselves. acceleration: of bases
    with a UNet; the other families run as diffusers runs them.
    """
    if is_native(paths.base):
        if acceleration not in (None, Acceleration()):
            raise CheckpointRefused(
                f"{paths.base} is run by diffusers as it is: it cannot be compiled, offloaded or given an attention kernel",
                "leave COMPILED, OFFLOAD and ATTENTION out of this engine's settings",
            )
        return NativeEngine.open(paths, encoder=encoder, device=device, dtype=dtype)
    _check_known(paths.base)
    return Engine.open(paths, device=device, dtype=dtype, acceleration=acceleration or Acceleration())


def _check_known(base: Path) -> None:
    """A folder of another family is refused by its name, not by the first file that it lacks."""
    index = base / "model_index.json"
    named = read_config(index).get("_class_name") if index.exists() else None
    if named is not None and not (base / "unet").is_dir():
        titles = dict.fromkeys(["Stable Diffusion 1.5", "SDXL", *(f.family.title for f in FAMILIES)])
        raise CheckpointRefused(f"{base} is a {named}, which is not supported", f"use one of {', '.join(titles)}")


def denoiser_of(engine: PictureEngine) -> Any:
    """The model that is asked on every step, a UNet or a transformer: its device and dtype are the engine's."""
    checkpoint: Any = engine.checkpoint
    return checkpoint.transformer if isinstance(engine, NativeEngine) else checkpoint.unet


def device_of(engine: PictureEngine) -> torch.device:
    """Where it makes pictures, also where its parts lie elsewhere between two batches."""
    checkpoint: Any = engine.checkpoint
    found: torch.device = checkpoint.transformer.device if isinstance(engine, NativeEngine) else checkpoint.device
    return found


def reads_pictures(engine: PictureEngine) -> bool:
    """Whether references are given as pictures, not as the embeddings that libraries are read into."""
    return isinstance(engine, NativeEngine)
