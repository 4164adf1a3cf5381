"""The mascot world: what a character can be, what a picture of it can show, and how it is drawn.

A picture is an `Identity` (who) in a `Staging` (doing what, where). The renderer draws it with
Pillow at three times the size and scales it down, so edges are antialiased and the truth of
every attribute is known. `Staging` is what prompts speak of; `Identity` must come from a reference.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from dataclasses import dataclass, fields
from typing import NamedTuple

from PIL import Image, ImageDraw

SHAPES = ("round", "square", "triangle", "tall", "wide", "star")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
EARS = ("no", "round", "pointy", "long")
PATTERNS = ("plain", "belly", "spots", "stripes")
ACCESSORIES = ("nothing", "scarf", "hat", "bowtie")

VIEWS = ("front", "side")
POSES = ("standing", "waving", "jumping")
EXPRESSIONS = ("happy", "sad", "surprised")
SCENES = ("studio", "beach", "forest", "night", "city", "snow")

BODY_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (243, 134, 33),
    "yellow": (250, 208, 44),
    "green": (56, 158, 72),
    "cyan": (64, 196, 206),
    "blue": (44, 92, 206),
    "purple": (132, 70, 178),
    "pink": (246, 140, 186),
}
INK = (38, 30, 44)
CREAM = (255, 246, 226)
ACCESSORY_RGB = {"scarf": (190, 30, 60), "hat": (52, 52, 72), "bowtie": (30, 110, 120)}

RGB = tuple[int, int, int]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Identity:
    """Who is drawn: the attributes that make two pictures the same character."""

    shape: str
    colour: str
    ears: str
    pattern: str
    accessory: str


@dataclass(frozen=True)
class Staging:
    """What the picture shows the character doing: the attributes that a prompt names."""

    view: str = "front"
    pose: str = "standing"
    expression: str = "happy"
    scene: str = "studio"


class Attribute(NamedTuple):
    name: str
    values: tuple[str, ...]


IDENTITY_ATTRIBUTES = (
    Attribute("shape", SHAPES),
    Attribute("colour", COLOURS),
    Attribute("ears", EARS),
    Attribute("pattern", PATTERNS),
    Attribute("accessory", ACCESSORIES),
)
STAGING_ATTRIBUTES = (
    Attribute("view", VIEWS),
    Attribute("pose", POSES),
    Attribute("expression", EXPRESSIONS),
    Attribute("scene", SCENES),
)
ATTRIBUTES = IDENTITY_ATTRIBUTES + STAGING_ATTRIBUTES


def truth(identity: Identity, staging: Staging) -> tuple[int, ...]:
    """The class index of every attribute, in the order of `ATTRIBUTES`."""
    values = [getattr(identity, f.name) for f in fields(identity)]
    values += [getattr(staging, f.name) for f in fields(staging)]
    return tuple(a.values.index(v) for a, v in zip(ATTRIBUTES, values, strict=True))


def all_identities() -> list[Identity]:
    """Every character the vocabulary allows, in one fixed order that looks random."""
    everyone = [Identity(*values) for values in itertools.product(*(a.values for a in IDENTITY_ATTRIBUTES))]
    return sorted(everyone, key=lambda who: hashlib.sha256(repr(who).encode()).digest())


HELD_OUT = 160


def held_out_identities() -> list[Identity]:
    """The characters no training stage ever sees; the demo's characters are among them."""
    return all_identities()[:HELD_OUT]


def training_identities() -> list[Identity]:
    return all_identities()[HELD_OUT:]


def random_staging(rng: random.Random) -> Staging:
    return Staging(*(rng.choice(a.values) for a in STAGING_ATTRIBUTES))


# ---------------------------------------------------------------------------- drawing

SUPERSAMPLE = 3


def render(identity: Identity, staging: Staging, *, size_px: int = 64, seed: int = 0) -> Image.Image:
    """Draw one picture, RGB, `size_px` square. The seed moves and scales the character a little."""
    rng = random.Random(seed)
    side = size_px * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    pen = _Pen(ImageDraw.Draw(canvas), side / 100.0)
    _draw_scene(pen, staging.scene, rng)
    _draw_character(pen, identity, staging, rng)
    return canvas.resize((size_px, size_px), Image.Resampling.BOX)


