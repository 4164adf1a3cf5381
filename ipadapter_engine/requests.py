"""What goes into the engine and what comes out: plain frozen values, no tensors, no files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ipadapter_engine.errors import RequestRefused

Array = np.ndarray
MAX_SEED = 2**63 - 1
MAX_SIDE_PX = 4096
IDENTITY = "identity"  # the adapter that hears a reference unless it names another
NAMES = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # of adapters and kinds: what the name of a setting can end in


@dataclass(frozen=True, eq=False)
class ReferencePrompt:
    """One reference picture as its encoder sees it.

    embedding: float32, (embed,) for base adapters or (patches + 1, embed) for plus.
    weight: this reference's share beside the others of its adapter; 0 leaves it out.
    adapter: which loaded adapter hears it.
    """

    embedding: Array
    weight: float = 1.0
    adapter: str = IDENTITY

    def __post_init__(self) -> None:
        _check_name("an adapter", self.adapter)
        if not (isinstance(self.embedding, np.ndarray) and self.embedding.dtype.kind in "fiu"):
            raise RequestRefused("a reference's embedding is no array of numbers", "give the encoder's output as it is")
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite to the model
            finite = np.isfinite(self.embedding.astype(np.float32)).all()
        if not finite:
            raise RequestRefused("a reference's embedding holds NaN or infinity", "embed the reference again")
        if not (self.weight >= 0 and np.isfinite(self.weight)):
            raise RequestRefused(
                f"a reference's weight is {self.weight}, not a number of 0 or more", "give a weight of 0 or more"
            )


@dataclass(frozen=True, eq=False)
class ControlPrompt:
    """A picture whose lines, depth or pose the made one follows (ControlNet; Zhang et al., 2023, arXiv:2302.05543).

    picture: uint8 (h, w, 3), RGB, of the kind that the ControlNet reads; resized to the made picture's size.
    strength: what its ControlNet adds is multiplied by it; 0 leaves it out, 1 is as trained.
    window: the share of the steps, from start to end, in which it is followed.
    """

    picture: Array = field(repr=False)
    kind: str
    strength: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_name("a kind of control", self.kind)
        picture = self.picture
        pixels = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3
        if not (pixels and picture.size > 0 and picture.shape[-1] == 3):
            raise RequestRefused(
                f"the picture of a control ({self.kind}) is no array uint8 (height, width, 3)",
                "give the picture's RGB pixels, np.asarray(image.convert('RGB'))",
            )
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise RequestRefused(
                f"the strength {self.strength} of a control ({self.kind}) is not a number of 0 or more",
                "give a strength of 0 or more; 1 is as trained",
            )
        _check_window(self.window)

    @property
    def heard(self) -> bool:
        """Whether it can have a part in the picture: at strength 0 or in an empty window it has none."""
        return self.strength > 0 and self.window[0] < self.window[1]


@dataclass(frozen=True)
class CharacterModel:
    """One character as a LoRA (DreamBooth; Ruiz et al., 2022, arXiv:2208.12242) on the loaded base.

    file: pytorch_lora_weights.safetensors as diffusers' save_lora_weights writes it; its bytes must have `sha256`.
    strength: what the LoRA adds is multiplied by it; 0 leaves it out, 1 is as trained.
    """

    file: Path
    sha256: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise RequestRefused(
                f"{self.sha256!r} is no sha256 of a character model", "give the 64 hex digits that its training printed"
            )
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise RequestRefused(
                f"the strength {self.strength} of a character model is not a number of 0 or more",
                "give a strength of 0 or more; 1 is as trained",
            )


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One picture to be made.

    seed: the noise comes from it alone, on the CPU, so that the picture does not depend on its batch.
    scale: how strongly the references of the identity adapter speak beside the text; 0 is text only.
    window: the share of the steps, from start to end, in which the references of all adapters speak.
    width_px, height_px, steps, guidance, scheduler: None takes the family's own number.
    controls: pictures to follow; what several add is summed.
    character: a model of one character in place of the plain base.
    scales: how strongly further adapters speak, by name; 1 for those that it does not name.
    """

    prompt: str
    seed: int
    references: tuple[ReferencePrompt, ...] = ()
    negative_prompt: str = ""
    scale: float = 1.0
    window: tuple[float, float] = (0.0, 1.0)
    width_px: int | None = None
    height_px: int | None = None
    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    controls: tuple[ControlPrompt, ...] = ()
    character: CharacterModel | None = None
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_window(self.window)
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestRefused(f"the seed {self.seed} is out of range", f"give a whole number from 0 to {MAX_SEED}")
        if IDENTITY in self.scales:
            raise RequestRefused(
                "`scales` names the identity adapter",
                "give its scale as `scale`; `scales` is for the adapters beside it",
            )
        for name in self.scales:
            _check_name("an adapter", name)
        for scale in (self.scale, *self.scales.values()):
            if not (np.isfinite(scale) and scale >= 0):
                raise RequestRefused(
                    f"the scale {scale} is not a number of 0 or more", "give a scale of 0 or more; 1 is full strength"
                )
        for name in self.adapters:
            if all(r.weight == 0 for r in self.references if r.adapter == name):
                raise RequestRefused(
                    f"all references{'' if name == IDENTITY else f' of the adapter {name!r}'} have weight 0",
                    "leave the references out, or give one a weight",
                )
        if self.guidance is not None and not (np.isfinite(self.guidance) and self.guidance >= 0):
            raise RequestRefused(
                f"the guidance {self.guidance} is not a number of 0 or more",
                "give 1 for none, or more; 5 to 8 is usual",
            )
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise RequestRefused(f"{self.steps} steps cannot be taken", "ask for 1 to 1000 steps")

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that its references name, sorted."""
        return tuple(sorted({r.adapter for r in self.references}))

    def scale_of(self, adapter: str) -> float:
        return self.scale if adapter == IDENTITY else float(self.scales.get(adapter, 1.0))

    def heard_by(self, adapter: str) -> tuple[ReferencePrompt, ...]:
        """The references that an adapter hears: at scale 0 or in an empty window none."""
        if self.scale_of(adapter) == 0 or self.window[0] == self.window[1]:
            return ()
        return tuple(r for r in self.references if r.adapter == adapter)

    @property
    def roles(self) -> tuple[str, ...]:
        """The models that it needs beside those of every picture, by the role that lineage names them by: ControlNets
        and further adapters that have a part in its picture."""
        kinds = sorted({c.kind for c in self.controls if c.heard})
        further = [a for a in self.adapters if a != IDENTITY and self.heard_by(a)]
        return (*(f"controlnet {kind}" for kind in kinds), *(f"ip-adapter {name}" for name in further))

    @property
    def heard_character(self) -> CharacterModel | None:
        """Its character model, unless at strength 0, which is the plain base."""
        return self.character if self.character is not None and self.character.strength > 0 else None


def _check_name(what: str, name: str) -> None:
    if not NAMES.fullmatch(name):
        raise RequestRefused(
            f"{name!r} is no name of {what}",
            f"give one of lower case letters, digits and underscores, such as {nearest_name(name)!r}",
        )


def nearest_name(name: str) -> str:
    """What a name is called where only lower case letters, digits and single underscores can stand."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "other"


def _check_window(window: tuple[float, float]) -> None:
    start, end = window
    if not 0 <= start <= end <= 1:
        raise RequestRefused(f"the window {window} is not within 0 to 1", "give start and end, 0 ≤ start ≤ end ≤ 1")


def inside(window: tuple[float, float], progress: float) -> bool:
    """Whether the step that begins at `progress` (its number / all steps) lies in a window, start ≤ progress < end."""
    return window[0] <= progress < window[1]


@dataclass(frozen=True)
class BatchKey:
    """Requests that share it can be made in one batch: a character model changes the weights of all of it."""

    width_px: int
    height_px: int
    steps: int
    scheduler: str
    character_sha256: str | None = None
    character_strength: float = 0.0


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """pixels uint8 (height, width, 3), RGB; latents float32 (channels, height / stride, width / stride)."""

    request: GenerationRequest
    pixels: Array
    latents: Array = field(repr=False)

    @property
    def finite(self) -> bool:
        """Whether the model produced numbers: NaN latents decode to a black or noisy picture."""
        return bool(np.isfinite(self.latents).all())

    @cached_property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)
