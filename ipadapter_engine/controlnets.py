"""ControlNets: what control pictures add to the UNet's skip connections (Zhang et al., 2023, arXiv:2302.05543).

What is ours: a batch mixes requests with and without controls, each with its own pictures, strengths and windows;
a ControlNet sees only the rows that have its kind and runs only on the steps at which one of them hears it; the
embedding of the pictures, which no timestep changes, and the keys and values of the text are computed once a
generation. What several ControlNets add is summed, and with guidance both halves get it, as in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from ipadapter_engine.controls import check_shape, fitted
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from ipadapter_engine.prompts import ControlPrompt, inside
from ipadapter_engine.requests import BatchKey, GenerationRequest
from ipadapter_engine.weights import load_model, read_config

_MUST_EQUAL = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type",
               "addition_time_embed_dim", "projection_class_embeddings_input_dim")  # fmt: skip
_UNSUPPORTED = ("global_pool_conditions", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
Residuals = list[Tensor]  # of the down blocks in their order, the mid block's last


@dataclass(frozen=True)
class ControlNet:
    """An open ControlNet. `embedding` is taken out of `model`, which is given embedded pictures instead.

    bgr: whether it reads blue before red.
    """

    kind: str
    model: ControlNetModel
    embedding: nn.Module
    bgr: bool = False


def open_control_net(
    folder: Path, kind: str, unet: UNet2DConditionModel, *, stride: int, base: str, device: str, dtype: torch.dtype
) -> ControlNet:
    """Open a diffusers folder and check that it fits `unet`, whose first stage has `stride`; raises CheckpointRefused.

    base: how the refusal calls what the ControlNet must have been trained for.
    """
    next_step = f"load a ControlNet ({kind}) that was trained for {base}, saved by diffusers with safetensors weights"
    if not (folder / "config.json").exists():
        raise CheckpointRefused(f"there is no ControlNet ({kind}) in {folder}: it has no config.json", next_step)
    name = read_config(folder / "config.json").get("_class_name", "ControlNetModel")
    if name != "ControlNetModel":
        raise CheckpointRefused(f"the ControlNet ({kind}) in {folder} is a {name}", next_step)
    model = load_model(ControlNetModel, folder, dtype, next_step=next_step)
    _check_fit(model.config, unet.config, stride, place=f"the ControlNet ({kind}) in {folder}", next_step=next_step)
    embedding = model.controlnet_cond_embedding
    bgr = model.config["controlnet_conditioning_channel_order"] == "bgr"
    model.controlnet_cond_embedding = nn.Identity()
    model.register_to_config(controlnet_conditioning_channel_order="rgb")  # it is pictures that are flipped
    model.to(device).eval().requires_grad_(False)
    return ControlNet(kind, model, embedding.to(device).eval().requires_grad_(False), bgr)


def _check_fit(config: Mapping[str, Any], unet: Mapping[str, Any], stride: int, *, place: str, next_step: str) -> None:
    for name in _UNSUPPORTED:
        if config.get(name):
            raise CheckpointRefused(f"{place} is of a variant that is not supported: it has {name}", next_step)
    if config["conditioning_channels"] != 3:
        raise CheckpointRefused(
            f"{place} reads pictures of {config['conditioning_channels']} channels, not RGB", next_step
        )
    for name in _MUST_EQUAL:
        has, needs = _plain(config.get(name)), _plain(unet.get(name))
        if has != needs:
            raise CheckpointRefused(
                f"{place} does not fit this base: its {name} is {has}, the UNet's {needs}", next_step
            )
    levels = len(config["conditioning_embedding_out_channels"])
    if 2 ** (levels - 1) != stride:
        raise CheckpointRefused(
            f"{place} does not fit this base: it makes control pictures {2 ** (levels - 1)} times smaller, "
            f"the first stage makes latents {stride} times smaller",
            f"{next_step}; for it conditioning_embedding_out_channels has {stride.bit_length()} entries",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def check_controls(request: GenerationRequest, key: BatchKey, loaded: Mapping[str, ControlNet]) -> None:
    """Raises RequestRefused for a kind that is not loaded and for a picture of another shape."""
    for control in request.controls:
        if control.kind not in loaded:
            raise RequestRefused(
                f"a request has a control of kind {control.kind}; "
                + (f"loaded ControlNets are {', '.join(sorted(loaded))}" if loaded else "no ControlNet is loaded"),
                f"set ONMODEL_ENGINE__CONTROLS__{control.kind.upper()} to the folder of such a ControlNet",
            )
        check_shape(control, key.width_px, key.height_px)


@dataclass(frozen=True)
class ControlConditioning:
    """One kind's controls of a batch: `entries` pictures, those of the unconditional half first with guidance.

    rows (entries,): the batch's row that each steers. embedded (entries, channels, h, w). text, added: what the
    ControlNet is told besides, of these rows. controls: one an entry of one half.
    """

    net: ControlNet
    controls: tuple[ControlPrompt, ...]
    rows: Tensor
    embedded: Tensor
    text: Tensor
    added: dict[str, Tensor] | None

    def residuals(self, sample: Tensor, t: Tensor, progress: float) -> Residuals | None:
        """What it adds to the UNet on sample (rows, channels, h, w); None when no row hears it at `progress`."""
        now = [c.strength if inside(c.window, progress) else 0.0 for c in self.controls]
        if not any(now):
            return None
        down, mid = self.net.model(
            sample[self.rows], t, encoder_hidden_states=self.text, controlnet_cond=self.embedded,
            added_cond_kwargs=self.added, return_dict=False,
        )  # fmt: skip
        strength = torch.tensor(now * (len(self.rows) // len(now)), device=sample.device).view(-1, 1, 1, 1)
        added = []
        for part in (*down, mid):
            blank = torch.zeros(len(sample), *part.shape[1:], device=part.device, dtype=part.dtype)
            heard = torch.where(strength > 0, part * strength.to(part.dtype), 0)  # 0 times an overflow would be NaN
            added.append(blank.index_add(0, self.rows, heard))
        return added


@torch.inference_mode()
def control_conditioning(
    requests: Sequence[GenerationRequest], key: BatchKey, net: ControlNet, text: Tensor, added: dict[str, Tensor] | None
) -> ControlConditioning | None:
    """Embed the batch's control pictures of one kind, each distinct one once. None when no row can hear one.

    text (rows, tokens, width) and `added` are the UNet's; twice as many rows as requests mean guidance.
    """
    entries = [(row, c) for row, r in enumerate(requests) for c in r.controls if c.kind == net.kind and c.heard]
    if not entries:
        return None
    device, dtype = net.model.device, net.model.dtype
    distinct = {id(c.picture): c for _, c in entries}
    stack = torch.from_numpy(np.stack([fitted(c, key.width_px, key.height_px) for c in distinct.values()]))
    pictures = (stack.to(device).float() / 255).permute(0, 3, 1, 2).to(dtype)
    embedded = net.embedding(pictures.flip(1) if net.bgr else pictures)
    place = {picture: i for i, picture in enumerate(distinct)}
    halves = len(text) // len(requests)
    which = torch.tensor([place[id(c.picture)] for _, c in entries] * halves, device=device)
    rows = torch.tensor([row + half * len(requests) for half in range(halves) for row, _ in entries], device=device)
    told = {name: value[rows] for name, value in added.items()} if added is not None else None
    return ControlConditioning(net, tuple(c for _, c in entries), rows, embedded[which], text[rows], told)


def summed_residuals(
    controls: Sequence[ControlConditioning], sample: Tensor, t: Tensor, progress: float
) -> dict[str, Any]:
    """What the UNet takes as keyword arguments; empty when nothing is heard at `progress`."""
    parts = [found for c in controls if (found := c.residuals(sample, t, progress)) is not None]
    if not parts:
        return {}
    *down, mid = (torch.stack(same).sum(0) if len(same) > 1 else same[0] for same in zip(*parts, strict=True))
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}
