"""Character models: LoRAs of one character each, put into a checkpoint for one batch and taken out again.

A LoRA (Hu et al., 2021, arXiv:2106.09685) is loaded by peft, which wraps layers of the UNet and the text encoders.
Loaded once, the wrapped layers are kept aside: a batch puts them in place and afterwards the plain layers stand there
again, untouched, so the base is bit for bit what it was and changing characters costs no loading.

A file says in its metadata how it was trained, and peft does what it reads there: initialisations such as PiSSA rewrite
the base's own weights. So only what the weights themselves do not tell is taken from it, ranks and alphas above all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
    get_peft_kwargs,
)
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.weights import first_line

KEPT = 4  # characters whose layers stay in memory from one call to the next
_ADAPTER_NAME = "character"
_LOADERS_RAISE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, re.error)  # odd files
_METADATA = "lora_adapter_metadata"  # where save_lora_weights puts rank and alpha, as JSON
_TOLD = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")  # taken from there


@dataclass(frozen=True)
class _Wrapped:
    """One layer of a model in both forms; `wrapped` holds `plain` inside."""

    parent: nn.Module
    name: str
    plain: nn.Module
    wrapped: Any  # a module and a peft LoraLayer


class Characters:
    """The character models of one checkpoint. Not thread-safe: the engine's lock is held around it."""

    def __init__(self, unet: UNet2DConditionModel, text: Sequence[nn.Module], *, base: str) -> None:
        """base: how a refusal calls what the character must have been trained on."""
        self._models = {"unet": unet} | {f"text_encoder{'' if i == 0 else f'_{i + 1}'}": t for i, t in enumerate(text)}
        self._base = base
        self._loaded: OrderedDict[str, list[_Wrapped]] = OrderedDict()

    def load(self, character: CharacterModel) -> None:
        """Read, verify and keep it until `trim`, unless it is kept already. Raises CheckpointRefused."""
        if character.sha256 in self._loaded:
            self._loaded.move_to_end(character.sha256)
            return
        state, metadata = _read(character)
        layers: list[_Wrapped] = []
        try:
            for name, part in self._checked(character, state).items():
                told = {k.removeprefix(f"{name}."): v for k, v in (metadata or {}).items() if k.startswith(f"{name}.")}
                layers += _wrap(self._models[name], part, {k: v for k, v in told.items() if k in _TOLD})
        except torch.OutOfMemoryError:  # the file is not to blame
            raise
        except _LOADERS_RAISE as error:
            raise CheckpointRefused(
                f"{character.file} does not load: {first_line(error)}", "train the character again, or restore the file"
            ) from None
        self._loaded[character.sha256] = layers

    def trim(self) -> None:
        """Let go of all but the last few. A call that plays more of them than are kept reads each once nevertheless."""
        while len(self._loaded) > KEPT:
            self._loaded.popitem(last=False)

    @contextmanager
    def playing(self, loras: Sequence[CharacterModel]) -> Iterator[None]:
        """Within, the checkpoint draws with the character at its strength; after, it is the plain base again."""
        heard = [c for c in loras if c.strength > 0]
        if not heard:
            yield
            return
        (character,) = heard
        self.load(character)
        layers = self._loaded[character.sha256]
        try:
            for layer in layers:
                layer.wrapped.set_scale(_ADAPTER_NAME, character.strength)
                setattr(layer.parent, layer.name, layer.wrapped)
            yield
        finally:
            for layer in layers:
                setattr(layer.parent, layer.name, layer.plain)

    def _checked(self, character: CharacterModel, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The file's weights by model, each pair found to fit a layer of it; names are peft's, after that layer's."""
        file = character.file
        next_step = f"use a character model that was trained on this base ({self._base})"
        by_model: dict[str, dict[str, Tensor]] = {}
        alphas = sorted(k for k in state if k.endswith(".alpha"))
        if alphas:
            raise CheckpointRefused(
                f"{file} tells its alphas as tensors, {alphas[0]} first, which is not read",
                "save it by diffusers' save_lora_weights with its configuration, which tells them as metadata",
            )
        for key, value in state.items():
            model, _, rest = key.partition(".")
            by_model.setdefault(model, {})[rest] = value
        strange = sorted(set(by_model) - set(self._models))
        if strange or not state:
            what = f"it has weights for {strange[0]!r}" if strange else "it is empty"
            raise CheckpointRefused(
                f"{file} is no character model for this base: {what}",
                f"{next_step}, saved by diffusers' save_lora_weights with keys that begin with unet or text_encoder",
            )
        return {name: self._fitting(name, part, file, next_step) for name, part in by_model.items()}

    def _fitting(self, name: str, part: dict[str, Tensor], file: Path, next_step: str) -> dict[str, Tensor]:
        named = _peft_names(name, part)
        modules = dict(self._models[name].named_modules())
        found: dict[str, Tensor] = {}
        for layer in sorted({k.split(".lora_")[0] for k in named}):
            down, up = (named.get(f"{layer}.lora_{side}.weight") for side in "AB")
            own = layer if layer in modules else layer.removeprefix("text_model.")  # as older transformers name them
            problem = _misfit(down, up, modules.get(own))
            if problem:
                raise CheckpointRefused(f"{file} does not fit this base: {name}.{layer} {problem}", next_step)
            found |= {f"{own}{k.removeprefix(layer)}": v for k, v in named.items() if k.startswith(f"{layer}.lora_")}
        return found


def _read(character: CharacterModel) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The file's weights and what it says of ranks and alphas; the bytes that are hashed are those that are used."""
    file = character.file
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointRefused(
            f"the character model {file} does not open: {error.strerror}",
            "check its path, or train the character again",
        ) from None
    found = hashlib.sha256(content).hexdigest()
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
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointRefused(
            f"{file} is no safetensors file: {first_line(error)}",
            "use pytorch_lora_weights.safetensors as diffusers writes it; pickled weights are not opened",
        ) from None
    return state, metadata


def _peft_names(model: str, part: dict[str, Tensor]) -> dict[str, Tensor]:
    """`….lora_A.weight` and `….lora_B.weight`, whichever of diffusers' and peft's names a file has."""
    if any(".lora_A." in k for k in part):
        return part
    if model == "unet":
        return dict(convert_unet_state_dict_to_peft(part))
    return dict(convert_state_dict_to_peft(convert_state_dict_to_diffusers(part)))


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


def _wrap(model: Any, part: dict[str, Tensor], told: dict[str, Any]) -> list[_Wrapped]:
    """Let peft put the LoRA into a model, then take the wrapped layers out; the model is left as it was.

    part: weights by peft's names. told: what the file says of ranks and alphas; if nothing, they are equal.
    Nothing is drawn at random: the new layers have no memory until the weights are assigned.
    """
    plain = dict(model.named_modules())
    trainable = {id(p): p.requires_grad for p in model.parameters()}
    state = {k: v.to(model.device, model.dtype) for k, v in part.items()}
    ranks = {f"^{k}": v.shape[1] for k, v in state.items() if k.endswith(".lora_B.weight")}
    settings = told or get_peft_kwargs(ranks, None, state)
    config = LoraConfig(**{**settings, "target_modules": sorted({k.split(".lora_")[0] for k in state})})
    try:
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER_NAME, low_cpu_mem_usage=True, state_dict=state)
        loaded: Any = set_peft_model_state_dict(model, state, adapter_name=_ADAPTER_NAME, low_cpu_mem_usage=True)
    finally:
        layers = _taken_out(model, plain)
        for parameter in model.parameters():
            parameter.requires_grad_(trainable.get(id(parameter), parameter.requires_grad))
    lacking = [n for layer in layers for n, p in layer.wrapped.named_parameters(layer.name) if p.is_meta]
    if lacking:
        raise ValueError(f"it lacks {lacking[0].replace(f'.{_ADAPTER_NAME}', '')}, which its metadata tells of")
    if loaded.unexpected_keys:
        strange = loaded.unexpected_keys[0].replace(f".{_ADAPTER_NAME}", "")
        raise ValueError(f"it has {strange}, which its metadata does not tell of")
    return layers


def _taken_out(model: Any, plain: Mapping[str, nn.Module]) -> list[_Wrapped]:
    """Put every module of `plain` (those of `model` by path) back in its place; returns what stood there."""
    layers = []
    for path, module in plain.items():
        parent, _, name = path.rpartition(".")
        if path and (now := getattr(plain[parent], name)) is not module:
            now.eval().requires_grad_(False)
            setattr(plain[parent], name, module)
            layers.append(_Wrapped(plain[parent], name, module, now))
    model.__dict__.pop("peft_config", None)
    return layers
