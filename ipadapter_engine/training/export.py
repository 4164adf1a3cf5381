"""The trained studio model as a diffusers folder in half precision, as it is shipped and opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.patches import PatchAutoencoder
from ipadapter_engine.training.clip import IMAGE_MEAN, IMAGE_STD
from ipadapter_engine.training.diffusion import new_scheduler


def export(
    folder: Path,
    *,
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    first_stage: PatchAutoencoder,
    unet: UNet2DConditionModel,
    adapter: Adapter,
) -> None:
    """Write every part below `folder`, over what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.half().save_pretrained(folder / "unet")
    first_stage.float().save_pretrained(folder / "vae")  # 50 KB: precision costs nothing
    text = CLIPTextModel(clip.config.text_config)
    _own(text, clip, "text_model.").to(torch.float16).save_pretrained(folder / "text_encoder")
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    _own(vision, clip, "vision_model.", "visual_projection.").to(torch.float16).save_pretrained(
        folder / "image_encoder"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    new_scheduler().save_pretrained(folder / "scheduler")
    side = clip.config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
    ).save_pretrained(folder / "feature_extractor")
    state = {k: v.half().contiguous() for k, v in adapter.official_state().items()}
    save_file(state, folder / "ip_adapter.safetensors")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_onmodel_family": "studio",
        "_onmodel_name": "onmodel-studio-1",
        "_onmodel_licence": "Apache-2.0, trained on pictures drawn by ipadapter_engine.training.mascots",
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _own(part: Any, clip: CLIPModel, *prefixes: str) -> Any:
    """Copy the part's weights out of the whole CLIP; every one must be found."""
    whole = clip.state_dict()
    mine = {}
    for name in part.state_dict():
        source = next((s for s in (name, *(p + name for p in prefixes)) if s in whole), None)
        if source is None:
            raise KeyError(f"{name} is not in the trained CLIP")
        mine[name] = whole[source]
    part.load_state_dict(mine)
    return part
