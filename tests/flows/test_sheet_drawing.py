"""A character sheet: one layout without overlaps, a PNG that shows it, a PDF with layers, text and every picture once."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pikepdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from flows.sheet_drawing import Cell, Section, SheetContent, Swatch, draw_pdf, draw_png
from flows.sheet_layout import BAD, MARGIN, TILE, Block, Box, Layer, Picture, Words, lay_out
from flows.sheet_lettering import Face, drawable, fitted, in_two_lines, raster_font, width_of

RED, GREEN, BLUE, GOLD = (200, 30, 30), (30, 160, 60), (20, 60, 200), (230, 180, 20)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


FULL = SheetContent(
    title="Pip",
    subtitle="Lumen Toys, outlined",
    sections=(
        Section("Views", (Cell("front", plain(RED), "identity 0.81"), Cell("back", plain(GREEN), "identity 0.79"))),
        Section(
            "Poses",
            (Cell("waving", plain(BLUE), "identity 0.40", ok=False), Cell("sitting", None, "tried 2 times", ok=False)),
        ),
    ),
    palette=(Swatch("body", "#1E90FF"), Swatch("", "#C8313A")),
    references=(plain(GOLD, (120, 80)),),
    footer="run 0f3c2a9e",
)


def many(count: int, **other: object) -> SheetContent:
    cells = tuple(Cell(f"pose {n}", plain(GREEN), "identity 0.81", ok=n % 3 > 0) for n in range(count))
    return SheetContent("Pip", "", (Section("Poses", cells),), **other)  # type: ignore[arg-type]


def opened(pdf: bytes) -> pikepdf.Pdf:
    return pikepdf.open(io.BytesIO(pdf))


def marked(pdf: pikepdf.Pdf) -> dict[str, list[str]]:
    """The operators that paint, by the name of the layer that they stand in; "" for those outside of all."""
    names = {key[1:]: str(group.Name) for key, group in pdf.pages[0].resources.Properties.items()}
    painted, within = defaultdict(list), []
    for operands, operator in pikepdf.parse_content_stream(pdf.pages[0]):
        if str(operator) == "BDC":
            within.append(names[str(operands[1])[1:]] if str(operands[0]) == "/OC" else within[-1])
        elif str(operator) == "EMC":
            within.pop()
        elif str(operator) in ("Tj", "Do", "f", "f*", "S"):
            painted[within[-1] if within else ""].append(str(operator))
    assert not within
    return painted


def texts(pdf: pikepdf.Pdf) -> list[str]:
    """What the page says, a string a line of text, read through the fonts' own ToUnicode tables."""
    maps: dict[str, dict[int, str]] = {}
    for name, font in pdf.pages[0].resources.Font.items():
        pairs = re.findall("<([0-9A-F]{2})> <([0-9A-F]{4})>", font.ToUnicode.read_bytes().decode())
        maps[name] = {int(code, 16): chr(int(letter, 16)) for code, letter in pairs}
    said, font = [], ""
    for operands, operator in pikepdf.parse_content_stream(pdf.pages[0]):
        if str(operator) == "Tf":
            font = str(operands[0])
        elif str(operator) == "Tj":
            said.append("".join(maps[font][code] for code in bytes(operands[0])))
    return said


def boxes(content: SheetContent) -> list[Box]:
    """What must stand apart: pictures, text and coloured blocks, but for what is drawn to lie below or around others."""
    layout = lay_out(content)
    return [i.box for i in layout.items if isinstance(i, Picture | Words)]


def overlap(one: Box, other: Box) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


# The layout


def test_boxes_that_share_a_pixel_overlap_and_neighbours_do_not() -> None:
    assert overlap(Box(0, 0, 10, 10), Box(9, 9, 5, 5))
    assert not overlap(Box(0, 0, 10, 10), Box(10, 0, 5, 5))


cells = st.builds(
    Cell,
    st.text(max_size=60),
    st.sampled_from([None, plain(RED), plain(RED, (300, 20)), plain(RED, (3, 500))]),
    st.text(max_size=120),
    st.booleans(),
)
contents = st.builds(
    SheetContent,
    st.text(max_size=80),
    st.text(max_size=200),
    st.lists(st.builds(Section, st.text(max_size=80), st.lists(cells, max_size=14).map(tuple)), max_size=4).map(tuple),
    st.lists(st.builds(Swatch, st.text(max_size=30), st.sampled_from(["#1E90FF", "#fff", "a" * 50])), max_size=20).map(
        tuple
    ),
    st.lists(st.sampled_from([plain(GOLD), plain(GOLD, (10, 900))]), max_size=12).map(tuple),
    st.text(max_size=300),
)


