"""Decoupled cross-attention: the IP-Adapter idea in one file (Ye et al., 2023, arXiv:2308.06721, sec. 3.2).

A cross-attention layer of the UNet attends to the text as before; beside it, new key and value layers
attend to image tokens with the same query, and the two outputs are added, the image's times a scale:

    out = Attention(Q, K_text, V_text) + scale * Attention(Q, K_image, V_image)

Several adapters add one such term each. What is ours: every sample of a batch has its own scale an adapter, its
own number of references and a weight for each of them, and keys and values of text and image are computed once a
generation, not once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ipadapter_engine.prompts import IDENTITY

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagePrompt:
    """What one adapter's branch of every layer attends to; `rows` counts both halves of guidance.

    tokens (rows, tokens, dim): projected image tokens, zeros where a row has fewer references.
    bias (rows, tokens): added to the attention logits, the logarithm of the reference's weight.
        A weight of zero or a missing token is -inf; a row must keep one finite entry.
    scale (rows,): the adapter's scale, a sample; zero means that the row has no image prompt.
    """

    tokens: Tensor
    bias: Tensor
    scale: Tensor


@dataclass
class Conditioning:
    """The prompts of one generation. With `reuse`, K and V are computed on the first step that needs them only.

    image: what the identity adapter attends to; further: what the adapters beside it do, by name.
    """

    image: ImagePrompt | None = None
    reuse: bool = True
    further: Mapping[str, ImagePrompt] = field(default_factory=dict)
    text_kv: dict[int, KeyValue] = field(default_factory=dict)
    image_kv: dict[tuple[str, int], KeyValue] = field(default_factory=dict)

    def prompt_of(self, adapter: str) -> ImagePrompt | None:
        return self.image if adapter == IDENTITY else self.further.get(adapter)


class ConditioningSlot:
    """Where the processors of one UNet find the conditioning of the generation under way."""

    def __init__(self) -> None:
        self.current: Conditioning | None = None

    @contextmanager
    def holding(self, conditioning: Conditioning) -> Iterator[Conditioning]:
        """Within, the UNet's cross-attention sees `conditioning`; not re-entrant, one generation at a time."""
        if self.current is not None:
            raise RuntimeError("another generation is under way on this UNet")
        self.current = conditioning
        try:
            yield conditioning
        finally:
            self.current = None


class ImageKeyValue(nn.Module):
    """The trained part of one layer: image tokens (rows, tokens, dim) -> keys and values (rows, tokens, hidden)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(dim, hidden, bias=False)
        self.to_v_ip = nn.Linear(dim, hidden, bias=False)


class DecoupledAttention:
    """The processor of one cross-attention layer; `images` has the trained part of every installed adapter."""

    def __init__(self, layer: int, slot: ConditioningSlot, images: Mapping[str, ImageKeyValue]) -> None:
        self.layer, self.slot, self.images = layer, slot, dict(images)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (rows, positions, hidden) or (rows, hidden, h, w) -> the same shape."""
        residual = hidden_states
        spatial = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        now = self.slot.current or Conditioning(reuse=False)
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = self._text(attn, hidden_states if encoder_hidden_states is None else encoder_hidden_states, now)
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, key.shape[2], query.shape[0])
            mask = mask.view(query.shape[0], attn.heads, -1, mask.shape[-1])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        for adapter in self.images:
            prompt = now.prompt_of(adapter)
            if prompt is None:
                continue
            key, value = self._image(attn, adapter, prompt, now)
            bias = prompt.bias[:, None, None, :].to(query.dtype)
            looked = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            scale = prompt.scale.view(-1, 1, 1, 1).to(query.dtype)
            mixed = mixed + torch.where(scale > 0, scale * looked, 0)  # 0 times an overflow would be NaN

        out = mixed.transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        if spatial is not None:
            out = out.transpose(1, 2).unflatten(2, spatial)
        if attn.residual_connection:
            out = out + residual
        scaled: Tensor = out / attn.rescale_output_factor
        return scaled

    def _text(self, attn: Attention, states: Tensor, now: Conditioning) -> KeyValue:
        if now.reuse and self.layer in now.text_kv:
            return now.text_kv[self.layer]
        if attn.norm_cross:
            states = attn.norm_encoder_hidden_states(states)
        pair = _heads(attn, attn.to_k(states)), _heads(attn, attn.to_v(states))
        if now.reuse:
            now.text_kv[self.layer] = pair
        return pair

    def _image(self, attn: Attention, adapter: str, prompt: ImagePrompt, now: Conditioning) -> KeyValue:
        if now.reuse and (adapter, self.layer) in now.image_kv:
            return now.image_kv[adapter, self.layer]
        image = self.images[adapter]
        pair = _heads(attn, image.to_k_ip(prompt.tokens)), _heads(attn, image.to_v_ip(prompt.tokens))
        if now.reuse:
            now.image_kv[adapter, self.layer] = pair
        return pair


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(rows, tokens, heads * d) -> (rows, heads, tokens, d)."""
    rows, tokens, _ = x.shape
    return x.view(rows, tokens, attn.heads, -1).transpose(1, 2)


def cross_attention_layers(unet: UNet2DConditionModel | ControlNetModel) -> dict[int, str]:
    """Official layer number -> processor name. Numbers count all attention layers, down, up, mid; text ones are odd."""
    return {n: name for n, name in enumerate(unet.attn_processors) if name.endswith("attn2.processor")}


def layer_sizes(unet: UNet2DConditionModel) -> dict[int, tuple[int, int]]:
    """Official layer number -> (dim of the tokens attended to, hidden size of the layer)."""
    sizes = {}
    for n, name in cross_attention_layers(unet).items():
        attn = unet.get_submodule(name.removesuffix(".processor"))
        sizes[n] = (attn.to_k.in_features, attn.to_k.out_features)
    return sizes


class Installed:
    """Our processors in the cross-attention layers of a UNet (or ControlNet); `eject` puts back what was there."""

    def __init__(
        self,
        unet: UNet2DConditionModel | ControlNetModel,
        layers: Mapping[int, ImageKeyValue] | None = None,
        further: Mapping[str, Mapping[int, ImageKeyValue]] | None = None,
    ) -> None:
        """`layers`: the identity adapter's trained parts by official layer number; `further`: those of the adapters
        beside it, by name. Without either, the layers attend to text only."""
        self.unet, self.slot = unet, ConditioningSlot()
        self._before = dict(unet.attn_processors)
        parts = ({IDENTITY: layers} if layers is not None else {}) | dict(further or {})
        ours = {
            name: DecoupledAttention(n, self.slot, {adapter: by_number[n] for adapter, by_number in parts.items()})
            for n, name in cross_attention_layers(unet).items()
        }
        unet.set_attn_processor({**self._before, **ours})

    def eject(self) -> None:
        self.unet.set_attn_processor(dict(self._before))  # diffusers empties the dict that it is given


def log_weights(weights: Tensor) -> Tensor:
    """Weights of references (rows, n), >= 0 -> attention bias; 0 gives -inf, so [1, 0] equals one reference alone."""
    return torch.where(weights > 0, weights.clamp_min(1e-12).log(), torch.full_like(weights, float("-inf")))
