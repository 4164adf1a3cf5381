"""A byte-pair tokenizer in CLIP's own format, fitted to the words that captions use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer


def fitted_tokenizer(folder: Path, words: Sequence[str], max_tokens: int) -> CLIPTokenizer:
    """Fit it and save it in `folder`. Words it never saw fall back to their letters, so any prompt can be encoded."""
    corpus = [*words] * 50
    blank = CLIPTokenizer()
    backend = blank.backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.model.save(str(folder))
    vocab_file = folder / "vocab.json"
    vocab: dict[str, int] = json.loads(vocab_file.read_text())
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(letter + "</w>", len(vocab))  # so that an unknown word's last letter is known, too
    vocab_file.write_text(json.dumps(vocab, ensure_ascii=False))
    tokenizer = CLIPTokenizer(vocab=str(vocab_file), merges=str(folder / "merges.txt"), model_max_length=max_tokens)
    tokenizer.save_pretrained(folder)
    return tokenizer
