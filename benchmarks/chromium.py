"""Debian's Chromium under Playwright: what figures, the docs' pictures and tests of the pages are made with."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Playwright


def find_chromium() -> str | None:
    """Its program, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launched(playwright: Playwright) -> Browser:
    """SystemExit with what to type where there is none."""
    program = find_chromium()
    if program is None:
        raise SystemExit("There is no Chromium: apt-get install chromium")
    return playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
