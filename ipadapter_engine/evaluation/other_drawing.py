"""A second renderer of the same vocabulary: does the adapter know a character again that another hand drew?

It shares no code, no colour, no proportion and no pen with the renderer of the training pictures: distance fields
painted with soft light from the upper left, no outlines, on paper. It draws portraits only, as references, and reads
a character as names of traits.
Distances to the primitives are Inigo Quilez's (iquilezles.org/articles/distfunctions2d).
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
from PIL import Image

from ipadapter_engine.training.mascots import Identity

RGB = tuple[int, int, int]
Field = np.ndarray  # signed distance in bodies' half-widths, negative inside, (side, side)

BODY: dict[str, RGB] = {
    "red": (196, 62, 58),
    "orange": (232, 142, 62),
    "yellow": (238, 200, 78),
    "green": (84, 150, 88),
    "cyan": (98, 190, 200),
    "blue": (62, 98, 182),
    "purple": (120, 82, 160),
    "pink": (232, 152, 188),
}
MARKING: dict[str, RGB] = {
    "cream": (244, 234, 208),
    "charcoal": (74, 72, 82),
    "mint": (182, 230, 196),
    "berry": (126, 38, 84),
}
CLOTH: dict[str, RGB] = {
    "crimson": (170, 34, 62),
    "navy": (44, 54, 118),
    "gold": (222, 174, 66),
    "white": (240, 240, 238),
}
SHADE: RGB = (46, 40, 50)
PAPER = ((238, 233, 224), (218, 212, 205))
SCALE = 3.6  # half-widths of a body that the picture is wide

# How far a body of each shape reaches from its centre: up, and sideways at the neck.
REACH = {
    "round": (0.98, 0.86),
    "square": (0.86, 0.84),
    "triangle": (0.80, 0.55),
    "tall": (1.20, 0.58),
    "wide": (0.70, 1.14),
    "star": (0.92, 0.60),
}


def render_portrait(who: Identity, size_px: int) -> Image.Image:
    """The character from the front, RGB, `size_px` square. ValueError for a trait's value that it cannot draw."""
    traits = asdict(who)
    side = size_px * 2
    canvas = _Canvas(side)
    rgb = _colour(BODY, traits, "colour")
    marking = _colour(MARKING, traits, "marking")
    cloth = _colour(CLOTH, traits, "accessory_colour")
    up, neck = REACH.get(traits["shape"], (1.0, 0.8))
    body = _body(canvas, traits["shape"])
    accessory = traits["accessory"]
    if accessory == "cape":
        canvas.paint(canvas.triangle(0, -0.3, 1.65 * max(neck, 0.75), 1.5), cloth)
    for sign in (-1.0, 1.0):
        canvas.paint(canvas.capsule(sign * 0.32, 0.7, sign * 0.36, 1.24, 0.16), rgb)
        canvas.paint(canvas.capsule(sign * neck * 0.9, 0.25, sign * (neck + 0.3), 0.62, 0.13), rgb)
    _ears(canvas, traits["ears"], up, rgb, marking)
    canvas.paint(body, rgb, lit=True)
    _pattern(canvas, traits["pattern"], body, marking)
    _face(canvas, traits["eyes"], -0.62 if traits["shape"] == "tall" else -0.2)
    _accessory(canvas, accessory, up, neck, cloth)
    return Image.fromarray(canvas.pixels.round().astype(np.uint8)).resize((size_px,) * 2, Image.Resampling.BOX)


