"""Words that a text encoder was taught by pictures (textual inversion; Gal et al., 2022, arXiv:2208.01618).

A taught word is one or more vectors that stand where a token's embedding would. In prompts it is written <name>. Taken
in, it is a new token of each tokenizer and its vectors stand behind the text encoder's own table; taken out again, both
are the very objects that they were before.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.text_encoders import TextEncoder
from ipadapter_engine.weights import read_state

_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))  # SDXL's two text encoders in one file
_WIDTHS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 1280: "SDXL's second text encoder"}
_LEGACY_END = 2  # what configurations of older transformers call the token that ends a prompt


@dataclass(frozen=True)
class Word:
    """vectors: (n, width) for each text encoder of the base, in their order."""

    name: str
    vectors: tuple[Tensor, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """One a vector: <fox>, <fox>_1, <fox>_2 …, as diffusers' load_textual_inversion calls them."""
        more = (f"<{self.name}>_{i}" for i in range(1, len(self.vectors[0])))
        return (f"<{self.name}>", *more)


@dataclass(frozen=True)
class _Before:
    """What stood in a text encoder until words were taken in."""

    part: TextEncoder
    tokenizer: CLIPTokenizer
    embedding: nn.Module
    end: int


class Words:
    """The taught words of one checkpoint. They can be used in prompts and negative prompts between inject and eject."""

    def __init__(self, known: Sequence[Word] = (), text: Sequence[TextEncoder] = ()) -> None:
        self._known = {word.name: word for word in known}
        self._text = text
        self._before: list[_Before] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    def named_in(self, *prompts: str) -> tuple[str, ...]:
        """The words that stand in a prompt, sorted. Letters' case does not matter, as it does not to the tokenizer."""
        told = " ".join(prompts).lower()
        return tuple(sorted(name for name in self._known if f"<{name}>" in told))

    def expanded(self, prompt: str) -> str:
        """The prompt with every word of several vectors as all of its tokens; one that is so already stays as it is."""
        for name in self.named_in(prompt):
            sign = re.escape(f"<{name}>")
            whole = " ".join(self._known[name].tokens)
            prompt = re.sub(rf"{sign}(_\d+)?(\s+{sign}_\d+)*", whole, prompt, flags=re.IGNORECASE)
        return prompt

    def inject(self) -> None:
        """Take all words in. Raises CheckpointRefused for one that a tokenizer has already."""
        if not self._known or self._before:
            return
        tokens = [token for word in self._known.values() for token in word.tokens]
        for part in self._text:
            if known := sorted(set(tokens) & set(part.tokenizer.get_vocab())):
                raise CheckpointRefused(
                    f"the base's tokenizer has a word {known[0]} of its own", "give the taught word another name"
                )
        for i, part in enumerate(self._text):
            inner = _inner(part)
            plain, end = inner.embeddings.token_embedding, inner.eos_token_id
            self._before.append(_Before(part, part.tokenizer, plain, end))
            part.tokenizer = copy.deepcopy(part.tokenizer)
            part.tokenizer.add_tokens(tokens)
            first = int(part.tokenizer.convert_tokens_to_ids(tokens[0]))
            rows = torch.cat([word.vectors[i] for word in self._known.values()])
            inner.embeddings.token_embedding = _Extended(plain, rows.to(plain.weight), first)
            if end == _LEGACY_END:  # then the highest token is taken for the last one, and words are higher
                inner.eos_token_id = int(part.tokenizer.eos_token_id)

    def eject(self) -> None:
        """Tokenizers and text encoders are then what they were before `inject`."""
        while self._before:
            before = self._before.pop()
            inner = _inner(before.part)
            before.part.tokenizer = before.tokenizer
            inner.embeddings.token_embedding, inner.eos_token_id = before.embedding, before.end


class _Extended(nn.Module):
    """An embedding table with `rows` (n, width) behind it for the tokens from `first` on; no copy is made of the table."""

    def __init__(self, plain: nn.Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.plain = plain
        self.rows = nn.Buffer(rows, persistent=False)
        self.first = first

    @property
    def weight(self) -> Tensor:
        return self.plain.weight

    def forward(self, ids: Tensor) -> Tensor:
        taught = ids >= self.first
        own = self.plain(ids.masked_fill(taught, 0))
        return torch.where(taught.unsqueeze(-1), self.rows[(ids - self.first).clamp(min=0)], own)


def _inner(part: TextEncoder) -> Any:
    """The model with the embeddings: transformers nests it in the one that has a projection."""
    return getattr(part.model, "text_model", part.model)


def open_words(files: Mapping[str, Path], text: Sequence[TextEncoder], base: str) -> Words:
    """Read every word's file and check that it fits the text encoders; raises CheckpointRefused.

    base: how a refusal calls what the words must have been taught to.
    """
    return Words([read_word(name, file, text, base) for name, file in sorted(files.items())], text)


def read_word(name: str, file: Path, text: Sequence[TextEncoder], base: str) -> Word:
    """A word's vectors from diffusers' learned_embeds, AUTOMATIC1111's .pt, or a safetensors file with `emb_params` or,
    for SDXL, `clip_l` and `clip_g`. Raises CheckpointRefused."""
    next_step = f"use a word that was taught to {base}, as diffusers' or AUTOMATIC1111's training saves it"
    state = read_state(file, what="word", setting=f"ONMODEL_ENGINE__WORDS__{name.upper()}")
    found = [v.detach().float() for v in _vectors(file, state, next_step)]
    vectors = tuple(v.unsqueeze(0) if v.ndim == 1 else v for v in found)
    widths = [int(part.model.config.hidden_size) for part in text]
    for vector in vectors:
        if vector.ndim != 2 or not len(vector):
            raise CheckpointRefused(
                f"{file.name} holds no vectors of a word: their shape is {tuple(vector.shape)}", next_step
            )
    given = [v.shape[1] for v in vectors]
    if given != widths:
        kind = _WIDTHS.get(given[0]) if len(given) == 1 else "SDXL"
        raise CheckpointRefused(
            f"{file.name} holds a word of {_told(given)} numbers a vector{f' ({kind})' if kind else ''}, the text "
            f"encoders of this base read {_told(widths)}",
            next_step,
        )
    counts = {len(v) for v in vectors}
    length = min(int(part.model.config.max_position_embeddings) for part in text) - 2  # a prompt begins and ends
    if len(counts) > 1 or max(counts) > length:
        raise CheckpointRefused(
            f"{file.name} holds a word of {_told(sorted(counts))} vectors, "
            + (f"more than a prompt's {length}" if len(counts) == 1 else "another number for each text encoder"),
            next_step,
        )
    if not all(v.isfinite().all() for v in vectors):
        raise CheckpointRefused(f"{file.name} holds NaN or infinity", next_step)
    return Word(name, vectors)


def _vectors(file: Path, state: Any, next_step: str) -> list[Tensor]:
    """One tensor for each text encoder that the file is for, in their order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, Mapping):
        for pair in _PAIRS:
            if all(isinstance(state.get(key), Tensor) for key in pair):
                return [state[key] for key in pair]
        inside = state.get("string_to_param", state)
        if isinstance(inside, Mapping):
            tensors = [v for v in inside.values() if isinstance(v, Tensor)]
            if len(tensors) == 1:
                return tensors
    raise CheckpointRefused(f"{file.name} holds no vectors of a word", next_step)


def _told(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
