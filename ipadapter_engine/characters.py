"""Character models: LoRAs of one character each, put into a checkpoint for one batch and taken out again.

A LoRA (Hu et al., 2021, arXiv:2106.09685) is loaded by peft, which wraps layers of the UNet and the text encoders.
Loaded once, the wrapped layers are kept aside: a batch puts them in place and afterwards the plain layers stand there
again, untouched, so the base is bit for bit what it was and changing characters costs no loading. Several on one layer
wrap each other, which adds what each of them adds.

A file says in its metadata how it was trained, and peft does what it reads there: initialisations such as PiSSA rewrite
the base's own weights. So only what the weights themselves do not tell is taken from it, ranks and alphas above all.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import get_peft_kwargs
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.lora_files import LoraPart, read_lora
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.weights import first_line

KEPT = 4  # characters whose layers stay in memory from one call to the next
KEPT_BYTES = 2 * 2**30  # and no more of them than fit in, but the last one
_ADAPTER_NAME = "character"
_LOADERS_RAISE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError, re.error)  # odd files


@dataclass(frozen=True)
class _Wrapped:
    """One layer of a model in both forms; `wrapped` holds `plain` inside, unless another LoRA's is put there."""

    path: str
    parent: nn.Module
    name: str
    plain: nn.Module
    wrapped: Any  # a module and a peft LoraLayer

    @property
    def added_bytes(self) -> int:
        own = {id(p) for p in self.plain.parameters()}
        return sum(p.numel() * p.element_size() for p in self.wrapped.parameters() if id(p) not in own)


class Characters:
    """The character models of one checkpoint. Not thread-safe: the engine's lock is held around it."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: Sequence[nn.Module],
        *,
        base: str,
        adapters: Mapping[str, Adapter] | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """base: how a refusal calls what the character must have been trained on.

        adapters: those that are loaded, by name; the LoRAs of FaceID files among them are kept for good.
        """
        self._models = {"unet": unet} | {f"text_encoder{'' if i == 0 else f'_{i + 1}'}": t for i, t in enumerate(text)}
        self._base, self._kept_bytes = base, kept_bytes
        self._loaded: OrderedDict[str, list[_Wrapped]] = OrderedDict()
        self._of_adapters = {
            name: _wrap(unet, LoraPart(adapter.lora_layers(unet)))
            for name, adapter in (adapters or {}).items()
            if adapter.lora
        }

    @property
    def adapters(self) -> frozenset[str]:
        """The adapters whose files bring a LoRA with them."""
        return frozenset(self._of_adapters)

    def load(self, character: CharacterModel) -> None:
        """Read, verify and keep it until `trim`, unless it is kept already. Raises CheckpointRefused."""
        if character.sha256 in self._loaded:
            self._loaded.move_to_end(character.sha256)
            return
        layers: list[_Wrapped] = []
        try:
            for name, part in read_lora(character, self._models, base=self._base).items():
                layers += _wrap(self._models[name], part)
        except torch.OutOfMemoryError:  # the file is not to blame
            raise
        except _LOADERS_RAISE as error:
            raise CheckpointRefused(
                f"{character.file} does not load: {first_line(error)}", "train the character again, or restore the file"
            ) from None
        self._loaded[character.sha256] = layers

    def trim(self) -> None:
        """Let go of all but the last few, and of those that take too much memory, but the last one. A call that plays
        more of them than are kept reads each once nevertheless."""
        while len(self._loaded) > KEPT or (len(self._loaded) > 1 and self.kept_bytes > self._kept_bytes):
            self._loaded.popitem(last=False)

    @property
    def kept_bytes(self) -> int:
        """The memory of the character models that are kept."""
        return sum(layer.added_bytes for layers in self._loaded.values() for layer in layers)

    @contextmanager
    def playing(
        self, characters: CharacterModel | Sequence[CharacterModel] | None, adapters: Sequence[str] = ()
    ) -> Iterator[None]:
        """Within, the checkpoint draws with all of them, each at its strength; after, it is the plain base again.

        adapters: those that speak, whose own LoRAs are at full strength. A model that is named twice has both strengths.
        """
        given = [characters] if isinstance(characters, CharacterModel) else list(characters or ())
        strengths: dict[str, float] = {}
        for character in given:
            if character.strength != 0:
                self.load(character)
                strengths[character.sha256] = strengths.get(character.sha256, 0.0) + character.strength
        layered = [(self._of_adapters[a], 1.0) for a in adapters if a in self._of_adapters]
        layered += [(self._loaded[sha256], strength) for sha256, strength in strengths.items()]
        try:
            for layers, strength in layered:
                for layer in layers:
                    layer.wrapped.set_scale(_ADAPTER_NAME, strength)
                    layer.wrapped.base_layer = getattr(layer.parent, layer.name)
                    setattr(layer.parent, layer.name, layer.wrapped)
            yield
        finally:
            for layers, _ in layered:
                for layer in layers:
                    layer.wrapped.base_layer = layer.plain
                    setattr(layer.parent, layer.name, layer.plain)


def _wrap(model: Any, part: LoraPart) -> list[_Wrapped]:
    """Let peft put the LoRA into a model, then take the wrapped layers out; the model is left as it was.

    What the file says of ranks and alphas holds; if nothing, alphas are ranks.
    Nothing is drawn at random: the new layers have no memory until the weights are assigned.
    """
    plain = dict(model.named_modules())
    trainable = {id(p): p.requires_grad for p in model.parameters()}
    state: dict[str, Tensor] = {k: v.to(model.device, model.dtype) for k, v in part.weights.items()}
    ranks = {f"^{k}": v.shape[1] for k, v in state.items() if k.endswith(".lora_B.weight")}
    settings = part.told or get_peft_kwargs(ranks, None, state)
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
    for layer in layers:
        if layer.path in part.alphas:  # `set_scale` divides it by the rank
            layer.wrapped.lora_alpha[_ADAPTER_NAME] = part.alphas[layer.path]
    return layers


def _taken_out(model: Any, plain: Mapping[str, nn.Module]) -> list[_Wrapped]:
    """Put every module of `plain` (those of `model` by path) back in its place; returns what stood there."""
    layers = []
    for path, module in plain.items():
        parent, _, name = path.rpartition(".")
        if path and (now := getattr(plain[parent], name)) is not module:
            now.eval().requires_grad_(False)
            setattr(plain[parent], name, module)
            layers.append(_Wrapped(path, plain[parent], name, module, now))
    model.__dict__.pop("peft_config", None)
    return layers
