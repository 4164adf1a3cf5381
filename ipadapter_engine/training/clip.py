"""The studio model's CLIP: a small vision and text transformer trained on rendered pictures and captions."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ipadapter_engine.training.captions import MAX_TOKENS, caption, describe_identity, describe_staging
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.mascots import ATTRIBUTES

# The pictures' own mean and spread would do as well; CLIP's published values keep the preprocessing familiar.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
EMBED_SPREAD = 11.0  # unit vectors of 128 numbers -> numbers of size about one


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        projection_dim=128,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def normalised(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in -1…1 -> what the vision model expects."""
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    return (pictures * 0.5 + 0.5 - mean) / std


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, MAX_TOKENS), padded."""
    out = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return out["input_ids"]


class _Supervised(nn.Module):
    """CLIP with a linear head an attribute on the image embedding: as the renderer knows the truth,
    every picture teaches nine labels besides its caption, which makes the embedding linear in who is shown."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.heads = nn.ModuleList([nn.Linear(clip.config.projection_dim, len(a.values)) for a in ATTRIBUTES])

    def label_loss(self, image_embeds: Tensor, truths: Tensor) -> Tensor:
        logits = [head(image_embeds * EMBED_SPREAD) for head in self.heads]
        return torch.stack([F.cross_entropy(h, truths[:, i]) for i, h in enumerate(logits)]).mean()


def train_clip(data: PictureSet, tokenizer: CLIPTokenizer, out: Path, *, steps: int, device: torch.device) -> CLIPModel:
    """Contrastive training (Radford et al., 2021) on captions that say who, what, or both, plus attribute labels."""
    torch.manual_seed(1)
    model = _Supervised(new_clip(tokenizer)).to(device)

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        rng = random.Random(step)
        pictures = normalised(data.batch(index).to(device))
        texts = [caption(data.identities[i], data.stagings[i], rng) for i in index]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            result = model.clip(input_ids=tokens(tokenizer, texts).to(device), pixel_values=pictures)
        logits = result.logits_per_image.float()
        # Captions without identity (or without staging) can be equal: every equal caption is a right answer.
        ids = {t: n for n, t in enumerate(dict.fromkeys(texts))}
        same = torch.tensor([ids[t] for t in texts], device=device)
        target = (same[:, None] == same[None, :]).float()
        target = target / target.sum(1, keepdim=True)
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        truths = torch.from_numpy(data.truths[index]).to(device)
        return contrastive + model.label_loss(result.image_embeds.float(), truths)

    train("clip", model, loss_of, out=out, steps=steps, batch_size=128, examples=len(data), lr=1e-3, device=device)
    return model.clip


@torch.no_grad()
def top1(model: CLIPModel, tokenizer: CLIPTokenizer, data: PictureSet, count: int = 256) -> float:
    """Share of `count` unseen pictures whose full caption is the nearest of all."""
    index = np.arange(count)
    texts = [f"{describe_identity(data.identities[i])}, {describe_staging(data.stagings[i])}" for i in index]
    result = model(input_ids=tokens(tokenizer, texts), pixel_values=normalised(data.batch(index)))
    return (result.logits_per_image.argmax(1) == torch.arange(count)).float().mean().item()