class _Canvas:
    """Paints fields on paper. Coordinates are half-widths of a body, the origin a little below the middle, y down."""

    def __init__(self, side: int) -> None:
        line = (np.arange(side) + 0.5) / side - 0.5
        self.x, self.y = np.meshgrid(line * SCALE, line * SCALE - 0.16)
        self.edge = SCALE / side
        fall = np.linspace(0, 1, side)[:, None, None]
        self.pixels = np.asarray(PAPER[0]) * (1 - fall) + np.asarray(PAPER[1]) * fall + np.zeros((side, side, 3))

    def paint(self, field: Field, rgb: RGB, *, lit: bool = False, inside: Field | None = None) -> None:
        """Cover where the field is negative, and where `inside` is as well; edges are one pixel soft."""
        cover = np.clip(0.5 - field / self.edge, 0, 1)
        if inside is not None:
            cover = cover * np.clip(0.5 - inside / self.edge, 0, 1)
        light = 1.0 if not lit else np.clip(1.08 - 0.16 * np.hypot(self.x + 0.5, self.y + 0.6), 0.7, 1.1)[..., None]
        colour = np.clip(np.asarray(rgb) * light, 0, 255)
        self.pixels = self.pixels * (1 - cover[..., None]) + colour * cover[..., None]

    def circle(self, cx: float, cy: float, r: float) -> Field:
        return np.hypot(self.x - cx, self.y - cy) - r

    def oval(self, cx: float, cy: float, rx: float, ry: float) -> Field:
        """Not an exact distance, but of the right sign and slope at the edge."""
        return (np.hypot((self.x - cx) / rx, (self.y - cy) / ry) - 1) * min(rx, ry)

    def box(self, cx: float, cy: float, rx: float, ry: float, corner: float = 0.0) -> Field:
        dx, dy = np.abs(self.x - cx) - rx + corner, np.abs(self.y - cy) - ry + corner
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner

    def capsule(self, x0: float, y0: float, x1: float, y1: float, r: float) -> Field:
        px, py, bx, by = self.x - x0, self.y - y0, x1 - x0, y1 - y0
        along = np.clip((px * bx + py * by) / (bx * bx + by * by), 0, 1)
        return np.hypot(px - bx * along, py - by * along) - r

    def triangle(self, cx: float, top: float, half: float, height: float) -> Field:
        """Apex up, with soft corners."""
        slope = math.hypot(height, half)
        sides = (np.abs(self.x - cx) * height - (self.y - top) * half) / slope
        return np.maximum(sides, self.y - top - height) - 0.04

    def star(self, cx: float, cy: float, r: float, points: int = 5) -> Field:
        """Its radius falls and rises evenly with the angle: points up, with round valleys."""
        turn = np.arctan2(self.x - cx, cy - self.y) / math.tau * points
        swing = np.abs(2 * (turn - np.floor(turn)) - 1)
        return (np.hypot(self.x - cx, self.y - cy) - r * (0.66 + 0.56 * swing**1.3)) * 0.7


def _body(canvas: _Canvas, shape: str) -> Field:
    match shape:
        case "round":
            return canvas.circle(0, 0, 1.0)
        case "square":
            return canvas.box(0, 0, 0.88, 0.88, corner=0.26)
        case "triangle":
            return canvas.triangle(0, -1.05, 1.1, 1.95)
        case "tall":
            return canvas.box(0, 0, 0.64, 1.2, corner=0.62)
        case "wide":
            return canvas.box(0, 0.05, 1.28, 0.72, corner=0.66)
        case "star":
            return canvas.star(0, 0.05, 1.08)
    raise _unknown("shape", shape)


def _ears(canvas: _Canvas, ears: str, up: float, rgb: RGB, marking: RGB) -> None:
    for sign in (-1.0, 1.0):
        match ears:
            case "round":
                canvas.paint(canvas.circle(sign * 0.5, -up, 0.3), rgb)
                canvas.paint(canvas.circle(sign * 0.5, -up, 0.16), marking)
            case "pointy":
                canvas.paint(canvas.triangle(sign * 0.52, -up - 0.42, 0.28, 0.62), rgb)
                canvas.paint(canvas.triangle(sign * 0.52, -up - 0.22, 0.13, 0.32), marking)
            case "long":
                canvas.paint(canvas.capsule(sign * 0.3, -up + 0.15, sign * 0.36, -up - 0.56, 0.18), rgb)
                canvas.paint(canvas.capsule(sign * 0.3, -up, sign * 0.35, -up - 0.5, 0.08), marking)
            case "antenna":
                canvas.paint(canvas.capsule(sign * 0.22, -up + 0.2, sign * 0.5, -up - 0.42, 0.045), SHADE)
                canvas.paint(canvas.circle(sign * 0.5, -up - 0.42, 0.16), marking)
            case _:
                raise _unknown("ears", ears)


