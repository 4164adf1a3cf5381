"""A family is a file of numbers: what a kind of checkpoint needs that its files do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Original:
    """What a checkpoint in one file does not say, neither by names nor by shapes (see `single_file`).

    heads: of every attention layer of the UNet, where their number is fixed; else each has `head_channels`.
    scaling_factor: what latents are multiplied by after the first stage.
    activations: of the text encoders, in their order; their heads have 64 numbers each.
    zero_empty_prompt: whether an empty negative prompt is zeros.
    """

    scaling_factor: float
    activations: tuple[str, ...]
    heads: int | None = None
    head_channels: int = 64
    zero_empty_prompt: bool = False

    def heads_of(self, channels: Sequence[int]) -> int | tuple[int, ...]:
        """The heads on each of a UNet's levels, of so many channels."""
        return self.heads if self.heads is not None else tuple(max(1, c // self.head_channels) for c in channels)


@dataclass(frozen=True)
class Family:
    """name: what settings and lineage call it. size_px: the native side of a picture.

    presets: factors of an adapter's scale by the UNet's blocks, by name (`emphasis.AdapterSettings.blocks`).
    sized_by_unet: whether the native side is what the UNet's sample_size says, as its versions differ in it.
    text_layer: which hidden state of the text encoders the UNet attends to; None is the final, normalised one.
    size_conditioned: whether the UNet is told picture size and pooled text (SDXL, sec. 2.2 of its report).
    schedule: of noise, as in the scheduler_config.json of the family's own diffusers folder.
    original: of families that come in one file.
    """

    name: str
    title: str
    size_px: int
    steps: int
    guidance: float
    scheduler: str
    schedulers: tuple[str, ...]
    text_layer: int | None = None
    size_conditioned: bool = False
    sized_by_unet: bool = False
    max_batch: int = 8
    presets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict, hash=False)
    original: Original | None = None

    def sized(self, side_px: int) -> Family:
        """With the native side that a UNet says, where that decides."""
        return replace(self, size_px=side_px) if self.sized_by_unet and side_px != self.size_px else self

    def told_guidance(self) -> Family:
        """Of a UNet that takes guidance as an input: the numbers of latent consistency models (Luo et al., 2023,
        arXiv:2310.04378), which draw in few steps."""
        return replace(self, steps=4, guidance=8.5, scheduler="lcm") if "lcm" in self.schedulers else self


def families() -> dict[str, Family]:
    """Those of our own engine, by name; they take adapters, and start from pictures."""
    from ipadapter_engine.families.sd15 import SD15
    from ipadapter_engine.families.sdxl import SDXL
    from ipadapter_engine.families.studio import STUDIO

    return {f.name: f for f in (STUDIO, SD15, SDXL)}


def family_of(unet_config: dict[str, Any], declared: str | None) -> Family:
    """The family of a checkpoint: what its folder declares, else what its UNet's configuration shows."""
    known = families()
    if declared is not None and declared in known:
        return known[declared]
    return known["sdxl" if unet_config.get("addition_embed_type") == "text_time" else "sd15"]
