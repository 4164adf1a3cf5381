"""A character sheet, an animator's model sheet: the pictures of one character in titled rows, its palette, what it was made from."""

from __future__ import annotations

from PIL import Image, ImageDraw

from flows.sheet_content import Cell, Section, SheetContent, Swatch
from flows.sheet_layout import PAPER, Block, Item, Picture, lay_out
from flows.sheet_lettering import raster_font
from flows.sheet_pdf import draw_pdf

__all__ = ["Cell", "Section", "SheetContent", "Swatch", "draw_pdf", "draw_png"]


def draw_png(content: SheetContent) -> Image.Image:
    """The sheet as a picture, RGB, on paper."""
    layout = lay_out(content)
    sheet = Image.new("RGB", (layout.width_px, layout.height_px), PAPER)
    draw = ImageDraw.Draw(sheet)
    for item in layout.items:
        _draw(sheet, draw, item)
    return sheet


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, item: Item) -> None:
    box = item.box
    if isinstance(item, Picture):
        way = Image.Resampling.BICUBIC if box.width > item.image.width else Image.Resampling.LANCZOS
        sheet.paste(item.image.resize((box.width, box.height), way), (box.left, box.top))
    elif isinstance(item, Block):
        corners = (box.left, box.top, box.right - 1, box.bottom - 1)
        if item.edge_px:
            draw.rectangle(corners, outline=item.colour, width=item.edge_px)
        else:
            draw.rectangle(corners, fill=item.colour)
    else:
        font = raster_font(item.face, item.size_px)
        draw.text((box.left, item.baseline), item.text, fill=item.colour, font=font, anchor="ls")
