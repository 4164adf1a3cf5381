"""Rows of embedding a library: against transformers one picture at a time, against the encoder's own best, and whether
memory stays flat while a library grows.

The encoders: the embedded CLIP (2.6 M parameters, 96 px), which is small beside what surrounds it, and one of the shape
of CLIP ViT-B/32 with random weights (88 M, 224 px), which is not. The references are PNG files of 256 px in a folder.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.random_checkpoints import VIT_B, write_encoder
from benchmarks.rows import Row, at_most, faster, grows, seconds
from flows.settings import IngestSettings
from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.encoder import ImageEncoder

TIMES, OF_BEST, GROWTH = 4.0, 0.9, 1.1
SIZES = (8, 16, 32, 64)  # batches that the encoder's best rate is looked for in
SIDE_PX = 256
EQUAL = 1e-4
ONE_BY_ONE = "transformers, one picture at a time"


@dataclass(frozen=True)
class Embedding:
    """What a row of embedding is made of."""

    title: str
    count: int
    rounds: int
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """Pictures a second, and the largest difference to what transformers gives of the same files."""

    ours: float
    one_by_one: float
    best: float
    best_size: int
    error: float


def measured(plan: Embedding, encoder: ImageEncoder, folder: Path, pictures: Sequence[Path]) -> Measured:
    """All in turn in each round; `folder` is the encoder's, which transformers opens for itself."""
    settings = IngestSettings()

    def ours() -> list[np.ndarray]:
        batches = encoder.encode_ahead(pictures, _opened, batch=settings.batch, readers=settings.readers)
        return [e.pooled for batch in batches for _, e in batch]

    one_by_one = _transformers(folder, plan.device)
    few = pictures[: max(4, len(pictures) // 4)]
    prepared = [encoder.prepare(_opened(p)) for p in pictures]
    sizes = [s for s in SIZES if s <= len(prepared)] or [len(prepared)]
    ours()
    one_by_one(few[0])
    best_size = min(sizes, key=lambda s: seconds(lambda: _encoded(encoder, prepared, s)))
    ours_s, ones_s, bests_s = [], [], []
    for _ in range(plan.rounds):
        ours_s.append(seconds(ours) / len(pictures))
        ones_s.append(seconds(lambda: [one_by_one(p) for p in few]) / len(few))
        bests_s.append(seconds(lambda: _encoded(encoder, prepared, best_size)) / len(prepared))
    error = max(float(np.abs(a - one_by_one(p)).max()) for a, p in zip(ours(), few, strict=False))
    ours_rate, one_rate, best_rate = (1 / statistics.median(s) for s in (ours_s, ones_s, bests_s))
    return Measured(ours_rate, one_rate, best_rate, best_size, error)


def rows(plan: Embedding, told: Measured, *, times: float | None, of_best: float | None) -> Iterator[Row]:
    """The rows of one encoder; what None is asked of is told, and asked for of another."""
    name, equal = f"embedding references, {plan.title}", told.error <= EQUAL
    yield _row(name, told.ours, ONE_BY_ONE, told.one_by_one, times, equal)
    best = f"the encoder alone, prepared pictures in batches of {told.best_size}"
    yield _row(f"{name}, beside its best", told.ours, best, told.best, of_best, equal)
    yield at_most(f"{name}, largest difference", told.error, EQUAL, "")


def _row(name: str, ours: float, peer: str, peer_value: float, times: float | None, equal: bool) -> Row:
    if times is None:
        return Row(name, ours, "pictures/s", "", True, peer, peer_value)
    return faster(name, ours, "pictures/s", peer, peer_value, times, equal=equal)


def embedded_clip(device: str) -> tuple[ImageEncoder, Path]:
    folder = EMBEDDED / "image_encoder"
    place = EMBEDDED / "feature_extractor"
    return ImageEncoder.open(folder, name="embedded", processor_folder=place, device=device), folder


def random_clip(folder: Path, device: str, config: dict[str, Any] = VIT_B) -> tuple[ImageEncoder, Path]:
    write_encoder(folder, config)
    side = int(config["image_size"])
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    return ImageEncoder.open(folder, name="random", device=device), folder


def _transformers(folder: Path, device: str) -> Callable[[Path], np.ndarray]:
    """A file's pooled embedding as transformers' own documentation has it: processor, then model."""
    model = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    settings = next(
        p for p in (folder, folder.parent / "feature_extractor") if (p / "preprocessor_config.json").exists()
    )
    processor = CLIPImageProcessorPil.from_pretrained(settings)

    @torch.inference_mode()
    def embed(file: Path) -> np.ndarray:
        with Image.open(file) as picture:
            inputs = processor(images=picture, return_tensors="pt").to(device)
        return np.asarray(model(**inputs).image_embeds[0].float().cpu())

    return embed


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _encoded(encoder: ImageEncoder, prepared: Sequence[np.ndarray], size: int) -> None:
    for start in range(0, len(prepared), size):
        encoder.encode_prepared(prepared[start : start + size])


# ---------------------------------------------------------------------------- memory


def memory_rows(folder: Path, few: int, many: int) -> Iterator[Row]:
    """The peak of a process that ingests a library, by its size: each in a process and over a database of its own."""
    peaks = {}
    for count in (few, many):
        write_library(folder / f"library-{count}", count)
        command = [sys.executable, "-m", "benchmarks.library_memory", str(folder / f"library-{count}"),
                   str(folder / f"home-{count}")]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks[count] = json.loads(done.stdout.splitlines()[-1])
        if peaks[count]["embedded"] != count:
            raise SystemExit(f"of {count} references {peaks[count]['embedded']} were embedded")
        print(f"{count} references: {peaks[count]}", file=sys.stderr)
    name = f"peak memory of ingesting {many} references"
    yield grows(name, peaks[many]["peak_mib"], f"of {few}", peaks[few]["peak_mib"], GROWTH, "MiB")
    rate = many / peaks[many]["took_s"]
    yield Row(f"ingesting {many} references", rate, "pictures/s", "", True, note="with storing, rows and transactions")


def write_pictures(folder: Path, count: int, side_px: int = SIDE_PX) -> list[Path]:
    """PNG files that no two are alike of, about as large as drawn mascots."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    out = []
    for i in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        file = folder / f"{i:05d}.png"
        colours.resize((side_px, side_px), Image.Resampling.NEAREST).save(file, compress_level=1)
        out.append(file)
    return out


def write_library(folder: Path, count: int) -> Path:
    """A library of so many pictures, with its library.yaml."""
    files = write_pictures(folder, count, 128)
    entries = "".join(f'  - {{file: "{f.name}", character: Pip, role: identity}}\n' for f in files)
    (folder / "library.yaml").write_text(
        "brand:\n  name: bench\n  title: Bench\nlicence:\n  name: own artwork\n  holder: Bench\n"
        f"characters:\n  - name: Pip\nreferences:\n{entries}"
    )
    return folder
