"""`make bench-review`: is deciding as quick among 100,000 assets as among 1,000?

    python -m benchmarks.review [--assets 100000] [--few 1000] [--home FOLDER]

Two databases are filled and `onmodel up` serves each, on this machine's cores. Pages are asked for over HTTP one after another, as a
reviewer does, with filters drawn by lot, and timed from the request to the last byte. Keys are pressed in Chromium and timed until the
next picture is on the screen. Searches by likeness are compared with the exact answer, which reads every embedding. Pages are asked for by
somebody who may do everything, and by a reviewer of one stage of two brands.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import sync_playwright
from sqlalchemy import func, select

from asset_store.people import accounts, passes
from asset_store.reviewing import similar
from asset_store.reviewing.grid import Filters
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, Brand, Role
from benchmarks import many_assets
from benchmarks.chromium import launched
from benchmarks.rows import Row, at_least, at_most, grows, percentile, tell
from benchmarks.serving import served
from flows.settings import Settings, load_settings
from flows.wiring import engine, open_store

PAGES, WARM_UP = 120, 12
SEARCHES, NEIGHBOURS = 200, 10
KEYS = 30
PAGE_MS, SEARCH_MS, KEY_MS, GROWTH, RECALL = 50.0, 25.0, 100.0, 1.5, 0.95
PAGES_OF = ("grid", "room", "queue", "counts", "/v1/assets")
REVIEWER, REVIEWED = "rhea", ("brand-0", "brand-1")
FEW = Filters(brand="brand-3", review=ReviewState.IN_REVIEW)  # what few of the nearest are
A_SECOND = 45  # requests: `onmodel up` lets a caller make 50 a second

# When a key went down, and when the picture of another asset had been painted: in the page, by the page's own clock.
CLOCK = """
addEventListener("keydown", (event) => {
  if (event.key !== "j" && event.key !== "a") return;
  sessionStorage.setItem("pressed", String(performance.timeOrigin + event.timeStamp));
  sessionStorage.setItem("from", document.querySelector("[data-room]").dataset.asset);
}, true);
(function look() {
  const room = document.querySelector("[data-room]"), picture = document.querySelector("[data-picture]");
  const pressed = sessionStorage.getItem("pressed");
  if (pressed && room && room.dataset.asset !== sessionStorage.getItem("from") && picture?.complete && picture.naturalWidth) {
    sessionStorage.removeItem("pressed");
    requestAnimationFrame((at) => setTimeout(() => {
      const times = JSON.parse(sessionStorage.getItem("times") ?? "[]");
      times.push(performance.timeOrigin + performance.now() - Number(pressed));
      sessionStorage.setItem("times", JSON.stringify(times));
    }));
  }
  requestAnimationFrame(look);
})();
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--home", type=Path, help="keep the databases there, and use those that it has")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="onmodel-") as folder:
        home = given.home or Path(folder)
        few = _measured(home / str(given.few), given.few, keys=False)
        many = _measured(home / str(given.assets), given.assets, keys=True)
        met = [tell(row) for row in _rows(few, many, given)]
    return 0 if all(met) else 1


def _rows(few: dict[str, Any], many: dict[str, Any], given: argparse.Namespace) -> Iterator[Row]:
    for what in (key for key in few if key.startswith(PAGES_OF)):
        yield at_most(f"{what}, p95 among {given.assets}", percentile(many[what], 0.95), PAGE_MS, "ms")
        median, peer = percentile(many[what], 0.5), percentile(few[what], 0.5)
        yield grows(f"{what}, median among {given.assets}", median, f"among {given.few}", peer, GROWTH, "ms")
    for what in ("next", "approve"):
        yield at_most(f"{what}: key press to the next picture, p95", percentile(many[what], 0.95), KEY_MS, "ms")
    for what in ("similar", "similar of one brand in review"):
        yield at_most(f"{what}, p95 among {given.assets}", percentile(many[what], 0.95), SEARCH_MS, "ms")
        exact = f"exact answer, {percentile(many[f'{what}, exact'], 0.5):.1f} ms at the median"
        yield at_least(f"{what}, recall@{NEIGHBOURS}", many[f"{what}, recall"], RECALL, "share", exact)


