"""Which requests go together, and one batch's conditioning as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.attention import ImagePrompt, log_weights
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.requests import MAX_SIDE_PX, BatchKey, GenerationRequest


def key_of(request: GenerationRequest, family: Family, stride: int) -> BatchKey:
    """The request's numbers with the family's in place of None; raises RequestRefused for what it cannot do."""
    width = family.size_px if request.width_px is None else request.width_px
    height = family.size_px if request.height_px is None else request.height_px
    for name, side in (("width", width), ("height", height)):
        if side % (stride * 2) or not stride * 2 <= side <= MAX_SIDE_PX:
            raise RequestRefused(
                f"a {name} of {side} px cannot be made by {family.title}",
                f"ask for a multiple of {stride * 2} px up to {MAX_SIDE_PX}; its own size is {family.size_px} px",
            )
    scheduler = request.scheduler or family.scheduler
    if scheduler not in family.schedulers:
        raise RequestRefused(
            f"{family.title} has no scheduler {scheduler!r}", f"choose one of {', '.join(family.schedulers)}"
        )
    return BatchKey(width, height, request.steps or family.steps, scheduler)


def grouped(
    requests: Sequence[GenerationRequest], family: Family, stride: int, max_batch: int
) -> Iterator[tuple[BatchKey, list[int]]]:
    """(key, positions in `requests`) of each batch, at most `max_batch` long; every position comes once."""
    groups: dict[BatchKey, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(key_of(request, family, stride), []).append(i)
    for key, rows in groups.items():
        for start in range(0, len(rows), max_batch):
            yield key, rows[start : start + max_batch]


@dataclass(frozen=True)
class ImageConditioning:
    """A batch's image prompt at full scale and, per row, the window in which it speaks."""

    prompt: ImagePrompt
    windows: Tensor  # (rows, 2)

    def at(self, progress: float) -> ImagePrompt:
        """The prompt at `progress` (0 to 1) of the steps: rows outside their window have scale 0."""
        start, end = self.windows[:, 0], self.windows[:, 1]
        inside = (start <= progress) & (progress < end)
        return ImagePrompt(self.prompt.tokens, self.prompt.bias, self.prompt.scale * inside)


@torch.inference_mode()
def image_conditioning(
    requests: Sequence[GenerationRequest], adapter: Adapter, negative: Tensor, *, guided: bool
) -> ImageConditioning | None:
    """Project the batch's references, each distinct one once, and lay them out row by row.

    negative: what the unconditional half attends to, one encoder output. With `guided` the unconditional
    rows come first. None when no request has references that can be heard.
    """
    heard = [r.references if r.scale > 0 else () for r in requests]
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
    scale = torch.tensor([r.scale if refs else 0.0 for r, refs in zip(requests, heard, strict=True)], device=device)
    for row, refs in enumerate(heard):
        loudest = max((r.weight for r in refs), default=1.0)  # only shares count; a tiny weight alone is still heard
        for slot, reference in enumerate(refs):
            tokens[row, slot] = projected[place[id(reference.embedding)]]
            weights[row, slot] = reference.weight / loudest
        if not refs:
            weights[row, 0] = 1.0  # a row without references still needs one finite logit; its scale is 0
    windows = torch.tensor([r.window for r in requests], device=device)
    bias = log_weights(weights).repeat_interleave(per, dim=1)
    if guided:
        absent = torch.zeros_like(tokens)
        absent[:, 0] = projected[0]
        only_first = torch.full_like(weights, float("-inf"))
        only_first[:, 0] = 0.0
        tokens = torch.cat([absent, tokens])
        bias = torch.cat([only_first.repeat_interleave(per, dim=1), bias])
        scale, windows = torch.cat([scale, scale]), torch.cat([windows, windows])
    return ImageConditioning(ImagePrompt(tokens.flatten(1, 2), bias, scale), windows)


def check_references(requests: Sequence[GenerationRequest], adapter: Adapter, negative: Tensor) -> None:
    """Raises RequestRefused for an embedding that the adapter does not read; `negative` is one that it does."""
    want = tuple(negative.shape)
    for shape in {tuple(p.embedding.shape) for r in requests for p in r.references}:
        if shape != want:
            raise RequestRefused(
                f"a reference's embedding has shape {shape}, the {adapter.variant} adapter reads {want}",
                "embed the reference with the encoder of the loaded checkpoint",
            )
