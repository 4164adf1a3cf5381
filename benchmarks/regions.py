"""`make bench-regions`: two characters in one picture, each in its region: how much does one bleed into the other's?

    python -m benchmarks.regions [--pairs N] [--sheet FILE]

The embedded model puts one character on the left and another on the right. Then the right one is replaced and nothing
else, the noise included: what changes on the left, beside what changes on the right, is the bleed, 0 for none and 1 where
a reference reaches both halves alike. The peer is the same pair heard everywhere, without regions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.rows import Row, tell
from ipadapter_engine.evaluation.characters import portrait
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import Array, ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.mascots import held_out_identities

LEFT, RIGHT = "left", "right"
PROMPT = "two mascots side by side, on the beach"
LESS = 0.5  # of what it is without regions
SIDE_BY_SIDE_PX = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="of characters that no training saw")
    parser.add_argument(
        "--sheet", type=Path, help="write the pictures there, a pair a row: both, and with the right one replaced"
    )
    given = parser.parse_args(arguments)
    engine = Engine.open()
    width = 2 * engine.family.size_px
    pairs = requests_of(engine, given.pairs, width, engine.family.size_px)
    made = [p.pixels for p in engine.generate([r for pair in pairs for r in pair])]
    apart, alike = ([bleed(made[i], made[i + 1]) for i in range(start, len(made), 4)] for start in (0, 2))
    if given.sheet is not None:
        sheet_of(made).save(given.sheet)
    row = Row(
        "bleed of a region", statistics.median(apart), "of the change within", f"ratio <= {LESS:g}",
        statistics.median(apart) <= LESS * statistics.median(alike), "without regions", statistics.median(alike),
        f"median of {given.pairs} pairs",
    )  # fmt: skip
    return 0 if tell(row) else 1


def requests_of(engine: Engine, pairs: int, width_px: int, height_px: int) -> list[list[GenerationRequest]]:
    """Four a pair: two characters in two regions, the right one replaced, and the same two without regions."""
    seen = [engine.look_at(portrait(who, engine.family.size_px)) for who in held_out_identities()[: pairs + 2]]
    left = np.zeros((height_px, width_px), dtype=np.uint8)
    left[:, : width_px // 2] = 255
    out = []
    for i in range(pairs):
        base = GenerationRequest(PROMPT, seed=100 + i, width_px=width_px, height_px=height_px)
        both, changed = (_cast(seen[i], seen[i + n]) for n in (1, 2))
        apart = replace(base, regions={LEFT: left, RIGHT: 255 - left})
        out.append([
            replace(apart, references=both), replace(apart, references=changed),
            replace(base, references=_anywhere(both)), replace(base, references=_anywhere(changed)),
        ])  # fmt: skip
    return out


def _cast(left: ReferencePrompt, right: ReferencePrompt) -> tuple[ReferencePrompt, ...]:
    return replace(left, region=LEFT), replace(right, region=RIGHT)


def _anywhere(references: Sequence[ReferencePrompt]) -> tuple[ReferencePrompt, ...]:
    return tuple(replace(r, region=None) for r in references)


def bleed(before: Array, after: Array) -> float:
    """The change of the left half divided by that of the right; uint8 (h, w, 3)."""
    change = np.abs(before.astype(np.float32) - after.astype(np.float32)).mean(axis=(0, 2))
    left, right = np.split(change, 2)
    return float(left.mean() / max(float(right.mean()), 1e-6))


def sheet_of(made: Sequence[Array]) -> Image.Image:
    """Four pictures a row, as `requests_of` asks for them."""
    height, width, _ = made[0].shape
    rows = len(made) // 4
    gap = SIDE_BY_SIDE_PX
    sheet = Image.new("RGB", (4 * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(made):
        sheet.paste(Image.fromarray(picture), ((i % 4) * (width + gap), (i // 4) * (height + gap)))
    return sheet


if __name__ == "__main__":
    sys.exit(main())
