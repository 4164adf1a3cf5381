"""The pictures of docs/review.md: the demo's pages in Chromium. Run `make demo` before.

python deploy/screenshots.py
"""

from __future__ import annotations

import re
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
        browser.close()


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
    Image.open(place).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(place, optimize=True)
    print(f"{place.relative_to(ROOT)}: {place.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
