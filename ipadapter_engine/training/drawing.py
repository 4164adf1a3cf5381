"""The renderer: Pillow at three times the size, scaled down, so that edges are antialiased."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from ipadapter_engine.training.figure import BUILDS, Figure
from ipadapter_engine.training.mascots import ATTRIBUTES, Identity, Staging
from ipadapter_engine.training.pen import RGB, STYLES, Pen, Style
from ipadapter_engine.training.scenery import draw_scene

SUPERSAMPLE = 3
PIXEL_GRID = 64  # squares a side that the pixel style has


def render(identity: Identity, staging: Staging, *, size_px: int = 128, seed: int = 0) -> Image.Image:
    """Draw one picture, RGB, `size_px` square. The seed moves the character and its scenery by a pixel or less."""
    rng = random.Random(seed)
    side = size_px * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    pen = Pen(ImageDraw.Draw(canvas), side / 100.0, STYLES[staging.style])
    draw_scene(pen, staging.scene, rng)
    Figure(pen, identity, staging, rng).draw()
    if staging.style == "pixel":
        return canvas.resize((PIXEL_GRID,) * 2, Image.Resampling.BOX).resize((size_px,) * 2, Image.Resampling.NEAREST)
    return canvas.resize((size_px, size_px), Image.Resampling.BOX)


def pose_picture(staging: Staging, *, size_px: int = 128, seed: int = 0) -> Image.Image:
    """The skeleton of a staging's pose and view, on black: what the pose ControlNet reads, RGB, `size_px` square.

    It is that of a body which is nobody's: the seed chooses its build and place, so that it tells nothing of who.
    """
    rng = random.Random(seed)
    side = size_px * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    who = Identity(rng.choice(sorted(BUILDS)), "red", "round", "round", "belly", "cream", "hat", "gold")
    Figure(Pen(ImageDraw.Draw(canvas), side / 100.0, Style(0.0)), who, staging, rng).draw_skeleton()
    return canvas.resize((size_px, size_px), Image.Resampling.BOX)


# What is seen of a character at a place: an attribute of PARTS with its value.
PARTS = tuple(
    (a.name, v)
    for a in ATTRIBUTES
    if a.name in ("shape", "ears", "eyes", "pattern", "accessory", "pose", "expression")
    for v in a.values
)


def parts_at(identity: Identity, staging: Staging, *, grid: int, seed: int = 0) -> np.ndarray:
    """Which PARTS the picture of `render` shows in each of `grid` x `grid` cells: booleans (grid * grid, parts)."""
    rng, side = random.Random(seed), grid * _CELL
    canvas = Image.new("L", (side, side))
    pen = _PartPen(ImageDraw.Draw(canvas), side / 100.0, STYLES[staging.style])
    draw_scene(pen, staging.scene, rng)
    pen.values = {**vars(identity), **vars(staging)}
    Figure(pen, identity, staging, rng).draw()
    cells = np.asarray(canvas).reshape(grid, _CELL, grid, _CELL).swapaxes(1, 2).reshape(grid * grid, _CELL * _CELL)
    return (cells[..., None] == np.arange(1, len(PARTS) + 1)).sum(1) >= _SEEN


_CELL, _SEEN = 12, 5  # pixels of a cell's side, and of a part that make it seen there


class _PartPen(Pen):
    """Paints what is drawn and not its colour: numbers from 1 in the order of PARTS, 0 for what is none of them."""

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float, style: Style) -> None:
        super().__init__(draw, unit, style)
        self.values: dict[str, str] = {}

    def tint(self, rgb: RGB) -> RGB:
        named = (self.part, self.values.get(self.part, ""))
        return PARTS.index(named) + 1 if named in PARTS else 0  # type: ignore[return-value]  # of an "L" picture
