"""Tiny LoRAs in the layouts of kohya's trainer, with layers of all kinds, and in peft's folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.ipadapter_engine import tiny_checkpoints as tiny

ATTENTION = r"attn\d\.to_(q|k|v|out\.0)|proj_(in|out)|ff\.net\.(0\.proj|2)"
EVERYTHING = rf"{ATTENTION}|conv1|conv2|time_emb_proj|conv_shortcut|samplers\.0\.conv|conv_(in|out)|(time|add)_embedding\.linear_\d"
TEXT = r"(q|k|v|out)_proj|fc1|fc2"
Sizes = Callable[[int], tuple[int, float]]  # the number of a layer -> its rank and alpha


def same(number: int) -> tuple[int, float]:
    return 2, 4.0


def varied(number: int) -> tuple[int, float]:
    return 1 + number % 3, (0.5, 1.0, 3.0, 4.0, 7.0)[number % 5]


def models_of(base: Path, *, text: bool = True) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {"unet": tiny.open_unet(base)}
    if text:
        models["text_encoder"] = CLIPTextModel.from_pretrained(base / "text_encoder")
    if text and (base / "text_encoder_2").exists():
        models["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2")
    return models


def layers_of(base: Path, pattern: str, *, text: bool = True) -> list[tuple[str, str, Any]]:
    """(model, path, layer) of all that a pattern names, the text encoders' by their own."""
    found = []
    for model, module in models_of(base, text=text).items():
        wanted = re.compile(rf"(?:.*\.)?(?:.*)(?:{pattern if model == 'unet' else TEXT})")
        found += [(model, p, m) for p, m in module.named_modules() if hasattr(m, "weight") and wanted.fullmatch(p)]
    return found


def pair(layer: Any, rank: int, draw: tiny.Draw) -> tuple[Tensor, Tensor]:
    """down (rank, in, …) and up (out, rank, …) of a linear layer or a convolution."""
    out, into, *kernel = layer.weight.shape
    down = draw(rank, into, *kernel) if kernel else draw(rank, into)
    up = draw(out, rank, *([1] * len(kernel))) * 0.3
    return down, up


def write_kohya(
    path: Path, base: Path, *, pattern: str = ATTENTION, text: bool = True, sizes: Sizes = same, seed: int = 41,
    stability: bool = False,
) -> Path:  # fmt: skip
    """stability: whether the UNet's layers are called as in Stability's own code, as kohya's trainer does for SDXL."""
    second = (base / "text_encoder_2").exists()
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if second else "lora_te", "text_encoder_2": "lora_te2"}
    state, draw = {}, tiny.Draw(seed)
    for number, (model, name, layer) in enumerate(layers_of(base, pattern, text=text)):
        rank, alpha = sizes(number)
        if model != "unet":
            name = name if name.startswith("text_model.") else f"text_model.{name}"
        elif stability:
            name = in_stabilitys_words(name)
        key = f"{prefixes[model]}_{name.replace('.', '_')}"
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = pair(layer, rank, draw)
        state[f"{key}.alpha"] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def in_stabilitys_words(path: str, each: int = 2) -> str:
    """A layer of diffusers' UNet with `each` - 1 layers a block, as Stability's code calls it."""
    outside = {
        "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip
    if path in outside:
        return outside[path]
    inside = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
    side, *rest = path.split(".", 1)
    if side == "mid_block":
        kind, number, inner = rest[0].split(".", 2)
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[kind, number]
        return f"middle_block.{place}.{inside.get(inner, inner)}"
    block, kind, number, inner = rest[0].split(".", 3)
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * each}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{(int(block) + 1) * each - 1}.2.conv"
    start = int(block) * each + int(number)
    which = kind == "attentions"
    place = f"input_blocks.{start + 1}" if side == "down_blocks" else f"output_blocks.{start}"
    return f"{place}.{int(which)}.{inside.get(inner, inner)}"


def write_peft(folder: Path, base: Path, model: str, *, rank: int = 2, alpha: int = 6) -> Path:
    """A folder as peft saves a model that it trained."""
    targets = ["to_q", "to_v"] if model == "unet" else ["q_proj", "v_proj"]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, alpha_pattern={"to_v": 2.0, "v_proj": 2.0})
    trained: Any = get_peft_model(models_of(base)[model], config)
    draw = tiny.Draw(51)
    with torch.no_grad():
        for name, weight in sorted(trained.named_parameters()):
            if "lora_" in name:
                weight.copy_(draw(*weight.shape))
    trained.save_pretrained(folder)
    return folder
