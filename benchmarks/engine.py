"""`make bench-engine`: how much faster are the same pictures made than by diffusers, and the same references embedded?

    python -m benchmarks.engine [--rows studio,sd15,…] [--rounds N] [--folder FOLDER]

Rows: studio (the embedded model, 64 mixed requests), sd15 (the size of Stable Diffusion 1.5, on the CPU), sd15-gpu and
sdxl-gpu (where torch sees a GPU, else told as not measured), convolutions (of a CPU, one by one), encoder (embedding
references), memory (a library that grows). Ours and the peer's are measured in turn; a row counts only where both made the same.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers

from benchmarks import convolutions, embedding, generating, random_checkpoints
from benchmarks.embedding import OF_BEST, TIMES, Embedding
from benchmarks.generating import TFLOP_AN_IMAGE, Generating
from benchmarks.rows import Row, tell
from ipadapter_engine.checkpoints import CheckpointPaths

STUDIO = Generating("studio model, 128 px, 8 steps, CPU", 64, 4.0, 5, {}, tflop_an_image="counted")
SD15 = Generating(
    "SD1.5-shaped, 256 px, 4 steps, CPU", 8, 1.15, 3,
    {"steps": 4, "width_px": 256, "height_px": 256, "scheduler": "ddim"},
)  # fmt: skip
SD15_GPU = Generating(
    "SD1.5-shaped, 512 px, 20 steps, bf16, GPU", 64, 3.0, 5, {"steps": 20, "scheduler": "ddim"},
    dtype=torch.bfloat16, device="cuda", max_batch=16, tflop_an_image=TFLOP_AN_IMAGE,
)  # fmt: skip
SDXL_GPU = Generating(
    "SDXL-shaped, 1024 px, 20 steps, bf16, GPU", 16, 1.5, 5, {"steps": 20, "scheduler": "euler"},
    dtype=torch.bfloat16, device="cuda", max_batch=8,
)  # fmt: skip
FEW, MANY = 1_000, 10_000  # references of a library
NO_GPU = "no GPU"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help="which of them, by commas")
    parser.add_argument("--rounds", type=int, help="instead of each row's own number")
    parser.add_argument(
        "--folder", type=Path, help="keep the checkpoints of random weights there, and use those it has"
    )
    given = parser.parse_args(arguments)
    names = given.rows.split(",")
    if unknown := sorted(set(names) - set(ROWS)):
        parser.error(f"there are no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    print(
        f"{platform.machine()}, torch {torch.__version__} on {torch.get_num_threads()} threads, "
        f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU}",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory(prefix="onmodel-") as temporary:
        folder = given.folder or Path(temporary)
        met = [tell(row) for name in names for row in ROWS[name](folder, given.rounds)]
    return 0 if all(met) else 1


def _studio(folder: Path, rounds: int | None) -> Iterator[Row]:
    return generating.measured(_of(STUDIO, rounds), CheckpointPaths())


def _sd15(folder: Path, rounds: int | None) -> Iterator[Row]:
    return generating.measured(_of(SD15, rounds), _written(folder / "sd15", random_checkpoints.write_sd15_shaped))


def _sd15_gpu(folder: Path, rounds: int | None) -> Iterator[Row]:
    return _on_a_gpu(_of(SD15_GPU, rounds), folder / "sd15", random_checkpoints.write_sd15_shaped)


def _sdxl_gpu(folder: Path, rounds: int | None) -> Iterator[Row]:
    return _on_a_gpu(_of(SDXL_GPU, rounds), folder / "sdxl", random_checkpoints.write_sdxl_shaped)


def _on_a_gpu(plan: Generating, folder: Path, write: Callable[[Path], CheckpointPaths]) -> Iterator[Row]:
    if not torch.cuda.is_available():
        return generating.unmeasured(plan, NO_GPU)
    return generating.measured(plan, _written(folder, write))


def _convolutions(folder: Path, rounds: int | None) -> Iterator[Row]:
    return convolutions.measured(rounds or 5)


def _encoder(folder: Path, rounds: int | None) -> Iterator[Row]:
    """Four times one at a time is asked of the small encoder, nine tenths of its best of the large one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = embedding.write_pictures(folder / "references", 256)
    small = Embedding("embedded CLIP", 256, rounds or 5, device)
    encoder, place = embedding.embedded_clip(device)
    yield from embedding.rows(small, embedding.measured(small, encoder, place, pictures), times=TIMES, of_best=None)
    large = Embedding("ViT-B/32-shaped CLIP", 128, rounds or 5, device)
    encoder, place = embedding.random_clip(folder / "encoder", device)
    yield from embedding.rows(
        large, embedding.measured(large, encoder, place, pictures[: large.count]), times=None, of_best=OF_BEST
    )


def _memory(folder: Path, rounds: int | None) -> Iterator[Row]:
    return embedding.memory_rows(folder, FEW, MANY)


def _of(plan: Generating, rounds: int | None) -> Generating:
    return plan if rounds is None else replace(plan, rounds=rounds)


def _written(folder: Path, write: Callable[[Path], CheckpointPaths]) -> CheckpointPaths:
    """Written once; a folder that is kept is used again."""
    done = folder / "written"
    if not done.exists():
        print(f"{folder.name}: random weights are written", file=sys.stderr)
        write(folder)
        done.touch()
    return CheckpointPaths(folder, folder / random_checkpoints.ADAPTER, folder / "image_encoder")


ROWS: dict[str, Callable[[Path, int | None], Iterator[Row]]] = {
    "studio": _studio,
    "sd15": _sd15,
    "sd15-gpu": _sd15_gpu,
    "sdxl-gpu": _sdxl_gpu,
    "convolutions": _convolutions,
    "encoder": _encoder,
    "memory": _memory,
}

if __name__ == "__main__":
    sys.exit(main())
