"""LoRA layers of a UNet (Hu et al., 2021, arXiv:2106.09685) through peft, saved in diffusers' layout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from ipadapter_engine.training.errors import TrainingFailed

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
NAME = "default"  # peft's own; diffusers' metadata are read under it


@contextmanager
def lora_layers(unet: UNet2DConditionModel, *, rank: int, alpha: int | None = None, seed: int = 0) -> Iterator[None]:
    """Within, new LoRA layers lie over the attention of `unet`, the only weights that train, in float32.

    Afterwards the UNet is as it was. It carries no LoRA layers before: `frozen` sees to that.
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(TARGETS), lora_dropout=0.0
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet.add_adapter(config, NAME)
        cast_training_params(unet, torch.float32)
        yield
    finally:
        unet.unload_lora()
        unet.eval()


def save_lora(unet: UNet2DConditionModel, path: Path, *, sdxl: bool, dtype: torch.dtype) -> None:
    """Write the layers as `save_lora_weights` does, load the file back and compare every tensor.

    Raises TrainingFailed where the file is empty, holds no numbers, or is not what was trained.
    """
    state: dict[str, Tensor] = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=NAME))
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}
    if not state or not all(v.isfinite().all() for v in state.values()):
        raise TrainingFailed("the trained LoRA is empty or holds no numbers", "lower the learning rate and train again")
    kind: Any = StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline
    told = unet.peft_config[NAME].to_dict()
    # a set has another order in every process, and the file would have another hash
    told = {k: sorted(v) if isinstance(v, set | list | tuple) else v for k, v in told.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.stem + ".partial.safetensors")
    kind.save_lora_weights(
        path.parent, unet_lora_layers=state, weight_name=partial.name, safe_serialization=True,
        unet_lora_adapter_metadata=told,
    )  # fmt: skip
    _in_order(partial)
    found = load_file(partial)
    if found.keys() != {f"unet.{k}" for k in state} or any(not torch.equal(found[f"unet.{k}"], v) for k, v in state.items()):  # fmt: skip
        raise TrainingFailed(f"{path.name} does not load back as it was trained", "check the disk and train again")
    os.replace(partial, path)


def _in_order(path: Path) -> None:
    """Sort what a safetensors file says of itself: written from a hash table, it has another order every time."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    path.write_bytes(len(told).to_bytes(8, "little") + told + content[end:])
