"""What goes into the engine and what comes out: plain frozen values, no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from ipadapter_engine.errors import RequestRefused

Array = np.ndarray
MAX_SEED = 2**63 - 1
MAX_SIDE_PX = 4096


@dataclass(frozen=True, eq=False)
class ReferencePrompt:
    """One reference picture as its encoder sees it.

    embedding: float32, (embed,) for base adapters or (patches + 1, embed) for plus.
    weight: this reference's share beside the others; 0 leaves it out.
    """

    embedding: Array
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.embedding, np.ndarray) and self.embedding.dtype.kind in "fiu"):
            raise RequestRefused("a reference's embedding is no array of numbers", "give the encoder's output as it is")
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite to the model
            finite = np.isfinite(self.embedding.astype(np.float32)).all()
        if not finite:
            raise RequestRefused("a reference's embedding holds NaN or infinity", "embed the reference again")
        if not (self.weight >= 0 and np.isfinite(self.weight)):
            raise RequestRefused(f"a reference's weight is {self.weight}, below zero", "give a weight of 0 or more")


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One picture to be made.

    seed: the noise comes from it alone, on the CPU, so that the picture does not depend on its batch.
    scale: how strongly the references speak beside the text; 0 is text only.
    window: the share of the steps, from start to end, in which the references speak.
    width_px, height_px, steps, guidance, scheduler: None takes the family's own number.
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

    def __post_init__(self) -> None:
        start, end = self.window
        if not 0 <= start <= end <= 1:
            raise RequestRefused(
                f"the window {self.window} is not within 0 to 1", "give start and end, 0 ≤ start ≤ end ≤ 1"
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestRefused(f"the seed {self.seed} is out of range", f"give a whole number from 0 to {MAX_SEED}")
        if not (np.isfinite(self.scale) and self.scale >= 0):
            raise RequestRefused(
                f"the scale {self.scale} is below zero", "give a scale of 0 or more; 1 is full strength"
            )
        if self.references and all(r.weight == 0 for r in self.references):
            raise RequestRefused("all references have weight 0", "leave the references out, or give one a weight")
        if self.guidance is not None and not (np.isfinite(self.guidance) and self.guidance >= 0):
            raise RequestRefused(
                f"the guidance {self.guidance} is not a number of 0 or more",
                "give 1 for none, or more; 5 to 8 is usual",
            )
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise RequestRefused(f"{self.steps} steps cannot be taken", "ask for 1 to 1000 steps")


@dataclass(frozen=True)
class BatchKey:
    """Requests that share it can be made in one batch."""

    width_px: int
    height_px: int
    steps: int
    scheduler: str


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
