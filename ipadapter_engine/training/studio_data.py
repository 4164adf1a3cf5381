"""The renderer's pictures as training data of adapters and ControlNets on the studio model."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.training.adapter_data import Example
from ipadapter_engine.training.adapter_training import AdapterTraining
from ipadapter_engine.training.captions import full_caption, names_style, prompt_for
from ipadapter_engine.training.clip import SIDE_PX, normalised, seen, shaken
from ipadapter_engine.training.dataset import PictureSet, rendered
from ipadapter_engine.training.diffusion import LatentSet
from ipadapter_engine.training.errors import TrainingRefused
from ipadapter_engine.training.first_stage import encode_all
from ipadapter_engine.training.frozen import sha256_of_module
from ipadapter_engine.training.mascots import training_identities
from ipadapter_engine.training.precision import quickest

STYLE = "style"  # an adapter of this name hears the style alone
PICTURES, OF_EACH = 20_000, 5
_AT_ONCE = 128
# How adapters train on these pictures, where nothing else is asked for.
ADAPTER_TRAINING: dict[str, Any] = {
    "batch_size": 64, "optimizer": "muon", "noisier": 2.0, "lr": 1e-3, "betas": (0.9, 0.99), "warmup": 100, "schedule": "cosine",
    "decay_from": 0.3, "ema_decay": 0.995, "log_every": 50, "sheet_every": 500,
}  # fmt: skip


class StudioData:
    """AdapterData of mascots.

    Identity: the reference is another picture of the character, not from behind where there is one, and the caption
    names everything but who. Style: the reference is a picture of any character in the same style, and the caption
    names everything but the style.
    """

    def __init__(
        self, of: LatentSet, checkpoint: Checkpoint, *, pooled: bool, style: bool, embeddings: Path | None = None
    ) -> None:
        assert checkpoint.encoder is not None
        self.pictures, self._latents, self.style = of.pictures, of.latents.float(), style
        self._embeddings = _embedded(of.pictures, checkpoint.encoder, pooled=pooled, file=embeddings)
        self._groups = _grouped(
            [s.style if style else w for w, s in zip(of.pictures.identities, of.pictures.stagings, strict=True)]
        )
        self._faces = np.array([s.view != "back" for s in of.pictures.stagings])
        told = [checkpoint.encoder.sha256, sha256_of_module(checkpoint.vae), len(of.pictures), pooled, style]
        self.sha256 = hashlib.sha256(repr(told).encode() + of.pictures.truths.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def latents(self, index: np.ndarray) -> Tensor:
        return self._latents[index]

    def captions(self, index: np.ndarray, rng: random.Random) -> list[str]:
        return [self._caption(i, rng) for i in index]

    def references(self, index: np.ndarray, rng: random.Random) -> Tensor:
        return self._embeddings[[self._reference_of(i, rng) for i in index]].float()

    def examples(self, count: int) -> list[Example]:
        """The first pictures, each with the reference that it would have in training."""
        rng, made = random.Random(0), []
        for i in range(count):
            reference = self._reference_of(i, rng)
            picture = Image.fromarray(np.asarray(self.pictures.pixels[reference]))
            made.append(Example(picture, self._caption(i, rng), self._embeddings[reference].float().numpy()))
        return made

    def _caption(self, i: int, rng: random.Random) -> str:
        staging = self.pictures.stagings[i]
        if self.style:
            return full_caption(self.pictures.identities[i], staging, style=False)
        return prompt_for(staging, style=names_style(staging, rng))

    def _reference_of(self, i: int, rng: random.Random) -> int:
        staging, who = self.pictures.stagings[i], self.pictures.identities[i]
        group = self._groups[staging.style if self.style else who]
        others = group if self.style else group[(group != i) & self._faces[group]]
        return int(rng.choice(others if len(others) else group))


def _grouped(keys: list[Any]) -> dict[Any, np.ndarray]:
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return {key: np.array(rows) for key, rows in groups.items()}


@torch.no_grad()
def _embedded(data: PictureSet, encoder: ImageEncoder, *, pooled: bool, file: Path | None) -> Tensor:
    """Pooled (n, embed) or hidden states (n, patches + 1, hidden), float16; every second picture is shaken first, so
    that an adapter does not lean on one hand's exact lines."""
    if file is not None and file.exists():
        held = load_file(file)["embeddings"]
        if len(held) == len(data):
            return held
    device = encoder.model.device
    made = []
    with torch.random.fork_rng(devices=[]):
        for i in range(0, len(data), _AT_ONCE):
            torch.manual_seed(i)
            x = data.batch(np.arange(i, min(i + _AT_ONCE, len(data)))).to(device)
            looked_at = x.new_empty(len(x), 3, SIDE_PX, SIDE_PX)
            looked_at[0::2], looked_at[1::2] = seen(x[0::2]), shaken(x[1::2])
            with quickest(device):
                out = encoder.model(pixel_values=normalised(looked_at), output_hidden_states=not pooled)
            made.append((out.image_embeds if pooled else out.hidden_states[-2]).half().cpu())
    embeddings = torch.cat(made)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"embeddings": embeddings}, file)
    return embeddings


def studio_adapter_data(checkpoint: Checkpoint, settings: AdapterTraining, *, cache: Path) -> StudioData:
    """20,000 pictures of 4,000 characters, drawn and encoded once and kept in `cache`.

    Raises TrainingRefused for a base that is not the studio model, or without image encoder.
    """
    if checkpoint.family.name != "studio" or checkpoint.encoder is None:
        raise TrainingRefused(
            f"the studio's pictures teach {checkpoint.family.title} nothing", "name a folder of pictures with --data"
        )
    cache.mkdir(parents=True, exist_ok=True)
    pictures = rendered(
        PICTURES, seed=1, size_px=checkpoint.family.size_px, identities=training_identities()[: PICTURES // OF_EACH],
        cache=cache / "pictures.npy",
    )  # fmt: skip
    made_by = sha256_of_module(checkpoint.vae)[:16]
    latents = cache / f"latents.{made_by}.safetensors"
    if not latents.exists():
        save_file({"latents": encode_all(checkpoint.vae, pictures)}, latents)
    pooled = settings.variant == "base"
    embeddings = cache / f"{'pooled' if pooled else 'hidden'}.{checkpoint.encoder.sha256[:16]}.safetensors"
    return StudioData(
        LatentSet(pictures, load_file(latents)["latents"]), checkpoint, pooled=pooled, style=settings.called == STYLE,
        embeddings=embeddings,
    )  # fmt: skip
