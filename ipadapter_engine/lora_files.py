"""LoRA files in the layouts that trainers write: diffusers', peft's folders, and kohya's with its relatives.

Whichever it is, what comes out are weights by peft's names, `<layer>.lora_A.weight` (rank, in, …) and `….lora_B.weight`
(out, rank, …), for each model of the base, with the alphas that the file tells; each pair is found to fit its layer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.kohya_names import PREFIXES, LayerNames
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.weights import first_line

_METADATA = "lora_adapter_metadata"  # where save_lora_weights puts rank and alpha, as JSON
_TOLD = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")  # taken from there
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"  # of a peft folder
_OTHER_KINDS = {
    "hada_": "a LoHa", "lokr_": "a LoKr", "dora_scale": "a DoRA of kohya's layout", "lora_mid": "a LoCon in Tucker form",
    "oft_blocks": "an OFT", "glora": "a GLoRA", ".diff": "a difference of whole weights",
}  # fmt: skip
_PARTS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}


@dataclass
class LoraPart:
    """What a LoRA adds to one model of a base.

    weights: by peft's names. alphas: by layer, where they stand beside the weights; else `told` or the rank.
    told: settings of peft's LoraConfig that the file's metadata tells.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


def sha256_of_lora(path: Path) -> str:
    """What a request names a LoRA by: the hash of its file; of a peft folder, of the hashes of weights and settings."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    hashes = [hashlib.sha256((path / name).read_bytes()).hexdigest() for name in (_WEIGHTS, _CONFIG)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_lora(character: CharacterModel, models: Mapping[str, nn.Module], *, base: str) -> dict[str, LoraPart]:
    """The file's parts by model (`unet`, `text_encoder`, …). base: how a refusal calls what it must be trained on.

    Raises CheckpointRefused. The bytes that are hashed are those that are used.
    """
    file, next_step = character.file, f"use a character model that was trained on this base ({base})"
    state, told = _read(character)
    for key in sorted(state):
        if kind := next((name for mark, name in _OTHER_KINDS.items() if mark in key), None):
            raise CheckpointRefused(f"{file} is {kind}, which is not read: it has {key}", "use a LoRA or a LoCon")
    of_kohya = any(k.startswith(tuple(PREFIXES)) for k in state)
    parts = _of_kohya(state, file, models) if of_kohya else _of_models(state)
    strange = sorted(set(parts) - set(models))
    if strange or not state:
        what = f"it has weights for {strange[0]!r}" if strange else "it is empty"
        raise CheckpointRefused(
            f"{file} is no character model for this base: {what}",
            f"{next_step}, saved by diffusers' save_lora_weights with keys that begin with unet or text_encoder",
        )
    for name, part in parts.items():
        part.told = {k.removeprefix(f"{name}."): v for k, v in told.items() if k.startswith(f"{name}.")}
        part.told = {k: v for k, v in part.told.items() if k in _TOLD}
        part.weights = _peft_names(name, part.weights)
        _fit(part, name, models[name], file, next_step)
    return parts


def _read(character: CharacterModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights, those of a peft folder under their model's name, and what is told of ranks and alphas."""
    file = character.file
    folder = file.is_dir()
    try:
        content = (file / _WEIGHTS if folder else file).read_bytes()
        settings = (file / _CONFIG).read_bytes() if folder else b""
    except OSError as error:
        raise CheckpointRefused(
            f"the character model {file} does not open: {error.strerror}",
            "check its path, or train the character again",
        ) from None
    hashes = [hashlib.sha256(c).hexdigest() for c in (content, settings)]
    found = hashlib.sha256("".join(hashes).encode()).hexdigest() if folder else hashes[0]
    if found != character.sha256:
        raise CheckpointRefused(
            f"{file} is not the character model that was asked for: its sha256 is {found[:12]}…, not "
            f"{character.sha256[:12]}…",
            "restore the file, or name the version that is there",
        )
    try:
        state = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads((header.get("__metadata__") or {}).get(_METADATA, "null"))
        config = json.loads(settings) if folder else None
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointRefused(
            f"{file} is no safetensors file: {first_line(error)}",
            "use pytorch_lora_weights.safetensors as diffusers writes it; pickled weights are not opened",
        ) from None
    if folder:
        return _of_peft(state, config, file)
    if file.name == _WEIGHTS and (file.parent / _CONFIG).exists():
        raise CheckpointRefused(
            f"{file} is the weights of a peft folder, whose {_CONFIG} tells their alphas",
            "name the folder, with its sha256_of_lora",
        )
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointRefused(
            f"{file} does not load: what it says of its ranks is no object", "train it again, or restore the file"
        )
    return state, metadata or {}


