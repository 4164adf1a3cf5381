"""Sheets to look at: characters beside the pictures that were made of them, large enough to judge by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ipadapter_engine.errors import EngineError

TILE_PX = 256
GAP_PX = 16
TEXT_PX = 18
COLUMNS = 4  # pairs in a row


class SheetRefused(EngineError):
    """A sheet cannot be saved where it is asked for."""


def check_place(file: Path) -> None:
    """Raises SheetRefused, before hours of work, where a sheet cannot be saved at their end."""
    if not file.parent.is_dir():
        raise SheetRefused(f"there is no folder {file.parent} to write the sheet to", "make it, or name another file")
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise SheetRefused(f"no picture can be written as {file.name}", "name a file that ends in .png, .jpg or .webp")


def enlarged(picture: Image.Image, tile_px: int = TILE_PX) -> Image.Image:
    """A tile, scaled up whole times without smoothing, so that what looks sharp is sharp; else with Lanczos."""
    whole = tile_px % picture.width == 0 and picture.width == picture.height
    kind = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((tile_px, tile_px), kind)


def pairs(tiles: Sequence[tuple[Image.Image, Image.Image, str]], tile_px: int = TILE_PX) -> Image.Image:
    """(reference, picture, what was asked for) side by side, COLUMNS pairs in a row, in reading order."""
    return _grid([([a, b], text) for a, b, text in tiles], COLUMNS, tile_px)


def strips(
    rows: Sequence[tuple[Sequence[Image.Image], str]], heads: Sequence[str], tile_px: int = TILE_PX
) -> Image.Image:
    """One row a character, one column a method; `heads` stands above the columns."""
    grid = _grid([(list(tiles), text) for tiles, text in rows], 1, tile_px)
    sheet = Image.new("RGB", (grid.width, grid.height + TEXT_PX + GAP_PX), "white")
    sheet.paste(grid, (0, TEXT_PX + GAP_PX))
    for i, head in enumerate(heads):
        _write(sheet, (GAP_PX + i * tile_px, GAP_PX), head, tile_px)
    return sheet


def _grid(groups: list[tuple[list[Image.Image], str]], columns: int, tile_px: int) -> Image.Image:
    tiles = max((len(g) for g, _ in groups), default=1)
    width, height = tiles * tile_px + GAP_PX, tile_px + TEXT_PX + GAP_PX
    rows = -(-len(groups) // columns)
    sheet = Image.new("RGB", (GAP_PX + columns * width, GAP_PX + rows * height), "white")
    for i, (group, text) in enumerate(groups):
        x, y = GAP_PX + i % columns * width, GAP_PX + i // columns * height
        for n, tile in enumerate(group):
            sheet.paste(enlarged(tile, tile_px), (x + n * tile_px, y))
        _write(sheet, (x, y + tile_px + 2), text, tiles * tile_px)
    return sheet


def _write(sheet: Image.Image, place: tuple[int, int], text: str, width_px: int) -> None:
    font, pen = ImageFont.load_default(TEXT_PX - 5), ImageDraw.Draw(sheet)
    while text and pen.textlength(text, font) > width_px:
        text = text[:-2].rstrip(" ,…") + "…"
    pen.text(place, text, (60, 60, 60), font)
