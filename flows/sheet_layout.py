"""Where everything of a character sheet stands: the one layout that its PNG and its PDF render."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from PIL import Image

from flows.sheet_content import Cell, Colour, Section, SheetContent, Swatch
from flows.sheet_lettering import ASCENT, Face, drawable, fitted, height_of, in_two_lines, width_of

Thing = TypeVar("Thing")
PAPER, PANEL, TILE, LINE = (250, 249, 246), (240, 237, 229), (240, 238, 233), (222, 217, 208)
INK, FAINT, BAD, WHITE = (34, 32, 38), (104, 100, 108), (190, 46, 46), (255, 255, 255)

CELL_PX, MAX_CELL_PX, MAX_COLUMNS, MIN_COLUMNS = 256, 512, 6, 3
# Lengths below are for cells of CELL_PX; with larger cells everything grows alike.
MARGIN, GAP, TILE_SIZE, NOTE_LINE = 72, 24, 160, 18

OFF_MODEL, NOT_MADE = "OFF MODEL", "not made"


class Layer(StrEnum):
    """The layers of the PDF, in the order in which they are drawn."""

    BACKGROUND = "Background"
    PICTURES = "Pictures"
    LABELS = "Labels"
    PALETTE = "Palette"
    REFERENCES = "References"


@dataclass(frozen=True)
class Box:
    """Pixels, from the sheet's upper left corner."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


@dataclass(frozen=True)
class Picture:
    layer: Layer
    box: Box  # in the picture's own proportions
    image: Image.Image  # RGB, in its own resolution


@dataclass(frozen=True)
class Block:
    """A filled rectangle, or with `edge_px` its outline, drawn inside the box."""

    layer: Layer
    box: Box
    colour: Colour
    edge_px: int = 0


@dataclass(frozen=True)
class Words:
    """One line of text; the box is as wide as it is and as high as any of its size."""

    layer: Layer
    box: Box
    text: str
    face: Face
    size_px: int
    colour: Colour

    @property
    def baseline(self) -> int:
        return self.box.top + round(ASCENT * self.size_px)


Item = Picture | Block | Words


@dataclass(frozen=True)
class Layout:
    width_px: int
    height_px: int
    unit: float  # pixels that one pixel of a sheet with cells of CELL_PX has become
    items: tuple[Item, ...]  # in the order in which they are drawn, layer after layer

    def of(self, layer: Layer) -> list[Item]:
        return [i for i in self.items if i.layer is layer]


def lay_out(content: SheetContent) -> Layout:
    """Place all of `content`. Cells are alike and as large as the largest picture, within CELL_PX and MAX_CELL_PX."""
    sections = [s for s in content.sections if s.cells]
    sides = [max(c.image.size) for s in sections for c in s.cells if c.image is not None]
    cell_px = min(max(sides, default=CELL_PX), MAX_CELL_PX)
    page = _Page(max(cell_px, CELL_PX), _columns([len(s.cells) for s in sections]))
    page.head(content.title, content.subtitle)
    for section in sections:
        page.section(section)
    if content.palette:
        page.palette(content.palette)
    if content.references:
        page.references(content.references)
    page.foot(content.footer)
    order = list(Layer)
    return Layout(page.width, page.y, page.unit, tuple(sorted(page.items, key=lambda item: order.index(item.layer))))