@settings(max_examples=40, deadline=None)
@given(contents)
def test_nothing_overlaps_and_nothing_leaves_the_sheet(content: SheetContent) -> None:
    layout, margin = lay_out(content), MARGIN * 0.9
    apart = boxes(content)
    assert not [(a, b) for a, b in itertools.combinations(apart, 2) if overlap(a, b)]
    assert all(b.left >= margin and b.right <= layout.width_px - margin for b in apart)
    assert all(b.top > 0 and b.bottom < layout.height_px for b in apart)


@pytest.mark.parametrize("count", [1, 2, 6, 7, 13, 60])
def test_all_cells_are_alike_apart_and_at_most_six_a_row(count: int) -> None:
    layout = lay_out(many(count))
    tiles = [i.box for i in layout.of(Layer.PICTURES)]
    assert len(tiles) == count
    assert {(t.width, t.height) for t in tiles} == {(256, 256)}
    rows = defaultdict(list)
    for tile in tiles:
        rows[tile.top].append(tile.left)
    assert len(rows) == -(-count // 6)
    assert max(len(lefts) for lefts in rows.values()) <= 6


def test_a_row_is_as_long_as_needed() -> None:
    assert lay_out(many(8)).width_px < lay_out(many(12)).width_px  # two rows of four, not six and two


@pytest.mark.parametrize(("side", "cell_px"), [(64, 256), (256, 256), (400, 400), (512, 512), (2000, 512)])
def test_cells_have_the_size_of_the_pictures_within_bounds(side: int, cell_px: int) -> None:
    content = SheetContent(
        "Pip", "", (Section("Views", (Cell("front", plain(RED, (side, side))), Cell("back", plain(RED)))),)
    )
    assert [(i.box.width, i.box.height) for i in lay_out(content).of(Layer.PICTURES)] == [(cell_px, cell_px)] * 2


def test_a_section_without_cells_is_not_shown() -> None:
    with_empty = SheetContent("Pip", "", (Section("Views", (Cell("front", plain(RED)),)), Section("Nothing", ())))
    assert "Nothing" not in {i.text for i in lay_out(with_empty).items if isinstance(i, Words)}


@pytest.mark.parametrize("count", [1, 4, 6])
def test_references_stand_on_their_panel(count: int) -> None:
    layout = lay_out(many(count, references=(plain(GOLD),) * 23))
    panel, *others = [i.box for i in layout.of(Layer.REFERENCES)]
    assert len(others) == 23 + 2  # with a title and a count
    assert all(
        panel.left < b.left and b.right < panel.right and panel.top < b.top and b.bottom < panel.bottom for b in others
    )


# The lettering


@pytest.mark.parametrize("face", Face)
@pytest.mark.parametrize("text", ["three-quarter view", "W" * 3000, "i" * 3000, "Ünïcödé жизнь 日本 🎈", "a b " * 900])
@pytest.mark.parametrize("room", [0, 5, 40, 256])
def test_fitted_text_is_within_its_room_in_both_drawings(text: str, room: int, face: Face) -> None:
    line = fitted(text, room, face, 14)
    left, top, right, bottom = ImageDraw.Draw(plain(RED)).textbbox(
        (0, 0), line, font=raster_font(face, 14), anchor="ls"
    )
    assert width_of(line, face, 14) <= room
    assert right <= room
    assert -14 <= top <= bottom <= 4
    assert left >= -1


def test_text_that_fits_is_not_cut_and_text_that_does_not_ends_in_an_ellipsis() -> None:
    width = width_of("three-quarter view", Face.REGULAR, 14)
    assert fitted("three-quarter view", width, Face.REGULAR, 14) == "three-quarter view"
    cut = fitted("three-quarter view", width - 1, Face.REGULAR, 14)
    assert cut.endswith("…")
    assert cut.startswith("three-quarter")


def test_what_cannot_be_seen_is_left_out() -> None:
    assert drawable(" a\x00b\n\tc\u202ed\u200be\ud800f\ufeff <b> ") == "ab cdef <b>"
    assert drawable("e\u0301") == "é"


def test_notes_break_at_a_space_and_take_two_lines_at_most() -> None:
    assert in_two_lines("identity 0.81", 256, Face.REGULAR, 14) == ["identity 0.81"]
    first, second = in_two_lines("identity 0.52, below the 0.70 of Pip, tried three times " * 3, 256, Face.REGULAR, 14)
    assert first == "identity 0.52, below the 0.70 of Pip,"
    assert second.startswith("tried three times identity")
    assert second.endswith("…")
    assert in_two_lines("", 256, Face.REGULAR, 14) == []


# The PNG


def test_the_png_shows_every_picture_in_its_place() -> None:
    sheet, layout = draw_png(FULL), lay_out(FULL)
    assert (sheet.mode, sheet.size) == ("RGB", (layout.width_px, layout.height_px))
    shown = [i for i in layout.items if isinstance(i, Picture)]
    middles = [sheet.getpixel((i.box.left + i.box.width // 2, i.box.top + i.box.height // 2)) for i in shown]
    assert middles == [RED, GREEN, BLUE, GOLD]
    for item in shown:  # to its edges: the pixel outside is no longer the picture's
        colour, box = item.image.getpixel((0, 0)), item.box
        assert sheet.getpixel((box.left, box.top)) == sheet.getpixel((box.right - 1, box.bottom - 1)) == colour
        assert sheet.getpixel((box.left - 1, box.top)) != colour
        assert sheet.getpixel((box.right, box.bottom - 1)) != colour


def test_the_palette_is_drawn_in_its_own_colours_with_their_values() -> None:
    sheet = draw_png(FULL)
    for item, colour in zip([i for i in lay_out(FULL).of(Layer.PALETTE) if isinstance(i, Block) and not i.edge_px],
                            [(0x1E, 0x90, 0xFF), (0xC8, 0x31, 0x3A)], strict=True):  # fmt: skip
        assert sheet.getpixel((item.box.left + 20, item.box.top + 20)) == colour
    assert {"body", "#1E90FF", "#C8313A"} <= {i.text for i in lay_out(FULL).of(Layer.PALETTE) if isinstance(i, Words)}


def test_every_text_leaves_ink_within_its_box_and_none_outside() -> None:
    """The sheet without words is the same everywhere else: a letter that was cut off or ran over would show."""
    layout, sheet = lay_out(FULL), draw_png(FULL)
    for words in (i for i in layout.items if isinstance(i, Words)):
        box = words.box
        colours = {c for _, c in sheet.crop((box.left, box.top, box.right, box.bottom)).getcolors(1 << 16) or []}
        assert len(colours) > 4, words.text  # the letters' edges are antialiased
        below = sheet.crop((box.left, box.bottom, box.right, box.bottom + 1)).getcolors() or []
        assert len(below) == 1, words.text


def test_a_picture_that_is_off_model_is_framed_and_badged_and_one_that_is_not_made_says_so() -> None:
    good, bad = (
        SheetContent("Pip", "", (Section("Views", (Cell("front", plain(BLUE), "n", ok=ok),)),)) for ok in (True, False)
    )
    assert BAD not in {c for _, c in draw_png(good).getcolors(1 << 20) or []}
    assert BAD in {c for _, c in draw_png(bad).getcolors(1 << 20) or []}
    assert "OFF MODEL" in {i.text for i in lay_out(bad).items if isinstance(i, Words)}
    missing = lay_out(SheetContent("Pip", "", (Section("Views", (Cell("front", None, "tried 2 times", ok=False),)),)))
    assert {"not made", "tried 2 times"} <= {i.text for i in missing.items if isinstance(i, Words)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_pictures_of_any_mode_are_drawn(mode: str) -> None:
    image = plain((255, 255, 255)).convert(mode)
    content = SheetContent("Pip", "", (Section("Views", (Cell("front", image),)),))
    box = lay_out(content).of(Layer.PICTURES)[0].box
    assert draw_png(content).getpixel((box.left + 128, box.top + 128)) == (255, 255, 255)


def test_the_tile_shows_through_a_transparent_picture() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    content = SheetContent("Pip", "", (Section("Views", (Cell("front", clear),)),))
    box = lay_out(content).of(Layer.PICTURES)[0].box
    assert draw_png(content).getpixel((box.left + 128, box.top + 128)) == TILE


# The PDF


def test_the_layers_are_named_listed_and_hold_all_that_is_painted() -> None:
    pdf = opened(draw_pdf(FULL))
    groups = pdf.Root.OCProperties
    assert [str(g.Name) for g in groups.OCGs] == [layer.value for layer in Layer]
    assert {str(g.Name) for g in groups.D.Order} == {str(g.Name) for g in groups.D.ON} == set(Layer)
    painted = marked(pdf)
    assert set(painted) == set(Layer)  # and nothing outside of them
    assert painted["Pictures"] == ["Do"] * 3
    assert painted["References"].count("Do") == 1
    assert painted["Palette"].count("Tj") == 5  # title, count, a name and two values
    assert "Tj" in painted["Labels"]
    assert set(painted["Background"]) == {"f*", "S"}


def test_a_layer_that_would_hold_nothing_is_not_there() -> None:
    pdf = opened(draw_pdf(many(1)))
    assert [str(g.Name) for g in pdf.Root.OCProperties.OCGs] == ["Background", "Pictures", "Labels"]


def test_the_text_can_be_extracted_and_its_fonts_are_embedded() -> None:
    pdf = opened(draw_pdf(FULL))
    assert set(texts(pdf)) == {i.text for i in lay_out(FULL).items if isinstance(i, Words)}
    assert all("/FontFile2" in font.FontDescriptor for font in pdf.pages[0].resources.Font.values())


def test_letters_that_the_font_lacks_are_still_found() -> None:
    pdf = opened(draw_pdf(SheetContent("日本 🎈", "", (Section("Views", (Cell("front", None),)),))))
    spans = [
        o[1].ActualText
        for o, op in pikepdf.parse_content_stream(pdf.pages[0])
        if str(op) == "BDC" and str(o[0]) == "/Span"
    ]
    assert [str(s) for s in spans] == ["日本 🎈"]


def test_every_picture_is_embedded_once_in_its_own_resolution() -> None:
    noise = Image.effect_noise((90, 70), 60).convert("RGB")
    twice = SheetContent(
        "Pip", "", (Section("Views", (Cell("front", noise), Cell("again", noise.copy()), Cell("back", plain(RED, (700, 40))))),),
        references=(noise,),
    )  # fmt: skip
    pdf = opened(draw_pdf(twice))
    images = list(pdf.pages[0].resources.XObject.values())
    assert sorted((int(i.Width), int(i.Height)) for i in images) == [(90, 70), (700, 40)]
    small = next(i for i in images if i.Width == 90)
    assert small.read_bytes() == noise.tobytes()
    assert marked(pdf)["Pictures"] == ["Do"] * 3


def test_the_same_content_gives_the_same_bytes_and_other_content_others(tmp_path: Path) -> None:
    """In another process, too: no order of a set, no time and no random id is in them."""
    first = draw_pdf(many(3, footer="a"))
    assert draw_pdf(many(3, footer="b")) != first
    other = "import sys; from tests.flows.test_sheet_drawing import *; sys.stdout.buffer.write(draw_pdf(many(3, footer='a')))"
    path = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    told = subprocess.run([sys.executable, "-c", other], capture_output=True, check=True, env=environment, cwd=path)
    assert told.stdout == first


def test_the_document_has_its_title_and_no_time() -> None:
    pdf = opened(draw_pdf(FULL))
    assert str(pdf.docinfo.Title) == "Pip"
    assert not {"/CreationDate", "/ModDate"} & set(pdf.docinfo.keys())


def test_the_page_has_the_sheets_proportions_and_what_a_reader_can_take() -> None:
    tall = SheetContent("Pip", "", tuple(Section(f"{n}", (Cell("front", plain(RED)),)) for n in range(80)))
    for content in (FULL, tall):
        layout, pdf = lay_out(content), opened(draw_pdf(content))
        box = pdf.pages[0].mediabox
        width, height = float(box[2]), float(box[3])
        assert width / height == pytest.approx(layout.width_px / layout.height_px, rel=1e-4)
        assert height <= 14400.001
    assert height == pytest.approx(14400)


HOSTILE = [
    "\x00\x1b[31m",
    "\u202egnp.exe",
    "W" * 5000,
    "<b>&amp;</b>",
    ") Tj ET Q EMC (",
    "\\",
    "\ud800",
    "🎈" * 50,
    "",
    "   ",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_breaks_the_sheet(text: str) -> None:
    cell = Cell(text, plain(RED), text, ok=False)
    content = SheetContent(
        text, text, (Section(text, (cell, Cell(text, None, text))),), (Swatch(text, text),), (plain(RED),), text
    )
    pdf = opened(draw_pdf(content))
    assert not pdf.check_pdf_syntax()
    assert marked(pdf)["Pictures"] == ["Do"]
    drawn = [i.text for i in lay_out(content).items if isinstance(i, Words)]
    lines = texts(pdf)
    assert len(lines) == len(drawn)
    assert [a for a, b in zip(lines, drawn, strict=True) if "🎈" not in b] == [b for b in drawn if "🎈" not in b]
    assert draw_png(content).size == (lay_out(content).width_px, lay_out(content).height_px)


def test_a_sheet_of_nothing_is_a_sheet() -> None:
    nothing = SheetContent("", "", ())
    assert draw_png(nothing).width == lay_out(nothing).width_px
    assert len(opened(draw_pdf(nothing)).pages) == 1
