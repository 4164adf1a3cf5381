"""From pictures to what the denoiser sees: framing to the base's size, and latents of the first stage."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image, ImageOps
from torch import Tensor, nn

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.training.errors import TrainingFailed, TrainingRefused

Crop = Literal["centre", "pad"]
AT_ONCE_PX = 4 * 1024 * 1024  # that a first stage encodes in one pass


def upright(picture: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: turned as its EXIF says, transparency laid on white, 16 bits of grey as 8."""
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I;16"):  # Pillow would clip it to white
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        layer = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return turned.convert("RGB")


def framed(picture: Image.Image, size_px: int, crop: Crop = "centre") -> Image.Image:
    """A square of `size_px`: the middle of the picture, or with `pad` all of it on white."""
    if crop == "pad":
        return ImageOps.pad(picture, (size_px, size_px), Image.Resampling.LANCZOS, color="white")
    return ImageOps.fit(picture, (size_px, size_px), Image.Resampling.LANCZOS)


def sizes_of(picture_px: tuple[int, int], size_px: int, crop: Crop = "centre") -> tuple[int, ...]:
    """What SDXL is told of a framed picture (sec. 2.2 of its report): height and width of the picture of
    `picture_px` (width, height), the row and column of the scaled picture where the square begins, and its sides."""
    width, height = picture_px
    scale = size_px / min(width, height)
    top, left = (round((side * scale - size_px) / 2) if crop == "centre" else 0 for side in (height, width))
    return height, width, top, left, size_px, size_px


def check_framing(checkpoint: Checkpoint, size_px: int, crop: str) -> None:
    """Raises TrainingRefused for a crop that there is not, and for a size that the UNet cannot halve."""
    if crop not in get_args(Crop):
        raise TrainingRefused(f"pictures cannot be framed by {crop!r}", f"choose {' or '.join(get_args(Crop))}")
    step = checkpoint.multiple_px
    if size_px < step or size_px % step:
        raise TrainingRefused(
            f"pictures of {size_px} px cannot be trained on by {checkpoint.family.title}",
            f"choose a multiple of {step} px; its own size is {checkpoint.family.size_px} px",
        )


@torch.no_grad()
def latents_of(checkpoint: Checkpoint, pictures: list[Image.Image]) -> Tensor:
    """Square RGB pictures of one size -> latents (n, c, h, w) float32 on the CPU, scaled as the UNet sees them.

    The mean of a variational first stage is taken, not a sample: latents are made once and kept. They are made in
    float32 whatever the base is open in: half a VAE's precision is seen, and some overflow in float16.
    Raises TrainingFailed where they are no numbers.
    """
    vae, config = checkpoint.vae, checkpoint.vae.config
    dtype = vae.dtype
    nn.Module.to(vae, torch.float32)  # diffusers' own `to` warns of parts that no first stage has
    try:
        at_once = max(1, AT_ONCE_PX // (pictures[0].width * pictures[0].height))
        raw = torch.cat([_encoded(vae, pictures[i : i + at_once]) for i in range(0, len(pictures), at_once)])
    finally:
        nn.Module.to(vae, dtype)  # exactly what it was: every half is a float
    if not raw.isfinite().all():
        raise TrainingFailed(
            f"the first stage of {checkpoint.models[0].name} makes no numbers of a picture",
            "name a base with whole VAE weights, in float32 or with its fix for float16",
        )
    mean, spread = (
        torch.tensor(config.get(name) or blank).view(1, -1, 1, 1)
        for name, blank in (("latents_mean", [0.0]), ("latents_std", [1.0]))
    )
    return (raw - mean) * float(config["scaling_factor"]) / spread


def _encoded(vae: Any, pictures: list[Image.Image]) -> Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).to(vae.device)
    out = vae.encode(pixels.float() / 127.5 - 1.0)
    raw: Tensor = out.latents if isinstance(vae, AutoencoderTiny) else out.latent_dist.mode()
    return raw.cpu()