def _pattern(canvas: _Canvas, pattern: str, body: Field, marking: RGB) -> None:
    match pattern:
        case "belly":
            canvas.paint(canvas.oval(0, 0.52, 0.5, 0.42), marking, inside=body)
        case "spots":
            for x, y, r in (
                (-0.5, 0.35, 0.17),
                (0.05, 0.62, 0.19),
                (0.52, 0.3, 0.15),
                (-0.72, -0.1, 0.13),
                (0.7, -0.2, 0.12),
            ):
                canvas.paint(canvas.circle(x, y, r), marking, inside=body)
        case "stripes":
            for y in (0.3, 0.56, 0.82):
                canvas.paint(canvas.box(0, y, 2, 0.075), marking, inside=body)
        case "dipped":
            canvas.paint(canvas.box(0, 1.4, 2, 1.02), marking, inside=body)
        case _:
            raise _unknown("pattern", pattern)


def _face(canvas: _Canvas, eyes: str, y: float) -> None:
    white: RGB = (250, 250, 246)
    for x in (0.0,) if eyes == "one" else (-0.32, 0.32):
        match eyes:
            case "round":
                canvas.paint(canvas.circle(x, y, 0.22), white)
                canvas.paint(canvas.circle(x, y + 0.03, 0.12), SHADE)
            case "dot":
                canvas.paint(canvas.circle(x, y, 0.13), SHADE)
            case "one":
                canvas.paint(canvas.circle(x, y, 0.36), white)
                canvas.paint(canvas.circle(x, y + 0.03, 0.19), SHADE)
            case "sleepy":
                ball = canvas.circle(x, y, 0.23)
                canvas.paint(ball, white)
                canvas.paint(canvas.circle(x, y + 0.1, 0.11), SHADE)
                canvas.paint(canvas.box(x, y - 0.16, 0.3, 0.18), SHADE, inside=ball)
            case _:
                raise _unknown("eyes", eyes)
    smile = np.maximum(np.abs(canvas.circle(0, y + 0.3, 0.24)) - 0.045, y + 0.38 - canvas.y)
    canvas.paint(smile, SHADE)


def _accessory(canvas: _Canvas, accessory: str, up: float, neck: float, cloth: RGB) -> None:
    match accessory:
        case "hat":
            canvas.paint(canvas.box(0, -up - 0.26, 0.36, 0.32, corner=0.08), cloth)
            canvas.paint(canvas.box(0, -up + 0.04, 0.62, 0.08, corner=0.08), cloth)
        case "crown":
            for x in (-0.34, 0.0, 0.34):
                canvas.paint(canvas.triangle(x, -up - 0.42, 0.17, 0.46), cloth)
            canvas.paint(canvas.box(0, -up + 0.06, 0.46, 0.12), cloth)
        case "bow" | "bowtie":
            y = -up if accessory == "bow" else 0.36
            for sign in (-1.0, 1.0):
                canvas.paint(canvas.oval(sign * 0.3, y, 0.3, 0.22), cloth)
            canvas.paint(canvas.circle(0, y, 0.12), cloth)
        case "scarf":
            canvas.paint(canvas.capsule(-neck, 0.24, neck, 0.24, 0.13), cloth)
            canvas.paint(canvas.capsule(neck * 0.45, 0.26, neck * 0.52, 0.74, 0.12), cloth)
        case "cape":
            canvas.paint(canvas.capsule(-neck, 0.2, neck, 0.2, 0.08), cloth)
        case _:
            raise _unknown("accessory", accessory)


def _colour(palette: dict[str, RGB], traits: dict[str, str], name: str) -> RGB:
    if traits[name] not in palette:
        raise _unknown(name, traits[name])
    return palette[traits[name]]


def _unknown(name: str, value: str) -> ValueError:
    return ValueError(f"the second renderer cannot draw {name} {value!r}: teach it in {__name__}")