def _of_peft(state: Mapping[str, Tensor], config: Any, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointRefused(f"{folder} is a {kind} of peft, which is not read", "use a LoRA")
    of = str((config.get("auto_mapping") or {}).get("base_model_class", ""))
    model = "unet" if "Text" not in of else "text_encoder_2" if "Projection" in of else "text_encoder"
    weights = {f"{model}.{k.removeprefix('base_model.model.')}": v for k, v in state.items()}
    return weights, {f"{model}.{k}": v for k, v in config.items()}


def _of_models(state: Mapping[str, Tensor]) -> dict[str, LoraPart]:
    """diffusers' layout: the keys begin with the model, unless all are the UNet's, as of old."""
    parts: dict[str, LoraPart] = {}
    for key, value in state.items():
        model, _, rest = key.partition(".")
        if model in ("down_blocks", "mid_block", "up_blocks") and "lora" in key:
            model, rest = "unet", key
        part = parts.setdefault(model, LoraPart())
        if rest.endswith(".alpha"):
            part.alphas[rest.removesuffix(".alpha").replace(".processor", "")] = _alpha(value)
        else:
            part.weights[rest.removeprefix("base_model.model.")] = value
    return parts


def _of_kohya(state: Mapping[str, Tensor], file: Path, models: Mapping[str, nn.Module]) -> dict[str, LoraPart]:
    names = LayerNames(models)
    parts: dict[str, LoraPart] = {}
    for key, value in state.items():
        name, _, rest = key.partition(".")
        if not name.startswith(tuple(PREFIXES)) or rest not in (*_PARTS, "alpha"):
            raise CheckpointRefused(
                f"{file} is no LoRA of kohya's layout: it has {key}",
                "save it by kohya's trainer, or by diffusers' save_lora_weights",
            )
        model, layer = names.find(name)
        part = parts.setdefault(model, LoraPart())
        if rest == "alpha":
            part.alphas[layer] = _alpha(value)
        else:
            part.weights[f"{layer}.{_PARTS[rest]}"] = value
    return parts


def _alpha(value: Tensor) -> float:
    return float(value.float().mean()) if value.numel() == 1 else math.nan


def _peft_names(model: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`….lora_A.weight` and `….lora_B.weight`, whichever of diffusers' and peft's names a file has."""
    if any(".lora_A." in k for k in weights):
        return weights
    if model == "unet":
        return dict(convert_unet_state_dict_to_peft(weights))
    return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(weights)))


def _fit(part: LoraPart, name: str, model: nn.Module, file: Path, next_step: str) -> None:
    """Each pair and each alpha found to be a layer's of `model`; names are then that layer's. Raises CheckpointRefused."""
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for layer in sorted({k.split(".lora_")[0] for k in part.weights} | set(part.alphas)):
        down, up = (part.weights.get(f"{layer}.lora_{side}.weight") for side in "AB")
        own = layer if layer in modules else layer.removeprefix("text_model.")  # as older transformers name them
        problem = _misfit(down, up, modules.get(own))
        if problem is None and not math.isfinite(part.alphas.get(layer, 0.0)):
            problem = "has an alpha that is no number"
        if problem:
            raise CheckpointRefused(f"{file} does not fit this base: {name}.{layer} {problem}", next_step)
        mine = {k: v for k, v in part.weights.items() if k.startswith(f"{layer}.lora_")}
        found |= {f"{own}{k.removeprefix(layer)}": v for k, v in mine.items()}
        if layer in part.alphas:
            alphas[own] = part.alphas[layer]
    part.weights, part.alphas = found, alphas


def _misfit(down: Tensor | None, up: Tensor | None, plain: nn.Module | None) -> str | None:
    """Why a pair of LoRA weights does not fit a layer; None when it does."""
    if plain is None:
        return "is a layer that the base does not have"
    if down is None or up is None:
        return "is not a pair of LoRA weights"
    weight = getattr(plain, "weight", None)
    if not isinstance(weight, Tensor):
        return "is no layer with weights in the base"
    wants = (up.shape[0], *down.shape[1:])
    if down.shape[0] != up.shape[1] or wants != tuple(weight.shape):
        return f"is for weights {wants}, the base has {tuple(weight.shape)}"
    return None
