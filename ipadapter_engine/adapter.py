"""The adapter as a module: an image projection and the key and value layers, in the official file layout.

A file holds `image_proj.*` and `ip_adapter.{n}.to_k_ip.weight`, `…to_v_ip.weight` (github tencent-ailab/IP-Adapter).
`base` projects the pooled CLIP embedding to 4 tokens; `plus` resamples the hidden states of the last layer but one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ipadapter_engine.attention import ImageKeyValue, layer_sizes
from ipadapter_engine.errors import CheckpointRefused


class BaseProjection(nn.Module):
    """Pooled embedding (n, embed) -> (n, tokens, dim); sec. 3.2.1 of the paper."""

    def __init__(self, embed: int, dim: int, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(embed, tokens * dim)
        self.norm = nn.LayerNorm(dim)

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


class PlusProjection(nn.Module):
    """Hidden states (n, patches + 1, embed) -> (n, tokens, dim): the resampler of IP-Adapter Plus."""

    def __init__(
        self, embed: int, dim: int, *, tokens: int, width: int, depth: int, head_dim: int, heads: int, ff: int
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in, self.proj_out = nn.Linear(embed, width), nn.Linear(width, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, ff, bias=False), nn.GELU(), nn.Linear(ff, width, bias=False)
            )
            self.layers.append(nn.ModuleList([_PerceiverAttention(width, head_dim, heads), feed]))

    def forward(self, embedding: Tensor) -> Tensor:
        features = self.proj_in(embedding)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            attend, feed = layer.children()
            latents = attend(features, latents) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))


class Adapter(nn.Module):
    """A projection and, by official layer number, the key and value layers."""

    def __init__(
        self, variant: str, projection: BaseProjection | PlusProjection, layers: dict[int, ImageKeyValue]
    ) -> None:
        super().__init__()
        self.variant, self.projection = variant, projection
        self.layers = nn.ModuleDict({str(n): layer for n, layer in layers.items()})

    @property
    def pooled(self) -> bool:
        """Whether a reference is a pooled embedding (embed,) or hidden states (patches + 1, embed)."""
        return self.variant == "base"

    @property
    def embed_dim(self) -> int:
        """The size of the encoder output that the adapter was trained on."""
        if isinstance(self.projection, BaseProjection):
            return self.projection.proj.in_features
        return self.projection.proj_in.in_features

    def by_number(self) -> dict[int, ImageKeyValue]:
        return {int(n): layer for n, layer in self.layers.items()}  # type: ignore[misc]

    def official_state(self) -> dict[str, Tensor]:
        """The flat key layout of a safetensors adapter file."""
        state = {f"image_proj.{k}": v for k, v in self.projection.state_dict().items()}
        state |= {f"ip_adapter.{k}": v for k, v in self.layers.state_dict().items()}
        return state


def new_base_adapter(unet: UNet2DConditionModel, embed: int, tokens: int = 4) -> Adapter:
    """An untrained base adapter whose key and value layers start as copies of the text's, as the authors train it."""
    dim = next(iter(layer_sizes(unet).values()))[0]
    return Adapter("base", BaseProjection(embed, dim, tokens), _copied_layers(unet))


