"""Tiny adapters of every published variant beside base and plus, and the layouts that trainings and forks save them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.ipadapter_engine import tiny_checkpoints as tiny

FACE = 20  # numbers of a face; 512 in the real ones
RANK = 3  # of a FaceID file's own LoRA
State = dict[str, dict[str, Tensor]]


def full_face_state(unet: UNet2DConditionModel, *, hidden: int = tiny.HIDDEN, seed: int = 13) -> State:
    """Every hidden state becomes a token, by two layers as wide as it is."""
    dim, draw = unet.config["cross_attention_dim"], tiny.Draw(seed)
    proj = {**_layers(draw, hidden, hidden, dim), **tiny.norm("proj.3", dim, draw)}
    return {"image_proj": proj, "ip_adapter": tiny.key_values(unet, draw)}


def face_state(unet: UNet2DConditionModel, *, tokens: int = 4, lora: bool = True, seed: int = 14) -> State:
    """FaceID: a face becomes tokens; its LoRA is on all attention layers, those of the picture itself as well."""
    dim, draw = unet.config["cross_attention_dim"], tiny.Draw(seed)
    proj = {**_layers(draw, FACE, 2 * FACE, tokens * dim), **tiny.norm("norm", dim, draw)}
    layers = tiny.key_values(unet, draw)
    return {"image_proj": proj, "ip_adapter": layers | (_lora(unet, draw) if lora else {})}


def without_lora(state: State) -> State:
    return {**state, "ip_adapter": {k: v for k, v in state["ip_adapter"].items() if "_lora." not in k}}


def face_plus_state(unet: UNet2DConditionModel, *, hidden: int = tiny.HIDDEN, seed: int = 15) -> State:
    """FaceID Plus: the face's tokens look at hidden states through a resampler of four layers."""
    dim, draw = unet.config["cross_attention_dim"], tiny.Draw(seed)
    proj = {**_layers(draw, FACE, 2 * FACE, 4 * dim), **tiny.norm("norm", dim, draw)}
    proj |= {f"perceiver_resampler.{k}": v for k, v in tiny.resampler(draw, hidden, dim, dim).items()}
    return {"image_proj": proj, "ip_adapter": tiny.key_values(unet, draw) | _lora(unet, draw)}


STATES: dict[str, Callable[..., State]] = {
    "base": tiny.base_adapter_state,
    "plus": tiny.plus_adapter_state,
    "full-face": full_face_state,
    "faceid": face_state,
    "faceid portrait": lambda unet: face_state(unet, tokens=16, lora=False),
    "faceid plus": face_plus_state,
    "faceid plus v2": face_plus_state,
}
FILES = {variant: f"ip-adapter-{variant.replace(' v2', 'v2').replace(' ', '-')}_sd15" for variant in STATES}


def by_names(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The layers as a UNet calls its processors."""
    names = list(unet.attn_processors)
    numbered = [(*k.split(".", 1), v) for k, v in state["ip_adapter"].items()]
    return {f"{names[int(n)]}.{rest}": v for n, rest, v in numbered}


def _prefixed(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in values.items()}


def as_trained(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """As the authors' training saves its modules, the UNet's own weights among them."""
    saved = _prefixed("image_proj_model.", state["image_proj"]) | _prefixed("adapter_modules.", state["ip_adapter"])
    return saved | {"unet.conv_in.weight": torch.zeros(2)}


def as_shared(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """As accelerate saves them as safetensors: weights that are shared keep one name, the UNet's, and the others none."""
    saved = _prefixed("image_proj_model.", state["image_proj"]) | _prefixed("unet.", by_names(state, unet))
    return saved | {"unet.conv_in.weight": torch.zeros(2)}


def as_parallel(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    return _prefixed("module.", as_trained(state, unet))


def as_wrapped(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    return _prefixed("model.", tiny.flat(state))


def as_named(state: State, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """As users convert a training's file, by the authors' advice: the names of processors stay."""
    return _prefixed("image_proj.", state["image_proj"]) | _prefixed("ip_adapter.", by_names(state, unet))


LAYOUTS = {f.__name__: f for f in (as_trained, as_shared, as_parallel, as_wrapped, as_named)}


def write_invoke(folder: Path, state: Any, *, encoder: str = "InvokeAI/ip_adapter_sd_image_encoder") -> Path:
    """An InvokeAI folder: the pickled weights and the name of the encoder."""
    tiny.write_bin(folder / "ip_adapter.bin", state)
    (folder / "image_encoder.txt").write_text(f"  {encoder}\n")
    return folder


def _layers(draw: tiny.Draw, into: int, width: int, out: int) -> dict[str, Tensor]:
    return {
        "proj.0.weight": draw(width, into),
        "proj.0.bias": draw(width),
        "proj.2.weight": draw(out, width),
        "proj.2.bias": draw(out),
    }


def _lora(unet: UNet2DConditionModel, draw: tiny.Draw) -> dict[str, Tensor]:
    state = {}
    for n, name in enumerate(unet.attn_processors):
        attn: Any = unet.get_submodule(name.removesuffix(".processor"))
        for part, layer in {"to_q": attn.to_q, "to_k": attn.to_k, "to_v": attn.to_v, "to_out": attn.to_out[0]}.items():
            out, into = layer.weight.shape
            state[f"{n}.{part}_lora.down.weight"] = draw(RANK, into)
            state[f"{n}.{part}_lora.up.weight"] = 0.5 * draw(out, RANK)
    return state
