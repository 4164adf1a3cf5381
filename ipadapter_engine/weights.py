"""Loading one model from its folder: safetensors only, nothing over the network, every weight present."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging

from ipadapter_engine.errors import CheckpointRefused

logging.disable_progress_bar()  # a library does not draw bars of its own on its user's terminal
diffusers_logging.disable_progress_bar()


def load_model(kind: Any, folder: Path, dtype: torch.dtype, *, next_step: str, **options: Any) -> Any:
    """`kind`: a diffusers or transformers model class; `options` are its from_pretrained's. Raises CheckpointRefused
    with `next_step`.

    Both libraries fill weights that a file lacks with random numbers and only log it; here that is an error.
    """
    named = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": dtype}
    told = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it warns of what it wrote itself into an AutoencoderTiny's configuration
    try:
        model, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **named, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointRefused(f"{folder} does not open: {first_line(error)}", next_step) from None
    finally:
        diffusers_logging.set_verbosity(told)
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointRefused(
            f"{folder} lacks {len(missing)} weights of a {kind.__name__}, {missing[0]} first", next_step
        )
    return model


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's folder; raises CheckpointRefused."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"{file} does not open: {first_line(error)}", "save the whole pipeline again") from None
    if not isinstance(config, dict):
        raise CheckpointRefused(f"{file} holds no JSON object", "save the whole pipeline again")
    return config


def first_line(error: Exception) -> str:
    """Other libraries explain themselves at length; a refusal is one sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