def new_plus_adapter(unet: UNet2DConditionModel, hidden: int, tokens: int = 16) -> Adapter:
    """An untrained plus adapter: the authors' resampler over hidden states (patches + 1, `hidden`), started likewise.

    Four layers, heads of 64, as wide as the UNet's text states up to 1280: the sizes of ip-adapter-plus for SD1.5
    (768) and SDXL (1280), which diffusers' loader takes for granted.
    """
    dim = next(iter(layer_sizes(unet).values()))[0]
    width = min(dim, 1280)
    projection = PlusProjection(
        hidden, dim, tokens=tokens, width=width, depth=4, head_dim=64, heads=max(1, width // 64), ff=4 * width
    )
    return Adapter("plus", projection, _copied_layers(unet))


def _copied_layers(unet: UNet2DConditionModel) -> dict[int, ImageKeyValue]:
    layers = {n: ImageKeyValue(*size) for n, size in layer_sizes(unet).items()}
    names = list(unet.attn_processors)
    with torch.no_grad():
        for n, layer in layers.items():
            attn = unet.get_submodule(names[n].removesuffix(".processor"))
            layer.to_k_ip.weight.copy_(attn.to_k.weight)
            layer.to_v_ip.weight.copy_(attn.to_v.weight)
    return layers


def adapter_from_state(state: Mapping[str, Tensor], unet: UNet2DConditionModel, *, file: str) -> Adapter:
    """Build the adapter that a file in the official layout holds, and check that it fits `unet`.

    Raises CheckpointRefused, naming the file, what was found, what was expected and what to load instead.
    """
    proj = {k.removeprefix("image_proj."): v for k, v in state.items() if k.startswith("image_proj.")}
    kv = {k.removeprefix("ip_adapter."): v for k, v in state.items() if k.startswith("ip_adapter.")}
    if not proj or not kv:
        missing = "image_proj" if not proj else "ip_adapter"
        raise CheckpointRefused(
            f"{file} is not an IP-Adapter file: it has no {missing} keys",
            "save the adapter with its image_proj and ip_adapter parts, or name another file",
        )
    _check_variant(proj, file)
    sizes = layer_sizes(unet)
    _check_layers(kv, sizes, file)
    projection, variant = _projection(proj, next(iter(sizes.values()))[0], file)
    adapter = Adapter(variant, projection, {n: ImageKeyValue(*size) for n, size in sizes.items()})
    try:
        adapter.projection.load_state_dict(proj)
        adapter.layers.load_state_dict(kv)
    except RuntimeError as error:
        mismatch = " ".join(str(error).split(":", 1)[-1].split())
        raise CheckpointRefused(
            f"{file} does not fit its own layout: {mismatch}", "use an unmodified adapter file"
        ) from None
    return adapter


def _check_layers(kv: Mapping[str, Tensor], sizes: dict[int, tuple[int, int]], file: str) -> None:
    names = {k.split(".")[0] for k in kv}
    found = {int(n) for n in names if n.isdecimal()}
    if found != set(sizes) or len(names) != len(found):
        kinds = {16: "Stable Diffusion 1.5", 70: "SDXL"}
        raise CheckpointRefused(
            f"{file} was made for another base: it has {len(found)} attention layers"
            f"{f' ({kinds[len(found)]})' if len(found) in kinds else ''}, this base has {len(sizes)}"
            f"{f' ({kinds[len(sizes)]})' if len(sizes) in kinds else ''}",
            "load the adapter file that was trained for this base model",
        )
    for key, size in ((f"{n}.{part}.weight", size) for n, size in sizes.items() for part in ("to_k_ip", "to_v_ip")):
        dim, hidden = size
        if key not in kv or tuple(kv[key].shape) != (hidden, dim):
            got = tuple(kv[key].shape) if key in kv else "missing"
            raise CheckpointRefused(
                f"{file} was made for another base: {key} is {got}, this base needs {(hidden, dim)}",
                "load the adapter file that was trained for this base model",
            )


def _check_variant(proj: Mapping[str, Tensor], file: str) -> None:
    """Tell the variants apart by their keys, as the authors' and diffusers' loaders do."""
    if {"proj.weight", "proj.bias", "norm.weight"} <= set(proj) or {"latents", "layers.0.0.to_q.weight"} <= set(proj):
        return
    if "proj.3.weight" in proj:
        kind = "full-face"
    elif any(k.startswith("perceiver_resampler.") for k in proj):
        kind = "FaceID Plus"
    elif "norm.weight" in proj:
        kind = "FaceID"
    else:
        kind = "unknown"
    raise CheckpointRefused(
        f"{file} is an IP-Adapter of a variant that is not supported ({kind})",
        "load a base or plus adapter file for this base model",
    )


def _projection(proj: Mapping[str, Tensor], dim: int, file: str) -> tuple[BaseProjection | PlusProjection, str]:
    try:
        projection, width = _base(proj, dim) if "proj.weight" in proj else _plus(proj, dim)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointRefused(
            f"{file} has a damaged image projection: {error}", "use an unmodified adapter file"
        ) from None
    if width % dim or (isinstance(projection, PlusProjection) and width != dim):
        raise CheckpointRefused(
            f"{file} projects to {width} numbers, this base needs tokens of {dim}",
            "load the adapter file that was trained for this base model",
        )
    return projection, "base" if isinstance(projection, BaseProjection) else "plus"


def _base(proj: Mapping[str, Tensor], dim: int) -> tuple[BaseProjection, int]:
    rows, embed = proj["proj.weight"].shape
    return BaseProjection(embed, dim, rows // dim), rows


def _plus(proj: Mapping[str, Tensor], dim: int) -> tuple[PlusProjection, int]:
    _, tokens, width = proj["latents"].shape
    inner = proj["layers.0.0.to_q.weight"].shape[0]
    projection = PlusProjection(
        proj["proj_in.weight"].shape[1],
        dim,
        tokens=tokens,
        width=width,
        depth=len({k.split(".")[1] for k in proj if k.startswith("layers.")}),
        head_dim=64 if inner % 64 == 0 else inner,
        heads=max(1, inner // 64),
        ff=proj["layers.0.1.1.weight"].shape[0],
    )
    return projection, proj["proj_out.weight"].shape[0]
