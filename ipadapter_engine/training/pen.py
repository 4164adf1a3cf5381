"""What mascots and scenes are drawn with: shapes in a 100 x 100 coordinate system, in one of the drawing styles."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ImageDraw

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]

INK: RGB = (34, 28, 40)


@dataclass(frozen=True)
class Style:
    """line: of the outlines, in hundredths of the picture's side; whiten: how far colours go towards white."""

    line: float
    whiten: float = 0.0


STYLES = {
    "outlined": Style(2.4),
    "flat": Style(0.0),
    "pastel": Style(1.4, 0.42),
    "pixel": Style(2.6),
}


class Pen:
    """Draws in a 100 x 100 coordinate system, y down, in one style."""

    part = ""  # the attribute that is being drawn

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float, style: Style) -> None:
        self.draw, self.unit, self.style = draw, unit, style

    def tint(self, rgb: RGB) -> RGB:
        """The colour in this style."""
        w = self.style.whiten
        return (int(rgb[0] + (255 - rgb[0]) * w), int(rgb[1] + (255 - rgb[1]) * w), int(rgb[2] + (255 - rgb[2]) * w))

    @property
    def ink(self) -> RGB:
        return self.tint(INK)

    def polygon(self, points: Points, fill: RGB, *, line: bool = False) -> None:
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.polygon(scaled, fill=self.tint(fill))
        if line and self.style.line:
            self.draw.line(
                [*scaled, scaled[0], scaled[1]], fill=self.ink, width=self._px(self.style.line), joint="curve"
            )

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: RGB, *, line: bool = False) -> None:
        half = self.style.line / 2 if line else 0.0
        if half:
            self.draw.ellipse(self._box(cx, cy, rx + half, ry + half), fill=self.ink)
        self.draw.ellipse(self._box(cx, cy, rx - half, ry - half), fill=self.tint(fill))

    def stroke(self, points: Points, fill: RGB, width: float, *, line: bool = False) -> None:
        """A line with round ends, with its own outline if asked for."""
        if line and self.style.line:
            self.stroke(points, INK, width + self.style.line)
            width -= self.style.line
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(scaled, fill=self.tint(fill), width=self._px(width), joint="curve")
        for x, y in (points[0], points[-1]):
            self.draw.ellipse(self._box(x, y, width / 2, width / 2), fill=self.tint(fill))

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB, *, line: bool = False) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, line=line)

    def arc(self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, width: float) -> None:
        self.draw.arc(self._box(cx, cy, rx, ry), start, end, fill=self.ink, width=self._px(width))

    def chord(self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, fill: RGB) -> None:
        self.draw.chord(self._box(cx, cy, rx, ry), start, end, fill=self.tint(fill))

    def _px(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def _box(self, cx: float, cy: float, rx: float, ry: float) -> list[tuple[float, float]]:
        u = self.unit
        return [((cx - rx) * u, (cy - ry) * u), ((cx + rx) * u, (cy + ry) * u)]
