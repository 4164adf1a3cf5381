"""The studio model's UNet and its IP-Adapter: x-prediction on latents, zero terminal SNR."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ipadapter_engine.adapter import Adapter, new_base_adapter
from ipadapter_engine.attention import Conditioning, ImagePrompt, Installed
from ipadapter_engine.training.captions import describe_identity, describe_staging, prompt_for
from ipadapter_engine.training.clip import normalised, tokens
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.first_stage import LATENT_CHANNELS
from ipadapter_engine.training.loop import train


def new_unet() -> UNet2DConditionModel:
    """In the Stable Diffusion layout: three resolutions, all with cross-attention to 128-wide text states."""
    """In the Stable Diffusion layout: two resolutions, both with cross-attention to 128-wide text states."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,  # number of heads; diffusers kept the misnomer
        cross_attention_dim=128,
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not used by this spacing; diffusers warns of any other
        clip_sample=False,
        set_alpha_to_one=True,
    )


@dataclass(frozen=True)
class LatentSet:
    """Training data of the denoiser: latents (n, c, h, w) float16 and pooled CLIP embeddings (n, d)."""

    pictures: PictureSet
    latents: Tensor
    embeddings: Tensor


@torch.no_grad()
def embed_all(clip: CLIPModel, data: PictureSet, device: torch.device, size: int = 256) -> Tensor:
    """Pooled, projected image embeddings (n, d), as CLIPVisionModelWithProjection gives them (not normalised)."""
    chunks = []
    for i in range(0, len(data), size):
        x = normalised(data.batch(np.arange(i, min(i + size, len(data)))).to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            pooled = clip.vision_model(pixel_values=x).pooler_output
        chunks.append(clip.visual_projection(pooled.float()).cpu())
    return torch.cat(chunks).contiguous()


def _caption(data: PictureSet, i: int, rng: random.Random) -> str:
    """Mostly who and what, sometimes what alone, sometimes nothing (for guidance)."""
    kind = rng.random()
    if kind < 0.08:
        return ""
    if kind < 0.25:
        return prompt_for(data.stagings[i])
    return f"{describe_identity(data.identities[i], rng, 0.08)}, {describe_staging(data.stagings[i])}"


POLISH_FROM = 0.7  # of the steps: from here on the base learns mostly at low noise
MAX_WEIGHT = 6.0
MAX_WEIGHT_POLISH = 16.0


class _Objective:
    """Noise a batch and weigh the error of the predicted clean latents.

    The weight is 1 + SNR, clipped: what a noise level is worth for the picture (x-prediction; Salimans and Ho, 2022).
    Polishing draws low noise more often and clips later: shapes are known by then, clean edges are not.
    """

    def __init__(self, device: torch.device) -> None:
        self.alphas = new_scheduler().alphas_cumprod.to(device)

    def noised(self, x: Tensor, *, polish: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """x (n, c, h, w) -> noised latents, timesteps (n,), loss weights (n,)."""
        uniform = torch.rand(x.shape[0], device=x.device)
        t = ((uniform.square() if polish else uniform) * len(self.alphas)).long()
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
        snr = (a / (1 - a)).flatten()
        return noisy, t, (1 + snr).clamp(max=MAX_WEIGHT_POLISH if polish else MAX_WEIGHT)


def _text_states(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Tensor:
    with torch.no_grad():
        return clip.text_model(input_ids=tokens(tokenizer, texts).to(device)).last_hidden_state


def train_unet(
    data: LatentSet, clip: CLIPModel, tok: CLIPTokenizer, out: Path, *, steps: int, device: torch.device
) -> UNet2DConditionModel:
    torch.manual_seed(4)
    unet = new_unet().to(device, memory_format=torch.channels_last)
    clip = clip.to(device)
    objective = _Objective(device)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        rng = random.Random(step)
        x = data.latents[index].float().to(device, memory_format=torch.channels_last)
        noisy, t, weight = objective.noised(x, polish=step >= POLISH_FROM * steps)
        text = _text_states(clip, tok, [_caption(data.pictures, i, rng) for i in index], device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            guess = unet(noisy, t, encoder_hidden_states=text).sample
        return (weight * (guess.float() - x).square().mean((1, 2, 3))).mean()

    train(
        "unet",
        unet,
        loss_of,
        out=out,
        steps=steps,
        batch_size=64,
        examples=len(data.pictures),
        lr=1e-3,
        warmup=300,
        ema_decay=0.998,
        device=device,
    )
    return unet


def train_adapter(
    data: LatentSet,
    unet: UNet2DConditionModel,
    clip: CLIPModel,
    tok: CLIPTokenizer,
    out: Path,
    *,
    steps: int,
    device: torch.device,
) -> Adapter:
    """IP-Adapter training: the base is frozen, prompts never name the character, the reference is another
    picture of it; image, text and both are dropped at times (sec. 4.1 of the paper)."""
    torch.manual_seed(5)
    unet = unet.to(device, memory_format=torch.channels_last).requires_grad_(False)
    clip = clip.to(device)
    adapter = new_base_adapter(unet, data.embeddings.shape[1]).to(device)
    installed = Installed(unet, adapter.by_number())
    groups = data.pictures.by_identity()
    objective = _Objective(device)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        rng = random.Random(step)
        x = data.latents[index].float().to(device, memory_format=torch.channels_last)
        noisy, t, weight = objective.noised(x)
        chosen = [int(rng.choice(groups[data.pictures.identities[i]])) for i in index]
        embedding = data.embeddings[chosen].to(device).clone()
        texts = [prompt_for(data.pictures.stagings[i]) for i in index]
        for row in range(len(index)):
            kind = rng.random()
            if kind < 0.10:
                embedding[row] = 0
            if 0.05 < kind < 0.15:
                texts[row] = ""
        text = _text_states(clip, tok, texts, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            image = adapter.projection(embedding)
            prompt = ImagePrompt(
                image, torch.zeros(image.shape[:2], device=device), torch.ones(len(index), device=device)
            )
            with installed.slot.holding(Conditioning(prompt, reuse=False)):
                guess = unet(noisy, t, encoder_hidden_states=text).sample
        return (weight * (guess.float() - x).square().mean((1, 2, 3))).mean()

    try:
        train(
            "adapter",
            adapter,
            loss_of,
            out=out,
            steps=steps,
            batch_size=64,
            examples=len(data.pictures),
            lr=1e-3,
            warmup=100,
            ema_decay=0.995,
            device=device,
        )
    finally:
        installed.eject()
    return adapter
