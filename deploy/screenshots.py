"""The pictures of docs/review.md, sheets.md and scheduling.md: the demo's pages in Chromium, and a sheet. Run `make demo` before.

python deploy/screenshots.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from benchmarks.chromium import launched
from benchmarks.serving import served

ROOT = Path(__file__).resolve().parent.parent
HOME, IMAGES = ROOT / "demo", ROOT / "docs" / "images"
WINDOW: ViewportSize = {"width": 1440, "height": 900}
COLOURS = 192  # of a picture's palette: pages are flat, and the repository stays small


def main() -> None:
    if not (HOME / "postgres").exists():
        raise SystemExit("There is no demo to show: run `make demo` first.")
    with served(HOME) as (_, link), sync_playwright() as playwright:
        browser = launched(playwright)
        page = browser.new_page(viewport=WINDOW, color_scheme="light")
        page.goto(link)
        page.wait_for_url(re.compile("/$"))
        show(page)
        show_calendar(page)
        browser.close()
    draw_sheet()


def show(page: Page) -> None:
    take(page, "review-queue")
    page.goto(page.url + "assets")
    page.locator("[data-pick]").nth(1).click()
    page.locator("[data-pick]").nth(3).click(modifiers=["Shift"])
    take(page, "review-grid")
    page.goto(re.sub("/assets.*", "/", page.url))
    page.locator(".frame").first.click()
    page.wait_for_selector("[data-deep]")
    if not page.locator(".comments li").count():  # the demo was shown before
        drag(page, "b", (0.30, 0.22), (0.66, 0.50))
        page.keyboard.type("The ears are rounder on the model sheet.")
        page.get_by_role("button", name="Comment").click()
        page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.wait_for_timeout(900)
    take(page, "review-room")
    page.emulate_media(color_scheme="dark")
    page.keyboard.press("v")
    page.keyboard.press("s")
    page.wait_for_timeout(900)
    take(page, "review-room-dark")


def show_calendar(page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(re.sub("/assets.*", "/campaigns", page.url))
    page.get_by_text("Start a campaign from a brief").click()
    page.get_by_label("The brief").fill((ROOT / "deploy" / "examples" / "weekly.yaml").read_text())
    page.get_by_role("button", name="Schedule it").click()
    page.wait_for_url("**/schedules/*")
    page.get_by_role("link", name="→").click()
    take(page, "calendar")


def draw_sheet() -> None:
    """By the command, as a user would."""
    words = ("sheet", "Pip", "--expressions", "sad,surprised", "--poses", "waving,jumping", "--to", str(IMAGES))
    command = [sys.executable, "-c", "from studio.cli.app import run; run()", *words]
    subprocess.run(command, env={**os.environ, "ONMODEL_HOME": str(HOME)}, check=False, cwd=ROOT)
    for kind in ("pdf", "json"):
        (IMAGES / f"pip-sheet.{kind}").unlink()
    reduce(IMAGES / "pip-sheet.png")


def drag(page: Page, tool: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With a tool of the room, from one place of the picture to another, in shares of its sides."""
    page.keyboard.press(tool)
    box = page.locator("[data-layer]").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=8)
    page.mouse.up()


def take(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    place = IMAGES / f"{name}.png"
    page.screenshot(path=place)
    reduce(place)


def reduce(place: Path) -> None:
    Image.open(place).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(place, optimize=True)
    print(f"{place.relative_to(ROOT)}: {place.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