class _Pen:
    """Draws in a 100 x 100 coordinate system, y down."""

    def __init__(self, draw: ImageDraw.ImageDraw, unit: float) -> None:
        self.draw, self.unit = draw, unit

    def polygon(self, points: Points, fill: RGB, outline: RGB | None = None, width: float = 1.8) -> None:
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.polygon(scaled, fill=fill)
        if outline is not None:
            self.draw.line([*scaled, scaled[0], scaled[1]], fill=outline, width=round(width * self.unit), joint="curve")

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: RGB, outline: RGB | None = None) -> None:
        box = [(cx - rx) * self.unit, (cy - ry) * self.unit, (cx + rx) * self.unit, (cy + ry) * self.unit]
        self.draw.ellipse(box, fill=fill, outline=outline, width=round(1.8 * self.unit))

    def line(self, points: Points, fill: RGB, width: float) -> None:
        scaled = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.line(scaled, fill=fill, width=max(1, round(width * self.unit)), joint="curve")
        for x, y in (scaled[0], scaled[-1]):
            r = width * self.unit / 2
            self.draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: RGB) -> None:
        self.draw.rectangle([x0 * self.unit, y0 * self.unit, x1 * self.unit, y1 * self.unit], fill=fill)

    def arc(
        self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, fill: RGB, width: float
    ) -> None:
        box = [(cx - rx) * self.unit, (cy - ry) * self.unit, (cx + rx) * self.unit, (cy + ry) * self.unit]
        self.draw.arc(box, start, end, fill=fill, width=max(1, round(width * self.unit)))


def _draw_scene(pen: _Pen, scene: str, rng: random.Random) -> None:
    shift = rng.uniform(-4, 4)
    match scene:
        case "studio":
            pen.box(0, 0, 100, 100, (236, 234, 230))
            pen.ellipse(50, 90, 46, 9, (212, 208, 204))
        case "beach":
            pen.box(0, 0, 100, 42, (150, 214, 246))
            pen.ellipse(86 + shift, 14, 9, 9, (255, 238, 130))
            pen.box(0, 42, 100, 64, (40, 142, 200))
            pen.box(0, 64, 100, 100, (240, 216, 154))
        case "forest":
            pen.box(0, 0, 100, 70, (176, 222, 176))
            for x in (6, 30, 72, 95):
                pen.box(x - 3 + shift, 40, x + 3 + shift, 74, (104, 72, 48))
                pen.polygon([(x - 16 + shift, 52), (x + shift, 4), (x + 16 + shift, 52)], (34, 104, 62))
            pen.box(0, 70, 100, 100, (96, 148, 66))
        case "night":
            pen.box(0, 0, 100, 74, (22, 24, 66))
            pen.ellipse(16 + shift, 16, 9, 9, (244, 240, 206))
            for x, y in ((40, 8), (62, 18), (82, 8), (92, 34), (8, 44), (30, 26)):
                pen.ellipse(x + shift, y, 1.4, 1.4, (250, 246, 220))
            pen.box(0, 74, 100, 100, (44, 50, 84))
        case "city":
            pen.box(0, 0, 100, 80, (248, 204, 170))
            for x, top in ((0, 26), (17, 44), (34, 34), (66, 20), (83, 38)):
                pen.box(x, top + shift, x + 15, 80, (122, 112, 136))
                for row in range(int(top) + 6, 76, 12):
                    pen.box(x + 3, row + shift, x + 6, row + 4 + shift, (250, 226, 140))
                    pen.box(x + 9, row + shift, x + 12, row + 4 + shift, (250, 226, 140))
            pen.box(0, 80, 100, 100, (92, 92, 100))
        case "snow":
            pen.box(0, 0, 100, 66, (196, 214, 234))
            pen.polygon([(-10, 68), (20 + shift, 28), (48, 68)], (150, 172, 204))
            pen.polygon([(44, 68), (78 + shift, 20), (112, 68)], (150, 172, 204))
            pen.box(0, 66, 100, 100, (250, 251, 255))
        case _:
            raise ValueError(f"unknown scene {scene!r}; known: {', '.join(SCENES)}")


