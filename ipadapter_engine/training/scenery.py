"""The places that mascots are drawn in: large flat shapes, moved a pixel by the seed."""

from __future__ import annotations

import random

from ipadapter_engine.training.pen import Pen


def draw_scene(pen: Pen, scene: str, rng: random.Random) -> None:
    """Cover the whole picture; raises ValueError for a scene that the vocabulary does not have."""
    d = rng.uniform(-1, 1)
    match scene:
        case "studio":
            pen.box(0, 0, 100, 100, (238, 236, 232))
            pen.ellipse(50, 94, 48, 10, (216, 212, 208))
        case "beach":
            pen.box(0, 0, 100, 44, (150, 216, 248))
            pen.ellipse(86 + d, 14, 9, 9, (255, 238, 130))
            pen.box(0, 44, 100, 66, (38, 144, 204))
            pen.box(0, 66, 100, 100, (242, 218, 156))
        case "forest":
            pen.box(0, 0, 100, 72, (180, 226, 180))
            for x in (6, 34, 66, 94):
                pen.box(x - 4 + d, 44, x + 4 + d, 76, (108, 74, 48))
                pen.polygon([(x - 18 + d, 56), (x + d, 2), (x + 18 + d, 56)], (32, 108, 62))
            pen.box(0, 72, 100, 100, (98, 152, 66))
        case "night":
            pen.box(0, 0, 100, 76, (22, 24, 70))
            pen.ellipse(14 + d, 15, 9, 9, (246, 242, 208))
            for x, y in ((34, 8), (66, 6), (86, 16), (94, 40), (6, 46)):
                pen.ellipse(x + d, y, 1.9, 1.9, (252, 248, 222))
            pen.box(0, 76, 100, 100, (46, 52, 90))
        case "city":
            pen.box(0, 0, 100, 80, (250, 206, 170))
            for x, top in ((-4, 22), (15, 42), (34, 30), (66, 16), (85, 36)):
                pen.box(x + d, top, x + 16 + d, 80, (124, 114, 140))
                for row in range(top + 6, 76, 16):
                    pen.box(x + 4 + d, row, x + 12 + d, row + 7, (252, 228, 140))
            pen.box(0, 80, 100, 100, (92, 92, 102))
        case "snow":
            pen.box(0, 0, 100, 68, (196, 216, 236))
            pen.polygon([(-14 + d, 70), (18 + d, 22), (50 + d, 70)], (148, 172, 206))
            pen.polygon([(46 + d, 70), (82 + d, 12), (118 + d, 70)], (148, 172, 206))
            pen.box(0, 68, 100, 100, (250, 251, 255))
        case "desert":
            pen.box(0, 0, 100, 70, (255, 190, 120))
            pen.ellipse(18 + d, 20, 10, 10, (255, 240, 180))
            pen.ellipse(84 + d, 68, 40, 18, (222, 140, 76))
            pen.box(0, 66, 100, 100, (214, 124, 66))
        case "meadow":
            pen.box(0, 0, 100, 62, (132, 206, 255))
            pen.ellipse(20 + d, 16, 13, 6, (255, 255, 255))
            pen.ellipse(84 + d, 26, 12, 5.5, (255, 255, 255))
            pen.box(0, 62, 100, 100, (124, 206, 82))
            for x, y in ((8, 74), (90, 72), (14, 94), (86, 92)):
                pen.ellipse(x + d, y, 2.8, 2.8, (255, 120, 160))
        case _:
            raise ValueError(f"unknown scene {scene!r}")
