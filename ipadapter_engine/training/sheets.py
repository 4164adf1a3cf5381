"""What a training shows as it goes: pictures made with and without what is trained, and the loss as a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ipadapter_engine.pipeline import Engine
from ipadapter_engine.prompts import ReferencePrompt
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training.adapter_data import Example

Row = Sequence[Image.Image | str]
CELL_PX, GAP_PX, HEAD_PX = 160, 6, 22
INK, PAPER, LINE = (30, 30, 30), (255, 255, 255), (44, 92, 206)


@dataclass(frozen=True)
class Drawing:
    """How the pictures of a sheet are made: the first seed, the side in px, and the steps or the family's own."""

    seed: int
    size_px: int
    steps: int | None = None

    def request(self, prompt: str, number: int, references: tuple[ReferencePrompt, ...] = ()) -> GenerationRequest:
        return GenerationRequest(
            prompt, self.seed + number, references, width_px=self.size_px, height_px=self.size_px, steps=self.steps
        )


def adapter_sheet(engine: Engine, examples: Sequence[Example], how: Drawing) -> Image.Image:
    """A row an example: its reference, the picture at scale 0 and at scale 1, from the same seed and prompt."""
    at_one = [how.request(e.caption, i, (ReferencePrompt(e.embedding),)) for i, e in enumerate(examples)]
    made = [g.image for g in engine.generate([*(replace(r, scale=0.0) for r in at_one), *at_one])]
    pairs = zip(made[: len(examples)], made[len(examples) :], strict=True)
    rows: list[Row] = [[e.picture, *pair, e.caption] for e, pair in zip(examples, pairs, strict=True)]
    return grid(["reference", "scale 0", "scale 1"], rows)


def prompt_sheet(
    engine: Engine, prompts: Sequence[str], references: Sequence[Image.Image], how: Drawing
) -> Image.Image:
    """A row a prompt, beside one of the references in turn: two pictures of the engine as it is now."""
    made = [g.image for g in engine.generate([how.request(p, i) for p in prompts for i in range(2)])]
    rows: list[Row] = [[references[i % len(references)], *made[2 * i : 2 * i + 2], p] for i, p in enumerate(prompts)]
    return grid(["reference", f"seed {how.seed}", f"seed {how.seed + 1}"], rows)


def grid(heads: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Cells of CELL_PX under their heads; a text at the end of a row is written below it."""
    font = ImageFont.load_default(12)
    width = GAP_PX + len(heads) * (CELL_PX + GAP_PX)
    height = HEAD_PX + len(rows) * (CELL_PX + HEAD_PX)
    sheet = Image.new("RGB", (width, max(height, HEAD_PX)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        pen.text((GAP_PX + column * (CELL_PX + GAP_PX), 4), head, INK, font=font)
    for number, row in enumerate(rows):
        top = HEAD_PX + number * (CELL_PX + HEAD_PX)
        for column, cell in enumerate(row):
            if isinstance(cell, str):
                pen.text((GAP_PX, top + CELL_PX + 3), cell[: width // 7], INK, font=font)
                continue
            small = cell.convert("RGB")
            scale = CELL_PX / max(small.size)
            kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
            small = small.resize((round(small.width * scale), round(small.height * scale)), kind)
            sheet.paste(small, (GAP_PX + column * (CELL_PX + GAP_PX), top))
    return sheet


def loss_curve(losses: Sequence[tuple[int, float]], *, width_px: int = 640, height_px: int = 240) -> Image.Image:
    """(step, loss) pairs as points, with their running mean as a line; the axes begin at zero."""
    chart = Image.new("RGB", (width_px, height_px), PAPER)
    pen, font = ImageDraw.Draw(chart), ImageFont.load_default(12)
    left, bottom, top = 56, height_px - 24, 12
    pen.line([(left, top), (left, bottom), (width_px - 8, bottom)], INK)
    if not losses:
        return chart
    steps, values = (np.array(v, dtype=float) for v in zip(*losses, strict=True))
    most, last = float(values.max()) or 1.0, float(steps.max()) or 1.0
    x = left + steps / last * (width_px - 16 - left)
    y = bottom - values / most * (bottom - top)
    for point in zip(x.tolist(), y.tolist(), strict=True):
        pen.ellipse((point[0] - 1, point[1] - 1, point[0] + 1, point[1] + 1), (190, 200, 220))
    window = max(1, len(values) // 20)
    mean = [float(y[max(0, i - window + 1) : i + 1].mean()) for i in range(len(y))]
    if len(mean) > 1:
        pen.line(list(zip(x.tolist(), mean, strict=True)), LINE, 2)
    pen.text((4, top - 6), f"{most:.4g}", INK, font=font)
    pen.text((4, bottom - 8), "0", INK, font=font)
    pen.text((left, bottom + 4), "loss by step, 0 to " + f"{int(last)}", INK, font=font)
    return chart
