"""The text encoders of a base: CLIP's text models, each with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family
from ipadapter_engine.weights import first_line, load_model

VOCABULARIES = ("vocab.json", "tokenizer.json")  # a folder with one of them may be a tokenizer's
_PADS = ("<|endoftext|>", "!")  # what SDXL's two tokenizers fill a prompt up with; else they are the same


@dataclass
class TextEncoder:
    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection


def encoder_folders(family: Family) -> list[tuple[str, str]]:
    """The folders of tokenizer and text encoder, of each that a family's base has."""
    return [("tokenizer", "text_encoder")] + ([("tokenizer_2", "text_encoder_2")] if family.size_conditioned else [])


def text_encoders(base: Path, family: Family, dtype: torch.dtype) -> list[TextEncoder]:
    """Those in a diffusers folder. Raises CheckpointRefused."""
    out = []
    for tokenizer_folder, model_folder in encoder_folders(family):
        kind = CLIPTextModelWithProjection if model_folder.endswith("_2") else CLIPTextModel
        next_step = f"{family.title} needs {model_folder} and {tokenizer_folder}; save the whole pipeline"
        model = load_model(kind, base / model_folder, dtype, next_step=next_step)
        out.append(TextEncoder(open_tokenizer(base / tokenizer_folder, next_step=next_step), model))
    return out


def tokenizers_beside(file: Path, given: Path | None, family: Family) -> list[CLIPTokenizer]:
    """The tokenizers of a base that is one file and has none: `given`, else `tokenizer/` beside the file. SDXL's second
    is its `tokenizer_2/`, else the first that fills prompts up with another sign. Raises CheckpointRefused.
    """
    found = file.parent / "tokenizer" if given is None else given
    if not any((found / name).exists() for name in VOCABULARIES):
        wanted = "vocab.json and merges.txt, or tokenizer.json, of openai/clip-vit-large-patch14"
        missing = (
            f"{file.name} is one file and has no tokenizer, and there is none in {found}"
            if given is None
            else f"there is no tokenizer in {given}: it has neither {' nor '.join(VOCABULARIES)}"
        )
        raise CheckpointRefused(missing, f"put CLIP's vocabulary ({wanted}) there, or set ONMODEL_ENGINE__TOKENIZER")
    folders = [found] + [found.parent / "tokenizer_2"] * family.size_conditioned
    out = []
    for folder, pad in zip(folders, _PADS, strict=False):
        own = any((folder / name).exists() for name in VOCABULARIES)
        next_step = f"put CLIP's own vocabulary into {folder if own else found}"
        out.append(
            open_tokenizer(folder, next_step=next_step)
            if own and (folder / "tokenizer_config.json").exists()
            else open_tokenizer(folder if own else found, next_step=next_step, pad_token=pad)
        )
    return out


def open_tokenizer(folder: Path, *, next_step: str, **options: Any) -> CLIPTokenizer:
    """`options` go before what the folder says. Raises CheckpointRefused with `next_step`."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise CheckpointRefused(f"{folder} holds no vocabulary", next_step)
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointRefused(f"{folder} does not open: {first_line(error)}", next_step) from None


def check_text(base: Path, family: Family, unet: UNet2DConditionModel, text: list[TextEncoder]) -> None:
    """Raises CheckpointRefused where text encoders are of another width than the UNet attends to, or than their
    tokenizers' words go."""
    width = sum(int(t.model.config.hidden_size) for t in text)
    if width != unet.config["cross_attention_dim"]:
        raise CheckpointRefused(
            f"the UNet in {base} attends to text of width {unet.config['cross_attention_dim']}, its text encoders give {width}",
            f"use the text encoders that {family.title} was trained with",
        )
    for part in text:
        if len(part.tokenizer) > int(part.model.config.vocab_size):
            raise CheckpointRefused(
                f"the tokenizer of {base} knows {len(part.tokenizer)} tokens, its text encoder "
                f"{part.model.config.vocab_size}",
                "use the vocabulary that the text encoder was trained with, of openai/clip-vit-large-patch14",
            )