def _measured(home: Path, count: int, *, keys: bool) -> dict[str, Any]:
    """Milliseconds by what was asked for, and the share of neighbours that were found."""
    os.environ["ONMODEL_HOME"] = str(home)
    settings = load_settings()
    began, seeded = time.monotonic(), home / "seeded"
    if not seeded.exists():
        with open_store(settings) as store:
            many_assets.seed(store, count, engine(settings).encoder)
        seeded.touch()
    print(f"{count} assets are there after {time.monotonic() - began:.0f} s", file=sys.stderr)
    told: dict[str, Any] = {}
    with served(home) as (address, link):
        for who, token, brands in (
            ("", link.rpartition("#")[2], None),
            (" of a reviewer", _reviewer(settings), REVIEWED),
        ):
            with httpx.Client(base_url=address, timeout=60) as client:
                client.post("/v1/sessions", json={"link": token}).raise_for_status()
                for what, draw in _walks(settings, count, brands).items():
                    told[what + who] = _timed(client, what + who, draw)
        if keys:
            told |= _pressed(address, f"{address}/sign-in#{_reviewer(settings)}")
    for what, filters in (("similar", Filters()), ("similar of one brand in review", FEW)):
        told |= _searched(settings, what, filters)
    return told


# ---------------------------------------------------------------------------- pages


