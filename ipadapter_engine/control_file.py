"""A ControlNet in one file: as its authors' own code names the weights, or by diffusers' names without a configuration.

Its sizes are read off the weights; what no shape shows, heads and groups, is the base's UNet's, whose copy it began as.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders import single_file_utils as converters
from torch import Tensor

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.shapes import count_of, encoder_numbers, original_layers
from ipadapter_engine.weights import read_state

_PREFIX, _EMBEDDING = "control_model.", "controlnet_cond_embedding"
_OF_THE_UNET = ("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "act_fn", "flip_sin_to_cos",
                "freq_shift", "downsample_padding", "mid_block_scale_factor", "only_cross_attention",
                "upcast_attention", "resnet_time_scale_shift", "addition_time_embed_dim", "cross_attention_dim",
                "use_linear_projection")  # fmt: skip
_OTHERS = {  # what stands in one of the names: what the file is
    "lora_controlnet": "a LoRA of a ControlNet",
    "difference": "the difference to a base",
    "task_embedding": "a ControlNet of several kinds at once (union)",
    "double_blocks.": "of FLUX",
    "joint_blocks.": "of Stable Diffusion 3",
    "body.0.": "a T2I-Adapter",
}


def read_control_file(
    file: Path, kind: str, unet: UNet2DConditionModel, *, next_step: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a ControlNetModel; raises CheckpointRefused with `next_step`."""
    state = read_state(file, what="ControlNet", setting=f"ONMODEL_ENGINE__CONTROLS__{kind.upper()}")
    while isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    weights = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    place = f"the ControlNet ({kind}) {file.name}"
    for part, what in _OTHERS.items():
        if any(part in key for key in weights):
            raise CheckpointRefused(f"{place} is {what}, which is not supported", next_step)
    weights = {k.removeprefix(_PREFIX): v for k, v in weights.items() if k.startswith(_PREFIX)} or weights
    if not {"time_embed.0.weight", f"{_EMBEDDING}.conv_in.weight"} & set(weights):
        raise CheckpointRefused(f"{place} is no ControlNet: it has neither {_PREFIX}… nor {_EMBEDDING}…", next_step)
    try:
        named = _renamed(weights) if "time_embed.0.weight" in weights else weights
        return {name: unet.config[name] for name in _OF_THE_UNET} | _numbers(named), named
    except (KeyError, IndexError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise CheckpointRefused(
            f"{place} is not laid out as a ControlNet's weights are: {type(error).__name__} {error}", next_step
        ) from None


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' names, with the embedding of sizes and pooled text that diffusers' converter leaves out."""
    named = converters.convert_controlnet_checkpoint(state, {"layers_per_block": original_layers(state)})
    added = converters.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
    named |= {ours: state[theirs] for ours, theirs in added.items() if theirs in state}
    return {k: v for k, v in named.items() if v is not None}


def _numbers(named: Mapping[str, Tensor]) -> dict[str, Any]:
    first = named[f"{_EMBEDDING}.conv_in.weight"]
    halvings = range(1, count_of(named, f"{_EMBEDDING}.blocks."), 2)  # each level keeps its size once, then halves it
    widths = (first.shape[0], *(named[f"{_EMBEDDING}.blocks.{i}.weight"].shape[0] for i in halvings))
    return encoder_numbers(named) | {
        "conditioning_channels": first.shape[1],
        "conditioning_embedding_out_channels": widths,
    }
