"""A Stable Diffusion 1.5 or SDXL base in one file, in the layout of its authors' own code.

Such a file holds UNet, first stage and text encoders under the names of github CompVis/latent-diffusion and
Stability-AI/generative-models. diffusers' converters rename them. They are told configurations that are read off the
tensors' shapes (`shapes`), and what no shape shows is the family's (`families.Original`): nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family, Original
from ipadapter_engine.families.sd15 import SD15
from ipadapter_engine.families.sdxl import SDXL
from ipadapter_engine.shapes import original_layers, text_numbers, unet_numbers, vae_numbers
from ipadapter_engine.weights import assembled, read_metadata, read_state

SUFFIXES = (".safetensors", ".ckpt")
UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
_TEXTS = {
    "sd15": ("cond_stage_model.transformer.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
_WANTED = (
    "load Stable Diffusion 1.5 or SDXL, in one file with its first stage and text encoders or as a diffusers folder"
)
_OTHERS = {  # what stands in one of the names: what the file is
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "double_layers.": "AuraFlow",
    "cap_embedder.": "Lumina",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "conditioner.embedders.0.model.": "SDXL's refiner",
    "edm_mean": "Playground 2.5",
    "diffusion_model.label_emb.weight": "Stable Diffusion's upscaler",
}
_NO_BASE = {
    "control_model.": "a ControlNet",
    "input_hint_block.": "a ControlNet",
    "controlnet_cond_embedding.": "a ControlNet",
    "lora": "a LoRA",
    "image_proj.": "an IP-Adapter",
    "down_blocks.0.resnets.": "a UNet alone, by diffusers' names",
    "encoder.down": "a first stage alone",
    "text_model.": "a text encoder alone",
}
T = TypeVar("T")
_UNUSED = ("position_ids", "logit_scale")  # in text encoders, which are made to have none


@dataclass
class SingleFile:
    """What one file holds, on the CPU. told: what it says of itself as metadata, by the names of
    github Stability-AI/ModelSpec."""

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: list[CLIPTextModel | CLIPTextModelWithProjection]
    scheduler_config: dict[str, Any]
    zero_empty_prompt: bool
    told: dict[str, str]


def open_single_file(
    file: Path, dtype: torch.dtype, *, dtype_of_vae: Callable[[Family, torch.dtype], torch.dtype]
) -> SingleFile:
    """Open all parts; raises CheckpointRefused."""
    state, told = read_base(file)
    family = family_in(file, state)
    numbers = original_of(family)
    unet, unet_state = _unet(file, _under(state, UNET), numbers)
    vae, vae_state = _first_stage(file, _under(state, FIRST_STAGE), family)
    texts = _texts(file, state, family, dtype)
    if family.size_conditioned:
        pooled = int(texts[-1].config.projection_dim)
        unet["addition_time_embed_dim"] = (unet["projection_class_embeddings_input_dim"] - pooled) // 6  # six sizes
    unet["sample_size"] = family.size_px // 2 ** (len(vae["block_out_channels"]) - 1)
    schedule = _schedule(family, state, told)
    return SingleFile(
        family,
        _made(UNet2DConditionModel, unet, unet_state, dtype, f"{file.name} ({UNET}…)"),
        _made(AutoencoderKL, vae, vae_state, dtype_of_vae(family, dtype), f"{file.name} ({FIRST_STAGE}…)"),
        texts,
        schedule,
        numbers.zero_empty_prompt,
        told,
    )


def _made(kind: Any, config: dict[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype, place: str) -> Any:
    return assembled(lambda: kind(**config), state, dtype, place=place, next_step=_WANTED)


def open_text_models(file: Path) -> tuple[Family, list[CLIPTextModel | CLIPTextModelWithProjection]]:
    """The text encoders of a file alone, in single precision; raises CheckpointRefused."""
    state, _ = read_base(file)
    family = family_in(file, state)
    return family, _texts(file, state, family, torch.float32)


def read_base(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors and metadata. Raises CheckpointRefused."""
    if file.suffix not in SUFFIXES:
        raise CheckpointRefused(f"{file.name} is neither a folder nor a file {' or '.join(SUFFIXES)}", _WANTED)
    state = read_state(file, what="checkpoint", setting="ONMODEL_ENGINE__BASE")
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # what trained it put its own state beside
    if not isinstance(state, Mapping):
        raise CheckpointRefused(f"{file.name} holds no dictionary of weights", _WANTED)
    return {str(k): v for k, v in state.items() if isinstance(v, Tensor)}, read_metadata(file)


