"""Which requests go together, and one batch's conditioning as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.attention import ImagePrompt, log_weights
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.prompts import IDENTITY, inside
from ipadapter_engine.requests import MAX_SIDE_PX, BatchKey, GenerationRequest


def key_of(request: GenerationRequest, family: Family, multiple_px: int) -> BatchKey:
    """The request's numbers with the family's in place of None; raises RequestRefused for what it cannot do.

    multiple_px: what both sides must be a multiple of, see Checkpoint.multiple_px.
    """
    width = family.size_px if request.width_px is None else request.width_px
    height = family.size_px if request.height_px is None else request.height_px
    for name, side in (("width", width), ("height", height)):
        if side % multiple_px or not multiple_px <= side <= MAX_SIDE_PX:
            raise RequestRefused(
                f"a {name} of {side} px cannot be made by {family.title}",
                f"ask for a multiple of {multiple_px} px up to {MAX_SIDE_PX}; its own size is {family.size_px} px",
            )
    scheduler = request.scheduler or family.scheduler
    if scheduler not in family.schedulers:
        raise RequestRefused(
            f"{family.title} has no scheduler {scheduler!r}", f"choose one of {', '.join(family.schedulers)}"
        )
    key = BatchKey(width, height, request.steps or family.steps, scheduler)
    character = request.heard_character
    return (
        key
        if character is None
        else replace(key, character_sha256=character.sha256, character_strength=character.strength)
    )


def grouped(
    requests: Sequence[GenerationRequest], family: Family, multiple_px: int, max_batch: int
) -> Iterator[tuple[BatchKey, list[int]]]:
    """(key, positions in `requests`) of each batch, at most `max_batch` long; every position comes once."""
    groups: dict[BatchKey, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(key_of(request, family, multiple_px), []).append(i)
    for key, rows in groups.items():
        for start in range(0, len(rows), max_batch):
            yield key, rows[start : start + max_batch]


@dataclass(frozen=True)
class ImageConditioning:
    """A batch's prompt for one adapter at full scale and, per row, the window in which it speaks.

    windows: one a request; with guidance the prompt has twice as many rows, the unconditional ones first.
    """

    prompt: ImagePrompt
    heard: tuple[bool, ...]
    windows: tuple[tuple[float, float], ...]

    def at(self, progress: float) -> ImagePrompt | None:
        """The prompt at `progress` (0 to 1) of the steps: rows outside their window have scale 0, None if all are."""
        now = [heard and inside(w, progress) for heard, w in zip(self.heard, self.windows, strict=True)]
        if not any(now):
            return None
        scale = self.prompt.scale
        if now != list(self.heard):
            scale = scale * torch.tensor(now * (len(scale) // len(now)), device=scale.device)
        return ImagePrompt(self.prompt.tokens, self.prompt.bias, scale)


@torch.inference_mode()
def image_conditioning(
    requests: Sequence[GenerationRequest], name: str, adapter: Adapter, negative: Tensor, *, guided: bool
) -> ImageConditioning | None:
    """Project what the batch's references say to the adapter `name`, each distinct one once, row by row.

    negative: what the unconditional half attends to, one encoder output. With `guided` the unconditional
    rows come first. None when no request has references that the adapter can hear.
    """
    heard = [r.heard_by(name) for r in requests]
    if not any(heard):
        return None
    arrays = {id(p.embedding): p.embedding for refs in heard for p in refs}
    device, dtype = negative.device, negative.dtype
    # a copy, as an array that was read from a store or a file is often read-only
    copies = [torch.from_numpy(np.array(a, dtype=np.float32)).to(device, dtype) for a in arrays.values()]
    stack = torch.stack([negative, *copies])
    projected = adapter.projection(stack)  # (1 + references, tokens, dim)
    place = {key: 1 + i for i, key in enumerate(arrays)}
    per, dim = projected.shape[1:]
    slots = max(len(refs) for refs in heard)

    rows = len(requests)
    tokens = torch.zeros(rows, slots, per, dim, device=device, dtype=dtype)
    weights = torch.zeros(rows, slots, device=device)
    scale = torch.tensor(
        [r.scale_of(name) if refs else 0.0 for r, refs in zip(requests, heard, strict=True)], device=device
    )
    for row, refs in enumerate(heard):
        loudest = max((r.weight for r in refs), default=1.0)  # only shares count; a tiny weight alone is still heard
        for slot, reference in enumerate(refs):
            tokens[row, slot] = projected[place[id(reference.embedding)]]
            weights[row, slot] = reference.weight / loudest
        if not refs:
            weights[row, 0] = 1.0  # a row without references still needs one finite logit; its scale is 0
    bias = log_weights(weights).repeat_interleave(per, dim=1)
    if guided:
        absent = torch.zeros_like(tokens)
        absent[:, 0] = projected[0]
        only_first = torch.full_like(weights, float("-inf"))
        only_first[:, 0] = 0.0
        tokens = torch.cat([absent, tokens])
        bias = torch.cat([only_first.repeat_interleave(per, dim=1), bias])
        scale = torch.cat([scale, scale])
    prompt = ImagePrompt(tokens.flatten(1, 2), bias, scale)
    return ImageConditioning(prompt, tuple(map(bool, heard)), tuple(r.window for r in requests))


def check_adapters(requests: Sequence[GenerationRequest], loaded: Mapping[str, Adapter]) -> None:
    """Raises RequestRefused for a reference or a scale whose adapter is not loaded."""
    for name in sorted({a for r in requests for a in (*r.adapters, *r.scales)} - set(loaded)):
        setting = "ADAPTER" if name == IDENTITY else f"ADAPTERS__{name.upper()}"
        there, or_else = (f"loaded are {', '.join(loaded)}", "name a loaded one") if loaded else (
            "no adapter is loaded", "leave its references and scale out")  # fmt: skip
        raise RequestRefused(
            f"a request names the adapter {name!r}; {there}", f"set ONMODEL_ENGINE__{setting} to its file, or {or_else}"
        )


def check_references(requests: Sequence[GenerationRequest], name: str, adapter: Adapter, negative: Tensor) -> None:
    """Raises RequestRefused for an embedding that the adapter does not read; `negative` is one that it does."""
    want = tuple(negative.shape)
    for shape in {tuple(p.embedding.shape) for r in requests for p in r.references if p.adapter == name}:
        if shape != want:
            raise RequestRefused(
                f"a reference's embedding has shape {shape}, the {adapter.variant} adapter reads {want}",
                "embed the reference with the encoder of the loaded checkpoint",
            )
