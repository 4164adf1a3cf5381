"""The base stays as it was: hashed before and after a training, and nothing is saved where the hashes differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ipadapter_engine.acceleration import put_channels_first, put_channels_last
from ipadapter_engine.checkpoints import Checkpoint
from ipadapter_engine.training.errors import BaseChanged, TrainingRefused


def sha256_of_module(module: nn.Module) -> str:
    """The hash of a module's weights by name, in memory. LoRA layers laid over it do not count."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        digest.update(f"{plain} {tuple(weight.shape)} {weight.dtype}".encode())
        data = weight.detach().to("cpu", memory_format=torch.contiguous_format).reshape(-1)
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def base_sha256s(checkpoint: Checkpoint) -> dict[str, str]:
    """Hashes in memory of what a training must leave alone: UNet, text encoders, image encoder, first stage."""
    parts: dict[str, nn.Module] = {"unet": checkpoint.unet, "vae": checkpoint.vae}
    parts |= {f"text encoder {i}": part.model for i, part in enumerate(checkpoint.text, 1)}
    if checkpoint.encoder is not None:
        parts["image encoder"] = checkpoint.encoder.model
    return {name: sha256_of_module(module) for name, module in parts.items()}


@contextmanager
def frozen(checkpoint: Checkpoint, progress: Path | None = None) -> Iterator[dict[str, str]]:
    """Within, no weight of the base asks for a gradient, and the UNet is laid out for convolutions.

    Gives the hashes before; at the end raises BaseChanged if they are others then, so what is saved after it was learnt
    on the base as it is. `progress`, from which the training would go on, is removed then: it was not.
    Raises TrainingRefused where another model's LoRA lies over the UNet: the hashes do not see it.
    """
    if getattr(checkpoint.unet, "peft_config", None):
        raise TrainingRefused(
            "the UNet carries the LoRA of another model", "unload it, or open the checkpoint anew for the training"
        )
    modules = [checkpoint.unet, checkpoint.vae, *(t.model for t in checkpoint.text)]
    modules += [checkpoint.encoder.model] if checkpoint.encoder is not None else []
    asked = [p for m in modules for p in m.parameters() if p.requires_grad]
    before = base_sha256s(checkpoint)
    for p in asked:
        p.requires_grad_(False)
    laid_out = put_channels_last(checkpoint.unet)
    try:
        yield before
    finally:
        put_channels_first(laid_out)  # else its next pictures differ in the last digits
        for p in asked:
            p.requires_grad_(True)
    after = base_sha256s(checkpoint)
    changed = [name for name in before if after[name] != before[name]]
    if changed:
        if progress is not None:
            progress.unlink(missing_ok=True)
        raise BaseChanged(
            f"the base's {' and '.join(changed)} changed while it was to be frozen; nothing was saved",
            "open the checkpoint anew, leave its weights alone while training, and start again",
        )
