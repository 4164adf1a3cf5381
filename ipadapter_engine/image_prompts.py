"""What the adapters hear in one batch, as tensors: references projected once, packed row by row into branches.

A request speaks to an adapter with one voice for each of its regions, and with one more where block factors below 0
turn it against the picture. Voices of the batch's requests are packed side by side: the first ones of all requests
make the first branch, and so on, so that a batch needs no more branches than its most talkative request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.attention import ImagePrompt, log_weights
from ipadapter_engine.controls import check_shape
from ipadapter_engine.emphasis import AdapterSettings, factors
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.prompts import IDENTITY, Array, ReferencePrompt, inside
from ipadapter_engine.requests import BatchKey, GenerationRequest

Nothing = tuple[Tensor, Tensor | None]  # an embedding, and a face for adapters that read both


@dataclass(frozen=True, eq=False)
class _Voice:
    """What one request says in one branch.

    shown, weights: the references that stand side by side. against: they are shown to the unconditional half alone.
    nothing: what the other half attends to, and this one beside nothing else: negative references, else None.
    """

    shown: tuple[ReferencePrompt, ...]
    nothing: tuple[ReferencePrompt, ...]
    scale: float
    factors: tuple[float, ...]
    region: Array | None
    against: bool
    window: tuple[float, float]
    settings: AdapterSettings

    def loud(self, progress: float) -> float:
        return self.settings.factor_at(progress) if inside(self.window, progress) else 0.0


@dataclass(frozen=True)
class Branches:
    """The branches of all adapters in one batch; voices has one entry a request for every prompt."""

    prompts: tuple[ImagePrompt, ...]
    voices: tuple[tuple[_Voice | None, ...], ...]
    halves: int

    def loud(self, progress: Sequence[float]) -> list[list[float]]:
        """The factors of a step for Conditioning.step; progress is each request's, below 0 before its first step."""
        return [
            [v.loud(p) if v is not None else 0.0 for v, p in zip(row, progress, strict=True)] * self.halves
            for row in self.voices
        ]


@torch.inference_mode()
def image_prompts(
    requests: Sequence[GenerationRequest],
    adapters: Mapping[str, Adapter],
    nothing: Mapping[str, Nothing],
    *,
    key: BatchKey,
    stride: int,
    guided: Sequence[bool],
    paths: tuple[str, ...],
    presets: Mapping[str, Mapping[str, float]],
) -> Branches:
    """Project what the batch's references say, each distinct one once an adapter, and pack it.

    nothing: by adapter, what the unconditional half attends to (`Adapter.nothing`). guided: whether each request is; where
    one is, there are two halves, the unconditional rows first. paths: the cross-attention layers in the UNet's order, `presets` the family's of blocks.
    """
    halves = 1 + any(guided)
    prompts: list[ImagePrompt] = []
    voices: list[tuple[_Voice | None, ...]] = []
    for name, adapter in adapters.items():
        told = [_voices(r, name, paths, presets, guided=g) for r, g in zip(requests, guided, strict=True)]
        most = max(map(len, told), default=0)
        if not most:
            continue
        tokens = _Projected(adapter, nothing[name], [v for row in told for v in row])
        for slot in range(most):
            row = tuple(v[slot] if slot < len(v) else None for v in told)
            voices.append(row)
            prompts.append(_packed(row, name, tokens, halves, key, stride))
    return Branches(tuple(prompts), tuple(voices), halves)


