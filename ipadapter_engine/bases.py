"""Opening what every picture comes from: UNet, first stage and text encoders, from a diffusers folder or one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from ipadapter_engine import registry
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family, family_of
from ipadapter_engine.hashing import ModelHash, sha256_of_file, sha256_of_weights
from ipadapter_engine.schedulers import sha256_of_own
from ipadapter_engine.single_file import SUFFIXES, open_single_file, open_text_models
from ipadapter_engine.text_encoders import (
    TextEncoder,
    check_text,
    encoder_folders,
    text_encoders,
    tokenizers_beside,
)
from ipadapter_engine.weights import load_model, read_config

FIRST_STAGES: dict[str, Any] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
UNTOLD = "as the checkpoint's own"
_SAVE_WHOLE = "check that the folder is complete and its weights are safetensors"
_MORE_CHANNELS = {1: "a depth base", 3: "an upscaling base", 4: "an editing base"}  # than latents have: what reads them


@dataclass
class Base:
    """On the CPU. name, licence: what lineage says of its parts; models: their hashes."""

    name: str
    licence: str
    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text: list[TextEncoder]
    scheduler_config: dict[str, Any]
    zero_empty_prompt: bool
    models: tuple[ModelHash, ...]


def open_base(place: Path, *, tokenizer: Path | None, dtype: torch.dtype) -> Base:
    """Open and check a base. Raises CheckpointRefused.

    tokenizer: a folder with CLIP's vocabulary for a base that is one file; a diffusers folder has its own.
    """
    base = _of_file(place, tokenizer, dtype) if _is_one_file(place) else _of_folder(place, dtype)
    _check_channels(place, base.unet, base.vae)
    check_text(place, base.family, base.unet, base.text)
    if base.unet.config["time_cond_proj_dim"] is not None:
        base.family = base.family.told_guidance()
    return base


def open_texts(place: Path, tokenizer: Path | None = None) -> list[TextEncoder]:
    """A base's text encoders alone, on the CPU. Raises CheckpointRefused."""
    if _is_one_file(place):
        family, models = open_text_models(place)
        found = tokenizers_beside(place, tokenizer, family)
        texts = [TextEncoder(t, m) for t, m in zip(found, models, strict=True)]
    else:
        named = _index(place).get("_onmodel_family")
        texts = text_encoders(place, family_of(read_config(place / "unet" / "config.json"), named), torch.float32)
    for part in texts:
        part.model.eval()
    return texts


def _is_one_file(place: Path) -> bool:
    """Also one that is missing: then it is no folder that is missed."""
    return place.is_file() or (place.suffix in SUFFIXES and not place.exists())


def _of_folder(folder: Path, dtype: torch.dtype) -> Base:
    index = _index(folder)
    unet = load_model(UNet2DConditionModel, folder / "unet", dtype, next_step=_SAVE_WHOLE)
    family = family_of(dict(unet.config), index.get("_onmodel_family"))
    config = read_config(folder / "vae" / "config.json")
    kind = FIRST_STAGES.get(config.get("_class_name", "AutoencoderKL"))
    if kind is None:
        raise CheckpointRefused(
            f"the first stage in {folder} is a {config['_class_name']}", f"use one of {', '.join(FIRST_STAGES)}"
        )
    if config.get("force_upcast", kind is AutoencoderKL):
        vae = load_model(kind, folder / "vae", _first_stage_dtype(family, dtype), next_step=_SAVE_WHOLE)
    else:
        vae = load_model(kind, folder / "vae", dtype, next_step=_SAVE_WHOLE)
    text = text_encoders(folder, family, dtype)
    name = str(index.get("_onmodel_name") or index.get("_name_or_path") or folder.name)
    own = sha256_of_weights(folder / "unet")
    licence = str(index.get("_onmodel_licence") or registry.licence_of(folder, own) or UNTOLD)
    parts = ["unet", "vae", *(model for _, model in encoder_folders(family))]
    models = [ModelHash(part, name, sha256_of_weights(folder / part), licence) for part in parts]
    schedule = read_config(folder / "scheduler" / "scheduler_config.json")
    if (sha256 := sha256_of_own(schedule, family)) is not None:
        models.append(ModelHash("scheduler", name, sha256, licence))
    zeros = bool(index.get("force_zeros_for_empty_prompt", False))
    return Base(name, licence, family, unet, vae, text, schedule, zeros, tuple(models))


def _of_file(file: Path, tokenizer: Path | None, dtype: torch.dtype) -> Base:
    """One hash stands for all its parts, as they are one file."""
    opened = open_single_file(file, dtype, dtype_of_vae=_first_stage_dtype)
    found = tokenizers_beside(file, tokenizer, opened.family)
    text = [TextEncoder(t, m) for t, m in zip(found, opened.texts, strict=True)]
    sha256 = sha256_of_file(file)
    licence = registry.licence_of(file, sha256) or opened.told.get("modelspec.license") or UNTOLD
    model = ModelHash("checkpoint", file.name, sha256, licence)
    return Base(
        file.name, licence, opened.family, opened.unet, opened.vae, text,
        opened.scheduler_config, opened.zero_empty_prompt, (model,),
    )  # fmt: skip


def _index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").exists():
        raise CheckpointRefused(
            f"{folder} is not a diffusers folder: it has no model_index.json",
            "name a folder saved by save_pretrained, with unet, vae, text_encoder, tokenizer and scheduler, or a "
            "checkpoint in one file",
        )
    return read_config(folder / "model_index.json")


def _first_stage_dtype(family: Family, dtype: torch.dtype) -> torch.dtype:
    """SDXL's own VAE overflows in half precision and gives black pictures."""
    return torch.float32 if family.size_conditioned and dtype == torch.float16 else dtype


def _check_channels(place: Path, unet: UNet2DConditionModel, vae: AutoencoderKL | AutoencoderTiny) -> None:
    """A UNet reads latents, or latents, a mask and the latents of what is kept."""
    reads, given = unet.config["in_channels"], vae.config["latent_channels"]
    if reads in (given, 2 * given + 1):
        return
    kind = _MORE_CHANNELS.get(reads - given)
    raise CheckpointRefused(
        f"the UNet in {place} reads {reads} channels, its VAE gives {given}{f': it is {kind}' if kind else ''}",
        "use a text-to-image or an inpainting base",
    )
