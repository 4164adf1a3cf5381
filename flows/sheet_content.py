"""What a character sheet shows, as plain values: pictures of one character in sections, its palette, what it was made from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Cell:
    """A picture of the character. `image` is None where it could not be made; one that is not `ok` is marked as off model."""

    label: str
    image: Image.Image | None
    notes: str = ""
    ok: bool = True


@dataclass(frozen=True)
class Section:
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Swatch:
    """A colour of the palette, as "#1E90FF"; what is no such colour is shown as an empty frame."""

    name: str
    hex: str

    @property
    def colour(self) -> Colour | None:
        told = re.fullmatch("#([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})", self.hex)
        return (int(told[1], 16), int(told[2], 16), int(told[3], 16)) if told else None


@dataclass(frozen=True)
class SheetContent:
    title: str
    subtitle: str
    sections: tuple[Section, ...]
    palette: tuple[Swatch, ...] = ()
    references: tuple[Image.Image, ...] = ()
    footer: str = ""
