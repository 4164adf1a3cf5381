"""The PDF of a character sheet: text that can be selected, every picture once in its own resolution, and layers to switch on and off."""

from __future__ import annotations

import io

import pikepdf
from pikepdf import Array, Dictionary, Name, String
from PIL import Image
from reportlab.pdfgen.canvas import Canvas

from flows.sheet_content import Colour, SheetContent
from flows.sheet_layout import PAPER, Block, Box, Item, Layer, Layout, Picture, Words, lay_out
from flows.sheet_lettering import Face, drawable, has_glyphs

POINTS_PER_UNIT = 1190 / 1800  # six cells a row are as wide as an A3 sheet is long
MAX_POINTS = 14400  # PDF readers take no longer page (ISO 32000-1, annex C)


def draw_pdf(content: SheetContent) -> bytes:
    """One page as large as the sheet. The same content gives the same bytes. A layer that would hold nothing is left out."""
    layout = lay_out(content)
    scale = min(POINTS_PER_UNIT / layout.unit, MAX_POINTS / layout.height_px)
    drawn = io.BytesIO()
    canvas = Canvas(
        drawn,
        pagesize=(layout.width_px * scale, layout.height_px * scale),
        invariant=True,
        initialFontName=Face.REGULAR.pdf_name,
    )
    canvas.setTitle(drawable(content.title))
    canvas.setAuthor("Onmodel")
    canvas.setCreator("Onmodel")
    canvas.setSubject("Character sheet")
    canvas.scale(scale, scale)
    pictures = _Pictures()
    layers = [layer for layer in Layer if layer is Layer.BACKGROUND or layout.of(layer)]
    for layer in layers:
        canvas.addLiteral(f"/OC /{layer.value} BDC")
        if layer is Layer.BACKGROUND:
            _fill(canvas, Box(0, 0, layout.width_px, layout.height_px), PAPER, layout)
        for item in layout.of(layer):
            _draw(canvas, item, layout, pictures)
        canvas.addLiteral("EMC")
    canvas.save()
    return _finished(drawn, layers, pictures)


class _Pictures:
    """The pictures of a document, each once. reportlab's own way to embed one writes every byte as text, in Python, and is slow."""

    def __init__(self) -> None:
        self.names: dict[tuple[tuple[int, int], bytes], str] = {}

    def name_of(self, image: Image.Image) -> str:
        return self.names.setdefault((image.size, image.tobytes()), f"Picture{len(self.names)}")

    def embed(self, pdf: pikepdf.Pdf) -> Dictionary:
        return Dictionary({f"/{name}": self.stream(pdf, *told) for told, name in self.names.items()})

    @staticmethod
    def stream(pdf: pikepdf.Pdf, size: tuple[int, int], pixels: bytes) -> pikepdf.Stream:
        return pikepdf.Stream(
            pdf, pixels, Type=Name.XObject, Subtype=Name.Image, Width=size[0], Height=size[1], ColorSpace=Name.DeviceRGB,
            BitsPerComponent=8, Interpolate=True,  # small ones are enlarged softly, as in the PNG
        )  # fmt: skip


def _draw(canvas: Canvas, item: Item, layout: Layout, pictures: _Pictures) -> None:
    box = item.box
    if isinstance(item, Picture):
        place = f"{box.width} 0 0 {box.height} {box.left} {layout.height_px - box.bottom} cm"
        canvas.addLiteral(f"q {place} /{pictures.name_of(item.image)} Do Q")
    elif isinstance(item, Block) and item.edge_px:
        canvas.setStrokeColorRGB(*(c / 255 for c in item.colour))
        canvas.setLineWidth(item.edge_px)
        inset, edge = item.edge_px / 2, item.edge_px
        canvas.rect(box.left + inset, layout.height_px - box.bottom + inset, box.width - edge, box.height - edge)
    elif isinstance(item, Block):
        _fill(canvas, box, item.colour, layout)
    else:
        _write(canvas, item, layout)


def _write(canvas: Canvas, words: Words, layout: Layout) -> None:
    shown = has_glyphs(words.text, words.face)
    if not shown:  # all that the font lacks is the same empty box: what it stands for is still found and copied
        canvas.addLiteral(f"/Span <</ActualText <FEFF{words.text.encode('utf-16-be').hex()}>>> BDC")
    canvas.setFillColorRGB(*(c / 255 for c in words.colour))
    canvas.setFont(words.face.pdf_name, words.size_px)
    canvas.drawString(words.box.left, layout.height_px - words.baseline, words.text)
    if not shown:
        canvas.addLiteral("EMC")


def _fill(canvas: Canvas, box: Box, colour: Colour, layout: Layout) -> None:
    canvas.setFillColorRGB(*(c / 255 for c in colour))
    canvas.rect(box.left, layout.height_px - box.bottom, box.width, box.height, stroke=0, fill=1)


def _finished(drawn: io.BytesIO, layers: list[Layer], pictures: _Pictures) -> bytes:
    """Add the pictures, make the marked parts of the page optional content groups, and a reader show their list (ISO 32000-1, 8.11)."""
    out = io.BytesIO()
    with pikepdf.open(drawn) as pdf:
        groups = {x: pdf.make_indirect(Dictionary(Type=Name.OCG, Name=String(x.value))) for x in layers}
        page = pdf.pages[0]
        page.resources.Properties = Dictionary({f"/{layer.value}": group for layer, group in groups.items()})
        page.resources.XObject = pictures.embed(pdf)
        upper_first = Array(reversed(list(groups.values())))  # as the programs list layers that designers work in
        pdf.Root.OCProperties = Dictionary(
            OCGs=Array(groups.values()),
            D=Dictionary(Name=String("Layers"), Order=upper_first, ON=Array(groups.values())),
        )
        pdf.Root.PageMode = Name.UseOC
        pdf.Root.ViewerPreferences = Dictionary(DisplayDocTitle=True)
        for told in (Name.CreationDate, Name.ModDate):  # reportlab's fixed day is nobody's
            if told in pdf.docinfo:
                del pdf.docinfo[told]
        pdf.save(
            out,
            min_version="1.5",
            deterministic_id=True,
            stream_decode_level=pikepdf.StreamDecodeLevel.generalized,  # takes off reportlab's ASCII
            recompress_flate=True,
        )
    return out.getvalue()
