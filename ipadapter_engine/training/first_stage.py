"""The studio model's first stage: patches projected on their principal components, fitted in seconds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.patches import PatchAutoencoder
from ipadapter_engine.training.dataset import PictureSet

LATENT_CHANNELS = 64
FITTED_ON = 4000


def new_first_stage() -> PatchAutoencoder:
    return PatchAutoencoder(patch_px=8, latent_channels=LATENT_CHANNELS)


def fit_first_stage(data: PictureSet) -> PatchAutoencoder:
    return new_first_stage().fit(data.batch(np.arange(min(FITTED_ON, len(data)))))


@torch.no_grad()
def encode_all(model: PatchAutoencoder, data: PictureSet, size: int = 512) -> Tensor:
    """Latents (n, channels, h / 8, w / 8) float16."""
    chunks = []
    for i in range(0, len(data), size):
        chunks.append(model.encode(data.batch(np.arange(i, min(i + size, len(data))))).half().contiguous())
    return torch.cat(chunks).contiguous()


@torch.no_grad()
def psnr(model: PatchAutoencoder, data: PictureSet, count: int = 256) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures encoded and decoded again."""
    x = data.batch(np.arange(count))
    y = model.decode(model.encode(x)).sample.clamp(-1, 1)
    error = ((x - y) / 2).square().mean((1, 2, 3))
    return (-10 * error.log10()).mean().item()
