"""Checkpoints and ControlNets in one file, as their authors' own code names the weights.

Written from diffusers' models by the way back of its converters: UNet and ControlNet number residual blocks, attention
and halvings in one row, the first stage counts its way up from below, OpenCLIP keeps queries, keys and values together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.ipadapter_engine import tiny_checkpoints as tiny

State = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}  # fmt: skip
_FIRST_STAGE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}  # fmt: skip
_OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def base_state(folder: Path) -> State:
    """A diffusers folder's weights as one file has them."""
    unet = tiny.open_unet(folder)
    sdxl = (folder / "text_encoder_2").exists()
    state = {f"model.diffusion_model.{k}": v for k, v in blocks_state(unet).items()}
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    state |= {f"first_stage_model.{k}": v for k, v in first_stage_state(vae).items()}
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict()
    where = "conditioner.embedders.0" if sdxl else "cond_stage_model"
    state |= {f"{where}.transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in text.items()}
    state[f"{where}.transformer.text_model.embeddings.position_ids"] = torch.arange(tiny.LENGTH)[None]
    state[f"{where}.transformer.text_projection.weight"] = torch.eye(tiny.WIDTH)  # as some tools save it
    if sdxl:
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        state |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_state(second).items()}
    return {k: v.detach().clone().contiguous() for k, v in state.items()}


def write_base(
    file: Path, folder: Path, *, told: dict[str, str] | None = None, dtype: torch.dtype | None = None, **more: Tensor
) -> Path:
    """One file with the weights of `folder`, in `dtype`, its tokenizers beside it; `told` is its metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).exists() and not (file.parent / name).exists():
            tiny.copy_of(folder / name, file.parent / name)
    state = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in base_state(folder).items()} | more
    if file.suffix == ".safetensors":
        save_file(state, file, metadata=told)
    else:
        torch.save({"state_dict": state, "global_step": 7}, file)
    return file


def write_control(file: Path, folder: Path, *, prefix: str = "control_model.") -> Path:
    """One file with a ControlNet of a diffusers folder."""
    net = ControlNetModel.from_pretrained(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}{k}": v.detach().clone().contiguous() for k, v in blocks_state(net).items()}, file)
    return file


def blocks_state(model: Any) -> State:
    """Of a UNet or a ControlNet."""
    layers = model.config["layers_per_block"] + 1
    return {_block_name(key, layers, model): value for key, value in model.state_dict().items()}


def _block_name(key: str, layers: int, model: Any) -> str:
    stem, _, end = key.rpartition(".")
    if stem in _UNET:
        return f"{_UNET[stem]}.{end}"
    if found := re.match(r"controlnet_down_blocks\.(\d+)", stem):
        return f"zero_convs.{found[1]}.0.{end}"
    if found := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)", stem):
        return f"input_hint_block.{2 * int(found[1]) + 2}.{end}"
    side, _, rest = key.partition(".")
    if side == "mid_block":
        part, number, rest = rest.split(".", 2)
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(number)}"
        return f"{place}.{_in_resnet(rest) if part == 'resnets' else rest}"
    level, part, number, rest = rest.split(".", 3)
    row = int(level) * layers + int(number)
    if side == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * layers}.0.op.{end}"
        row, blocks = row + 1, "input_blocks"
    else:
        blocks = "output_blocks"
        if part == "upsamplers":
            attends = any(k.startswith(f"up_blocks.{level}.attentions") for k in model.state_dict())
            return f"output_blocks.{(int(level) + 1) * layers - 1}.{2 if attends else 1}.conv.{end}"
    return f"{blocks}.{row}.0.{_in_resnet(rest)}" if part == "resnets" else f"{blocks}.{row}.1.{rest}"


def _in_resnet(rest: str) -> str:
    name, _, end = rest.rpartition(".")
    return f"{_RESNET[name]}.{end}"


def first_stage_state(vae: AutoencoderKL) -> State:
    levels = len(vae.config["block_out_channels"])
    out = {}
    for key, value in vae.state_dict().items():
        for theirs, ours in _FIRST_STAGE.items():
            key = re.sub(rf"(?<=\.){re.escape(theirs)}(?=\.)", ours, key)
        key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
        key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
        key = re.sub(r"up_blocks\.(\d+)(\.resnets)?", lambda m: f"up.{levels - 1 - int(m[1])}{'.block' * bool(m[2])}", key)  # fmt: skip
        linear = ".attn_1." in key and value.ndim == 2
        out[key] = value[:, :, None, None] if linear else value
    return out


def open_clip_state(model: CLIPTextModelWithProjection) -> State:
    out, state = {}, {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    for key, value in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        name = key
        for theirs, ours in _OPEN_CLIP.items():
            name = name.replace(theirs, ours)
        if ".q_proj." in key:
            name = name.replace("q_proj.", "in_proj_")
            value = torch.cat([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        if key == "text_projection.weight":
            name, value = "text_projection", value.T
        out[name] = value
    return out | {"logit_scale": torch.tensor(4.6)}
