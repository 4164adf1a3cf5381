"""Which files of a folder, a prefix or a repository belong to a model: what the engine opens, and what explains it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from asset_store.errors import OnmodelError
from ipadapter_engine.manifests import FILE
from ipadapter_engine.weight_files import PICKLES

PARTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "feature_extractor",
    "image_encoder", "controlnet", "transformer", "text_encoder_3", "tokenizer_3", "processor",
)  # fmt: skip
PREPROCESSOR = "preprocessor_config.json"
_BESIDE = f"feature_extractor/{PREPROCESSOR}"
_OTHER_WEIGHTS = (
    *PICKLES,
    ".msgpack",
    ".h5",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".gguf",
    ".tflite",
    ".pkl",
    ".xml",
    ".mlmodel",
)
_OF_ONE_FILE = ("adapter_config.json", "image_encoder.txt")  # peft's alphas, InvokeAI's encoder
_TOLD = re.compile(r"(license|licence|notice|readme)[^/]*\Z", re.IGNORECASE)
_NEEDED = re.compile(r".*\.(json|txt|model)\Z")


class ModelRefused(OnmodelError):
    """A model that cannot be added, found or removed as it was asked for."""


def chosen(names: Sequence[str], where: str) -> list[str]:
    """Of a folder's files, by their paths in it: a diffusers folder's parts, one model's folder, or its only weights.

    Copies in other formats and precisions (`….fp16.safetensors`, `….bin` beside safetensors, `….onnx`) stay out, and so
    do parts that the engine does not open, such as a safety checker. ModelRefused.
    """
    seen = [n for n in names if not any(p.startswith(".") for p in n.split("/")) and n != FILE]
    if "model_index.json" in seen:
        mine = [n for n in seen if _folder(n) == "" or n.split("/")[0] in PARTS]
        own = [n for n in mine if _folder(n) or not _is_weights(n) or n.startswith("ip_adapter")]
        return _opened(own, where)
    if "config.json" in seen:
        return _opened([n for n in seen if _folder(n) == ""], where)
    weights = [n for n in seen if n.endswith(".safetensors")] or [n for n in seen if n.endswith(PICKLES)]
    if len(weights) != 1:
        found = f"{len(weights)} files of weights" if weights else "no weights"
        some = ", ".join(weights[:4]) + (", …" if len(weights) > 4 else "")
        raise ModelRefused(
            f"{where} holds {found} and no model_index.json or config.json",
            f"Name one of them: {some}." if weights else "Name a file of weights, or the folder of a whole model.",
        )
    return sorted([*weights, *(n for n in seen if _TOLD.match(n) or n in _OF_ONE_FILE)])


def preprocessing_beside(path: str, names: Sequence[str]) -> str | None:
    """Where a pipeline keeps how its image encoder's pictures are prepared; None where the files `names` at `path` say
    that themselves, or are no single model's folder. Without it pictures would be prepared another way, silently."""
    if "config.json" not in names or "model_index.json" in names or PREPROCESSOR in names:
        return None
    parent = path.rstrip("/").rpartition("/")[0]
    return f"{parent}/{_BESIDE}" if parent else _BESIDE


def _opened(names: Sequence[str], where: str) -> list[str]:
    kept: list[str] = []
    for folder in sorted({_folder(n) for n in names}):
        here = [n for n in names if _folder(n) == folder]
        safe = [n for n in here if n.endswith(".safetensors")]
        if not safe and any(n.endswith(PICKLES) for n in here):
            raise ModelRefused(
                f"{where} has {folder or 'its weights'} only as pickles, which are not opened here",
                "Use a revision with safetensors, or convert it with save_pretrained.",
            )
        kept += [n for n in safe if not _is_copy(n, here)]
        kept += [n for n in here if not _is_weights(n) and (_NEEDED.match(n) or _TOLD.match(n.rsplit("/", 1)[-1]))]
    return sorted(kept)


def _is_copy(name: str, here: Sequence[str]) -> bool:
    """Whether it is a variant of a file of the standard name beside it, or a shard although there is a whole file."""
    folder, own = _folder(name), name.rsplit("/", 1)[-1]
    for stem in ("diffusion_pytorch_model", "model"):
        whole = f"{folder}/{stem}.safetensors" if folder else f"{stem}.safetensors"
        index = f"{whole}.index.json"
        if whole in here and own != f"{stem}.safetensors" and re.match(rf"{stem}[.-]", own):
            return True
        if index in here and whole not in here and re.match(rf"{stem}\.", own):
            return True
    return False


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", *_OTHER_WEIGHTS))
