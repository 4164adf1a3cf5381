"""The studio model's UNet: Stable Diffusion's layout, x-prediction on latents, zero terminal SNR."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from ipadapter_engine.training.captions import describe_identity, describe_staging, names_style, prompt_for
from ipadapter_engine.training.clip import WIDTH, tokens
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.drawing import PARTS, parts_at
from ipadapter_engine.training.first_stage import LATENT_CHANNELS
from ipadapter_engine.training.loop import Weights, fit
from ipadapter_engine.training.objective import Objective
from ipadapter_engine.training.optimisation import Optimisation
from ipadapter_engine.training.precision import quickest

SNR_GAMMA, NOISIER = 5.0, 2.0
BATCH, SHEET_EVERY = 48, 600
POOLED = "pooled"
PARTS_WEIGHT, PARTS_RARITY = 2.0, 5.0
LEFT_OUT = 0.04  # the share of a caption's parts that are missing


def new_unet() -> UNet2DConditionModel:
    """Two resolutions. Attention is at the lower alone, where 64 positions see all of a 128 px picture: at the upper
    it takes half of a step's time on a CPU, and convolutions draw the edges as well without. The words reach those as
    well, pooled into the time embedding; that path adds nothing at first."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,  # number of heads; diffusers kept the misnomer
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
    )
    nn.init.zeros_(unet.add_embedding.norm2.weight)
    return unet


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
    """Training data of the denoiser: pictures' truth, and their latents (n, c, h, w) float16."""

    pictures: PictureSet
    latents: Tensor

    def first(self, count: int) -> LatentSet:
        return LatentSet(self.pictures.first(count), self.latents[:count])


class Caption(NamedTuple):
    """What attention reads, and what the pooled path does."""

    attended: str
    pooled: str


def caption_for_base(data: PictureSet, i: int, rng: random.Random) -> Caption:
    """Mostly who and what, sometimes what alone, sometimes nothing (for guidance); parts are missing at times, as they
    are in people's prompts.

    Half of the time the pooled path does not hear who: attention, which is all that an adapter speaks through, has to
    draw the character by itself.
    """
    kind = rng.random()
    if kind < 0.07:
        return Caption("", "")
    staging = data.stagings[i]
    style = names_style(staging, rng)
    if kind < 0.22:
        return Caption(*[prompt_for(staging, style=style)] * 2)
    told = describe_staging(staging, style=style, rng=rng, drop=LEFT_OUT)
    who, what = (
        ", ".join(p for p in (w, told) if p) for w in (describe_identity(data.identities[i], rng, LEFT_OUT), "a mascot")
    )
    return Caption(who, what if rng.random() < 0.5 else who)


@torch.no_grad()
def text_states(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str], device: torch.device) -> Tensor:
    with quickest(device):
        states: Tensor = clip.text_model(input_ids=tokens(tokenizer, texts).to(device)).last_hidden_state
    return states.float()


@torch.no_grad()
def error_from_noise(unet: UNet2DConditionModel, latents: Tensor, text: Tensor) -> float:
    """The mean squared error of the clean latents (n, c, h, w) that are guessed from pure noise and text states (n, t, d).

    The spread of the latents is what a guess of their mean would be off by. It falls as words are understood, where the
    loss is mostly of noise levels that show the picture itself.
    """
    last = torch.full(latents.shape[:1], new_scheduler().config["num_train_timesteps"] - 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    guess: Tensor = unet(noise, last, encoder_hidden_states=text).sample
    return (guess - latents).square().mean().item()


def train_unet(
    data: LatentSet, clip: CLIPModel, tokenizer: CLIPTokenizer, out: Path, *, steps: int, device: torch.device,
    start: dict[str, Tensor] | None = None, on_sheet: Callable[[int, UNet2DConditionModel], None] | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    """start: the weights to begin with, else new ones. on_sheet(step, unet) is given a copy with the averaged weights now
    and then."""
    torch.manual_seed(4)
    unet = new_unet()
    if start is not None:
        unet.load_state_dict(start)
    unet = unet.to(device, memory_format=torch.channels_last)
    if device.type == "cpu":  # the fused attention's backward pass takes four times as long there
        unet.set_attn_processor(AttnProcessor())
    clip = clip.to(device).eval()
    objective = Objective(dict(new_scheduler().config), SNR_GAMMA, device)
    # Training says apart what the pooled path hears; made of the same text states it is what diffusers does itself.
    unet.get_aug_embed = lambda emb, encoder_hidden_states, added_cond_kwargs: unet.add_embedding(
        added_cond_kwargs[POOLED]
    )
    # Lent to the UNet while it trains: what its middle, of the same grid, has to tell of every place's parts. A loss on
    # pictures alone learns late where words put them (as REPA found of features; Yu et al., 2024, arXiv:2410.06940).
    unet.parts_head = nn.Linear(unet.config["block_out_channels"][-1], len(PARTS)).to(device)
    middle: dict[str, Tensor] = {}
    hook = unet.mid_block.register_forward_hook(lambda block, given, out: middle.update(out=out))
    rarity = torch.full((len(PARTS),), PARTS_RARITY, device=device)
    compiled: Any = torch.compile(unet)  # half of a step is otherwise spent between its kernels

    def batch_of(step: int, index: np.ndarray) -> tuple[Tensor, ...]:
        rng = random.Random(step)
        x = data.latents[index].float()
        noise, t = objective.draw(x, noisier=NOISIER)
        captions = [caption_for_base(data.pictures, i, rng) for i in index]
        texts = dict.fromkeys(text for caption in captions for text in caption)
        states = dict(zip(texts, text_states(clip, tokenizer, list(texts), device), strict=True))
        attended, pooled = (torch.stack([states[text] for text in part]) for part in zip(*captions, strict=True))
        pictures, grid = data.pictures, x.shape[-1] // 2
        parts = [
            parts_at(pictures.identities[i], pictures.stagings[i], grid=grid, seed=pictures.first_seed + int(i))
            for i in index
        ]
        return x, noise, t, attended, pooled, torch.from_numpy(np.stack(parts)).float()

    def loss_of(batch: tuple[Tensor, ...], rows: slice) -> Tensor:
        x, noise, t, text, pooled, parts = (part[rows].to(device) for part in batch)
        noised = objective.noised(x.contiguous(memory_format=torch.channels_last), noise, t)
        with quickest(device):
            guess = compiled(noised.latents, t, encoder_hidden_states=text, added_cond_kwargs={POOLED: pooled}).sample
            told = unet.parts_head(middle["out"].flatten(2).transpose(1, 2)).float()
        local = F.binary_cross_entropy_with_logits(told, parts, pos_weight=rarity)
        return noised.loss(guess) + PARTS_WEIGHT * local

    def show(step: int, weights: Weights) -> None:
        if on_sheet is not None:
            shown = new_unet()
            shown.load_state_dict({k: v.detach().cpu() for k, v in weights.items() if not k.startswith("parts_head.")})
            on_sheet(step, shown.eval())

    how = Optimisation(
        steps=steps, batch_size=BATCH, optimizer="muon", lr=1.2e-3, betas=(0.9, 0.99), warmup=300, schedule="cosine", decay_from=0.3,
        ema_decay=0.998, log_every=50, sheet_every=SHEET_EVERY,
    )  # fmt: skip
    fit("unet", unet, batch_of, loss_of, how, out=out, examples=len(data.pictures), device=device, on_sheet=show)
    hook.remove()
    del unet.parts_head
    return unet