def _columns(counts: list[int]) -> int:
    """How many cells a row has: what needs the fewest rows, and of equals what leaves the fewest places empty."""
    return min(
        range(MIN_COLUMNS, MAX_COLUMNS + 1), key=lambda columns: (sum(-(-n // columns) for n in counts), columns)
    )


class _Page:
    """A sheet while it is filled from above: `y` is where the next thing goes."""

    def __init__(self, cell_px: int, columns: int) -> None:
        self.unit = cell_px / CELL_PX
        self.cell_px, self.columns = cell_px, columns
        self.margin, self.gap = self.px(MARGIN), self.px(GAP)
        self.inner = columns * cell_px + (columns - 1) * self.gap
        self.width = self.inner + 2 * self.margin
        self.y = self.margin
        self.items: list[Item] = []

    def px(self, length: float) -> int:
        return round(length * self.unit)

    def head(self, title: str, subtitle: str) -> None:
        self.words(Layer.LABELS, title, self.margin, self.inner, 52, face=Face.BOLD)
        self.y += self.px(72)
        self.words(Layer.LABELS, subtitle, self.margin, self.inner, 19, FAINT)
        self.y += self.px(46)
        self.block(Layer.BACKGROUND, Box(self.margin, self.y, self.inner, self.px(3)), INK)
        self.y += self.px(3 + 36)

    def section(self, section: Section) -> None:
        missing = sum(c.image is None for c in section.cells)
        off = sum(c.image is not None and not c.ok for c in section.cells)
        told = [str(len(section.cells))] + [f"{n} {what}" for n, what in ((off, "off model"), (missing, NOT_MADE)) if n]
        self.heading(Layer.LABELS, section.title, " · ".join(told))
        for lefts, row in self.rows(section.cells, self.cell_px, self.margin, self.inner):
            lines = max([self.cell(cell, left) for left, cell in zip(lefts, row, strict=False)])
            self.y += self.cell_px + self.px(10 + 24 + 28) + lines * self.px(NOTE_LINE)
        self.y += self.px(20)

    def cell(self, cell: Cell, left: int) -> int:
        """One picture with its label and notes; gives how many lines the notes take, one at least."""
        tile = Box(left, self.y, self.cell_px, self.cell_px)
        self.block(Layer.BACKGROUND, tile, TILE)
        if cell.image is None:
            self.block(Layer.BACKGROUND, tile, LINE, edge_px=self.px(2))
            middle = left + (self.cell_px - width_of(NOT_MADE, Face.REGULAR, self.px(16))) // 2
            self.words(Layer.LABELS, NOT_MADE, middle, self.cell_px, 16, FAINT, down=(self.cell_px - self.px(19)) // 2)
        else:
            self.items.append(_picture(Layer.PICTURES, tile, cell.image, TILE))
        room, below = self.cell_px, self.cell_px + self.px(10)
        if cell.image is not None and not cell.ok:
            edge = self.px(4)
            self.block(
                Layer.LABELS, Box(left - edge, self.y - edge, *(self.cell_px + 2 * edge,) * 2), BAD, edge_px=edge
            )
            room -= self.mark(left + self.cell_px, below) + self.px(8)
        self.words(Layer.LABELS, cell.label, left, room, 17, down=below)
        notes = in_two_lines(cell.notes, self.cell_px, Face.REGULAR, self.px(14))
        for n, line in enumerate(notes):
            down = below + self.px(24) + n * self.px(NOTE_LINE)
            self.words(Layer.LABELS, line, left, self.cell_px, 14, FAINT if cell.ok else BAD, down=down)
        return max(len(notes), 1)

    def mark(self, right: int, down: int) -> int:
        """The badge of a picture that is off model, left of `right`; gives its width."""
        width = width_of(OFF_MODEL, Face.BOLD, self.px(11)) + self.px(12)
        self.block(Layer.LABELS, Box(right - width, self.y + down, width, self.px(20)), BAD)
        self.words(Layer.LABELS, OFF_MODEL, right - width + self.px(6), width, 11, WHITE, Face.BOLD, down + self.px(3))
        return width

    def palette(self, palette: tuple[Swatch, ...]) -> None:
        """Two swatches below every cell."""
        self.heading(Layer.PALETTE, "Palette", str(len(palette)))
        side, height = (self.cell_px - self.gap) // 2, self.px(72)
        for lefts, row in self.rows(palette, side, self.margin, self.inner):
            for left, swatch in zip(lefts, row, strict=False):
                box = Box(left, self.y, side, height)
                if swatch.colour is not None:
                    self.block(Layer.PALETTE, box, swatch.colour)
                self.block(Layer.PALETTE, box, LINE, edge_px=self.px(1))
                lines = [(swatch.name, INK), (swatch.hex, FAINT)] if drawable(swatch.name) else [(swatch.hex, INK)]
                for n, (text, colour) in enumerate(lines):
                    self.words(Layer.PALETTE, text, left, side, 14, colour, down=height + self.px(8 + 20 * n))
            self.y += height + self.px(66)
        self.y += self.px(12)

    def references(self, references: tuple[Image.Image, ...]) -> None:
        """On a panel of their own, smaller: they are what the sheet was made from, not what it shows."""
        top, size = self.y, self.px(TILE_SIZE)
        panel = len(self.items)
        self.y += self.gap
        self.heading(Layer.REFERENCES, "References", str(len(references)), inset=self.gap)
        for lefts, row in self.rows(references, size, self.margin + self.gap, self.inner - 2 * self.gap):
            for left, image in zip(lefts, row, strict=False):
                self.items.append(_picture(Layer.REFERENCES, Box(left, self.y, size, size), image, PANEL))
            self.y += size + self.gap
        self.items.insert(panel, Block(Layer.REFERENCES, Box(self.margin, top, self.inner, self.y - top), PANEL))
        self.y += self.px(36)

    def foot(self, footer: str) -> None:
        self.block(Layer.BACKGROUND, Box(self.margin, self.y, self.inner, self.px(1)), LINE)
        self.words(Layer.LABELS, footer, self.margin, self.inner, 13, FAINT, down=self.px(14))
        self.y += self.px(14 + 17) + self.margin // 2

    def heading(self, layer: Layer, title: str, more: str, inset: int = 0) -> None:
        left, room = self.margin + inset, self.inner - 2 * inset
        more_px = width_of(more, Face.REGULAR, self.px(15)) + self.px(12)
        title_px = self.words(layer, title, left, room - more_px, 22, face=Face.BOLD)
        self.words(layer, more, left + title_px + self.px(12), more_px, 15, FAINT, down=self.px(6))
        self.y += self.px(44)

    def rows(
        self, things: tuple[Thing, ...], size: int, left: int, room: int
    ) -> Iterable[tuple[list[int], tuple[Thing, ...]]]:
        step = size + self.gap
        places = [left + n * step for n in range((room + self.gap) // step)]
        for start in range(0, len(things), len(places)):
            yield places, things[start : start + len(places)]

    def block(self, layer: Layer, box: Box, colour: Colour, edge_px: int = 0) -> None:
        self.items.append(Block(layer, box, colour, edge_px))

    def words(
        self, layer: Layer, text: str, left: int, room: int, size: int, colour: Colour = INK, face: Face = Face.REGULAR, down: int = 0,
    ) -> int:  # fmt: skip
        """One line, `down` pixels below `y` and at most `room` wide; gives its width, 0 where nothing is left to draw."""
        size_px = self.px(size)
        text = fitted(text, room, face, size_px)
        width = width_of(text, face, size_px)
        if text:
            self.items.append(
                Words(layer, Box(left, self.y + down, width, height_of(size_px)), text, face, size_px, colour)
            )
        return width


def _picture(layer: Layer, tile: Box, image: Image.Image, ground: Colour) -> Picture:
    """The whole image in the middle of the tile, as large as it fits; where it is transparent, the ground shows."""
    ratio = min(tile.width / image.width, tile.height / image.height)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    box = Box(tile.left + (tile.width - width) // 2, tile.top + (tile.height - height) // 2, width, height)
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, ground)
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return Picture(layer, box, image.convert("RGB"))
