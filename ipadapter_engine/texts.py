"""What the UNet is told in words: the states of each distinct prompt, once a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ipadapter_engine.requests import BatchKey, GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.checkpoints import Checkpoint, TextEncoder


@torch.inference_mode()
def text_conditioning(
    checkpoint: Checkpoint, requests: Sequence[GenerationRequest], key: BatchKey, *, guided: bool
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Text states (rows, tokens, width), unconditional rows first, and what SDXL's UNet is told besides."""
    prompts = [r.negative_prompt for r in requests] * guided + [r.prompt for r in requests]
    distinct = list(dict.fromkeys(prompts))
    told = [checkpoint.words.expanded(p) for p in distinct]
    outs = [encode_text(part, told, checkpoint.family.text_layer, checkpoint.device) for part in checkpoint.text]
    states, pooled = torch.cat([states for states, _ in outs], dim=-1), outs[-1][1]
    rows = torch.tensor([distinct.index(p) for p in prompts], device=states.device)
    states = states[rows]
    pooled = pooled[rows] if pooled is not None else None
    if guided and checkpoint.zero_empty_prompt:
        blank = [i for i, r in enumerate(requests) if not r.negative_prompt]
        states[blank] = 0
        if pooled is not None:
            pooled[blank] = 0
    if not checkpoint.family.size_conditioned:
        return states, None
    assert pooled is not None
    sizes = torch.tensor([[key.height_px, key.width_px, 0, 0, key.height_px, key.width_px]])
    return states, {
        "text_embeds": pooled,
        "time_ids": sizes.repeat(len(prompts), 1).to(states.device, states.dtype),
    }


def encode_text(
    part: TextEncoder, texts: list[str], layer: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """One encoder's states (texts, tokens, width) and, where it has a projection, its pooled text (texts, width)."""
    length = min(part.tokenizer.model_max_length, part.model.config.max_position_embeddings)
    ids = part.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    out = part.model(ids["input_ids"].to(device), output_hidden_states=layer is not None)
    states = out.last_hidden_state if layer is None else out.hidden_states[layer]
    return states, getattr(out, "text_embeds", None)
