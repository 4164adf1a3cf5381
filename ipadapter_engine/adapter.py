"""The adapter as a module: an image projection and the key and value layers, in the official file layout.

A file holds `image_proj.*` and `ip_adapter.{n}.to_k_ip.weight`, `…to_v_ip.weight` (github tencent-ailab/IP-Adapter); those
of FaceID also `ip_adapter.{n}.to_q_lora.down.weight` and so on, a LoRA on the attention layers that was trained with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ipadapter_engine.adapter_layouts import official_parts
from ipadapter_engine.attention import ImageKeyValue, layer_sizes
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.projections import BaseProjection, PlusProjection, Projection, Reads, projection_of


class Adapter(nn.Module):
    """A projection and, by official layer number, the key and value layers.

    variant: base (light as well), plus (plus-face as well), full-face, faceid, faceid plus, faceid plus v2 or
        faceid portrait.
    lora: of FaceID files, the LoRA that belongs to it, by official key; the UNet draws with it where the adapter speaks.
    """

    projection: Projection

    def __init__(
        self,
        variant: str,
        projection: Projection,
        layers: dict[int, ImageKeyValue],
        lora: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.variant, self.projection, self.lora = variant, projection, dict(lora or {})
        self.layers = nn.ModuleDict({str(n): layer for n, layer in layers.items()})

    @property
    def reads(self) -> Reads:
        return self.projection.reads

    @property
    def pooled(self) -> bool:
        """Whether a reference is one vector, a pooled embedding or a face, and not hidden states."""
        return self.reads.kind in ("pooled", "face")

    @property
    def embed_dim(self) -> int:
        """The numbers of that vector, or of each hidden state."""
        return self.reads.embed or self.reads.face

    def project(self, embeddings: Tensor, faces: Tensor | None = None) -> Tensor:
        """What references say as image tokens (n, tokens, dim).

        embeddings (n, embed), (n, patches + 1, embed) or, of adapters that read a face alone, (n, face).
        faces (n, face): for those that read both.
        """
        if self.reads.kind != "face_and_hidden":
            return self.projection(embeddings)
        if faces is None:
            raise ValueError(f"a {self.variant} adapter projects hidden states together with faces")
        return self.projection(embeddings, faces)

    def nothing(self, zero_hidden: Callable[[], np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """What the unconditional half is told, an embedding and for those that read both a face, as `project` takes them.

        zero_hidden: gives the hidden states of zero pixels; called by adapters that read hidden states only.
        """
        like = next(self.parameters())
        face = torch.zeros(self.reads.face, device=like.device, dtype=like.dtype) if self.reads.face else None
        if self.reads.kind == "face":
            assert face is not None
            return face, None
        if self.reads.nothing == "zeros":
            return torch.zeros(self.reads.embed, device=like.device, dtype=like.dtype), None
        return torch.from_numpy(zero_hidden()).to(like), face

    def by_number(self) -> dict[int, ImageKeyValue]:
        return {int(n): layer for n, layer in self.layers.items()}  # type: ignore[misc]

    def official_state(self) -> dict[str, Tensor]:
        """The flat key layout of a safetensors adapter file."""
        state = {f"image_proj.{k}": v for k, v in self.projection.state_dict().items()}
        state |= {f"ip_adapter.{k}": v for k, v in self.layers.state_dict().items()}
        return state | {f"ip_adapter.{k}": v for k, v in self.lora.items()}

    def lora_layers(self, unet: UNet2DConditionModel) -> dict[str, Tensor]:
        """Its LoRA by peft's names, `<layer of the UNet>.lora_A.weight` and `…lora_B.weight`; empty without one.

        Its alpha is its rank: what it adds is up(down(x)), at full strength, as the authors and diffusers apply it.
        """
        sides = {"down": "lora_A", "up": "lora_B"}
        named = {}
        for key, value in self.lora.items():
            number, part, side, _ = key.split(".")
            named[f"{_lora_layer(unet, number, part)}.{sides[side]}.weight"] = value
        return named


def _lora_layer(unet: UNet2DConditionModel, number: str, part: str) -> str:
    """The path of the layer that a part such as `to_q_lora` of an attention layer adds to."""
    attn = list(unet.attn_processors)[int(number)].removesuffix(".processor")
    name = part.removesuffix("_lora")
    return f"{attn}.{name}.0" if name == "to_out" else f"{attn}.{name}"


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


def adapter_from_state(
    state: Mapping[str, Tensor], unet: UNet2DConditionModel, *, file: str, sha256: str = ""
) -> Adapter:
    """Build the adapter that a file holds in one of the known layouts, and check that it fits `unet`.

    file, sha256: the file's name and hash, which tell what its weights do not, see `projection_of`.
    Raises CheckpointRefused, naming the file, what was found, what was expected and what to load instead.
    """
    proj, layers = official_parts(state, unet, file=file)
    lora = {k: v for k, v in layers.items() if "_lora." in k}
    kv = {k: v for k, v in layers.items() if k not in lora}
    sizes = layer_sizes(unet)
    _check_layers(kv, sizes, file)
    variant, projection = projection_of(proj, next(iter(sizes.values()))[0], file=file, sha256=sha256)
    _check_lora(lora, unet, file)
    adapter = Adapter(variant, projection, {n: ImageKeyValue(*size) for n, size in sizes.items()}, lora)
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
    found = {k.split(".")[0] for k in kv}
    if found != {str(n) for n in sizes}:
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


def _check_lora(lora: Mapping[str, Tensor], unet: UNet2DConditionModel, file: str) -> None:
    """Every part is a pair (rank, in) and (out, rank) that fits its layer."""
    numbers = {str(n) for n in range(len(unet.attn_processors))}
    for part in sorted({k.removesuffix(".down.weight").removesuffix(".up.weight") for k in lora}):
        number, _, name = part.removesuffix("_lora").partition(".")
        down, up = (lora.get(f"{part}.{side}.weight") for side in ("down", "up"))
        fits = number in numbers and name in ("to_q", "to_k", "to_v", "to_out") and down is not None and up is not None
        if fits:
            assert down is not None
            assert up is not None
            layer = unet.get_submodule(_lora_layer(unet, number, name))
            paired = down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1]
            fits = paired and (up.shape[0], down.shape[1]) == tuple(layer.weight.shape)
        if not fits:
            raise CheckpointRefused(
                f"{file} has a LoRA that does not fit this base: {part} has no layer of its size here",
                "load the adapter file that was trained for this base model",
            )
