"""The CLIP image encoder: pictures in, embeddings out, known by weights and preprocessing together."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_weights
from ipadapter_engine.preprocessing import Preprocessing
from ipadapter_engine.weights import first_line, load_model, read_config

_PREPROCESSING = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
                  "do_normalize", "image_mean", "image_std", "do_convert_rgb")  # fmt: skip
MAX_TILES = 4
NEARLY_SQUARE = 1.15  # of the long side to the short: so much of a picture a centre crop may lose

Name = TypeVar("Name")


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """pooled float32 (embed,); hidden float32 (patches + 1, hidden), the last layer but one, None if not asked for."""

    pooled: np.ndarray
    hidden: np.ndarray | None

    def save(self, path: Path, encoder: ImageEncoder) -> None:
        """A safetensors file that says by which encoder, and with which preprocessing, it was made."""
        arrays = {"pooled": self.pooled} | ({} if self.hidden is None else {"hidden": self.hidden})
        told = {"encoder_sha256": encoder.sha256, "encoder": encoder.name}
        told["preprocessing"] = json.dumps(encoder.preprocessing, sort_keys=True)
        save_file({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in arrays.items()}, path, metadata=told)

    @classmethod
    def load(cls, path: Path, encoder: ImageEncoder) -> EncodedPicture:
        """What `save` wrote. Raises CheckpointRefused if it was not by an encoder of these weights and preprocessing."""
        try:
            with safe_open(path, framework="numpy") as file:
                told = file.metadata() or {}
                arrays = {k: file.get_tensor(k) for k in file.keys() if k in ("pooled", "hidden")}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointRefused(
                f"the saved embedding {path} does not open: {first_line(error)}", "embed the picture again"
            ) from None
        if "pooled" not in arrays or "encoder_sha256" not in told:
            raise CheckpointRefused(
                f"{path} is no saved embedding: it does not say what its encoder saw", "embed the picture again"
            )
        if told["encoder_sha256"] != encoder.sha256:
            raise CheckpointRefused(
                f"{path} was embedded by {told.get('encoder', 'another encoder')} ({told['encoder_sha256'][:12]}…), "
                f"the loaded encoder is {encoder.name} ({encoder.sha256[:12]}…)",
                "embed the picture again, or load the encoder and the preprocessing that it was embedded by",
            )
        return cls(arrays["pooled"], arrays.get("hidden"))


class ImageEncoder:
    """An open encoder. `sha256` identifies what its embeddings mean: weights and preprocessing."""

    def __init__(
        self, model: CLIPVisionModelWithProjection, processor: CLIPImageProcessorPil, *, name: str, weights_sha256: str
    ) -> None:
        self.model, self.processor, self.name, self.weights_sha256 = model, processor, name, weights_sha256
        config = processor.to_dict()
        self.preprocessing: dict[str, Any] = {k: _plain(config[k]) for k in _PREPROCESSING if k in config}
        self._preprocess = Preprocessing(processor)
        identity = json.dumps([weights_sha256, self.preprocessing], sort_keys=True, separators=(",", ":"))
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    @property
    def hidden_dim(self) -> int:
        return int(self.model.config.hidden_size)

    @classmethod
    def open(
        cls, folder: Path, *, name: str, processor_folder: Path | None = None, device: str = "cpu"
    ) -> ImageEncoder:
        """Open a transformers folder with safetensors weights; raises CheckpointRefused."""
        if not (folder / "config.json").exists():
            raise CheckpointRefused(
                f"{folder} holds no image encoder", "name a folder with a CLIP vision model and projection"
            )
        model = load_model(
            CLIPVisionModelWithProjection, folder, torch.float32,
            next_step="name a CLIP vision model with its projection, saved whole with safetensors weights",
        )  # fmt: skip
        places = [f for f in (processor_folder, folder) if f is not None and (f / "preprocessor_config.json").exists()]
        if places:
            read_config(places[0] / "preprocessor_config.json")
            processor = CLIPImageProcessorPil.from_pretrained(places[0], local_files_only=True)
        else:  # an encoder without its file was, by convention, trained with CLIP's own preprocessing
            side = int(model.config.image_size)
            processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return cls(model.to(device).eval(), processor, name=name, weights_sha256=sha256_of_weights(folder))

    def encode(self, pictures: Sequence[Image.Image], *, hidden: bool = False) -> list[EncodedPicture]:
        """One forward pass over RGB pictures of any size."""
        return self.encode_prepared([self.prepare(p) for p in pictures], hidden=hidden)

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """What the model sees of a picture: float32 (3, side, side), resized, cropped and normalised. Thread-safe."""
        return self._preprocess(picture.convert("RGB"))

    def encode_tiled(self, picture: Image.Image, *, hidden: bool = False) -> list[EncodedPicture]:
        """One picture as overlapping squares along its long side, so that nothing outside a centre crop is lost.

        As references they stand for it side by side, each of the n with the weight 1 / n. One for a nearly square
        picture, at most 4.
        """
        return self.encode(tiles(picture), hidden=hidden)

    @torch.inference_mode()
    def encode_prepared(self, prepared: Sequence[np.ndarray], *, hidden: bool = False) -> list[EncodedPicture]:
        """One forward pass over what `prepare` returned."""
        if not prepared:
            return []
        inputs = torch.from_numpy(np.stack(prepared)).to(self.model.device, self.model.dtype)
        out = self.model(pixel_values=inputs, output_hidden_states=hidden)
        pooled = out.image_embeds.float().cpu().numpy()
        states = out.hidden_states[-2].float().cpu().numpy() if hidden else [None] * len(pooled)
        return [EncodedPicture(p, h) for p, h in zip(pooled, states, strict=True)]

    def encode_ahead(
        self, names: Iterable[Name], opened: Callable[[Name], Image.Image], *, batch: int, readers: int,
        hidden: bool = False,
    ) -> Iterator[list[tuple[Name, EncodedPicture]]]:  # fmt: skip
        """Embeddings of any number of pictures, in their order, `batch` of them at a time.

        opened: the picture of a name, RGB; what it raises passes. It is called by `readers` threads, which read and
        prepare two batches ahead of the one that is encoded; nothing else is kept.
        """

        def ready(name: Name) -> tuple[Name, np.ndarray]:
            return name, self.prepare(opened(name))

        todo = iter(names)
        with ThreadPoolExecutor(readers, thread_name_prefix="reader") as pool:
            window = deque(pool.submit(ready, name) for name in islice(todo, 2 * batch))
            try:
                while window:
                    part = [window.popleft().result() for _ in range(min(batch, len(window)))]
                    window.extend(pool.submit(ready, name) for name in islice(todo, batch))
                    encoded = self.encode_prepared([prepared for _, prepared in part], hidden=hidden)
                    yield [(name, e) for (name, _), e in zip(part, encoded, strict=True)]
            finally:
                for future in window:  # whoever stops early waits for no picture that nobody wants
                    future.cancel()

    @torch.inference_mode()
    def zero_hidden(self) -> np.ndarray:
        """Hidden states of zero pixels (patches + 1, hidden): what a plus adapter's negative half attends to."""
        side = int(self.model.config.image_size)
        zeros = torch.zeros(1, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        states = self.model(pixel_values=zeros, output_hidden_states=True).hidden_states[-2]
        return states[0].float().cpu().numpy()


def tiles(picture: Image.Image) -> list[Image.Image]:
    """Squares of a picture's short side, evenly spread along its long side, that cover it together.

    A picture that is more than four times as long as wide is first made wider by its mean colour.
    """
    picture = picture.convert("RGB")
    short, long = sorted(picture.size)
    if long <= NEARLY_SQUARE * short:
        return [picture]
    side = max(short, math.ceil(long / MAX_TILES))
    if side > short:
        mean = tuple(int(c) for c in np.asarray(picture).reshape(-1, 3).mean(axis=0).round())
        wide = picture.width > picture.height
        padded = Image.new("RGB", (long, side) if wide else (side, long), mean)
        padded.paste(picture, (0, (side - short) // 2) if wide else ((side - short) // 2, 0))
        picture = padded
    count = math.ceil(long / side)
    starts = [round(i * (long - side) / (count - 1)) for i in range(count)]
    if picture.width > picture.height:
        return [picture.crop((x, 0, x + side, side)) for x in starts]
    return [picture.crop((0, y, side, y + side)) for y in starts]


def _plain(value: Any) -> Any:
    """Processor settings as JSON: size objects become dicts, enums numbers."""
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if hasattr(value, "__dataclass_fields__"):
        return {k: _plain(getattr(value, k)) for k in value.__dataclass_fields__ if getattr(value, k) is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
