"""What goes into the engine and what comes out: plain frozen values, no tensors, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.prompts import (
    IDENTITY,
    Array,
    CharacterModel,
    ControlPrompt,
    ReferencePrompt,
    SourcePicture,
    check_mask,
    check_name,
    check_window,
)

MAX_SEED = 2**63 - 1
MAX_SIDE_PX = 4096
_PLAIN = AdapterSettings()


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
    settings: where, when and how adapters speak, by name; the identity adapter's is under "identity".
    regions: parts of the picture by name, uint8 (h, w), 255 inside, of the picture's shape; references name them.
    source: a picture to start from, or to repaint a part of.
    guidance: how far from the unconditional guess; at 1 and below there is none, as in diffusers.
    guidance_window: the share of the steps in which the picture is guided; outside, only the prompt is heard.
    loras: further LoRAs on the base, in their order, beside `character`.
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
    settings: Mapping[str, AdapterSettings] = field(default_factory=dict)
    regions: Mapping[str, Array] = field(default_factory=dict)
    source: SourcePicture | None = None
    guidance_window: tuple[float, float] = (0.0, 1.0)
    loras: tuple[CharacterModel, ...] = ()

    def __post_init__(self) -> None:
        check_window(self.window)
        check_window(self.guidance_window)
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestRefused(f"the seed {self.seed} is out of range", f"give a whole number from 0 to {MAX_SEED}")
        if IDENTITY in self.scales:
            raise RequestRefused(
                "`scales` names the identity adapter",
                "give its scale as `scale`; `scales` is for the adapters beside it",
            )
        for name in self.scales:
            check_name("an adapter", name)
        for name in self.settings:
            check_name("an adapter", name)
        self._check_regions()
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
                "give 1 or less for none, or more; 5 to 8 is usual",
            )
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise RequestRefused(f"{self.steps} steps cannot be taken", "ask for 1 to 1000 steps")
        if len({lora.sha256 for lora in self.heard_loras}) < len(self.heard_loras):
            raise RequestRefused("a LoRA is named twice", "name it once, with the sum of the strengths")

    def _check_regions(self) -> None:
        for name, mask in self.regions.items():
            check_name("a region", name)
            check_mask(f"the region {name!r}", mask)
            if not mask.any():
                raise RequestRefused(f"the region {name!r} is empty", "paint 255 where its references are to speak")
        for reference in self.references:
            if reference.region is not None and reference.region not in self.regions:
                there = f"it has {', '.join(self.regions)}" if self.regions else "it has none"
                raise RequestRefused(
                    f"a reference names the region {reference.region!r} and the request does not: {there}",
                    "give the region's mask in `regions`",
                )

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that its references name, sorted."""
        return tuple(sorted({r.adapter for r in self.references}))

    def scale_of(self, adapter: str) -> float:
        return self.scale if adapter == IDENTITY else float(self.scales.get(adapter, 1.0))

    def settings_of(self, adapter: str) -> AdapterSettings:
        return self.settings.get(adapter, _PLAIN)

    def window_of(self, adapter: str) -> tuple[float, float]:
        """The share of the steps in which an adapter speaks."""
        own = self.settings_of(adapter).window
        return self.window if own is None else own

    def heard_by(self, adapter: str) -> tuple[ReferencePrompt, ...]:
        """The references that an adapter hears: at scale 0 or in an empty window none."""
        start, end = self.window_of(adapter)
        if self.scale_of(adapter) == 0 or start == end:
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
    def heard_loras(self) -> tuple[CharacterModel, ...]:
        """Its character model and further LoRAs, but for those at strength 0, which change nothing."""
        own = () if self.character is None else (self.character,)
        return tuple(lora for lora in (*own, *self.loras) if lora.strength > 0)


@dataclass(frozen=True)
class BatchKey:
    """Requests that share it can be made in one batch: a LoRA changes the weights of all of it.

    loras: sha256 and strength of each. adapters: those that speak and bring a LoRA with them (FaceID).
    """

    width_px: int
    height_px: int
    steps: int
    scheduler: str
    loras: tuple[tuple[str, float], ...] = ()
    adapters: tuple[str, ...] = ()


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
