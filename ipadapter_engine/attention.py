"""Decoupled cross-attention: the IP-Adapter idea in one file (Ye et al., 2023, arXiv:2308.06721, sec. 3.2).

A cross-attention layer of the UNet attends to the text as before; beside it, new key and value layers
attend to image tokens with the same query, and the two outputs are added, the image's times a scale:

    out = Attention(Q, K_text, V_text) + scale * Attention(Q, K_image, V_image)

Several adapters, and several regions of one adapter, add one such term each. What is ours: every sample of a batch has
its own scale a layer and a step, its own number of references with a weight for each, its own mask; keys and values of
text and image are computed once a generation, not once a step; and a step is run for any part of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ipadapter_engine.prompts import IDENTITY

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagePrompt:
    """What one branch of every layer attends to; `rows` counts both halves of guidance.

    tokens (rows, tokens, dim): projected image tokens, zeros where a row has fewer references.
    bias (rows, tokens): added to the attention logits, the logarithm of the reference's weight; None where all are 0.
        A weight of zero or a missing token is -inf; a row must keep one finite entry.
    scale (rows,), or (rows, layers) with the cross-attention layers in the UNet's order: what the branch's output is
        multiplied by; where it is zero the row has no image prompt.
    adapter: whose key and value layers it goes through.
    mask (rows, h, w): 0 to 1, where in the picture it speaks, of the latents' size; None is everywhere.
    """

    tokens: Tensor
    bias: Tensor | None
    scale: Tensor
    adapter: str = IDENTITY
    mask: Tensor | None = None


class _Heard(NamedTuple):
    """One branch in one layer at one step, of the rows that the step is run for."""

    number: int
    prompt: ImagePrompt
    scale: Tensor


class Conditioning:
    """The prompts of one generation. With `reuse`, K and V are computed on the first step that needs them only."""

    def __init__(self, prompts: Sequence[ImagePrompt] = (), *, text: Tensor | None = None, reuse: bool = True) -> None:
        """text (rows, tokens, width): the text states of all rows; without it every forward is of all rows."""
        self.prompts, self.text, self.reuse = tuple(prompts), text, reuse
        self.rows: Tensor | None = None
        self._kv: dict[tuple[int, int], KeyValue] = {}
        self._of_rows: dict[tuple[object, ...], Tensor | KeyValue] = {}
        self._scales: list[Tensor | None] = [p.scale for p in self.prompts]
        self._loud: list[list[bool] | None] = [None] * len(self.prompts)
        self._step: object = None
        self._scales_at_home = [p.scale.cpu() for p in self.prompts] if reuse else []

    def step(self, rows: tuple[int, ...], loud: Sequence[Sequence[float]]) -> None:
        """The next forward is of these rows; `loud` has a factor of the scale for every branch and every row of all."""
        now = (rows, tuple(tuple(factors) for factors in loud))
        if now == self._step:
            return
        if self._step is None or self._step[0] != rows:  # type: ignore[index]
            self._of_rows.clear()
            whole = self.text is not None and rows == tuple(range(len(self.text)))
            device = self.text.device if self.text is not None else None
            self.rows = None if whole else torch.tensor(rows, device=device)
        self._step = now
        index = list(rows)
        for i, (prompt, factors) in enumerate(zip(self.prompts, now[1], strict=True)):
            home = self._scales_at_home[i][index]
            home = home * torch.tensor(factors)[index].view(-1, *[1] * (home.ndim - 1)).to(home)
            self._scales[i] = home.to(prompt.scale.device) if bool((home != 0).any()) else None
            self._loud[i] = (home != 0).any(0).tolist() if home.ndim == 2 else None

    def heard(self, place: int) -> Iterator[_Heard]:
        """The branches that speak in a layer, counted from 0; those that are silent there cost nothing."""
        for i, (prompt, scale, loud) in enumerate(zip(self.prompts, self._scales, self._loud, strict=True)):
            if scale is not None and (loud is None or loud[place]):
                yield _Heard(i, prompt, scale[:, place] if scale.ndim == 2 else scale)

    def text_states(self) -> Tensor:
        """The text states of the step's rows."""
        assert self.text is not None
        return self._narrow(("text",), self.text)

    def bias(self, number: int) -> Tensor | None:
        whole = self.prompts[number].bias
        return None if whole is None else self._narrow(("bias", number), whole)

    def mask(self, number: int, positions: int) -> Tensor | None:
        """(rows, positions, 1): the branch's mask at the size of a layer with so many positions, by area."""
        whole = self.prompts[number].mask
        if whole is None:
            return None
        key = ("mask", number, positions)
        if key not in self._of_rows:
            fitted = F.adaptive_avg_pool2d(whole[:, None], _sides(tuple(whole.shape[1:]), positions))
            self._of_rows[key] = (
                fitted.flatten(1)[..., None] if self.rows is None else fitted.flatten(1)[self.rows, :, None]
            )
        return self._of_rows[key]  # type: ignore[return-value]

    def key_value(self, number: int, place: int) -> KeyValue | None:
        """Those of a branch in a layer, of the text where number is -1; None where they are yet to be computed."""
        whole = self._kv.get((number, place))
        if whole is None or self.rows is None:
            return whole
        key = ("kv", number, place)
        if key not in self._of_rows:
            self._of_rows[key] = (whole[0][self.rows], whole[1][self.rows])
        return self._of_rows[key]  # type: ignore[return-value]

    def keep(self, number: int, place: int, pair: KeyValue) -> None:
        """pair: of all rows."""
        self._kv[number, place] = pair

    def _narrow(self, key: tuple[object, ...], whole: Tensor) -> Tensor:
        if self.rows is None:
            return whole
        if key not in self._of_rows:
            self._of_rows[key] = whole[self.rows]
        return self._of_rows[key]  # type: ignore[return-value]


