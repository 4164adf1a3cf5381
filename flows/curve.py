"""The curve of a tuning as a picture: identity above, following the prompt below, over the adapter's scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from flows.search import ALL_STEPS, Outcome, Point

WIDTH_PX, HEIGHT_PX, ENLARGED = 960, 720, 2  # drawn at twice the size, so that lines come out smooth
LEFT_PX, RIGHT_PX, HEAD_PX, PANEL_PX, BETWEEN_PX = 84, 40, 156, 210, 56
DODGE_PX = 15  # points of windows stand side by side, right of their scale
PAPER, INK, FAINT, LINE = (250, 249, 246), (34, 32, 38), (112, 108, 116), (226, 222, 214)
IDENTITY, PROMPT, FLOOR, CHOSEN = (33, 92, 168), (150, 84, 20), (190, 48, 48), (232, 240, 226)
CHOSEN_LINE = (38, 132, 82)
SHORT = {"CLIP-T": "prompt followed, CLIP-T (cosine)", "drift": "prompt followed, likeness to text only (cosine)"}


@dataclass(frozen=True)
class _Panel:
    """One plot: where its axes lie, and how its numbers become pixels."""

    top_px: int
    scales: tuple[float, float]
    values: tuple[float, float]

    def x(self, scale: float) -> float:
        low, high = self.scales
        return LEFT_PX + (scale - low) / (high - low) * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y(self, value: float) -> float:
        low, high = self.values
        return self.top_px + (high - value) / (high - low) * PANEL_PX


def draw_curve(title: str, subtitle: str, outcome: Outcome, measure: str, share: float) -> Image.Image:
    """RGB, 960 x 720 px. measure: CLIP-T or drift, what the lower panel shows; share: what its floor is of text only."""
    sheet = Image.new("RGB", (WIDTH_PX * ENLARGED, HEIGHT_PX * ENLARGED), PAPER)
    pen = _Pen(ImageDraw.Draw(sheet))
    best = outcome.best
    end = max(p.setting.scale for p in outcome.points)
    scales = (0.0, end * 1.06)
    window = "" if best.setting.window == ALL_STEPS else f", steps {_window(best.setting.window)}"
    met = "" if outcome.met else "  (no setting follows the prompt enough; this is the nearest)"
    pen.text(LEFT_PX, 22, f"{title}: adapter scale {best.setting.scale:g}{window}{met}", 24, INK)
    pen.text(LEFT_PX, 56, f"{subtitle} · {best.pictures} pictures a point, whiskers are 95 % intervals", 14, FAINT)
    _legend(pen, outcome)
    upper = _Panel(HEAD_PX, scales, _range(outcome.points, lambda p: (p.identity, *p.identity_interval)))
    lower_top = HEAD_PX + PANEL_PX + BETWEEN_PX
    spread = _range(outcome.points, lambda p: (p.prompt, *p.prompt_interval, outcome.floor))
    lower = _Panel(lower_top, scales, spread)
    for panel, label, value in (
        (upper, "identity, CLIP-I (cosine)", best.identity),
        (lower, SHORT[measure], best.prompt),
    ):
        _axes(pen, panel, f"{label}: {value:.2f} chosen", best.setting.scale, numbered=panel is lower)
    pen.text(_middle(lower), lower_top + PANEL_PX + 34, "adapter scale (0 = text only)", 15, INK, centred=True)
    y = lower.y(outcome.floor)
    pen.dashed(LEFT_PX, WIDTH_PX - RIGHT_PX, y, FLOOR)
    floor = f"floor {outcome.floor:.2f} = {share:.0%} of text only"
    pen.text(WIDTH_PX - RIGHT_PX, lower_top - 21, f"- - {floor}", 14, FLOOR, right=True)  # clear of every curve
    _points(pen, upper, outcome, IDENTITY, lambda p: p.identity, lambda p: p.identity_interval)
    _points(pen, lower, outcome, PROMPT, lambda p: p.prompt, lambda p: p.prompt_interval)
    return sheet.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)


def _legend(pen: _Pen, outcome: Outcome) -> None:
    pen.dot(LEFT_PX + 5, 97, INK, filled=True)
    pen.text(LEFT_PX + 17, 88, "all steps", 13, FAINT)
    x = LEFT_PX + 17 + pen.width("all steps", 13) + 26
    pen.rectangle(x, 89, x + 14, 105, CHOSEN)
    pen.line([(x + 7, 89), (x + 7, 105)], CHOSEN_LINE, 2)
    pen.text(x + 22, 88, "chosen scale", 13, FAINT)
    x += 22 + pen.width("chosen scale", 13) + 26
    letters = _letters(outcome)
    if letters:
        pen.dot(x + 5, 97, INK, filled=False)
        told = ", ".join(f"{letter} {_window(window)}" for window, letter in letters.items())
        pen.text(x + 17, 88, f"only in a window of the steps: {told}", 13, FAINT)


def _letters(outcome: Outcome) -> dict[tuple[float, float], str]:
    """A letter a window, in their order."""
    windows = sorted({p.setting.window for p in outcome.points} - {ALL_STEPS})
    return dict(zip(windows, "abcdefgh", strict=False))


def _axes(pen: _Pen, panel: _Panel, label: str, chosen: float, *, numbered: bool) -> None:
    bottom = panel.top_px + PANEL_PX
    pen.rectangle(panel.x(chosen) - 9, panel.top_px, panel.x(chosen) + 9, bottom, CHOSEN)
    pen.line([(panel.x(chosen), panel.top_px), (panel.x(chosen), bottom)], CHOSEN_LINE, 1.5)
    for value in _ticks(*panel.values):
        pen.line([(LEFT_PX, panel.y(value)), (WIDTH_PX - RIGHT_PX, panel.y(value))], LINE, 1)
        pen.text(LEFT_PX - 10, panel.y(value) - 9, f"{value:.2f}", 13, FAINT, right=True)
    for i in range(int(panel.scales[1] * 4) + 1):
        x = panel.x(i / 4)
        pen.line([(x, bottom), (x, bottom + 5)], FAINT, 1)
        if numbered:
            pen.text(x, bottom + 9, f"{i / 4:g}", 13, FAINT, centred=True)
    pen.line([(LEFT_PX, panel.top_px), (LEFT_PX, bottom), (WIDTH_PX - RIGHT_PX, bottom)], FAINT, 1.5)
    pen.text(LEFT_PX, panel.top_px - 23, label, 15, INK)


def _points(
    pen: _Pen, panel: _Panel, outcome: Outcome, colour: tuple[int, int, int],
    value: Callable[[Point], float], interval: Callable[[Point], tuple[float, float]],
) -> None:  # fmt: skip
    whole = sorted((p for p in outcome.points if p.setting.window == ALL_STEPS), key=lambda p: p.setting.scale)
    pen.line([(panel.x(p.setting.scale), panel.y(value(p))) for p in whole], colour, 2.5)
    for p in whole:
        x, (low, high) = panel.x(p.setting.scale), interval(p)
        if math.isfinite(low) and high > low:
            pen.line([(x, panel.y(low)), (x, panel.y(high))], colour, 1.2)
            for end in (low, high):
                pen.line([(x - 4, panel.y(end)), (x + 4, panel.y(end))], colour, 1.2)
        pen.dot(x, panel.y(value(p)), colour, filled=True)
    letters = _letters(outcome)
    for p in (p for p in outcome.points if p.setting.window != ALL_STEPS):
        place = list(letters).index(p.setting.window) + 1
        x, y = panel.x(p.setting.scale) + place * DODGE_PX, panel.y(value(p))
        pen.dot(x, y, CHOSEN_LINE if p == outcome.best else colour, filled=False)
        above = y > panel.top_px + PANEL_PX / 2
        pen.text(x, y - 23 if above else y + 6, letters[p.setting.window], 13, colour, centred=True)


def _window(window: tuple[float, float]) -> str:
    return f"{window[0]:.0%} to {window[1]:.0%}"


def _middle(panel: _Panel) -> float:
    return (panel.x(panel.scales[0]) + panel.x(panel.scales[1])) / 2


def _range(points: Sequence[Point], values: Callable[[Point], Sequence[float]]) -> tuple[float, float]:
    """A little more than what is to be shown."""
    shown = [v for p in points for v in values(p) if math.isfinite(v)]
    low, high = min(shown), max(shown)
    room = max(0.08 * (high - low), 0.01)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Pen:
    """Draws in pixels of the finished picture on the enlarged one."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        at = [(x * ENLARGED, y * ENLARGED) for x, y in points]
        self._draw.line(at, fill=colour, width=round(width * ENLARGED), joint="curve")

    def dashed(self, left: float, right: float, y: float, colour: tuple[int, int, int]) -> None:
        for x in range(int(left), int(right), 12):
            self.line([(x, y), (min(x + 7, right), y)], colour, 1.5)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        self._draw.rectangle([v * ENLARGED for v in (left, top, right, bottom)], fill=colour)

    def dot(self, x: float, y: float, colour: tuple[int, int, int], *, filled: bool) -> None:
        r = 5
        box = [v * ENLARGED for v in (x - r, y - r, x + r, y + r)]
        self._draw.ellipse(box, fill=colour if filled else PAPER, outline=colour, width=2 * ENLARGED)

    def text(
        self, x: float, y: float, text: str, size: int, colour: tuple[int, int, int], *, centred: bool = False,
        right: bool = False,
    ) -> None:  # fmt: skip
        text = "".join(c if c.isprintable() else "?" for c in text)
        shift = self.width(text, size) * (0.5 if centred else 1.0 if right else 0.0)
        font = ImageFont.load_default(size * ENLARGED)
        at = ((x - shift) * ENLARGED, y * ENLARGED)
        self._draw.text(at, text, fill=colour, font=font, stroke_width=2 * ENLARGED, stroke_fill=PAPER)

    def width(self, text: str, size: int) -> float:
        return self._draw.textlength(text, font=ImageFont.load_default(size * ENLARGED)) / ENLARGED
