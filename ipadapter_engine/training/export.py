"""The trained studio model as a diffusers folder in half precision, as it is shipped and opened."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.evaluation.judge import Judge
from ipadapter_engine.evaluation.likeness import TEXT_PROJECTION, TEXT_PROJECTION_KEY
from ipadapter_engine.evaluation.reading import JUDGE_FILE
from ipadapter_engine.training.clip import IMAGE_MEAN, IMAGE_STD
from ipadapter_engine.training.diffusion import new_scheduler

NAME = "onmodel-studio-2"
WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls them


def export_base(
    folder: Path, *, clip: CLIPModel, tokenizer: CLIPTokenizer, first_stage: AutoencoderTiny, unet: UNet2DConditionModel
) -> None:
    """Write the base and its image encoder below `folder`, over what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    _half(unet).save_pretrained(folder / "unet")
    _half(first_stage).save_pretrained(folder / "vae")
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(own_weights(text, clip, "text_model."))
    _half(text).save_pretrained(folder / "text_encoder")
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    vision.load_state_dict(own_weights(vision, clip, "vision_model.", "visual_projection."))
    _half(vision).save_pretrained(folder / "image_encoder")
    save_file(
        {TEXT_PROJECTION_KEY: clip.text_projection.weight.detach().half().contiguous()},
        folder / "image_encoder" / TEXT_PROJECTION,
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
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_onmodel_family": "studio",
        "_onmodel_name": NAME,
        "_onmodel_licence": "Apache-2.0, trained on pictures drawn by ipadapter_engine.training.drawing",
        "feature_extractor": [None, None],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def export_control(folder: Path, net: ControlNetModel, kind: str) -> None:
    _half(net).save_pretrained(folder / "controlnet" / kind)


def export_judge(folder: Path, judge: Judge) -> None:
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, folder / JUDGE_FILE)


def _half(model: Any) -> Any:
    """A copy in half precision: what is exported is gone on with in full."""
    made: nn.Module = copy.deepcopy(model)
    return made.to(torch.float16)


def own_weights(part: nn.Module, clip: CLIPModel, *prefixes: str) -> dict[str, torch.Tensor]:
    """The part's weights out of the whole CLIP's; KeyError for one that is not there."""
    whole = clip.state_dict()
    mine = {}
    for name in part.state_dict():
        source = next((s for s in (name, *(p + name for p in prefixes)) if s in whole), None)
        if source is None:
            raise KeyError(f"{name} is not in the trained CLIP")
        mine[name] = whole[source]
    return mine


Weights = dict[str, torch.Tensor]


def exported_unet(folder: Path) -> Weights:
    return floats_of(folder / "unet" / WEIGHTS)


def load_words(clip: CLIPModel, folder: Path) -> CLIPModel:
    """`clip` with the text half of the export."""
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, local_files_only=True)
    projection = floats_of(folder / "image_encoder" / TEXT_PROJECTION)[TEXT_PROJECTION_KEY]
    return _with(clip, _named(clip, text, "text_model.") | {"text_projection.weight": projection})


def has_sight(folder: Path) -> bool:
    return (folder / "image_encoder" / "config.json").exists()


def load_sight(clip: CLIPModel, folder: Path) -> CLIPModel:
    """`clip` with the image half of the export."""
    vision = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", dtype=torch.float32, local_files_only=True
    )
    return _with(clip, _named(clip, vision, "vision_model."))


def _named(clip: CLIPModel, part: nn.Module, prefix: str) -> Weights:
    """A part's weights by their names in the whole CLIP."""
    whole = clip.state_dict()
    return {name if name in whole else prefix + name: value for name, value in part.state_dict().items()}


def _with(clip: CLIPModel, weights: Weights) -> CLIPModel:
    clip.load_state_dict(clip.state_dict() | weights)
    return clip


def floats_of(file: Path) -> Weights:
    return {name: value.float().contiguous() for name, value in load_file(file).items()}


# The file in which an export holds a stage that needs no more training.
EXPORTED = {"vae": f"vae/{WEIGHTS}", "decoder": f"vae/{WEIGHTS}", "judge": JUDGE_FILE}