def _walks(settings: Settings, count: int, brands: Sequence[str] | None) -> dict[str, Callable[[], str]]:
    """Addresses to draw, by what they are of; of these brands, None for all."""
    rng = random.Random(3)
    shuffled = select(Asset.id).order_by(func.md5(Asset.shot + Asset.job_key)).limit(1000)
    if brands is not None:
        shuffled = shuffled.join(Brand, Brand.id == Asset.brand_id).where(Brand.name.in_(brands))
    with open_store(settings) as store, store.database.transaction() as session:
        ids = session.scalars(shuffled).all()
        places = session.execute(select(Asset.made_at, Asset.id).where(Asset.id.in_(ids[:200]))).all()
    campaigns = -(-count // many_assets.CAMPAIGN)

    def filters() -> dict[str, str]:
        b = rng.randrange(many_assets.BRANDS)
        words = rng.sample(many_assets.WORDS, 2)
        return rng.choice(
            [
                {},
                {"brand": f"brand-{b}"},
                {"brand": f"brand-{b}", "review": rng.choice(["in review", "approved", "rejected"])},
                {"character": f"hero-{b}-{rng.randrange(many_assets.CHARACTERS_A_BRAND)}"},
                {"campaign": f"campaign-{rng.randrange(campaigns):04d}"},
                {"review": "approved", "availability": "released"},
                {"stage": "brand"},
                {"outcome": "fail"},
                {"check": "identity", "outcome": "warn"},
                {"text": words[0]},
                {"text": " ".join(words)},
                {"text": f"hero {words[0][:4]}", "review": "in review"},
                {"person": "me"},
                {"since": places[0].made_at.date().isoformat()},
                {"until": places[1].made_at.date().isoformat(), "brand": f"brand-{b}"},
            ]
        )

    def listed() -> dict[str, str]:
        place = rng.choice(places)
        deep = {"after": f"{place.made_at.isoformat()}|{place.id}"} if rng.random() < 0.3 else {}
        return {**filters(), **deep}

    return {
        "grid": lambda: f"/assets?{httpx.QueryParams(listed())}",
        "room": lambda: (
            f"/assets/{rng.choice(ids)}?{httpx.QueryParams(filters() if rng.random() < 0.7 else {'from': 'queue'})}"
        ),
        "queue": lambda: "/",
        "counts": lambda: f"/assets/counts?{httpx.QueryParams(filters())}",
        "/v1/assets": lambda: f"/v1/assets?{httpx.QueryParams(listed())}",
    }


def _timed(client: httpx.Client, what: str, draw: Callable[[], str]) -> list[float]:
    times: list[tuple[float, str]] = []
    for _ in range(WARM_UP + PAGES):
        address = draw()
        began = time.perf_counter()
        answer = client.get(address)
        took = time.perf_counter() - began
        answer.raise_for_status()
        times.append((took * 1000, address))
        time.sleep(max(0.0, 1 / A_SECOND - took))
    slowest = sorted(times[WARM_UP:])[-3:]
    print(f"{what}: slowest {', '.join(f'{took:.0f} ms {address}' for took, address in slowest)}", file=sys.stderr)
    return [took for took, _ in times[WARM_UP:]]


# ---------------------------------------------------------------------------- keys


def _pressed(address: str, link: str) -> dict[str, list[float]]:
    """Milliseconds from a key to the next picture, in Chromium."""
    told: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = launched(playwright)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(CLOCK)
        page.goto(link)
        page.wait_for_url(f"{address}/")
        page.goto(f"{address}/assets?review=in+review")  # the newest have pictures
        page.locator(".frame").first.click()
        for what, key in (("next", "j"), ("approve", "a")):
            page.evaluate("sessionStorage.removeItem('times')")
            for n in range(KEYS + 1):
                _await(page, "document.querySelector('[data-deep]') !== null")
                page.wait_for_timeout(400)  # a person looks, too
                page.keyboard.press(key)
                _await(page, f"JSON.parse(sessionStorage.getItem('times') ?? '[]').length === {n + 1}")
            told[what] = page.evaluate("JSON.parse(sessionStorage.getItem('times'))")[1:]
        browser.close()
    return told


def _await(page: Any, what: str) -> None:
    """Asked from outside: the pages' security policy forbids a condition that is given as text."""
    give_up_at = time.monotonic() + 15
    while not page.evaluate(what):
        if time.monotonic() > give_up_at:
            raise SystemExit(f"The page never came to this: {what}")
        page.wait_for_timeout(10)


# ---------------------------------------------------------------------------- likeness


def _searched(settings: Settings, what: str, filters: Filters) -> dict[str, Any]:
    """Through the index, and exactly, for the same pictures."""
    times: dict[bool, list[float]] = {False: [], True: []}
    shares: list[float] = []
    with open_store(settings) as store:
        with store.database.transaction() as session:
            ids = session.scalars(select(Asset.id).order_by(func.md5(Asset.job_key)).limit(SEARCHES)).all()
        for id_ in ids:
            answers = {}
            for exact, took in times.items():
                with store.database.transaction() as session:
                    asset = session.get_one(Asset, id_)
                    asset.versions  # noqa: B018  # what a page has at hand
                    began = time.perf_counter()
                    near = similar.like_asset(session, asset, filters, NEIGHBOURS, exact=exact)
                    took.append((time.perf_counter() - began) * 1000)
                answers[exact] = {n.tile.id for n in near}
            shares.append(len(answers[False] & answers[True]) / len(answers[True]))
    return {what: times[False], f"{what}, exact": times[True], f"{what}, recall": sum(shares) / len(shares)}


# ---------------------------------------------------------------------------- who asks


def _reviewer(settings: Settings) -> str:
    """Somebody who reviews at one stage of two brands: what most reviewers are. The token of a link."""
    with open_store(settings) as store, store.database.transaction() as session:
        if accounts.find_person(session, REVIEWER) is None:
            accounts.add_person(session, REVIEWER, "Rhea", "system")
        for brand in REVIEWED:
            accounts.grant(session, REVIEWER, Role.REVIEWER, "system", brand, "brand")
        return passes.make_link(session, REVIEWER, "system")


if __name__ == "__main__":
    sys.exit(main())
