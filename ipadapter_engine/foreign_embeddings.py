"""Embeddings that other tools saved: the `.ipadpt` files of diffusers and of ComfyUI.

They are pickled tensors, read with weights_only, and say neither their encoder nor their adapter; what can be checked is
that their numbers are as many as the adapter reads. Both tools put what the unconditional half hears into the file, at
opposite ends: diffusers first, ComfyUI, where it has it at all, last.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.projections import Reads
from ipadapter_engine.weights import first_line


@dataclass(frozen=True, eq=False)
class ForeignEmbeddings:
    """What one adapter is told: float32 arrays as its references' embeddings, and those of the unconditional half."""

    shown: tuple[np.ndarray, ...]
    negative: tuple[np.ndarray, ...]


def read_ipadpt(path: Path, adapters: Sequence[Reads]) -> list[ForeignEmbeddings]:
    """One for each adapter, whose `reads` are given in the order that the file was made for.

    diffusers: a list with one tensor an adapter, (2, pictures, …) with the unconditional half first, or (1, pictures, …).
    ComfyUI: one tensor, (pictures, …), or of old (2, pictures, …) with the unconditional half last.
    Raises CheckpointRefused.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointRefused(
            f"{path} is no plain file of embeddings", "save the embeddings again as tensors, by torch.save"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointRefused(f"{path} does not open: {first_line(error)}", "save the embeddings again") from None
    of_diffusers = isinstance(content, list | tuple)
    tensors = list(content) if of_diffusers else [content]
    if not all(isinstance(t, Tensor) for t in tensors) or not tensors:
        raise CheckpointRefused(f"{path} holds no embeddings", "name a file of diffusers or ComfyUI")
    if len(tensors) != len(adapters):
        raise CheckpointRefused(
            f"{path} is for {len(tensors)} adapters, {len(adapters)} were named",
            "name as many adapters, in the order in which they were loaded when it was saved",
        )
    return [_halves(path, t, r, of_diffusers) for t, r in zip(tensors, adapters, strict=True)]


def _halves(path: Path, tensor: Tensor, reads: Reads, of_diffusers: bool) -> ForeignEmbeddings:
    size = tensor.shape[-1] if tensor.ndim else 0
    wanted = [n for n in (reads.embed, reads.face) if n]
    if size not in wanted:
        raise CheckpointRefused(
            f"{path} has embeddings of {size} numbers, the adapter reads {' or '.join(map(str, wanted))}",
            "embed the pictures with the encoder that the adapter was trained with",
        )
    hidden = reads.kind in ("hidden", "face_and_hidden") and size == reads.embed
    leading = tensor.shape[: -2 if hidden else -1]
    paired = len(leading) == 2 and leading[0] == 2
    alone = leading[:1] == (1,) and len(leading) == 2 if of_diffusers else len(leading) == 1
    if not (paired or alone):
        raise CheckpointRefused(
            f"{path} has embeddings of shape {tuple(tensor.shape)}, which is neither diffusers' nor ComfyUI's",
            "save the embeddings again",
        )
    first, second = (tensor[0], tensor[1]) if paired else (None, tensor[0] if of_diffusers else tensor)
    shown, negative = (second, first) if of_diffusers or not paired else (first, second)
    return ForeignEmbeddings(_arrays(shown), _arrays(negative))


def _arrays(half: Tensor | None) -> tuple[np.ndarray, ...]:
    return () if half is None else tuple(one.float().numpy() for one in half)
