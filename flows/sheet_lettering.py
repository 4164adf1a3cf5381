"""The lettering of a character sheet: its typeface, how wide a text is in it, and what is drawn of a text that anyone may have written."""

from __future__ import annotations

import functools
import math
import unicodedata
from enum import StrEnum
from pathlib import Path

import reportlab
from PIL import ImageFont
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

# Bitstream Vera, in PNG and PDF alike: it comes with reportlab, may be embedded, has a bold face and the accents of Latin-1 with
# some more. Pillow's own Aileron is cut down to a hundred glyphs, none of them an é. One typeface for both is what lets one
# layout measure for both.
FONTS = Path(reportlab.__file__).parent / "fonts"
ASCENT, DESCENT = 0.93, 0.24  # of the size: how far Vera's letters reach above and below their baseline
MAX_CHARACTERS = 1000  # no line of a sheet shows more, so no more is measured


class Face(StrEnum):
    REGULAR = "Vera"
    BOLD = "VeraBd"

    @property
    def pdf_name(self) -> str:
        return f"Onmodel-{self.value}"


for face in Face:
    pdfmetrics.registerFont(TTFont(face.pdf_name, str(FONTS / f"{face.value}.ttf")))


@functools.lru_cache(maxsize=64)
def raster_font(face: Face, size_px: int) -> ImageFont.FreeTypeFont:
    """Basic layout: whether Pillow was built with Raqm must not move a letter."""
    return ImageFont.truetype(FONTS / f"{face.value}.ttf", size_px, layout_engine=ImageFont.Layout.BASIC)


def width_of(text: str, face: Face, size_px: int) -> int:
    """Pixels that `text` takes in whichever of PNG and PDF it is wider: Pillow rounds every letter's advance, reportlab none."""
    exact = pdfmetrics.stringWidth(text, face.pdf_name, size_px)
    return math.ceil(max(exact, raster_font(face, size_px).getlength(text)))


def height_of(size_px: int) -> int:
    return math.ceil(ASCENT * size_px) + math.ceil(DESCENT * size_px)


def has_glyphs(text: str, face: Face) -> bool:
    return all(ord(c) in pdfmetrics.getFont(face.pdf_name).face.charToGlyph for c in text)


def drawable(text: str) -> str:
    """What can be drawn of `text`, on one line: controls, direction marks, lone surrogates and other invisible codes are left out.

    Letters that Vera lacks stay: they show as its empty box.
    """
    composed = unicodedata.normalize("NFC", " ".join(text[: 2 * MAX_CHARACTERS].split()))
    return "".join(c for c in composed if unicodedata.category(c)[0] != "C")[:MAX_CHARACTERS].strip()


def fitted(text: str, room_px: int, face: Face, size_px: int) -> str:
    """`text` as it can be drawn, cut with an ellipsis where it would be wider than `room_px`; "" where not even that fits."""
    text = drawable(text)
    if width_of(text, face, size_px) <= room_px:
        return text
    fits, too_long = -1, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if width_of(text[:middle].rstrip() + "…", face, size_px) <= room_px:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…" if fits >= 0 else ""


def in_two_lines(text: str, room_px: int, face: Face, size_px: int) -> list[str]:
    """`text` on one line, or on two where it is longer and has a space to be broken at; the last one is `fitted`."""
    words = drawable(text).split(" ")
    count = 1
    while count < len(words) and width_of(" ".join(words[: count + 1]), face, size_px) <= room_px:
        count += 1
    lines = (" ".join(words[:count]), " ".join(words[count:]))
    return [fitted(line, room_px, face, size_px) for line in lines if line]
