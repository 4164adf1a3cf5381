"""The pages in a real browser, on a server of the test's own."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy.orm import Session

from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.lineage import record as lineage
from asset_store.people import accounts, passes
from asset_store.reviewing import decide
from asset_store.tables import Asset, AssetVersion, Campaign, CheckOutcome, Reference, Role
from benchmarks.chromium import find_chromium, launched
from flows.settings import DeliverySettings, Settings
from flows.wiring import Store
from studio.api.app import create_app
from tests.stories import a_campaign, a_check, a_job, a_record, a_reference
from tests.studio.served import UNLIMITED, served

PATIENCE_MS = 30_000  # on a machine that has much else to do
expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Site:
    """The server, and people in browsers."""

    store: Store
    address: str
    browser: Browser

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.store.database.transaction() as session:
            yield session

    def picture(self, colour: tuple[int, int, int]) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (128, 128), colour).save(out, "PNG")
        return out.getvalue()

    def assets(
        self, count: int, campaign: str = "spring", outcome: CheckOutcome = CheckOutcome.PASS, **more: Any
    ) -> list[Asset]:
        """Assets in review, each with a picture of its own colour and one reference."""
        with self.session() as session:
            run = a_campaign(session, campaign, **more)
            reference = a_reference(session, f"{campaign}/front.png")
            reference.sha256 = self.store.blobs.put(self.picture((40, 120, 200)), "image/png")
            session.flush()
            return [self._asset(session, run, [reference], outcome, i) for i in range(count)]

    def _asset(
        self, session: Session, run: Campaign, references: Sequence[Reference], outcome: CheckOutcome, i: int
    ) -> Asset:
        job = a_job(session, references)
        asset = Asset(campaign=run, shot=f"shot-{i:02d}", variant=0, job_key=job.key)
        session.add(asset)
        session.flush()
        self.version(session, asset, (30 + 9 * i % 200, 90, 160), references)
        decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)
        decide.finish_checks(session, asset.id, [a_check(outcome), a_check(CheckOutcome.PASS, "identity")])
        return asset

    def version(
        self, session: Session, asset: Asset, colour: tuple[int, int, int], references: Sequence[Reference]
    ) -> None:
        sha256 = self.store.blobs.put(self.picture(colour), "image/png")
        version = AssetVersion(
            asset_id=asset.id, number=1, job_key=asset.job_key, sha256=sha256, pixel_sha256=sha256,
            perceptual_hash=sha256[:16], width_px=128, height_px=128,
        )  # fmt: skip
        session.add(version)
        session.flush()
        session.expire(asset, ["versions"])
        lineage.write(session, version.id, a_record(version, asset, references), [r.id for r in references])

    def somebody(self, session: Session) -> str:
        """Another person who reviews."""
        accounts.add_person(session, "hedy", "Hedy", "system")
        accounts.grant(session, "hedy", Role.REVIEWER, "system")
        return "hedy"

    def person(self, handle: str, *roles: Role, stage: str | None = None, **options: Any) -> Page:
        """A browser window in which this person has signed in by their link."""
        with self.session() as session:
            if accounts.find_person(session, handle) is None:
                accounts.add_person(session, handle, handle.title(), "system")
            for role in roles:
                accounts.grant(session, handle, role, "system", None, stage if role is Role.REVIEWER else None)
            token = passes.make_link(session, handle, "system")
        context: BrowserContext = self.browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.problems = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: page.problems.append(str(error)))  # type: ignore[attr-defined]
        page.goto(f"{self.address}/sign-in#{token}")
        page.wait_for_url(f"{self.address}/")
        return page


@pytest.fixture(scope="module")  # its event loop runs as long, and flows of other files need one of their own
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium: `apt-get install chromium`, or let `make test` install it as root")
    with sync_playwright() as playwright:
        opened = launched(playwright)
        yield opened
        opened.close()


@pytest.fixture
def site(own_database: Database, tmp_path: Path, browser: Browser) -> Iterator[Site]:
    store = Store(
        own_database,
        open_blobs(str(tmp_path / "blobs")),
        Settings(home=tmp_path, delivery=DeliverySettings(places={"web": str(tmp_path / "web")})),
    )
    with served(create_app(store, calls=UNLIMITED, sign_ins=UNLIMITED)) as address:
        yield Site(store, address, browser)
        for context in browser.contexts:
            context.close()
