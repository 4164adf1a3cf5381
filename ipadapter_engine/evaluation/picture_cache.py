"""Pictures that were made, by the hash of all that determined them: an evaluation that was killed goes on from here."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ipadapter_engine.engines import PictureEngine, denoiser_of, device_of
from ipadapter_engine.native.engine import NativeEngine
from ipadapter_engine.prompts import CharacterModel
from ipadapter_engine.requests import GenerationRequest

STALE_S = 600  # a partial file this old is what a kill left behind
_DECODING = ("scaling_factor", "latents_mean", "latents_std")  # of the first stage's configuration
_UNTOLD = {(CharacterModel, "file")}  # where a model lies makes no picture; its sha256 does


@dataclass(frozen=True, eq=False)
class CachedPicture:
    """pixels uint8 (height, width, 3).

    seconds: what the picture took, its share of the batch of `batch` pictures that it was made in; where: on what
    machine. They are kept beside each other, as times of other batches and machines say nothing of this one.
    """

    pixels: np.ndarray
    seconds: float
    batch: int
    where: str

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


class PictureCache:
    """A folder of PNGs. A file is whole or not there; what a kill left half written is removed when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*/*.partial"):
            if _age_s(partial) > STALE_S:  # a younger one may be another run's, which is about to finish it
                partial.unlink(missing_ok=True)

    def find(self, key: str) -> CachedPicture | None:
        try:
            with Image.open(self._file(key)) as picture:
                told = picture.info
                pixels = np.asarray(picture.convert("RGB"))
                return CachedPicture(pixels, float(told["seconds"]), int(told["batch"]), str(told["where"]))
        except (OSError, SyntaxError, ValueError, KeyError):  # not there, or damaged: it is made again
            return None

    def put(self, key: str, picture: CachedPicture) -> None:
        file = self._file(key)
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        notes = PngImagePlugin.PngInfo()
        for name in ("seconds", "batch", "where"):
            notes.add_text(name, str(getattr(picture, name)))
        picture.image.save(partial, format="PNG", pnginfo=notes)
        os.replace(partial, file)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"


def _age_s(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except OSError:  # gone in the meantime
        return 0.0


def request_key(request: GenerationRequest, engine: PictureEngine) -> str:
    """The sha256 of everything that makes the picture: the request with what its None mean, the models, the sampler,
    the decoding, the device, its precision, and the libraries' versions."""
    guidance = engine.family.guidance if request.guidance is None else request.guidance
    told = {
        "request": {**_told(request), **asdict(engine.batch_key(request)), "guidance": guidance},
        "models": sorted([m.role, m.sha256] for m in engine.models_of(request)),
        **_sampling(engine),
        "where": [device_of(engine).type, str(denoiser_of(engine).dtype)],
        "versions": [torch.__version__, diffusers.__version__],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def _sampling(engine: PictureEngine) -> dict[str, Any]:
    """The sampler and the decoding, as far as no model's hash tells them."""
    checkpoint: Any = engine.checkpoint
    if isinstance(engine, NativeEngine):
        scheduler, vae, zeros = dict(checkpoint.pipeline.scheduler.config), checkpoint.pipeline.vae, False
    else:
        scheduler, vae, zeros = checkpoint.scheduler_config, checkpoint.vae, checkpoint.zero_empty_prompt
    return {
        "scheduler": scheduler,
        "decoding": {name: vae.config.get(name) for name in _DECODING},
        "zero_empty_prompt": zeros,
    }


def _told(value: Any) -> Any:
    """A request's part as JSON: every field of it, whatever fields it has, and arrays by their hash."""
    if isinstance(value, np.ndarray):
        return _digest(value)
    if is_dataclass(value):
        kind = type(value)
        return {f.name: _told(getattr(value, f.name)) for f in fields(value) if (kind, f.name) not in _UNTOLD}
    if isinstance(value, Mapping):
        return {str(k): _told(v) for k, v in value.items()}
    return [_told(v) for v in value] if isinstance(value, list | tuple) else value


def _digest(array: np.ndarray) -> str:
    shape = json.dumps([array.shape, str(array.dtype)])
    return hashlib.sha256(shape.encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
