"""The studio model's first stage: diffusers' AutoencoderTiny (after Ollin Boer Bohan's TAESD), trained from nothing.

Latents are kept near mean 0 and spread 1 a channel, and noise is laid on them before they are decoded: a decoder that
has seen inexact latents draws clean edges from those of a denoiser.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.precision import quickest

LATENT_CHANNELS = 16
STRIDE = 8
_WIDTH = 48
_CROP_PX, _CROPS = 64, 48
_WHOLE = 12  # whole pictures in a batch, which take as long as so many crops
WHOLE_FROM = 0.85  # of the steps: from here on whole pictures are learnt, whose borders crops do not have
_NOISE = 0.15


def new_first_stage() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(_WIDTH,) * 4,
        decoder_block_out_channels=(_WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(3, 3, 2, 1),
        latent_channels=LATENT_CHANNELS,
    )


def train_first_stage(data: PictureSet, out: Path, *, steps: int, device: torch.device) -> AutoencoderTiny:
    torch.manual_seed(2)
    model = new_first_stage().to(device, memory_format=torch.channels_last)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        whole = step >= WHOLE_FROM * steps
        x = data.batch(index[:_WHOLE] if whole else index)
        x = (x if whole else _cropped(x, step)).to(device).contiguous(memory_format=torch.channels_last)
        with quickest(device):
            z = model.encoder(x).float()
            y = model.decoder(z + _NOISE * torch.rand(len(z), 1, 1, 1, device=device) * torch.randn_like(z)).float()
        spread = (z.mean((0, 2, 3)).square() + (z.std((0, 2, 3)) - 1).square()).mean()
        return _unlike(y, x) + 0.02 * spread

    train("vae", model, loss_of, out=out, steps=steps, batch_size=_CROPS, examples=len(data), lr=2e-3, warmup=100,
          ema_decay=0.995, device=device)  # fmt: skip
    return model


def train_decoder(
    model: AutoencoderTiny, data: PictureSet, out: Path, *, steps: int, device: torch.device
) -> AutoencoderTiny:
    """Teach the decoder of a trained first stage further, on whole pictures and twice as noisy latents. The latents stay as
    they are, so the denoiser that was trained on them does, too."""
    torch.manual_seed(12)
    model = model.to(device, memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        x = data.batch(index).to(device).contiguous(memory_format=torch.channels_last)
        with quickest(device):
            with torch.no_grad():
                z = model.encoder(x).float()
            noise = 2 * _NOISE * torch.rand(len(z), 1, 1, 1, device=device) * torch.randn_like(z)
            y = model.decoder(z + noise).float()
        return _unlike(y, x)

    train("decoder", model, loss_of, out=out, steps=steps, batch_size=_WHOLE, examples=len(data), lr=1e-3, warmup=50,
          decay_from=0.3, ema_decay=0.99, device=device)  # fmt: skip
    return model


def _cropped(x: Tensor, step: int) -> Tensor:
    """A window of every picture (n, 3, h, w), near its middle more often than not: there the character is."""
    rng = np.random.default_rng((77, step))
    room = (x.shape[-1] - _CROP_PX) // STRIDE
    places = np.rint(rng.beta(1.5, 1.5, (len(x), 2)) * room).astype(int) * STRIDE
    return torch.stack([p[:, a : a + _CROP_PX, b : b + _CROP_PX] for p, (a, b) in zip(x, places, strict=True)])


def _unlike(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).abs().mean() + (y - x).square().mean() + _edges(y - x)


def _edges(error: Tensor) -> Tensor:
    """The mean absolute error of neighbouring pixels' differences: what blurred outlines get wrong."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@torch.no_grad()
def encode_all(model: AutoencoderTiny, data: PictureSet, size: int = 128) -> Tensor:
    """Latents (n, channels, h / 8, w / 8) float16, scaled as the UNet sees them."""
    device = next(model.parameters()).device
    chunks = []
    for i in range(0, len(data), size):
        x = data.batch(np.arange(i, min(i + size, len(data)))).to(device).contiguous(memory_format=torch.channels_last)
        with quickest(device):
            z = model.encoder(x) * float(model.config["scaling_factor"])
        chunks.append(z.half().cpu().contiguous())
    return torch.cat(chunks)


@torch.no_grad()
def psnr(model: AutoencoderTiny, data: PictureSet, count: int = 256) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures encoded and decoded again."""
    x = data.batch(np.arange(count))
    y = model.decoder(model.encoder(x)).clamp(-1, 1)
    error = F.mse_loss(y, x, reduction="none").mean((1, 2, 3)) / 4
    return (-10 * error.log10()).mean().item()
