"""What the shapes of a model's weights say of its configuration, by diffusers' and transformers' names.

A checkpoint in one file comes without a configuration. Channels, levels, depths and widths are the tensors' own sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]


def count_of(keys: Iterable[str], before: str) -> int:
    """How many there are of what is numbered right after `before`; the numbers begin at 0."""
    numbers = [int(m[1]) for key in keys if (m := re.match(re.escape(before) + r"(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _depth(state: State, block: str) -> int:
    return count_of(state, f"{block}.attentions.0.transformer_blocks.")


def encoder_numbers(state: State) -> dict[str, Any]:
    """Of a UNet's way down, which a ControlNet has as well; nothing of attention where there is none. Raises KeyError
    for weights that are neither's."""
    blocks = [f"down_blocks.{level}" for level in range(count_of(state, "down_blocks."))]
    attends = [any(key.startswith(f"{block}.attentions.") for key in state) for block in (*blocks, "mid_block")]
    depths = [_depth(state, block) if has else 1 for block, has in zip((*blocks, "mid_block"), attends, strict=True)]
    if attends[-1]:
        depths[-2] = depths[-1]  # one number stands for the last level and the middle
    numbers: dict[str, Any] = {
        "in_channels": state["conv_in.weight"].shape[1],
        "block_out_channels": tuple(state[f"{block}.resnets.0.conv2.weight"].shape[0] for block in blocks),
        "layers_per_block": count_of(state, "down_blocks.0.resnets."),
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends[:-1]),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attends[-1] else "UNetMidBlock2D",
        "transformer_layers_per_block": tuple(depths[:-1]),
    }
    for key, weight in state.items():
        if key.endswith("attn2.to_k.weight"):
            numbers["cross_attention_dim"] = weight.shape[1]
        elif key.endswith("attentions.0.proj_in.weight"):
            numbers["use_linear_projection"] = weight.ndim == 2
    if (added := state.get("add_embedding.linear_1.weight")) is not None:
        numbers |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": added.shape[1]}
    return numbers


def unet_numbers(state: State) -> dict[str, Any]:
    """Raises KeyError or IndexError for weights that are not a UNet's."""
    numbers = encoder_numbers(state)
    up = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}
    return numbers | {
        "up_block_types": tuple(up[kind] for kind in reversed(numbers["down_block_types"])),
        "out_channels": state["conv_out.weight"].shape[0],
    }


def original_layers(keys: Iterable[str]) -> int:
    """Residual blocks on each level of a UNet in its authors' layout, which number blocks and halvings together."""
    numbers = {key.split(".")[1] for key in keys if re.match(r"input_blocks\.\d+\.0\.op\.", key)}
    return (min(map(int, numbers)) if numbers else count_of(keys, "input_blocks.")) - 1


def vae_numbers(state: State) -> dict[str, Any]:
    """Of an AutoencoderKL in its authors' layout. Raises KeyError for weights that are not one's."""
    levels = count_of(state, "encoder.down.")
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": tuple(state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": count_of(state, "encoder.down.0.block."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
    }


def text_numbers(state: State) -> dict[str, Any]:
    """Of a CLIP text model, by its names without `text_model.`. Raises KeyError for weights that are not one's."""
    tokens, width = state["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_of(state, "encoder.layers."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
        "projection_dim": state["text_projection.weight"].shape[0] if "text_projection.weight" in state else width,
        "bos_token_id": tokens - 2,  # CLIP's vocabulary ends with both
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