def check_references(
    requests: Sequence[GenerationRequest],
    name: str,
    adapter: Adapter,
    nothing: Nothing,
    paths: tuple[str, ...],
    presets: Mapping[str, Mapping[str, float]],
) -> None:
    """Raises RequestRefused for an embedding or a face that the adapter does not read (`nothing` is one that it does)
    and for blocks that the UNet does not have."""
    embedding, face = nothing
    for reference in (p for r in requests for p in r.references if p.adapter == name):
        if reference.embedding is None:
            raise RequestRefused(
                f"a reference of the adapter {name!r} is a picture alone", "embed it with the checkpoint's encoder"
            )
        if reference.embedding.shape != tuple(embedding.shape):
            raise RequestRefused(
                f"a reference's embedding has shape {reference.embedding.shape}, the {adapter.variant} adapter reads "
                f"{tuple(embedding.shape)}",
                "give the embedding of a face, by `face_reference`; libraries hold none"
                if adapter.reads.kind == "face"
                else "embed the reference with the encoder of the loaded checkpoint",
            )
        has = None if reference.face is None else reference.face.shape
        if has != (None if face is None else tuple(face.shape)):
            reads = "reads no face" if face is None else f"reads a face of shape {tuple(face.shape)} besides"
            raise RequestRefused(
                f"a reference's face {'is missing' if has is None else f'has shape {has}'}, the {adapter.variant} "
                f"adapter {reads}",
                "give as `face` what the face model says of the picture, to FaceID Plus adapters only",
            )
    for request in requests:
        factors(request.settings_of(name).blocks, paths, presets)


def check_regions(request: GenerationRequest, key: BatchKey) -> None:
    """Raises RequestRefused where a region has another shape than the picture."""
    for name, mask in request.regions.items():
        check_shape(f"the region {name!r}", (mask.shape[0], mask.shape[1]), key.width_px, key.height_px)


def _voices(
    request: GenerationRequest,
    name: str,
    paths: tuple[str, ...],
    presets: Mapping[str, Mapping[str, float]],
    *,
    guided: bool,
) -> list[_Voice]:
    heard = [r for r in request.heard_by(name) if r.weight > 0]
    settings = request.settings_of(name)
    nothing = tuple(r for r in heard if r.negative) if guided else ()
    by_region: dict[str | None, list[ReferencePrompt]] = {}
    for reference in heard:
        if not reference.negative:
            by_region.setdefault(reference.region, []).append(reference)
    if nothing and not by_region:
        by_region[None] = []
    per_layer = factors(settings.blocks, paths, presets)
    out = []
    for region, shown in by_region.items():
        mask = request.regions[region] if region is not None else None
        merged = _merged(shown, settings)
        for sign in (1, -1) if guided else (1,):
            here = tuple(max(0.0, sign * f) for f in per_layer)
            if any(here) and (merged or sign > 0):
                out.append(
                    _Voice(
                        merged, nothing, request.scale_of(name), here, mask, sign < 0, request.window_of(name), settings
                    )
                )
    return out


def _merged(shown: Sequence[ReferencePrompt], settings: AdapterSettings) -> tuple[ReferencePrompt, ...]:
    """The references as they are, or as the one that `combine` makes of them; weights multiply the embeddings."""
    if settings.combine == "concat" or len(shown) < 2:
        return tuple(shown)
    weights = [r.weight for r in shown]
    total = sum(weights) if settings.combine in ("average", "norm_average") else 1.0
    embedding = _combined([r.embedding for r in shown], weights, total, settings.combine)
    faces = [r.face for r in shown]
    face = None if any(f is None for f in faces) else _combined(faces, weights, total, settings.combine)
    return (ReferencePrompt(embedding, 1.0, shown[0].adapter, face=face),)


def _combined(arrays: Sequence[Array | None], weights: Sequence[float], total: float, how: str) -> Array:
    stack = np.stack([np.asarray(a, dtype=np.float32) for a in arrays])
    if how == "norm_average":
        norm = np.sqrt((stack**2).sum(0, keepdims=True))
        stack = np.divide(stack, norm, out=np.zeros_like(stack), where=norm > 0)
    stack = stack * np.asarray(weights, dtype=np.float32).reshape(-1, *[1] * (stack.ndim - 1))
    if how == "subtract":
        return np.asarray(stack[0] - stack[1:].mean(0))
    return np.asarray(stack.sum(0) / total, dtype=np.float32)


