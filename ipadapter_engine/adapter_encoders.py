"""Which image encoder an adapter was trained with, and whether it is the one that is loaded."""

from __future__ import annotations

from pathlib import Path

from ipadapter_engine.adapter import Adapter
from ipadapter_engine.adapter_layouts import encoder_named_beside
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused

POOLED = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}  # numbers of the pooled embedding
HIDDEN = {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"}  # numbers of a hidden state


def check_encoder(file: Path, adapter: Adapter, encoder: ImageEncoder | None) -> None:
    """Raises CheckpointRefused, naming the encoder to load. Adapters that read a face alone need none.

    A number alone does not tell an encoder: 1280 is what ViT-bigG/14 pools to and the size of ViT-H/14's hidden states.
    """
    if adapter.reads.kind == "face":
        return
    known, kind = (POOLED, "pooled embeddings") if adapter.pooled else (HIDDEN, "hidden states")
    size = adapter.embed_dim
    need = known.get(size, f"an encoder with {kind} of {size} numbers")
    beside = encoder_named_beside(file)
    needed = f"{need}, {beside} as the note beside it says" if beside else need
    if encoder is None:
        raise CheckpointRefused(
            f"{file.name} needs an image encoder and none is given", f"set ONMODEL_ENGINE__ENCODER to {needed}"
        )
    given = encoder.dim if adapter.pooled else encoder.hidden_dim
    if given != size:
        other = encoder.hidden_dim if adapter.pooled else encoder.dim
        own = POOLED.get(encoder.dim) if HIDDEN.get(encoder.hidden_dim) == POOLED.get(encoder.dim) else None
        mistaken = (
            f"; its {'hidden states' if adapter.pooled else 'pooled embeddings'} have {size}, which are not meant"
        )
        raise CheckpointRefused(
            f"{file.name} was trained on {kind} of {size} numbers, the encoder {encoder.name}"
            f"{f' ({own})' if own else ''} gives {given}{mistaken if other == size else ''}",
            f"load {needed} as the image encoder",
        )
