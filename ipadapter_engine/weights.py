"""Loading one model from its folder or from weights that are read: nothing over the network, every weight present."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
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


def assembled(
    build: Callable[[], Any], state: Mapping[str, Tensor], dtype: torch.dtype, *, place: str, next_step: str
) -> Any:
    """The model that `build` makes, with the weights of `state` in `dtype` and none left out or over.

    place: how a refusal calls what the weights were read from. Raises CheckpointRefused with `next_step`.
    """
    try:
        with init_empty_weights():  # nothing is drawn at random only to be replaced
            model = build()
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointRefused(f"{place} is no model that is known: {first_line(error)}", next_step) from None
    wanted = model.state_dict()
    kind = type(model).__name__
    for what, keys in (("lacks", set(wanted) - set(state)), ("has, besides,", set(state) - set(wanted))):
        if keys:
            raise CheckpointRefused(
                f"{place} {what} {len(keys)} weights {'of' if what == 'lacks' else 'than'} a {kind}, {min(keys)} first",
                next_step,
            )
    for name, weight in wanted.items():
        if state[name].shape != weight.shape:
            raise CheckpointRefused(
                f"{place} does not fit a {kind}: {name} is {tuple(state[name].shape)}, not {tuple(weight.shape)}",
                next_step,
            )
    model.load_state_dict({name: weight.to(dtype).contiguous() for name, weight in state.items()}, assign=True)
    return model


def read_state(file: Path, *, what: str, setting: str) -> Any:
    """What a file of weights holds: a safetensors file's tensors by name, else whatever was pickled, read by
    weights_only: a pickle that runs code is refused. Raises CheckpointRefused.

    what: how refusals call such a file; setting: where its path was given.
    """
    if not file.is_file():
        raise CheckpointRefused(f"there is no {what} file at {file}", f"check the path in {setting}")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # what torch raises for a pickle that would run code
        raise CheckpointRefused(
            f"{file.name} is not a plain file of weights: {type(error).__name__}",
            f"use the safetensors version of this {what}",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointRefused(
            f"{file.name} is damaged: {first_line(error)}", f"download the {what} file again"
        ) from None


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself beside its tensors; nothing of other files."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata() or {})


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
