"""What a file of weights holds, from its names and shapes alone: nothing is loaded, and no pickle runs code.

The layouts are those of github tencent-ailab/IP-Adapter, of diffusers and of the original Stable Diffusion files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipadapter_engine.errors import CheckpointRefused

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SUFFIXES = (".safetensors", *PICKLES)
Shapes = Mapping[str, tuple[int, ...]]
_MOST_HEADER_BYTES = 100_000_000  # as the safetensors format itself allows


@dataclass(frozen=True)
class Told:
    """What names and shapes tell; None where they do not. `variant` is the coarse one: light looks like base."""

    kind: str | None
    variant: str = ""
    base: str | None = None
    encoder: str | None = None


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape; a nested pickle's as `part.name`. Raises CheckpointRefused for anything else."""
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    if path.suffix in PICKLES:
        return _of_pickle(path)
    raise CheckpointRefused(f"{path.name} is no file of weights", f"give one of {', '.join(SUFFIXES)}")


def _of_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """From the header; a file that is shorter or longer than its header says is damaged."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise ValueError("it has no header")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((int(t["data_offsets"][1]) for t in header.values()), default=0)
        shapes = {name: tuple(int(n) for n in t["shape"]) for name, t in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointRefused(f"{path.name} is damaged: {error}", "fetch the file again") from None
    if end != size:
        raise CheckpointRefused(
            f"{path.name} is damaged: it has {size} bytes, its header expects {end}", "fetch the file again"
        )
    return shapes


def _of_pickle(path: Path) -> dict[str, tuple[int, ...]]:
    import pickle

    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointRefused(
            f"{path.name} is not a plain file of weights: to open it would run code that it brings",
            "use the safetensors version of this model",
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointRefused(f"{path.name} is damaged: {told}", "fetch the file again") from None
    if not isinstance(held, dict):
        raise CheckpointRefused(f"{path.name} holds no dictionary of weights", "use an unmodified model file")
    return dict(_flat(held, ""))


def _flat(held: Mapping[Any, Any], within: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, value in held.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{name}.")
        elif hasattr(value, "shape"):
            yield f"{within}{name}", tuple(int(n) for n in value.shape)


def told_by(shapes: Shapes) -> Told:
    """What a single file is. Raises nothing: a file that is none of these has no kind."""
    names = set(shapes)
    if any(n.startswith("ip_adapter.") for n in names) and any(n.startswith("image_proj.") for n in names):
        return _adapter(shapes)
    if any(n.startswith("model.diffusion_model.") for n in names):
        width = next((s[1] for n, s in shapes.items() if n.endswith("attn2.to_k.weight") and len(s) == 2), 0)
        return Told("base", "single file", _base_of(width))
    if any(".lora_" in n or n.startswith("lora_") or ".lora." in n for n in names):
        return Told("lora")
    if any(n.startswith(("string_to_param.", "emb_params", "clip_l", "clip_g")) for n in names) or _lone_token(shapes):
        return Told("embedding")
    if any(n.startswith("vision_model.") for n in names) and "visual_projection.weight" in names:
        return Told("encoder")
    return Told(None)


def _adapter(shapes: Shapes) -> Told:
    keys = next((s for n, s in shapes.items() if n.endswith("to_k_ip.weight") and len(s) == 2), (0, 0))
    proj = {n.removeprefix("image_proj."): s for n, s in shapes.items() if n.startswith("image_proj.")}
    base = _base_of(keys[1])
    if "perceiver_resampler.proj_in.weight" in proj:
        return Told("adapter", "FaceID Plus", base, "arcface+vit-h")
    if "proj.3.weight" in proj:
        return Told("adapter", "full-face", base, _encoder(proj.get("proj.0.weight"), pooled=False))
    if "latents" in proj:
        return Told("adapter", "plus", base, _encoder(proj.get("proj_in.weight"), pooled=False))
    if "proj.weight" in proj:
        return Told("adapter", "base", base, _encoder(proj["proj.weight"], pooled=True))
    return Told("adapter", "FaceID", base, "arcface") if "norm.weight" in proj else Told("adapter", "", base)


def _base_of(width: int) -> str | None:
    """By the width of the text states that the cross-attention reads."""
    return {768: "sd15", 2048: "sdxl"}.get(width)


def _encoder(weight: tuple[int, ...] | None, *, pooled: bool) -> str | None:
    """By the numbers that a projection reads: 1280 are ViT-H's hidden states and ViT-bigG's pooled embedding."""
    if weight is None or len(weight) != 2:
        return None
    return ({1024: "vit-h", 1280: "vit-bigg"} if pooled else {1280: "vit-h", 1664: "vit-bigg"}).get(weight[1])


def _lone_token(shapes: Shapes) -> bool:
    """diffusers writes a textual inversion as one tensor, named by its word."""
    return len(shapes) == 1 and len(next(iter(shapes.values()))) <= 2 and next(iter(shapes.values()))[-1:] in (
        (768,), (1024,), (1280,),
    )  # fmt: skip
