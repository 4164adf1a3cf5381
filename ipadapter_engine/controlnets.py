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

from ipadapter_engine.attention import Conditioning
from ipadapter_engine.control_file import read_control_file
from ipadapter_engine.controls import check_shape, fitted
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from ipadapter_engine.prompts import ControlPrompt, inside
from ipadapter_engine.requests import BatchKey, GenerationRequest
from ipadapter_engine.weights import assembled, load_model, read_config

_MUST_EQUAL = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type",
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
    path: Path, kind: str, unet: UNet2DConditionModel, *, stride: int, base: str, device: str, dtype: torch.dtype
) -> ControlNet:
    """Open a diffusers folder or a single file and check that it fits `unet`, whose first stage has `stride`; raises
    CheckpointRefused.

    base: how the refusal calls what the ControlNet must have been trained for.
    """
    next_step = f"load a ControlNet ({kind}) that was trained for {base}, saved by diffusers with safetensors weights"
    if path.is_file():
        place = f"the ControlNet ({kind}) {path.name}"
        config, state = read_control_file(path, kind, unet, next_step=next_step)
        _check_fit(config, unet.config, stride, place=place, next_step=next_step)
        model = assembled(lambda: ControlNetModel(**config), state, dtype, place=place, next_step=next_step)
    else:
        if not (path / "config.json").exists():
            raise CheckpointRefused(f"there is no ControlNet ({kind}) in {path}: it has no config.json", next_step)
        name = read_config(path / "config.json").get("_class_name", "ControlNetModel")
        if name != "ControlNetModel":
            raise CheckpointRefused(f"the ControlNet ({kind}) in {path} is a {name}", next_step)
        model = load_model(ControlNetModel, path, dtype, next_step=next_step)
        _check_fit(model.config, unet.config, stride, place=f"the ControlNet ({kind}) in {path}", next_step=next_step)
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
    for name in ("in_channels", *_MUST_EQUAL):
        # the latents that it reads are what the UNet gives; an inpainting UNet reads more than them
        needed = "out_channels" if name == "in_channels" else name
        has, needs = _plain(config.get(name)), _plain(unet.get(needed))
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
                f"set ONMODEL_ENGINE__CONTROLS__{control.kind.upper()} to the folder or file of such a ControlNet",
            )
        check_shape(f"a control ({control.kind})", control.picture.shape[:2], key.width_px, key.height_px)


class ControlConditioning:
    """One kind's controls of a batch: `entries` pictures, those of the unconditional half first with guidance."""

    def __init__(
        self,
        net: ControlNet,
        controls: Sequence[tuple[int, ControlPrompt]],
        rows: Sequence[int],
        embedded: Tensor,
        text: Tensor,
        added: dict[str, Tensor] | None,
    ) -> None:
        """controls: the request and the control of every entry; rows: the row that each steers, of all of the batch.

        embedded (entries, channels, h, w). text, added: what the ControlNet is told besides, of these entries.
        """
        self.net, self.controls, self.rows = net, tuple(controls), tuple(rows)
        self.embedded, self.added = embedded, added
        self.conditioning = Conditioning(text=text)

    def residuals(self, sample: Tensor, t: Tensor, progress: Sequence[float], rows: Sequence[int]) -> Residuals | None:
        """What it adds to the UNet on sample (rows, channels, h, w); None when none of the rows hears it.

        progress: of every request, 0 to 1. rows: which of all rows the sample is of. Only entries that are heard run.
        """
        place = {row: i for i, row in enumerate(rows)}
        now = [
            (i, c.strength)
            for i, ((request, c), row) in enumerate(zip(self.controls, self.rows, strict=True))
            if row in place and c.strength > 0 and inside(c.window, progress[request])
        ]
        if not now:
            return None
        entries = [i for i, _ in now]
        self.conditioning.step(tuple(entries), ())
        index = torch.tensor(entries, device=sample.device)
        steered = torch.tensor([place[self.rows[i]] for i in entries], device=sample.device)
        added = self.added if self.added is None else {name: value[index] for name, value in self.added.items()}
        down, mid = self.net.model(
            sample[steered], t, encoder_hidden_states=self.conditioning.text_states(),
            controlnet_cond=self.embedded[index], added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
        strength = torch.tensor([s for _, s in now], device=sample.device).view(-1, 1, 1, 1)
        blanks = (torch.zeros(len(sample), *p.shape[1:], device=p.device, dtype=p.dtype) for p in (*down, mid))
        return [
            blank.index_add(0, steered, part * strength.to(part.dtype))
            for blank, part in zip(blanks, (*down, mid), strict=True)
        ]


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
    device, dtype = text.device, net.model.dtype
    distinct = {id(c.picture): c for _, c in entries}
    stack = torch.from_numpy(np.stack([fitted(c, key.width_px, key.height_px) for c in distinct.values()]))
    pictures = (stack.to(device).float() / 255).permute(0, 3, 1, 2).to(dtype)
    embedded = net.embedding(pictures.flip(1) if net.bgr else pictures)
    place = {picture: i for i, picture in enumerate(distinct)}
    halves = len(text) // len(requests)
    which = torch.tensor([place[id(c.picture)] for _, c in entries] * halves, device=device)
    rows = [row + half * len(requests) for half in range(halves) for row, _ in entries]
    index = torch.tensor(rows, device=device)
    told = {name: value[index] for name, value in added.items()} if added is not None else None
    return ControlConditioning(net, entries * halves, rows, embedded[which], text[index], told)


def summed_residuals(
    controls: Sequence[ControlConditioning], sample: Tensor, t: Tensor, progress: Sequence[float], rows: Sequence[int]
) -> dict[str, Any]:
    """What the UNet takes as keyword arguments; empty when nothing is heard at this step."""
    parts = [found for c in controls if (found := c.residuals(sample, t, progress, rows)) is not None]
    if not parts:
        return {}
    *down, mid = (torch.stack(same).sum(0) if len(same) > 1 else same[0] for same in zip(*parts, strict=True))
    return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}
