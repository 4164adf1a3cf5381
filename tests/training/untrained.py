"""The studio's base as it is before its training."""

from __future__ import annotations

from pathlib import Path

import torch

from ipadapter_engine.training.captions import train_tokenizer
from ipadapter_engine.training.clip import new_clip
from ipadapter_engine.training.diffusion import new_unet
from ipadapter_engine.training.export import export_base
from ipadapter_engine.training.first_stage import new_first_stage


def write_untrained(folder: Path) -> Path:
    """Export it below `folder` and return where it lies."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(folder / "tokenizer")
    base = folder / "base"
    export_base(base, clip=new_clip(tokenizer), tokenizer=tokenizer, first_stage=new_first_stage(), unet=new_unet())
    return base
