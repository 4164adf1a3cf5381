"""The studio model's CLIP, a small vision and text transformer, and how its text half is trained; see `sight`."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ipadapter_engine.training.captions import MAX_TOKENS, NAMING, caption, full_caption
from ipadapter_engine.training.dataset import PictureSet
from ipadapter_engine.training.loop import train
from ipadapter_engine.training.mascots import ATTRIBUTES
from ipadapter_engine.training.precision import quickest

# The pictures' own mean and spread would do as well; CLIP's published values keep the preprocessing familiar.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
WIDTH = 192
EMBED_SPREAD = WIDTH**0.5  # unit vectors -> numbers of size about one
SIDE_PX = 96
_BEND = 0.03  # how far places are moved by bending, in half sides


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=12,
        projection_dim=WIDTH,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def normalised(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in -1…1 -> what the vision model expects."""
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    return (pictures * 0.5 + 0.5 - mean) / std


def seen(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in -1…1 at the side that the vision model reads."""
    return F.interpolate(pictures, size=(SIDE_PX, SIDE_PX), mode="bicubic", antialias=True, align_corners=False)


def shaken(pictures: Tensor) -> Tensor:
    """The same, as another hand would draw and another camera see them: moved, stretched and bent, with thicker or thinner
    lines, tinted and blurred at random."""
    n, device = pictures.shape[0], pictures.device
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = torch.empty(2, n).uniform_(0.82, 1.16)
    theta[:, :, 2] = torch.empty(n, 2).uniform_(-0.12, 0.12)
    bend = F.interpolate(_BEND * torch.randn(n, 2, 5, 5), size=(SIDE_PX, SIDE_PX), mode="bicubic", align_corners=True)
    grid = F.affine_grid(theta, [n, 3, SIDE_PX, SIDE_PX], align_corners=False) + bend.permute(0, 2, 3, 1)
    moved = F.grid_sample(pictures, grid.to(device), mode="bilinear", padding_mode="border", align_corners=False)
    thinner, thicker = F.max_pool2d(moved, 3, 1, 1), -F.max_pool2d(-moved, 3, 1, 1)
    kind = torch.randint(0, 4, (n, 1, 1, 1), device=device)
    lined = torch.where(kind == 0, thinner, torch.where(kind == 1, thicker, moved))
    gain, lift = (torch.empty(n, 3, 1, 1).uniform_(-s, s).to(device) for s in (0.12, 0.08))
    light = torch.empty(n, 1, 1, 1).uniform_(-0.12, 0.12).to(device)
    soft = F.avg_pool2d(lined, 3, 1, 1)
    return torch.lerp(lined, soft, torch.rand(n, 1, 1, 1, device=device)) * (1 + gain) + lift + light


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, MAX_TOKENS), padded."""
    out = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return out["input_ids"]


class _Worded(nn.Module):
    """The text encoder with a head that names the token from its state, and a head an attribute on the caption's
    embedding. A contrastive loss alone leaves words alike whose pictures other words tell apart: a background's colour
    finds the right one of 256 captions, and the words for shapes end as one."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        config = clip.config.text_config
        self.text_model, self.projection = clip.text_model, clip.text_projection
        self.token = nn.Linear(config.hidden_size, config.vocab_size)
        self.heads = nn.ModuleList([nn.Linear(WIDTH, len(a.values)) for a in ATTRIBUTES])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (n, length) -> states (n, length, hidden), unit embeddings (n, embed)."""
        out = self.text_model(input_ids=ids)
        return out.last_hidden_state.float(), F.normalize(self.projection(out.pooler_output).float(), dim=-1)


def train_words(
    clip: CLIPModel, data: PictureSet, tokenizer: CLIPTokenizer, out: Path, *, steps: int, device: torch.device
) -> CLIPModel:
    """Teach the text encoder of `clip` to tell every word from its own state and from the caption's embedding."""
    torch.manual_seed(8)
    model = _Worded(clip).to(device).train()
    if device.type == "cpu":  # the fused attention's backward pass is slower there than its parts
        clip.set_attn_implementation("eager")

    def loss_of(step: int, index: np.ndarray) -> Tensor:
        rng = random.Random(step)
        texts = [caption(data.identities[i], data.stagings[i], rng) for i in index]
        ids = tokens(tokenizer, texts).to(device)
        with quickest(device):
            states, embedded = model(ids)
            named = model.token(states)
        told = torch.arange(ids.shape[1], device=device) <= ids.eq(tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        return F.cross_entropy(named[told].float(), ids[told]) + _attributes(model, embedded, data, index, texts)

    train("words", model, loss_of, out=out, steps=steps, batch_size=128, examples=len(data), lr=1e-3, device=device)
    return clip


def _attributes(model: _Worded, embedded: Tensor, data: PictureSet, index: np.ndarray, texts: list[str]) -> Tensor:
    """The mean cross-entropy of the attributes that each caption names."""
    truths = torch.from_numpy(data.truths[index]).clone()
    for row, text in enumerate(texts):
        said = set(text.replace(",", "").split())
        for k in range(truths.shape[1]):
            if not said & NAMING[k][truths[row, k]]:
                truths[row, k] = -100
    truths = truths.to(embedded.device)
    losses = [
        F.cross_entropy(head(embedded * EMBED_SPREAD), truths[:, k], reduction="sum")
        for k, head in enumerate(model.heads)
    ]
    return torch.stack(losses).sum() / truths.ge(0).sum().clamp_min(1)


@torch.no_grad()
def top1(model: CLIPModel, tokenizer: CLIPTokenizer, data: PictureSet, count: int = 256) -> float:
    """Share of `count` unseen pictures whose full caption is the nearest of all."""
    index = np.arange(count)
    texts = [full_caption(data.identities[i], data.stagings[i]) for i in index]
    result = model(input_ids=tokens(tokenizer, texts), pixel_values=normalised(seen(data.batch(index))))
    return (result.logits_per_image.argmax(1) == torch.arange(count)).float().mean().item()
