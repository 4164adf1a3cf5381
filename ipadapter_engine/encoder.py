"""The CLIP image encoder: pictures in, embeddings out, known by weights and preprocessing together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_weights
from ipadapter_engine.preprocessing import Preprocessing
from ipadapter_engine.weights import load_model, read_config

_PREPROCESSING = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
                  "do_normalize", "image_mean", "image_std", "do_convert_rgb")  # fmt: skip


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """pooled float32 (embed,); hidden float32 (patches + 1, hidden), the last layer but one, None if not asked for."""

    pooled: np.ndarray
    hidden: np.ndarray | None


class ImageEncoder:
    """An open encoder. `sha256` identifies what its embeddings mean: weights and preprocessing."""

    def __init__(
        self, model: CLIPVisionModelWithProjection, processor: CLIPImageProcessorPil, *, name: str, weights_sha256: str
    ) -> None:
        self.model, self.processor, self.name, self.weights_sha256 = model, processor, name, weights_sha256
        config = processor.to_dict()
        self.preprocessing: dict[str, Any] = {k: _plain(config[k]) for k in _PREPROCESSING if k in config}
        self._preprocess = Preprocessing(processor)
        identity = json.dumps([weights_sha256, self.preprocessing], sort_keys=True, separators=(",", ":"))
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def hidden_dim(self) -> int:
        return int(self.model.config.hidden_size)

    @classmethod
    def open(
        cls, folder: Path, *, name: str, processor_folder: Path | None = None, device: str = "cpu"
    ) -> ImageEncoder:
        """Open a transformers folder with safetensors weights; raises CheckpointRefused."""
        if not (folder / "config.json").exists():
            raise CheckpointRefused(
                f"{folder} holds no image encoder", "name a folder with a CLIP vision model and projection"
            )
        model = load_model(
            CLIPVisionModelWithProjection, folder, torch.float32,
            next_step="name a CLIP vision model with its projection, saved whole with safetensors weights",
        )  # fmt: skip
        places = [f for f in (processor_folder, folder) if f is not None and (f / "preprocessor_config.json").exists()]
        if places:
            read_config(places[0] / "preprocessor_config.json")
            processor = CLIPImageProcessorPil.from_pretrained(places[0], local_files_only=True)
        else:  # an encoder without its file was, by convention, trained with CLIP's own preprocessing
            side = int(model.config.image_size)
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return cls(model.to(device).eval(), processor, name=name, weights_sha256=sha256_of_weights(folder))

    def encode(self, pictures: Sequence[Image.Image], *, hidden: bool = False) -> list[EncodedPicture]:
        """One forward pass over RGB pictures of any size."""
        return self.encode_prepared([self.prepare(p) for p in pictures], hidden=hidden)

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """What the model sees of a picture: float32 (3, side, side), resized, cropped and normalised. Thread-safe."""
        return self._preprocess(picture.convert("RGB"))

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[np.ndarray], *, hidden: bool = False) -> list[EncodedPicture]:
        """One forward pass over what `prepare` returned."""
        if not prepared:
            return []
        inputs = torch.from_numpy(np.stack(prepared)).to(self.model.device, self.model.dtype)
        out = self.model(pixel_values=inputs, output_hidden_states=hidden)
        pooled = out.image_embeds.float().cpu().numpy()
        states = out.hidden_states[-2].float().cpu().numpy() if hidden else [None] * len(pooled)
        return [EncodedPicture(p, h) for p, h in zip(pooled, states, strict=True)]

    @torch.inference_mode()
    def zero_hidden(self) -> np.ndarray:
        """Hidden states of zero pixels (patches + 1, hidden): what a plus adapter's negative half attends to."""
        side = int(self.model.config.image_size)
        zeros = torch.zeros(1, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        states = self.model(pixel_values=zeros, output_hidden_states=True).hidden_states[-2]
        return states[0].float().cpu().numpy()


def _plain(value: Any) -> Any:
    """Processor settings as JSON: size objects become dicts, enums numbers."""
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if hasattr(value, "__dataclass_fields__"):
        return {k: _plain(getattr(value, k)) for k in value.__dataclass_fields__ if getattr(value, k) is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
