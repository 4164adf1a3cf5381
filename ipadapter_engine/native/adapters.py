"""IP-Adapters of FLUX.1 and Stable Diffusion 3, in the files of XLabs and InstantX, by diffusers' own layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ipadapter_engine.checkpoints import CheckpointPaths, read_adapter_file
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import ModelHash, sha256_of_file
from ipadapter_engine.native.families import NativeFamily
from ipadapter_engine.native.sight import SiglipSight
from ipadapter_engine.weights import first_line

_PROJECTION, _LAYERS = ("ip_adapter_proj_model.", "image_proj."), ("double_blocks.", "ip_adapter.")
_TOLD = "as its own, not told here"


@dataclass(frozen=True)
class NativeAdapter:
    """sight: what its references are encoded with. shape: of one embedding that it reads.

    models: the hashes of the adapter and of its image encoder, both of which have a part in its pictures.
    """

    sight: ImageEncoder | SiglipSight
    shape: tuple[int, ...]
    models: tuple[ModelHash, ...]

    def embedding(self, picture: np.ndarray) -> np.ndarray:
        """float32: pooled (embed,) for FLUX.1, hidden states (patches, width) for Stable Diffusion 3."""
        image = Image.fromarray(picture)
        return self.sight.seen(image) if isinstance(self.sight, SiglipSight) else self.sight.encode([image])[0].pooled


def open_adapter(paths: CheckpointPaths, native: NativeFamily, transformer: Any, *, device: str) -> NativeAdapter:
    """Put the adapter of paths.adapter into the transformer, with the encoder of paths.encoder, else of the base's own
    image_encoder/. Raises CheckpointRefused."""
    assert paths.adapter is not None
    file, title = paths.adapter, native.family.title
    if not native.adapter:
        raise CheckpointRefused(
            f"{title} reads references itself, and an IP-Adapter is named: {file.name}", "leave its ADAPTER out"
        )
    folder = paths.encoder or paths.base / "image_encoder"
    if not folder.is_dir():
        raise CheckpointRefused(
            f"{file.name} needs the image encoder that it was trained with, and none is named",
            "set its ENCODER to that encoder's folder",
        )
    state = _parts(read_adapter_file(file))
    try:
        transformer._load_ip_adapter_weights(state if native.adapter == 1 else [state], low_cpu_mem_usage=False)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise CheckpointRefused(
            f"{file.name} is no IP-Adapter for this {title}: {first_line(error)}",
            f"load an adapter file that was trained for {title}",
        ) from None
    transformer.to(device, transformer.dtype)
    projection = transformer.image_proj if native.adapter == 1 else transformer.encoder_hid_proj
    projection.to(device, transformer.dtype).eval()
    for layer in transformer.attn_processors.values():
        if isinstance(layer, torch.nn.Module):
            layer.to(device, transformer.dtype).eval()
    sight, shape = _sight(native, folder, device)
    reads = int(state["image_proj"]["proj_in.weight" if native.adapter == 1 else "proj.weight"].shape[-1])
    if shape[-1] != reads:
        raise CheckpointRefused(
            f"{file.name} reads embeddings of {reads} numbers, the encoder {sight.name} gives {shape[-1]}",
            "set its ENCODER to the encoder that the adapter was trained with",
        )
    own = ModelHash("ip-adapter", file.name, sha256_of_file(file), _TOLD)
    seen = ModelHash("image encoder", sight.name, sight.weights_sha256, _TOLD)
    return NativeAdapter(sight, shape, (seen, own))


def _sight(native: NativeFamily, folder: Any, device: str) -> tuple[ImageEncoder | SiglipSight, tuple[int, ...]]:
    if native.adapter == 1:
        siglip = SiglipSight.open(folder, device=device)
        config = siglip.model.config
        return siglip, ((config.image_size // config.patch_size) ** 2, int(config.hidden_size))
    features = folder.parent / "feature_extractor"
    clip = ImageEncoder.open(folder, name=folder.name, processor_folder=features, device=device)
    return clip, (clip.dim,)


def _parts(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As diffusers' loaders sort a file's keys: the projection, and the layers by their number."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in flat.items():
        name = key.partition(".")[2]
        if key.startswith(_PROJECTION):
            parts["image_proj"][name] = value
        elif key.startswith(_LAYERS):
            for part in ("k", "v"):
                name = name.replace(f"ip_adapter_double_stream_{part}_proj", f"to_{part}_ip")
            parts["ip_adapter"][name.replace("processor.", "")] = value
    return parts