def family_in(file: Path, state: Mapping[str, Tensor]) -> Family:
    """Stable Diffusion 1.5 or SDXL; raises CheckpointRefused with the name of what else it is, or of what it lacks."""
    for part, name in _OTHERS.items():
        if any(part in key for key in state):
            raise CheckpointRefused(f"{file.name} is {name}, which is not supported", _WANTED)
    if not any(key.startswith(UNET) for key in state):
        found = next((name for part, name in _NO_BASE.items() if any(part in key for key in state)), None)
        raise CheckpointRefused(
            f"{file.name} is no base: it {f'is {found}' if found else f'has no UNet ({UNET}…)'}", _WANTED
        )
    family = SDXL if f"{UNET}label_emb.0.0.weight" in state else SD15
    parts = {"first stage (VAE)": (FIRST_STAGE,), "text encoder": _TEXTS[family.name]}
    for what, prefixes in parts.items():
        for prefix in prefixes:
            if not any(key.startswith(prefix) for key in state):
                raise CheckpointRefused(f"{file.name} lacks the {what} of {family.title} ({prefix}…)", _WANTED)
    return family


def original_of(family: Family) -> Original:
    assert family.original is not None  # only such families are recognised
    return family.original


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _unet(file: Path, state: dict[str, Tensor], original: Original) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights by diffusers' names."""

    def converted() -> tuple[dict[str, Any], dict[str, Tensor]]:
        config: dict[str, Any] = {"layers_per_block": original_layers(state)}
        if "label_emb.0.0.weight" in state:
            config |= {"addition_embed_type": "text_time"}
        named = converters.convert_ldm_unet_checkpoint({UNET + k: v for k, v in state.items()}, config)
        numbers = unet_numbers(named)
        told = state.get("time_embed.cond_proj.weight")  # guidance as an input, which the converter leaves out
        if told is not None:
            named["time_embedding.cond_proj.weight"], numbers["time_cond_proj_dim"] = told, told.shape[1]
        return numbers | {"attention_head_dim": original.heads_of(numbers["block_out_channels"])}, named

    numbers, named = _laid_out(converted, f"the UNet of {file.name}")
    if len(named) != len(state):
        raise CheckpointRefused(f"the UNet of {file.name} has {len(state) - len(named)} weights that none has", _WANTED)
    return numbers, named


def _first_stage(file: Path, state: dict[str, Tensor], family: Family) -> tuple[dict[str, Any], dict[str, Tensor]]:
    def converted() -> tuple[dict[str, Any], dict[str, Tensor]]:
        numbers = vae_numbers(state)
        named = converters.convert_ldm_vae_checkpoint({FIRST_STAGE + k: v for k, v in state.items()}, numbers)
        side = {"scaling_factor": original_of(family).scaling_factor, "sample_size": family.size_px}
        return numbers | side, named

    return _laid_out(converted, f"the first stage of {file.name}")


def _texts(
    file: Path, state: dict[str, Tensor], family: Family, dtype: torch.dtype
) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
    out = []
    for i, (prefix, activation) in enumerate(zip(_TEXTS[family.name], original_of(family).activations, strict=True)):
        kind = CLIPTextModelWithProjection if i else CLIPTextModel
        found = partial(_text, {k: v for k, v in state.items() if k.startswith(prefix)}, prefix)
        named, numbers = _laid_out(found, f"a text encoder of {file.name}")
        config = {"config": CLIPTextConfig(**numbers, hidden_act=activation)}
        own = "text_model." if i else ""  # transformers nests the one with a projection
        weights = {k if k == "text_projection.weight" else f"{own}{k}": v for k, v in named.items()}
        out.append(_made(kind, config, weights, dtype, f"{file.name} ({prefix}…)"))
    return out


def _text(state: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A text encoder's weights, named without `text_model.`, and its configuration."""
    if prefix.endswith("transformer."):
        named = converters.convert_ldm_clip_checkpoint(state)
        named.pop("text_projection.weight", None)  # some tools save it; neither model projects this encoder's text
    else:
        named = converters.convert_open_clip_checkpoint(None, state, prefix=prefix)
    plain = {k.removeprefix("text_model."): v for k, v in named.items() if not k.endswith(_UNUSED)}
    return plain, text_numbers(plain)


def _laid_out(convert: Callable[[], T], what: str) -> T:
    """Names that are missing where all such models have them are the file's fault."""
    try:
        return convert()
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointRefused(
            f"{what} is not laid out as its authors' are: {type(error).__name__} {error}", _WANTED
        ) from None


def _schedule(family: Family, state: Mapping[str, Tensor], told: Mapping[str, str]) -> dict[str, Any]:
    """The family's noise schedule, with what the file says of its own: fine-tuned SDXLs that predict v have an empty
    tensor `v_pred`, those trained to start from pure noise (Lin et al., 2023, arXiv:2305.08891) one called `ztsnr`."""
    config = dict(family.schedule)
    if "v_pred" in state or told.get("modelspec.prediction_type", "").startswith("v"):
        config["prediction_type"] = "v_prediction"
    if "ztsnr" in state:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config
