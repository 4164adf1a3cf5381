"""From what an encoder says of a reference to image tokens: the projections of every published IP-Adapter.

Each module's parameters are called as in the authors' files (github tencent-ailab/IP-Adapter), so that a file loads into
it as it is and is written again with the same keys. Ye et al., 2023, arXiv:2308.06721.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ipadapter_engine.errors import CheckpointRefused

Reading = Literal["pooled", "hidden", "face", "face_and_hidden"]
PORTRAIT_TOKENS = 16  # a FaceID file of so many tokens a face is FaceID Portrait; the others have 4


@dataclass(frozen=True)
class Reads:
    """What an adapter reads of a reference.

    kind: the encoder's pooled embedding (embed,), its hidden states (patches + 1, embed), a face (face,), or both of the
        latter.
    embed: numbers of the pooled embedding or of each hidden state; 0 where a face alone is read.
    face: numbers of the face's embedding (ArcFace, 512); 0 where none is read.
    unit_face: whether the face's embedding has length 1, as all but the "unnorm" file want it.
    """

    kind: Reading
    embed: int
    face: int = 0
    unit_face: bool = True

    @property
    def nothing(self) -> Literal["zeros", "zero pixels"]:
        """What the unconditional half is told: zeros in place of vectors, an encoded black picture for hidden states."""
        return "zero pixels" if self.kind in ("hidden", "face_and_hidden") else "zeros"


class BaseProjection(nn.Module):
    """Pooled embedding (n, embed) -> (n, tokens, dim); sec. 3.2.1 of the paper."""

    def __init__(self, embed: int, dim: int, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embed, tokens * dim)
        self.norm = nn.LayerNorm(dim)
        self.reads = Reads("pooled", embed)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))


class _PerceiverAttention(nn.Module):
    """Latents (n, t, dim) attend to the picture's features and to themselves (Flamingo, Alayrac et al., 2022)."""

    def __init__(self, dim: int, head_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, head_dim * heads, bias=False)
        self.to_kv = nn.Linear(dim, head_dim * heads * 2, bias=False)
        self.to_out = nn.Linear(head_dim * heads, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        features, latents = self.norm1(features), self.norm2(latents)
        q = self.to_q(latents)
        k, v = self.to_kv(torch.cat([features, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class _Resampler(nn.Module):
    """Latents (n, tokens, width) look at hidden states (n, patches + 1, embed) -> (n, tokens, dim)."""

    def __init__(self, embed: int, dim: int, *, width: int, depth: int, head_dim: int, heads: int, ff: int) -> None:
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(embed, width), nn.Linear(width, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, ff, bias=False), nn.GELU(), nn.Linear(ff, width, bias=False)
            )
            self.layers.append(nn.ModuleList([_PerceiverAttention(width, head_dim, heads), feed]))

    def resampled(self, latents: Tensor, embedding: Tensor) -> Tensor:
        features = self.proj_in(embedding)
        for layer in self.layers:
            attend, feed = layer.children()
            latents = attend(features, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))


class PlusProjection(_Resampler):
    """Hidden states (n, patches + 1, embed) -> (n, tokens, dim): the resampler of IP-Adapter Plus and Plus Face."""

    def __init__(
        self, embed: int, dim: int, *, tokens: int, width: int, depth: int, head_dim: int, heads: int, ff: int
    ) -> None:
        super().__init__(embed, dim, width=width, depth=depth, head_dim=head_dim, heads=heads, ff=ff)
        self.tokens = tokens
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.reads = Reads("hidden", embed)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.resampled(self.latents.expand(embedding.shape[0], -1, -1), embedding)


class FullFaceProjection(nn.Module):
    """Hidden states (n, patches + 1, embed) -> (n, patches + 1, dim): each becomes a token, 257 of CLIP's own."""

    def __init__(self, embed: int, dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(embed, width), nn.GELU(), nn.Linear(width, dim), nn.LayerNorm(dim))
        self.reads = Reads("hidden", embed)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.proj(embedding)


class FaceProjection(nn.Module):
    """Faces (n, face) -> (n, tokens, dim): IP-Adapter FaceID."""

    def __init__(self, face: int, dim: int, *, tokens: int, width: int, unit_face: bool = True) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Sequential(nn.Linear(face, width), nn.GELU(), nn.Linear(width, tokens * dim))
        self.norm = nn.LayerNorm(dim)
        self.reads = Reads("face", 0, face, unit_face)

    def forward(self, faces: Tensor) -> Tensor:
        return self.norm(self.proj(faces).unflatten(-1, (self.tokens, -1)))


class FacePlusProjection(nn.Module):
    """Hidden states (n, patches + 1, embed) and faces (n, face) -> (n, tokens, dim): IP-Adapter FaceID Plus.

    The face's tokens are the resampler's latents. shortcut: version 2 adds them to what comes out of it as well.
    """

    def __init__(
        self, face: int, embed: int, dim: int, *, tokens: int, width: int, resampler: dict[str, int], shortcut: bool
    ) -> None:
        """width: of the face's hidden layer; resampler: depth, head_dim, heads and ff of it, which is `dim` wide."""
        super().__init__()
        self.tokens, self.shortcut = tokens, shortcut
        self.proj = nn.Sequential(nn.Linear(face, width), nn.GELU(), nn.Linear(width, tokens * dim))
        self.norm = nn.LayerNorm(dim)
        self.perceiver_resampler = _Resampler(embed, dim, width=dim, **resampler)
        self.reads = Reads("face_and_hidden", embed, face)

    def forward(self, embedding: Tensor, faces: Tensor) -> Tensor:
        latents = self.norm(self.proj(faces).unflatten(-1, (self.tokens, -1)))
        seen = self.perceiver_resampler.resampled(latents, embedding)
        return latents + seen if self.shortcut else seen


Projection = BaseProjection | PlusProjection | FullFaceProjection | FaceProjection | FacePlusProjection
_DAMAGED = (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError)


def projection_of(proj: Mapping[str, Tensor], dim: int, *, file: str, sha256: str = "") -> tuple[str, Projection]:
    """The variant and the module that a file's `image_proj` keys are of, its weights not yet loaded.

    Keys tell the variants apart, as in the authors' and diffusers' loaders. What they cannot tell, the two versions of
    FaceID Plus and FaceID Portrait trained on faces of any length, the file's sha256 tells if it is a published one,
    else its name. Raises CheckpointRefused.
    """
    names = set(proj)
    try:
        if {"proj.weight", "proj.bias", "norm.weight"} <= names:
            rows, embed = proj["proj.weight"].shape
            return _fitting(dim, rows, file, "base", BaseProjection(embed, dim, rows // dim))
        if "proj.3.weight" in names:
            width, embed = proj["proj.0.weight"].shape
            rows = len(proj["proj.2.weight"])
            return _fitting(dim, rows, file, "full-face", FullFaceProjection(embed, dim, width), one=True)
        if "perceiver_resampler.proj_in.weight" in names:
            return _face_plus(proj, dim, file, sha256)
        if {"proj.0.weight", "norm.weight"} <= names:
            return _face(proj, dim, file)
        if {"latents", "layers.0.0.to_q.weight"} <= names:
            return _plus(proj, dim, file)
    except _DAMAGED as error:
        raise CheckpointRefused(
            f"{file} has a damaged image projection: {str(error).splitlines()[0]}", "use an unmodified adapter file"
        ) from None
    raise CheckpointRefused(
        f"{file} is an IP-Adapter of a variant that is not known, its projection begins with {min(names)}",
        "load a base, light, plus, plus-face, full-face, FaceID, FaceID Plus or FaceID Portrait file for this base model",
    )


def _plus(proj: Mapping[str, Tensor], dim: int, file: str) -> tuple[str, Projection]:
    _, tokens, width = proj["latents"].shape
    embed, rows = proj["proj_in.weight"].shape[1], len(proj["proj_out.weight"])
    projection = PlusProjection(embed, dim, tokens=tokens, width=width, **_resampler(proj, ""))
    return _fitting(dim, rows, file, "plus", projection, one=True)


def _face(proj: Mapping[str, Tensor], dim: int, file: str) -> tuple[str, Projection]:
    width, face = proj["proj.0.weight"].shape
    rows = len(proj["proj.2.weight"])
    tokens = rows // dim
    variant = "faceid portrait" if tokens == PORTRAIT_TOKENS else "faceid"
    unit = "unnorm" not in _plain(file)
    return _fitting(dim, rows, file, variant, FaceProjection(face, dim, tokens=tokens, width=width, unit_face=unit))


def _face_plus(proj: Mapping[str, Tensor], dim: int, file: str, sha256: str) -> tuple[str, Projection]:
    width, face = proj["proj.0.weight"].shape
    rows = len(proj["proj.2.weight"])
    embed = proj["perceiver_resampler.proj_in.weight"].shape[1]
    sizes = _resampler(proj, "perceiver_resampler.")
    variant = _face_plus_version(file, sha256)
    shortcut = variant.endswith("v2")
    projection = FacePlusProjection(
        face, embed, dim, tokens=rows // dim, width=width, resampler=sizes, shortcut=shortcut
    )
    return _fitting(dim, rows, file, variant, projection)


_FACE_PLUS_FILES = {  # published files of huggingface.co/h94/IP-Adapter-FaceID
    "252fb53e0d018489d9e7f9b9e2001a52ff700e491894011ada7cfb471e0fadf2": "faceid plus",  # ip-adapter-faceid-plus_sd15
    "26d0d86a1d60d6cc811d3b8862178b461e1eeb651e6fe2b72ba17aa95411e313": "faceid plus v2",  # …-plusv2_sd15
    "c6945d82b543700cc3ccbb98d363b837e9c596281607857c74b713a876daf5fb": "faceid plus v2",  # …-plusv2_sdxl
}


def _face_plus_version(file: str, sha256: str) -> str:
    if sha256 in _FACE_PLUS_FILES:
        return _FACE_PLUS_FILES[sha256]
    name = _plain(file)
    if "plus" not in name:
        raise CheckpointRefused(
            f"{file} is a FaceID Plus adapter, and neither its weights nor its name tell whether of version 1 or 2",
            "rename it so that its name has faceid-plus or faceid-plusv2 in it, as it was published",
        )
    return "faceid plus v2" if "plusv2" in name else "faceid plus"


def _plain(file: str) -> str:
    return "".join(c for c in file.lower() if c.isalnum())


def _resampler(proj: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """The sizes of a resampler that its weights tell; the authors' heads are 64 wide."""
    inner = proj[f"{prefix}layers.0.0.to_q.weight"].shape[0]
    numbers = {k.removeprefix(prefix).split(".")[1] for k in proj if k.startswith(f"{prefix}layers.")}
    return {
        "depth": len(numbers),
        "head_dim": 64 if inner % 64 == 0 else inner,
        "heads": max(1, inner // 64),
        "ff": proj[f"{prefix}layers.0.1.1.weight"].shape[0],
    }


def _fitting(
    dim: int, rows: int, file: str, variant: str, projection: Projection, *, one: bool = False
) -> tuple[str, Projection]:
    """one: whether what is projected is one token and not several in a row."""
    if rows % dim or (one and rows != dim):
        raise CheckpointRefused(
            f"{file} projects to {rows} numbers, this base needs tokens of {dim}",
            "load the adapter file that was trained for this base model",
        )
    return variant, projection
