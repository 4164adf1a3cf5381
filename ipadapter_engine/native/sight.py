"""How references get into a text encoder or an adapter that sees: preparation without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, Qwen2Tokenizer, SiglipVisionModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_weights
from ipadapter_engine.weights import load_model, read_config

IMAGE = "<|image_pad|>"


class QwenSight:
    """Text and pictures as Qwen2.5-VL reads them: each mark of a picture becomes as many as the picture has patches.

    As transformers' Qwen2VLProcessor does, which needs torchvision for videos even where there are none.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, pictures: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures

    @classmethod
    def open(cls, folder: Path, tokenizer: Qwen2Tokenizer) -> QwenSight:
        read_config(folder / "preprocessor_config.json")
        return cls(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True))

    def __call__(self, text: Sequence[str], images: Any, padding: bool, return_tensors: str) -> BatchFeature:
        """images: one picture or several, in the order in which the texts mark them."""
        shown = self.pictures(images=images, return_tensors=return_tensors)
        patches = [int(g.prod()) // self.pictures.merge_size**2 for g in shown["image_grid_thw"]]
        written, place = [], 0
        for one in text:
            before, *after = one.split(IMAGE)
            for part in after:
                before += IMAGE * patches[place] + part
                place += 1
            written.append(before)
        return BatchFeature({**self.tokenizer(written, padding=padding, return_tensors=return_tensors), **shown})


class SiglipSight:
    """The image encoder of SD3's adapters: the last hidden states but one, (patches, width), of a SigLIP."""

    def __init__(self, model: SiglipVisionModel, processor: SiglipImageProcessorPil, *, name: str, sha256: str) -> None:
        self.model, self.processor, self.name, self.weights_sha256 = model, processor, name, sha256

    @classmethod
    def open(cls, folder: Path, *, device: str) -> SiglipSight:
        """Raises CheckpointRefused."""
        told = read_config(folder / "config.json").get("model_type", "")
        if not str(told).startswith("siglip"):
            raise CheckpointRefused(
                f"{folder} is a {told or 'model of no type'}, and Stable Diffusion 3's adapters read a SigLIP",
                "set its ENCODER to the SigLIP that the adapter was trained with",
            )
        next_step = "save the SigLIP vision model whole, with safetensors weights"
        model = load_model(SiglipVisionModel, folder, torch.float32, next_step=next_step)
        places = (folder, folder.parent / "feature_extractor")
        place = next((p for p in places if (p / "preprocessor_config.json").exists()), None)
        if place is None:
            raise CheckpointRefused(f"{folder} has no preprocessor_config.json", next_step)
        processor = SiglipImageProcessorPil.from_pretrained(place, local_files_only=True)
        return cls(model.to(device).eval(), processor, name=folder.name, sha256=sha256_of_weights(folder))

    @torch.inference_mode()
    def seen(self, picture: Image.Image) -> np.ndarray:
        """float32 (patches, width)."""
        pixels = self.processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        out = self.model(pixels.to(self.model.device, self.model.dtype), output_hidden_states=True)
        return out.hidden_states[-2][0].float().cpu().numpy()