class _Projected:
    """The image tokens of every distinct reference of a batch, computed in one pass of an adapter's projection."""

    def __init__(self, adapter: Adapter, nothing: Nothing, voices: Sequence[_Voice]) -> None:
        distinct = {_key(p): p for v in voices for p in (*v.shown, *v.nothing)}
        embedding, face = nothing
        embeddings = torch.stack([embedding, *(_as(embedding, p.embedding) for p in distinct.values())])
        faces = None if face is None else torch.stack([face, *(_as(face, p.face) for p in distinct.values())])
        self._tokens = adapter.project(embeddings, faces)  # (1 + references, tokens, dim)
        self._place = {key: 1 + i for i, key in enumerate(distinct)}

    @property
    def nothing(self) -> Tensor:
        return self._tokens[0]

    def of(self, reference: ReferencePrompt) -> Tensor:
        """(tokens, dim)."""
        return self._tokens[self._place[_key(reference)]]


def _as(like: Tensor, numbers: Array | None) -> Tensor:
    # a copy, as an array that was read from a store or a file is often read-only
    return torch.from_numpy(np.array(numbers, dtype=np.float32)).to(like)


def _key(reference: ReferencePrompt) -> tuple[int, int]:
    return id(reference.embedding), id(reference.face)


def _packed(
    row: Sequence[_Voice | None], name: str, projected: _Projected, halves: int, key: BatchKey, stride: int
) -> ImagePrompt:
    """One branch: its voices' references slot by slot, unconditional rows first."""
    blank = projected.nothing
    per, dim = blank.shape
    sides = [_half(v, unconditional=half < halves - 1) for half in range(halves) for v in row]
    slots = max(1, *(len(side) for side in sides))
    tokens = torch.zeros(len(sides), slots, per, dim, device=blank.device, dtype=blank.dtype)
    weights = torch.zeros(len(sides), slots)
    for i, side in enumerate(sides):
        loudest = max((r.weight for r in side), default=1.0)  # only shares count; a tiny weight alone is still heard
        for slot, reference in enumerate(side):
            tokens[i, slot] = projected.of(reference)
            weights[i, slot] = reference.weight / loudest
        if not side:  # it attends to nothing; where the scale is 0 it still needs one finite logit
            tokens[i, 0], weights[i, 0] = blank, 1.0
    bias = None
    if not bool((weights == 1).all()):
        bias = log_weights(weights).repeat_interleave(per, dim=1).to(blank.device)
    width = max((len(v.factors) for v in row if v is not None), default=1)
    silent = (0.0,) * width
    scale = [
        silent if v is None or (v.against and half == halves - 1) else tuple(v.scale * f for f in v.factors)
        for half in range(halves)
        for v in row
    ]
    return ImagePrompt(
        tokens.flatten(1, 2),
        bias,
        torch.tensor(scale, device=blank.device),
        name,
        _masks(row, halves, key, stride, blank),
    )


def _half(voice: _Voice | None, *, unconditional: bool) -> tuple[ReferencePrompt, ...]:
    if voice is None:
        return ()
    return voice.shown if unconditional == voice.against else voice.nothing


def _masks(row: Sequence[_Voice | None], halves: int, key: BatchKey, stride: int, like: Tensor) -> Tensor | None:
    """(rows, h, w) at the size of the latents, by area; None where no voice has a region."""
    if all(v is None or v.region is None for v in row):
        return None
    size = key.height_px // stride, key.width_px // stride
    masks = torch.ones(len(row), *size)
    for i, voice in enumerate(row):
        if voice is not None and voice.region is not None:
            mask = torch.from_numpy(np.array(voice.region, dtype=np.float32)) / 255
            masks[i] = F.interpolate(mask[None, None], size=size, mode="area")[0, 0]
    return masks.to(like.device).repeat(halves, 1, 1)


def check_adapters(requests: Sequence[GenerationRequest], loaded: Mapping[str, Adapter]) -> None:
    """Raises RequestRefused for a reference, a scale or settings whose adapter is not loaded."""
    for name in sorted({a for r in requests for a in (*r.adapters, *r.scales, *r.settings)} - set(loaded)):
        setting = "ADAPTER" if name == IDENTITY else f"ADAPTERS__{name.upper()}"
        there, or_else = (f"loaded are {', '.join(loaded)}", "name a loaded one") if loaded else (
            "no adapter is loaded", "leave its references and scale out")  # fmt: skip
        raise RequestRefused(
            f"a request names the adapter {name!r}; {there}", f"set ONMODEL_ENGINE__{setting} to its file, or {or_else}"
        )