def _sides(latents: tuple[int, ...], positions: int) -> tuple[int, int]:
    """The height and width of a layer with so many positions: the latents', halved and rounded up some times."""
    height, width = latents
    while height * width > positions:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != positions:
        raise ValueError(f"no layer of {positions} positions on latents of {latents}")
    return height, width


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
    """The processor of one cross-attention layer; `images` has the trained part of every installed adapter.

    place: the layer's number among the cross-attention layers, from 0.
    """

    def __init__(self, place: int, slot: ConditioningSlot, images: Mapping[str, ImageKeyValue]) -> None:
        self.place, self.slot, self.images = place, slot, dict(images)
        self.attend: Callable[..., Tensor] = self._attended

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (rows, positions, hidden) or (rows, hidden, h, w) -> the same shape."""
        return self.attend(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _attended(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
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
        for number, prompt, scale in now.heard(self.place):
            if prompt.adapter in self.images:
                key, value = self._image(attn, number, prompt, now)
                mixed = mixed + self._looked(query, key, value, scale, now, number)

        out = mixed.transpose(1, 2).flatten(2)
        out = attn.to_out[1](attn.to_out[0](out))
        if spatial is not None:
            out = out.transpose(1, 2).unflatten(2, spatial)
        if attn.residual_connection:
            out = out + residual
        scaled: Tensor = out / attn.rescale_output_factor
        return scaled

    def _looked(
        self, query: Tensor, key: Tensor, value: Tensor, scale: Tensor, now: Conditioning, number: int
    ) -> Tensor:
        """What a branch adds, (rows, heads, positions, d)."""
        bias = now.bias(number)
        given = None if bias is None else bias[:, None, None, :].to(query.dtype)
        looked = F.scaled_dot_product_attention(query, key, value, attn_mask=given)
        share = scale.view(-1, 1, 1, 1).to(query.dtype)
        mask = now.mask(number, query.shape[2])
        if mask is not None:
            share = share * mask[:, None].to(query.dtype)
        return torch.where(share != 0, share * looked, 0)  # 0 times an overflow would be NaN

    def _text(self, attn: Attention, states: Tensor, now: Conditioning) -> KeyValue:
        if not now.reuse:
            return self._text_pair(attn, states)
        if now.key_value(-1, self.place) is None:
            now.keep(-1, self.place, self._text_pair(attn, states if now.text is None else now.text))
        pair = now.key_value(-1, self.place)
        assert pair is not None
        return pair

    def _text_pair(self, attn: Attention, states: Tensor) -> KeyValue:
        if attn.norm_cross:
            states = attn.norm_encoder_hidden_states(states)
        return _heads(attn, attn.to_k(states)), _heads(attn, attn.to_v(states))

    def _image(self, attn: Attention, number: int, prompt: ImagePrompt, now: Conditioning) -> KeyValue:
        image = self.images[prompt.adapter]
        pair = now.key_value(number, self.place) if now.reuse else None
        if pair is None:
            pair = _heads(attn, image.to_k_ip(prompt.tokens)), _heads(attn, image.to_v_ip(prompt.tokens))
            if now.reuse:
                now.keep(number, self.place, pair)
                pair = now.key_value(number, self.place) or pair
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
            name: DecoupledAttention(place, self.slot, {adapter: by_number[n] for adapter, by_number in parts.items()})
            for place, (n, name) in enumerate(cross_attention_layers(unet).items())
        }
        self.paths = tuple(name.removesuffix(".processor") for name in ours)  # of the layers, by their place
        unet.set_attn_processor({**self._before, **ours})

    def eject(self) -> None:
        self.unet.set_attn_processor(dict(self._before))  # diffusers empties the dict that it is given


def log_weights(weights: Tensor) -> Tensor:
    """Weights of references (rows, n), >= 0 -> attention bias; 0 gives -inf, so [1, 0] equals one reference alone."""
    return torch.where(weights > 0, weights.clamp_min(1e-12).log(), torch.full_like(weights, float("-inf")))
