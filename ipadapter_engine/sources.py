"""Pictures to start from, as latents: image-to-image and inpainting, per row of a batch.

Image-to-image noises the picture and takes the later steps only (SDEdit; Meng et al., 2021, arXiv:2108.01073).
Inpainting with a text-to-image UNet puts the noised picture back around the mask after every step (Blended Latent
Diffusion; Avrahami et al., 2022, arXiv:2206.02779); an inpainting UNet is shown mask and masked picture besides.
Random numbers are drawn from the request's generator in the order of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from ipadapter_engine.controls import check_shape
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.prompts import Array, SourcePicture
from ipadapter_engine.requests import BatchKey, GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import Checkpoint


def first_step(request: GenerationRequest, steps: int) -> int:
    """The step that a request begins at: with a picture to start from the first ones are left out."""
    return 0 if request.source is None else steps - max(1, min(int(steps * request.source.strength), steps))


def check_source(request: GenerationRequest, key: BatchKey, checkpoint: Checkpoint) -> None:
    """Raises RequestRefused for a picture or a mask of another shape, and where the base paints within masks only."""
    source = request.source
    if checkpoint.inpaints and (source is None or source.mask is None):
        raise RequestRefused(
            "the loaded base paints within a mask and the request has none",
            "give a source picture with a mask, or load a text-to-image base",
        )
    if source is None:
        return
    check_shape("a picture to start from", source.picture.shape[:2], key.width_px, key.height_px)
    if source.mask is not None:
        check_shape("a mask to repaint within", source.mask.shape[:2], key.width_px, key.height_px)
        size = key.height_px // checkpoint.stride, key.width_px // checkpoint.stride
        if not F.interpolate(_mask(source.mask, key)[None, None], size=size).any():
            raise RequestRefused(
                f"a mask to repaint within is smaller than what the base can repaint, {checkpoint.stride} px",
                "paint a larger part of it white",
            )


@dataclass(frozen=True)
class Sources:
    """What the rows of a batch start from.

    noise (rows, channels, h, w): each row's own. latents: the source pictures, zeros where a row has none.
    repainted (rows, 1, h, w): 1 where the row is made anew. shown (rows, 1 + channels, h, w): the mask and the masked
    picture, for an inpainting UNet.
    """

    noise: Tensor
    latents: Tensor | None
    repainted: Tensor | None
    shown: Tensor | None

    def begun(self, rows: Sequence[int], requests: Sequence[GenerationRequest], scheduler: object, t: Tensor) -> Tensor:
        """The latents of some rows that begin at `t`, noised as their scheduler does; it was told at which step."""
        index = list(rows)
        pure = self.noise[index] * scheduler.init_noise_sigma  # type: ignore[attr-defined]
        if self.latents is None:
            return pure
        noised = scheduler.add_noise(self.latents[index], self.noise[index], t.repeat(len(index)))  # type: ignore[attr-defined]
        from_noise = [(s := requests[r].source) is None or (s.mask is not None and s.strength == 1) for r in rows]
        return torch.where(torch.tensor(from_noise, device=pure.device).view(-1, 1, 1, 1), pure, noised)

    def kept(self, rows: Sequence[int], x: Tensor, scheduler: object, following: Tensor | None) -> Tensor:
        """x after a step with what is not repainted put back, noised for the step that follows."""
        if self.repainted is None or self.latents is None:
            return x
        index = list(rows)
        around = self.latents[index]
        if following is not None:
            around = scheduler.add_noise(around, self.noise[index], following.repeat(len(index)))  # type: ignore[attr-defined]
        mask = self.repainted[index]
        return (1 - mask) * around + mask * x


@torch.inference_mode()
def sources_of(
    checkpoint: Checkpoint, requests: Sequence[GenerationRequest], key: BatchKey, generators: Sequence[torch.Generator]
) -> Sources:
    """Encode the source pictures and draw every row's noise (float32, on the CPU, then moved)."""
    device = checkpoint.device
    height, width = key.height_px // checkpoint.stride, key.width_px // checkpoint.stride
    channels = checkpoint.latent_channels
    with_source = [i for i, r in enumerate(requests) if r.source is not None]
    own: dict[int, Tensor] = {}
    for i in with_source:
        source = _given(requests[i])
        if not (checkpoint.inpaints and source.strength == 1):
            own[i] = _encoded(checkpoint, _pixels(source.picture, key), generators[i])
    noise = torch.stack([torch.randn(channels, height, width, generator=g) for g in generators]).to(device)
    if not with_source:
        return Sources(noise, None, None, None)
    latents, repainted = torch.zeros_like(noise), torch.ones(len(requests), 1, height, width, device=device)
    shown = torch.zeros(len(requests), 1 + channels, height, width, device=device) if checkpoint.inpaints else None
    for i in with_source:
        source = _given(requests[i])
        if i in own:
            latents[i] = own[i]
        if source.mask is None:
            continue
        mask = _mask(source.mask, key)
        small = F.interpolate(mask[None, None], size=(height, width))[0]
        if shown is None:
            repainted[i] = small.to(device)
            if isinstance(checkpoint.vae, AutoencoderKL):  # where diffusers samples the masked picture, unused
                torch.randn(channels, height, width, generator=generators[i])
        else:
            masked = _encoded(checkpoint, _pixels(source.picture, key) * (mask < 0.5), generators[i])
            shown[i] = torch.cat([small.to(device), masked])
    if all(r.source is None or r.source.mask is None for r in requests) or shown is not None:
        return Sources(noise, latents, None, shown)
    return Sources(noise, latents, repainted, None)


def with_the_rest_kept(request: GenerationRequest, pixels: Array, key: BatchKey) -> Array:
    """A made picture, uint8 (h, w, 3), with the source's own pixels wherever the mask is 0."""
    if request.source is None or request.source.mask is None:
        return pixels
    size = (key.width_px, key.height_px)
    source = np.asarray(Image.fromarray(request.source.picture).resize(size, Image.Resampling.LANCZOS))
    mask = np.asarray(Image.fromarray(request.source.mask).resize(size, Image.Resampling.BILINEAR))
    return np.where((mask > 0)[..., None], pixels, source)


def _given(request: GenerationRequest) -> SourcePicture:
    assert request.source is not None
    return request.source


def _pixels(picture: Array, key: BatchKey) -> Tensor:
    """(3, h, w), -1 to 1, at the made picture's size, by Lanczos' filter as diffusers scales."""
    scaled = Image.fromarray(picture).resize((key.width_px, key.height_px), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(scaled, dtype=np.float32)).permute(2, 0, 1) / 255 * 2 - 1


def _mask(mask: Array, key: BatchKey) -> Tensor:
    """(h, w), 0 or 1, at the made picture's size."""
    scaled = Image.fromarray(mask).resize((key.width_px, key.height_px), Image.Resampling.LANCZOS)
    return (torch.from_numpy(np.array(scaled, dtype=np.float32)) / 255 >= 0.5).float()


def _encoded(checkpoint: Checkpoint, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One picture's latents (channels, h, w) float32; a KL first stage's are sampled, as diffusers samples them."""
    vae, config = checkpoint.vae, checkpoint.vae.config
    out = vae.encode(pixels[None].to(checkpoint.device, vae.dtype))
    found = out.latent_dist.sample(generator) if isinstance(vae, AutoencoderKL) else out.latents
    mean, spread = checkpoint.latent_statistics
    return ((found.float() - mean) * config["scaling_factor"] / spread)[0].to(checkpoint.device)