def _body_outline(shape: str, cx: float, cy: float, s: float) -> Points:
    """The silhouette, about 2 * s wide, as a closed polygon."""

    def oval(rx: float, ry: float) -> Points:
        return [(cx + rx * math.cos(i * math.tau / 48), cy + ry * math.sin(i * math.tau / 48)) for i in range(48)]

    match shape:
        case "round":
            return oval(s, s)
        case "square":
            e = 0.88 * s
            return [(cx - e, cy - e), (cx + e, cy - e), (cx + e, cy + e), (cx - e, cy + e)]
        case "triangle":
            return [(cx, cy - 1.15 * s), (cx + 1.15 * s, cy + 0.95 * s), (cx - 1.15 * s, cy + 0.95 * s)]
        case "tall":
            return oval(0.62 * s, 1.18 * s)
        case "wide":
            return oval(1.32 * s, 0.68 * s)
        case "star":
            points = []
            for i in range(10):
                r = 1.3 * s if i % 2 == 0 else 0.72 * s
                a = -math.pi / 2 + i * math.pi / 5
                points.append((cx + r * math.cos(a), cy + r * math.sin(a)))
            return points
        case _:
            raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


# Where a body of each shape ends: top of the head, half-width at the shoulders, bottom, half-width of the face.
_ANCHORS = {
    "round": (-0.95, 0.95, 0.95, 0.42),
    "square": (-0.85, 0.86, 0.86, 0.42),
    "triangle": (-0.75, 0.62, 0.93, 0.34),
    "tall": (-1.12, 0.60, 1.12, 0.28),
    "wide": (-0.64, 1.26, 0.64, 0.46),
    "star": (-0.95, 0.98, 0.80, 0.34),
}


def _draw_character(pen: _Pen, who: Identity, staging: Staging, rng: random.Random) -> None:
    s = 25 * rng.uniform(0.95, 1.05)
    cx = 50 + rng.uniform(-3, 3)
    ground = 90.0
    top, shoulder, bottom, face = _ANCHORS[who.shape]
    lift = 9.0 if staging.pose == "jumping" else 0.0
    cy = ground - 9 - lift - bottom * s + rng.uniform(-1, 1)
    rgb = BODY_RGB[who.colour]
    dark: RGB = (int(rgb[0] * 0.55), int(rgb[1] * 0.55), int(rgb[2] * 0.55))
    turn = 0.34 * s if staging.view == "side" else 0.0

    if lift:
        pen.ellipse(cx, ground + 2, 0.7 * s, 2.4, (90, 84, 90))
    _draw_limbs(pen, staging, cx, cy, s, shoulder, bottom, rgb, dark)
    _draw_ears(pen, who.ears, cx + 0.3 * turn, cy + top * s, s, face, rgb, dark)
    outline = _body_outline(who.shape, cx, cy, s)
    pen.polygon(outline, rgb, dark)
    _draw_pattern(pen, who.pattern, cx + 0.6 * turn, cy, s, who.shape)
    _draw_face(pen, staging.expression, cx + turn, cy - (0.22 if who.shape != "triangle" else -0.02) * s, s, face, turn)
    _draw_accessory(pen, who, cx + 0.3 * turn, cy, s)


def _draw_limbs(
    pen: _Pen, staging: Staging, cx: float, cy: float, s: float, shoulder: float, bottom: float, rgb: RGB, dark: RGB
) -> None:
    sides = (1,) if staging.view == "side" else (-1, 1)
    for side in (-1, 1):
        spread = 0.5 if staging.pose == "jumping" else 0.3
        foot = (cx + side * spread * s, cy + bottom * s + 7)
        pen.line([(cx + side * 0.28 * s, cy + bottom * s - 3), foot], dark, 6.5)
    for side in sides:
        x0, y0 = cx + side * shoulder * s * 0.86, cy + 0.1 * s
        up = staging.pose == "jumping" or (staging.pose == "waving" and side == 1)
        hand = (x0 + side * 10, y0 - 17) if up else (x0 + side * 8, y0 + 10)
        pen.line([(x0, y0), hand], dark, 7.0)
        pen.line([(x0, y0), hand], rgb, 4.0)


