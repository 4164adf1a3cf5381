"""Opening a diffusers folder whose pipeline makes the pictures: every part checked, hashed, and of the class expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import ModelHash, sha256_of_weights
from ipadapter_engine.native.adapters import NativeAdapter, open_adapter
from ipadapter_engine.native.families import PIPELINES, NativeFamily, native_family
from ipadapter_engine.native.licences import licence_of
from ipadapter_engine.native.sight import QwenSight
from ipadapter_engine.prompts import IDENTITY
from ipadapter_engine.schedulers import sha256_of_schedule
from ipadapter_engine.weights import first_line, load_model, read_config

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_SAVE_WHOLE = "check that the folder is complete and its weights are safetensors"
_TOKENIZERS = {
    "CLIPTextModel": "CLIPTokenizer",
    "CLIPTextModelWithProjection": "CLIPTokenizer",
    "T5EncoderModel": "T5TokenizerFast",
    "Qwen3ForCausalLM": "Qwen2TokenizerFast",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2Tokenizer",
    "Mistral3ForConditionalGeneration": "AutoTokenizer",  # its processor asks for torchvision, to read pictures
}
_LAYERS_READ = {"Mistral3ForConditionalGeneration": (3, 30), "Qwen3ForCausalLM": (3, 27)}  # how many, and the last


@dataclass
class NativeCheckpoint:
    """An open folder. transformer: what is asked on every step; pipeline: diffusers' own, with all parts in it.

    models: a hash of each part that every picture comes from. adapter: what hears references, in families that do not
    see them. encoder: what a library is read and pictures are checked with; it has no part in making them.
    """

    native: NativeFamily
    pipeline: Any
    transformer: Any
    models: tuple[ModelHash, ...]
    encoder: ImageEncoder | None
    adapter: NativeAdapter | None = None
    controls: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, ModelHash] = field(default_factory=dict)

    @property
    def adapters(self) -> Mapping[str, NativeAdapter]:
        return {} if self.adapter is None else {IDENTITY: self.adapter}

    @property
    def multiple_px(self) -> int:
        """What both sides of a picture must be a multiple of: whole patches of latents."""
        config = self.transformer.config
        patch = int(config["patch_size"]) if self.native.pipeline == "StableDiffusion3Pipeline" else 2
        return int(self.pipeline.vae_scale_factor) * patch


def is_native(base: Path) -> bool:
    """Whether the folder's model_index.json names a pipeline of these families."""
    index = base / "model_index.json"
    return index.exists() and read_config(index).get("_class_name") in PIPELINES


def open_native(
    paths: CheckpointPaths,
    *,
    encoder: ImageEncoder | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NativeCheckpoint:
    """Open and check a folder of one of the native families; raises CheckpointRefused with what to load instead.

    encoder: what the library was read with; without one, the folder that paths.encoder names, where it is a CLIP's.
    """
    base = paths.base
    index = read_config(base / "model_index.json")
    if paths.controls or paths.adapters or paths.words or paths.tokenizer:
        raise CheckpointRefused(
            f"{base} is opened by diffusers' {index['_class_name']}, beside which no ControlNets, no further "
            "adapters, no taught words and no other tokenizer are loaded",
            "leave them out of this engine's settings",
        )
    native = native_family(index, read_config(base / "transformer" / "config.json"))
    _check_index(base, index, native)
    parts: dict[str, Any] = {}
    for name, kind in native.parts.items():
        library = transformers if name.startswith("text_encoder") else diffusers
        parts[name] = load_model(getattr(library, kind), base / name, dtype, next_step=_SAVE_WHOLE)
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            parts[tokenizer] = _opened(getattr(transformers, _TOKENIZERS[kind]), base / tokenizer)
    _check_fit(base, native, parts)
    parts["scheduler"] = _opened(getattr(diffusers, SCHEDULER), base / "scheduler")
    if "processor" in index:
        parts["processor"] = QwenSight.open(base / "processor", parts["tokenizer"])
    for name in native.parts:
        parts[name].to(device).eval()
    options = {"is_distilled": True} if index.get("is_distilled") else {}
    pipeline = getattr(diffusers, native.pipeline)(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)

    licence, name = licence_of(base, index, native), str(index.get("_onmodel_name") or base.name)
    models = [ModelHash(part, name, sha256_of_weights(base / part), licence) for part in native.parts]
    schedule = read_config(base / "scheduler" / "scheduler_config.json")
    models.append(ModelHash("scheduler", name, sha256_of_schedule(schedule), licence))
    adapter = None
    if paths.adapter is not None:
        adapter = open_adapter(paths, native, parts["transformer"], device=device)
        models += adapter.models
        if encoder is None and isinstance(adapter.sight, ImageEncoder):
            encoder = adapter.sight
    if encoder is None and paths.encoder is not None and adapter is None:
        encoder = _encoder(paths.encoder, device)
    return NativeCheckpoint(native, pipeline, parts["transformer"], tuple(models), encoder, adapter)


def _encoder(folder: Path, device: str) -> ImageEncoder:
    return ImageEncoder.open(
        folder, name=folder.name, processor_folder=folder.parent / "feature_extractor", device=device
    )


def _check_index(base: Path, index: Mapping[str, Any], native: NativeFamily) -> None:
    for name, wanted in (*native.parts.items(), ("scheduler", SCHEDULER)):
        told = index.get(name) or [None, None]
        if told[1] != wanted:
            raise CheckpointRefused(
                f"the {name} in {base} is {'missing' if told[1] is None else f'a {told[1]}'}, {native.family.title} "
                f"needs a {wanted}",
                f"use an unmodified folder of {native.family.title}",
            )


def _opened(kind: Any, folder: Path) -> Any:
    """A tokenizer or a scheduler: what has no weights."""
    if not folder.is_dir():
        raise CheckpointRefused(f"there is no folder {folder}", _SAVE_WHOLE)
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointRefused(f"{folder} does not open: {first_line(error)}", _SAVE_WHOLE) from None


def _check_fit(base: Path, native: NativeFamily, parts: Mapping[str, Any]) -> None:
    """The transformer reads the latents that the VAE gives, and text as wide as the text encoder gives it."""
    transformer, vae = parts["transformer"].config, parts["vae"].config
    channels = int(vae["z_dim"] if "z_dim" in vae else vae["latent_channels"])
    packed = channels if native.pipeline == "StableDiffusion3Pipeline" else 4 * channels
    if transformer["in_channels"] != packed:
        raise CheckpointRefused(
            f"the transformer in {base} reads {transformer['in_channels']} channels, its VAE gives {packed}",
            f"use a text-to-image folder of {native.family.title}; filling and depth models have more channels",
        )
    encoder = parts[[name for name in native.parts if name.startswith("text_encoder")][-1]]
    config = getattr(encoder.config, "text_config", encoder.config)
    read, last = _LAYERS_READ.get(type(encoder).__name__, (1, 0))
    width = read * int(getattr(config, "d_model", None) or config.hidden_size)
    if width != transformer["joint_attention_dim"] or config.num_hidden_layers < last:
        raise CheckpointRefused(
            f"the transformer in {base} attends to text of width {transformer['joint_attention_dim']}, its text encoder "
            f"gives {width} from {config.num_hidden_layers} layers",
            f"use the text encoder that {native.family.title} was trained with",
        )
