"""The image half of the studio model's CLIP, trained to match the captions of its text half."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from ipadapter_engine.training.captions import caption
from ipadapter_engine.training.clip import EMBED_SPREAD, WIDTH, normalised, seen, shaken, tokens
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.drawing import PARTS, parts_at
from ipadapter_engine.training.loop import fit
from ipadapter_engine.training.mascots import ATTRIBUTES
from ipadapter_engine.training.optimisation import Optimisation
from ipadapter_engine.training.precision import quickest

BATCH = 96
SHARPNESS = 20.0  # of the contrastive softmax, on cosines
_PARTS_WEIGHT, _PARTS_RARITY = 8.0, 5.0


class _Seeing(nn.Module):
    """The image encoder with a head an attribute on its embedding, and a head that says of every patch which parts it
    shows: as the renderer knows both, a picture teaches 64 places besides its caption."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.projection = clip.vision_model, clip.visual_projection
        self.heads = nn.ModuleList([nn.Linear(WIDTH, len(a.values)) for a in ATTRIBUTES])
        self.parts = nn.Linear(clip.config.vision_config.hidden_size, len(PARTS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures (n, 3, h, w) -> unit embeddings (n, embed), logits of the parts (n, patches, parts)."""
        out = self.vision_model(pixel_values=pictures)
        embedded = F.normalize(self.projection(out.pooler_output).float(), dim=-1)
        return embedded, self.parts(out.last_hidden_state[:, 1:]).float()

    def label_loss(self, embedded: Tensor, truths: Tensor) -> Tensor:
        logits = [head(embedded * EMBED_SPREAD) for head in self.heads]
        return torch.stack([F.cross_entropy(h, truths[:, i]) for i, h in enumerate(logits)]).mean()


def train_sight(
    clip: CLIPModel, data: PictureSet, tokenizer: CLIPTokenizer, out: Path, *, steps: int, device: torch.device
) -> CLIPModel:
    """Contrastive training (Radford et al., 2021) against captions as the finished text encoder embeds them, plus labels of
    attributes and parts. Half of every batch is seen as it was drawn, the other half moved, scaled, tinted and blurred.
    """
    torch.manual_seed(1)
    model = _Seeing(clip).to(device).train()
    clip.text_model.to(device).requires_grad_(False)
    clip.text_projection.to(device)
    if device.type == "cpu":  # the fused attention's backward pass is slower there than its parts
        clip.set_attn_implementation("eager")
    compiled: Any = torch.compile(model)
    rarity = torch.full((len(PARTS),), _PARTS_RARITY, device=device)
    grid = clip.config.vision_config.image_size // clip.config.vision_config.patch_size

    def batch_of(step: int, index: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
        rng = random.Random(step)
        texts = [caption(data.identities[i], data.stagings[i], rng) for i in index]
        drawn = data.batch(index)
        still = len(index) // 2
        pictures = torch.cat([seen(drawn[:still]), shaken(drawn[still:])])
        parts = [
            parts_at(data.identities[i], data.stagings[i], grid=grid, seed=data.first_seed + int(i))
            for i in index[:still]
        ]
        with torch.no_grad(), quickest(device):
            pooled = clip.text_model(input_ids=tokens(tokenizer, texts).to(device)).pooler_output
            told = F.normalize(clip.text_projection(pooled).float(), dim=-1)
        truths = torch.from_numpy(data.truths[index])
        return normalised(pictures), told, truths, torch.from_numpy(np.stack(parts)).float(), texts

    def loss_of(batch: tuple[Tensor, Tensor, Tensor, Tensor, list[str]], rows: slice) -> Tensor:
        pictures, told, truths, parts = (part.to(device) for part in batch[:4])
        with quickest(device):
            embedded, shown = compiled(pictures)
        local = F.binary_cross_entropy_with_logits(shown[: len(parts)], parts, pos_weight=rarity)
        matching = _contrastive(SHARPNESS * embedded @ told.T, batch[4])
        return matching + 2 * model.label_loss(embedded, truths) + _PARTS_WEIGHT * local

    how = Optimisation(
        steps=steps, batch_size=BATCH, optimizer="muon", lr=1.5e-3, betas=(0.9, 0.99), warmup=100, schedule="cosine",
        decay_from=0.2, log_every=50,
    )  # fmt: skip
    fit("sight", model, batch_of, loss_of, how, out=out, examples=len(data), device=device)
    return clip.eval()


def _contrastive(logits: Tensor, texts: list[str]) -> Tensor:
    """The symmetric cross-entropy of pictures and captions. Captions without identity (or without staging) can be equal:
    every equal caption is a right answer."""
    ids = {t: n for n, t in enumerate(dict.fromkeys(texts))}
    same = torch.tensor([ids[t] for t in texts], device=logits.device)
    target = (same[:, None] == same[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