def _draw_ears(pen: _Pen, ears: str, cx: float, y: float, s: float, face: float, rgb: RGB, dark: RGB) -> None:
    d = max(face, 0.34) * s
    for side in (-1, 1):
        x = cx + side * d
        match ears:
            case "round":
                pen.ellipse(x, y + 1, 6.5, 6.5, rgb, dark)
            case "pointy":
                pen.polygon([(x - 6, y + 6), (x + side * 3, y - 11), (x + 6, y + 6)], rgb, dark)
            case "long":
                pen.ellipse(x, y - 7, 4.4, 13, rgb, dark)


def _draw_pattern(pen: _Pen, pattern: str, cx: float, cy: float, s: float, shape: str) -> None:
    low = cy + 0.42 * s if shape not in ("wide",) else cy + 0.3 * s
    match pattern:
        case "belly":
            pen.ellipse(cx, low, 0.42 * s, 0.36 * s if shape != "wide" else 0.26 * s, CREAM)
        case "spots":
            for dx, dy in ((-0.36, 0.0), (0.06, 0.2), (0.38, -0.02), (-0.12, -0.14)):
                pen.ellipse(cx + dx * s, low + dy * s, 2.9, 2.9, CREAM)
        case "stripes":
            for dy in (-0.12, 0.16):
                pen.line([(cx - 0.38 * s, low + dy * s), (cx + 0.38 * s, low + dy * s)], CREAM, 3.0)


def _draw_face(pen: _Pen, expression: str, cx: float, cy: float, s: float, face: float, turn: float) -> None:
    gap = face * s * (0.62 if turn else 0.78)
    for side in (-1, 1):
        x = cx + side * gap
        pen.ellipse(x, cy, 4.6, 5.6, (255, 255, 255))
        pen.ellipse(x + (1.4 if turn else 0), cy + 0.6, 2.5, 3.4, INK)
    mouth = cy + 8.5
    match expression:
        case "happy":
            pen.arc(cx, mouth - 2.5, 5.5, 5, 15, 165, INK, 2.2)
        case "sad":
            pen.arc(cx, mouth + 4, 5, 4.5, 200, 340, INK, 2.2)
        case "surprised":
            pen.ellipse(cx, mouth + 1, 2.8, 3.6, INK)


def _draw_accessory(pen: _Pen, who: Identity, cx: float, cy: float, s: float) -> None:
    top = _ANCHORS[who.shape][0]
    rgb = ACCESSORY_RGB.get(who.accessory)
    if rgb is None:
        return
    neck = cy + (0.2 * s if who.shape != "triangle" else 0.38 * s)
    match who.accessory:
        case "hat":
            y = cy + top * s + 1
            pen.box(cx - 12, y - 2.5, cx + 12, y + 1.5, rgb)
            pen.box(cx - 7.5, y - 13, cx + 7.5, y, rgb)
            pen.box(cx - 7.5, y - 6, cx + 7.5, y - 3, (230, 180, 60))
        case "scarf":
            half = _ANCHORS[who.shape][1] * s * 0.96 if who.shape != "triangle" else 0.74 * s
            pen.line([(cx - half, neck), (cx + half, neck)], rgb, 6.0)
            pen.line([(cx + half * 0.5, neck), (cx + half * 0.62, neck + 13)], rgb, 5.5)
        case "bowtie":
            y = neck + 2
            pen.polygon([(cx - 8, y - 5), (cx, y), (cx - 8, y + 5)], rgb)
            pen.polygon([(cx + 8, y - 5), (cx, y), (cx + 8, y + 5)], rgb)
            pen.ellipse(cx, y, 2.2, 2.2, (240, 240, 240))
