"""A character in a staging, part by part: body, limbs, face, markings and what it wears."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ipadapter_engine.training.mascots import Identity, Staging
from ipadapter_engine.training.pen import INK, RGB, Pen, Points

GROUND = 91.0

BODY_RGB: dict[str, RGB] = {
    "red": (222, 52, 48),
    "orange": (246, 138, 32),
    "yellow": (252, 212, 40),
    "green": (62, 166, 70),
    "cyan": (70, 204, 216),
    "blue": (46, 98, 216),
    "purple": (136, 72, 186),
    "pink": (248, 146, 192),
}
MARKING_RGB: dict[str, RGB] = {
    "cream": (255, 244, 218),
    "charcoal": (58, 54, 62),
    "mint": (172, 240, 192),
    "berry": (140, 24, 92),
}
CLOTH_RGB: dict[str, RGB] = {
    "crimson": (196, 20, 60),
    "navy": (30, 40, 112),
    "gold": (236, 178, 30),
    "white": (250, 250, 250),
}
WHITE: RGB = (255, 255, 255)
MOUTH_RGB: RGB = (122, 22, 44)
TEAR_RGB: RGB = (120, 200, 250)

SKELETON: dict[str, RGB] = {
    "spine": (250, 250, 250),
    "left leg": (40, 90, 255),
    "right leg": (40, 220, 255),
    "left arm": (255, 60, 60),
    "right arm": (255, 170, 30),
    "nose": (70, 255, 90),
}


@dataclass(frozen=True)
class _Build:
    """Where a body of a shape ends, in its half-widths from the centre: top, half-width at neck and at the arms,
    bottom, how high the face is, how far apart ears and eyes are."""

    top: float
    neck: float
    arms: float
    bottom: float
    face: float
    apart: float


BUILDS = {
    "round": _Build(-1.0, 0.88, 0.94, 1.0, -0.40, 0.62),
    "square": _Build(-0.9, 0.9, 0.9, 0.9, -0.44, 0.62),
    "triangle": _Build(-1.1, 0.84, 0.7, 0.92, -0.22, 0.34),
    "tall": _Build(-1.12, 0.66, 0.66, 1.08, -0.5, 0.46),
    "wide": _Build(-0.78, 1.14, 1.12, 0.78, -0.34, 0.72),
    "star": _Build(-1.02, 0.66, 0.98, 0.84, -0.3, 0.46),
}


def _outline(shape: str, cx: float, cy: float, s: float) -> Points:
    """The silhouette, about 2 * s wide, as a closed polygon."""

    def oval(rx: float, ry: float, power: float = 2.0) -> Points:
        """A superellipse: 2 is an ellipse, more is squarer."""
        points = []
        for i in range(64):
            c, n = math.cos(i * math.tau / 64), math.sin(i * math.tau / 64)
            points.append((cx + rx * math.copysign(abs(c) ** (2 / power), c),
                           cy + ry * math.copysign(abs(n) ** (2 / power), n)))  # fmt: skip
        return points

    match shape:
        case "round":
            return oval(s, s)
        case "square":
            return oval(0.92 * s, 0.9 * s, 7.0)
        case "triangle":
            return [(cx - 0.12 * s, cy - 1.15 * s), (cx + 0.12 * s, cy - 1.15 * s), (cx + 1.16 * s, cy + 0.92 * s),
                    (cx - 1.16 * s, cy + 0.92 * s)]  # fmt: skip
        case "tall":
            return oval(0.66 * s, 1.14 * s, 2.6)
        case "wide":
            return oval(1.26 * s, 0.78 * s, 2.6)
        case "star":
            points = []
            for i in range(10):
                r = (1.28 if i % 2 == 0 else 0.76) * s
                a = -math.pi / 2 + i * math.pi / 5
                points.append((cx + r * math.cos(a), cy + r * math.sin(a)))
            return points
    raise ValueError(f"unknown shape {shape!r}")


@dataclass(frozen=True)
class _Limb:
    root: tuple[float, float]
    end: tuple[float, float]


class Figure:
    """One character in one staging. `turn` is where it looks: -1 left, 0 to us or away, 1 right."""

    def __init__(self, pen: Pen, who: Identity, staging: Staging, rng: random.Random) -> None:
        self.pen, self.who, self.staging = pen, who, staging
        self.s = 26.5 * rng.uniform(0.995, 1.005)
        self.cx = 50 + rng.uniform(-0.4, 0.4)
        self.build = BUILDS[who.shape]
        self.rgb, self.mark = BODY_RGB[who.colour], MARKING_RGB[who.marking]
        self.cloth = CLOTH_RGB[who.accessory_colour]
        self.turn = {"left": -1.0, "right": 1.0}.get(staging.view, 0.0)
        self.back = staging.view == "back"
        self.legs = {"jumping": 9.0, "sitting": 1.0}.get(staging.pose, 10.0)
        self.lift = 7.0 if staging.pose == "jumping" else 0.0
        self.cy = GROUND - self.legs - self.lift - self.build.bottom * self.s + rng.uniform(-0.2, 0.2)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """From half-widths of the body to the picture."""
        return self.cx + x * self.s, self.cy + y * self.s

    def draw(self) -> None:
        self._shadow()
        if self.who.accessory == "cape" and not self.back:
            self._cape()
        if not self.back:
            self._tail()
        self._legs()
        self._ears()
        self._body()
        if self.back:
            self._tail()
        self._arms()
        if not self.back:
            self._face()
        self._accessory()

    def _shadow(self) -> None:
        self.pen.part = ""
        wide = 0.8 if self.lift else 1.05
        self.pen.ellipse(self.cx, GROUND + 3, wide * self.s, 3.0, (96, 92, 104))

    def _tail(self) -> None:
        """On the side away from where it looks; to the right of the middle when seen from behind."""
        self.pen.part = ""
        if not self.back and not self.turn:
            return  # hidden by the body
        if self.back:
            root, bend, tip = self.at(0.1, 0.66), self.at(0.5, 0.6), self.at(0.58, 0.22)
        else:
            reach = self.build.arms
            root, bend, tip = (
                self.at(-self.turn * 0.4, 0.66),
                self.at(-self.turn * (reach + 0.2), 0.62),
                self.at(-self.turn * (reach + 0.38), 0.28),
            )
        self.pen.stroke([root, bend, tip], self.rgb, 7.5, line=True)
        self.pen.ellipse(*tip, 5.4, 5.4, self.mark, line=True)

    def _limbs(self) -> list[_Limb]:
        """Legs, then arms, each side's left one first."""
        s, pose, bottom = self.s, self.staging.pose, self.cy + self.build.bottom * self.s
        limbs = []
        for side in (-1, 1):
            x = self.cx + side * 0.36 * s
            match pose:
                case "sitting":
                    apart, height = (0.72, 4.2) if self.back else (0.62, 4.5)
                    foot = (self.cx + side * apart * s + self.turn * 2.0, GROUND - height)
                case "jumping":
                    foot = (self.cx + side * 0.72 * s, bottom + 6.0)
                case _:
                    foot = (x + self.turn * 2.0, GROUND - 2.5)
            limbs.append(_Limb((x, bottom - 5), foot))
        for side in (-1, 1):
            x, y = self.at(side * self.build.arms * 0.88, 0.08)
            ahead = side == (self.turn or 1)
            match pose:
                case "jumping":
                    hand = (x + side * 10, y - 17)
                case "waving" if ahead:
                    hand = (x + side * 9, y - 19)
                case "pointing" if ahead:
                    hand = (x + side * 15, y - 1)
                case "sitting":
                    hand = (x + side * 3.5, y + 13)
                case _:
                    hand = (x + side * 7.5, y + 12)
            limbs.append(_Limb((x, y), hand))
        return limbs

    def _legs(self) -> None:
        """Behind the body; the feet of who sits towards us come before it, see `_arms`."""
        self.pen.part = "pose"
        if self.staging.pose == "sitting" and not self.back:
            return
        for leg in self._limbs()[:2]:
            self.pen.stroke([leg.root, leg.end], self.rgb, 8.0, line=True)
            self.pen.ellipse(leg.end[0] + self.turn * 1.6, leg.end[1], 7.0, 4.8, self.mark, line=True)

    def _arms(self) -> None:
        self.pen.part = "pose"
        limbs = self._limbs()
        for arm in limbs[2:]:
            self.pen.stroke([arm.root, arm.end], self.rgb, 8.4, line=True)
            self.pen.ellipse(*arm.end, 4.6, 4.6, self.rgb, line=True)
        if self.staging.pose == "sitting" and not self.back:
            for leg in limbs[:2]:
                self.pen.ellipse(*leg.end, 8.6, 7.6, self.mark, line=True)

    def draw_skeleton(self) -> None:
        """Spine, limbs and where the face looks, each in a colour of its own; no nose is seen from behind."""
        pen, head, hip = self.pen, self.at(0, self.build.face), self.at(0, self.build.bottom - 0.25)
        pen.stroke([head, hip], SKELETON["spine"], 3.0)
        for name, limb in zip(("left leg", "right leg", "left arm", "right arm"), self._limbs(), strict=True):
            pen.stroke([hip if "leg" in name else head, limb.root, limb.end], SKELETON[name], 3.0)
            pen.ellipse(*limb.end, 3.2, 3.2, SKELETON[name])
        if not self.back:
            pen.stroke([head, (head[0] + 13 * self.turn, head[1])], SKELETON["nose"], 6.0)

    def _ears(self) -> None:
        pen = self.pen
        pen.part = "ears"
        b = self.build
        inner = self.rgb if self.back else self.mark
        for side in (-1, 1):
            x, y = self.at(
                side * max(b.apart, 0.42) + 0.16 * self.turn, b.top + (0.34 if self.who.shape == "triangle" else 0.14)
            )
            match self.who.ears:
                case "round":
                    pen.ellipse(x + side * 2.5, y - 1.5, 8.4, 8.4, self.rgb, line=True)
                    pen.ellipse(x + side * 2.5, y - 1.5, 4.2, 4.2, inner)
                case "pointy":
                    pen.polygon([(x - 8, y + 6), (x + side * 5, y - 15), (x + 8, y + 6)], self.rgb, line=True)
                    pen.polygon([(x - 3.4, y + 2), (x + side * 3.4, y - 8), (x + 4.4, y + 2)], inner)
                case "long":
                    pen.stroke([(x, y + 4), (x + side * 4, y - 14)], self.rgb, 11.5, line=True)
                    pen.stroke([(x + side * 0.6, y), (x + side * 3.8, y - 12.5)], inner, 4.4)
                case "antenna":
                    pen.stroke([(x - side * 2, y + 4), (x + side * 4, y - 12)], INK, 2.6)
                    pen.ellipse(x + side * 4, y - 13, 5.2, 5.2, self.mark, line=True)

    def _body(self) -> None:
        """Fill, then the pattern inside the silhouette, then its outline."""
        outline = _outline(self.who.shape, self.cx, self.cy, self.s)
        self.pen.part = "shape"
        self.pen.polygon(outline, self.rgb)
        self.pen.part = "pattern"
        self._pattern(outline)
        self.pen.part = "shape"
        if self.pen.style.line:
            u = self.pen.unit
            scaled = [(x * u, y * u) for x, y in outline]
            width = max(1, round(self.pen.style.line * u))
            self.pen.draw.line([*scaled, scaled[0], scaled[1]], fill=self.pen.ink, width=width, joint="curve")

    def _pattern(self, outline: Points) -> None:
        pen, b = self.pen, self.build
        shift = 0.22 * self.turn
        low = b.bottom - 0.3
        match self.who.pattern:
            case "belly" if not self.back:
                x, y = self.at(shift, b.bottom - 0.38)
                pen.ellipse(x, y, 0.54 * self.s, 0.36 * self.s, self.mark)
            case "spots":
                for dx, dy in ((-0.44, -0.02), (0.0, 0.12), (0.44, -0.02)):
                    x, y = self.at(shift + dx, low + dy)
                    pen.ellipse(x, y, 4.4, 4.4, self.mark)
            case "stripes":
                for dy in (-0.08, 0.18):
                    self._band(outline, low + dy - 0.075, low + dy + 0.075)
            case "dipped":
                self._band(outline, low - 0.12, b.bottom + 0.2)

    def _band(self, outline: Points, top: float, bottom: float) -> None:
        """The part of the silhouette between two heights, in the marking's colour."""
        y0, y1 = self.at(0, top)[1], self.at(0, bottom)[1]
        self.pen.polygon(_clipped(outline, y0, y1), self.mark)

    def _face(self) -> None:
        b = self.build
        cx, cy = self.at(0.36 * self.turn, b.face)
        gap = min(b.apart, 0.52) * self.s * (0.74 if self.turn else 0.8)
        self.pen.part = "eyes"
        self._eyes(cx, cy, gap)
        self.pen.part = "expression"
        self._brows(cx, cy - 8.6, gap)
        self._mouth(cx, cy + 10.2)

    def _eyes(self, cx: float, cy: float, gap: float) -> None:
        pen, look = self.pen, 1.8 * self.turn
        for side in (0,) if self.who.eyes == "one" else (-1, 1):
            x = cx + side * gap
            match self.who.eyes:
                case "round":
                    pen.ellipse(x, cy, 6.2, 6.6, WHITE, line=True)
                    pen.ellipse(x + look, cy + 0.6, 3.0, 3.6, INK)
                case "dot":
                    pen.ellipse(x, cy, 3.4, 3.8, INK)
                case "one":
                    pen.ellipse(x, cy - 0.6, 9.4, 8.8, WHITE, line=True)
                    pen.ellipse(x + 1.4 * look, cy, 4.6, 4.8, INK)
                case "sleepy":
                    pen.ellipse(x, cy, 6.4, 6.2, WHITE, line=True)
                    pen.ellipse(x + look, cy + 2.4, 2.8, 2.8, INK)
                    pen.chord(x, cy, 6.4, 6.2, 180, 360, INK)

    def _brows(self, cx: float, y: float, gap: float) -> None:
        slant = {"angry": 3.6, "sad": -3.0}.get(self.staging.expression)
        if slant is None:
            return
        half = max(gap, 5.0)
        for side in (-1, 1):
            x = cx + side * half
            self.pen.stroke([(x - side * 3.6, y + slant * 0.7), (x + side * 4.6, y - slant * 0.7)], INK, 2.8)

    def _mouth(self, cx: float, y: float) -> None:
        pen = self.pen
        match self.staging.expression:
            case "happy":
                pen.arc(cx, y - 3.6, 8.0, 6.4, 10, 170, 2.8)
                for side in (-1, 1):
                    pen.ellipse(cx + side * 12.0, y - 2.6, 3.4, 2.4, (250, 130, 130))
            case "sad":
                pen.arc(cx, y + 4.6, 7.0, 5.6, 195, 345, 2.8)
                pen.ellipse(cx + 10.5, y - 2.2, 2.2, 3.6, TEAR_RGB)
            case "surprised":
                pen.ellipse(cx, y + 1.6, 4.4, 5.4, MOUTH_RGB, line=True)
            case "angry":
                pen.stroke([(cx - 7, y + 2.6), (cx - 2.4, y - 0.6), (cx + 2.4, y + 2.6), (cx + 7, y - 0.6)], INK, 2.6)
            case "laughing":
                pen.chord(cx, y - 1.6, 8.8, 8.8, 0, 180, INK)
                pen.chord(cx, y - 0.6, 6.8, 6.8, 0, 180, (226, 70, 84))
            case "calm":
                pen.stroke([(cx - 6.2, y + 0.6), (cx + 6.2, y + 0.6)], INK, 2.8)

    def _cape(self) -> None:
        """Behind the body, or over it when seen from behind."""
        self.pen.part = "accessory"
        b = self.build
        half, foot = max(b.neck, 0.72), max(b.arms, 0.9) + 0.52
        points = [
            self.at(-half, -0.02),
            self.at(half, -0.02),
            self.at(foot, b.bottom + 0.18),
            self.at(-foot, b.bottom + 0.18),
        ]
        self.pen.polygon(points, self.cloth, line=True)

    def _accessory(self) -> None:
        pen, b, s = self.pen, self.build, self.s
        pen.part = "accessory"
        neck = b.face + 0.84
        tilt = 0.14 * self.turn
        match self.who.accessory:
            case "hat":
                x, y = self.at(tilt, b.top + 0.1)
                pen.box(x - 8.5, y - 15, x + 8.5, y, self.cloth, line=True)
                pen.stroke([(x - 13, y), (x + 13, y)], self.cloth, 5.6, line=True)
            case "crown":
                x, y = self.at(tilt, b.top + 0.16)
                pen.polygon([(x - 11, y), (x - 13, y - 14), (x - 5.5, y - 7), (x, y - 16), (x + 5.5, y - 7),
                             (x + 13, y - 14), (x + 11, y)], self.cloth, line=True)  # fmt: skip
            case "scarf":
                half = b.neck * (0.96 if self.who.shape != "triangle" else 1.06)
                (x0, y), (x1, _) = self.at(-half, neck), self.at(half, neck)
                pen.stroke([(x0, y), (x1, y)], self.cloth, 7.4, line=True)
                x = self.cx + (0.5 if not self.back else -0.5) * half * s
                pen.stroke([(x, y + 2), (x + 1.6, y + 14)], self.cloth, 6.8, line=True)
            case "bowtie":
                (x, y), (half, _) = self.at(0.26 * self.turn, neck), (b.neck * s, 0)
                if self.back:
                    pen.stroke([(self.cx - half, y), (self.cx + half, y)], self.cloth, 4.6, line=True)
                else:
                    pen.polygon([(x - 11, y - 6.5), (x, y), (x - 11, y + 6.5)], self.cloth, line=True)
                    pen.polygon([(x + 11, y - 6.5), (x, y), (x + 11, y + 6.5)], self.cloth, line=True)
                    pen.ellipse(x, y, 3.2, 3.2, self.cloth, line=True)
            case "cape":
                if self.back:
                    self._cape()
                (x0, y), (x1, _) = self.at(-b.neck, neck - 0.06), self.at(b.neck, neck - 0.06)
                pen.stroke([(x0, y), (x1, y)], self.cloth, 4.6, line=True)


def _clipped(outline: Points, top: float, bottom: float) -> Points:
    """The polygon between two heights (Sutherland and Hodgman, 1974); touching parts of a star stay joined."""
    for level, below in ((top, True), (bottom, False)):
        kept: Points = []
        for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True):
            in0, in1 = (y0 >= level) is below, (y1 >= level) is below
            if in0:
                kept.append((x0, y0))
            if in0 != in1:
                kept.append((x0 + (x1 - x0) * (level - y0) / (y1 - y0), level))
        outline = kept or [(0.0, level), (0.0, level), (0.0, level)]
    return outline
