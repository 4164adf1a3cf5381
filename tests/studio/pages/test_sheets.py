"""Character sheets in the browser: asked for, followed while they are made, seen, cancelled."""

from __future__ import annotations

import uuid

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from sqlalchemy import select

from asset_store.people import accounts
from asset_store.repositories import runs
from asset_store.tables import Role, Run, RunState
from tests.stories import a_character
from tests.studio.api.test_runs import CELL, RESULT
from tests.studio.pages.conftest import Site


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    return [v["id"] for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]


HOSTILE = "<img src=x onerror=alert(1)>"


def asked(site: Site, name: str = "Bobo") -> tuple[Page, uuid.UUID]:
    """Somebody's window on the run that they asked for."""
    with site.session() as session:
        a_character(session, name)
    page = site.person("olga", Role.PRODUCER)
    page.get_by_role("link", name="Sheets").click()
    page.get_by_label("Views, by commas").fill("front, side")
    page.get_by_label("Expressions, by commas").fill("sad")
    page.get_by_label("What it is for").fill(HOSTILE)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    page.get_by_role("button", name="Make the sheet").dblclick()
    page.wait_for_url("**/runs/*")
    assert [address.rpartition("/")[2] for address in sent] == ["character-sheets"]
    return page, uuid.UUID(page.url.rpartition("/")[2])


def test_a_sheet_is_asked_for_once_followed_and_seen(site: Site) -> None:
    page, run_id = asked(site, HOSTILE)
    with site.session() as session:
        (run,) = session.scalars(select(Run)).all()
        assert (run.id, run.pictures, run.requested_by, run.trigger, run.reason) == (run_id, 3, "olga", "page", HOSTILE)
        assert (run.request["views"], run.request["expressions"]) == (["front", "side"], ["sad"])
        assert runs.beat(session, run_id, phase="making", done=2, total=3)
    expect(page.get_by_role("status").first).to_contain_text("making · 2 of 3")
    assert serious(page) == []
    picture = site.store.blobs.put(site.picture((200, 120, 40)), "image/png")
    with site.session() as session:
        told = {
            **RESULT,
            "cells": [{**CELL, "label": HOSTILE}],
            "files": {"png": picture, "pdf": picture, "json": picture},
        }
        runs.end(session, run_id, RunState.SUCCEEDED, result=told, problem="off model or not made: front")
    expect(page.get_by_role("img", name="The character sheet of")).to_be_visible()
    expect(page.get_by_text("Consistency 0.80")).to_be_visible()
    expect(page.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    expect(page.get_by_text("no: identity")).to_be_visible()
    assert serious(page) == []
    with page.expect_download() as loading:
        page.get_by_role("link", name="PDF").click()
    assert loading.value.suggested_filename.endswith(".pdf")
    page.get_by_role("link", name="Character sheets").click()
    expect(page.get_by_role("cell", name="succeeded ! off model")).to_be_visible()
    assert serious(page) == []
    assert page.problems == []  # type: ignore[attr-defined]


def test_a_sheet_is_cancelled_while_it_is_made(site: Site) -> None:
    page, run_id = asked(site)
    page.get_by_role("button", name="Cancel it").click()
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
    with site.session() as session:
        assert session.get_one(Run, run_id).state is RunState.CANCELLED


def test_who_may_not_produce_sees_and_asks_for_nothing(site: Site) -> None:
    _, run_id = asked(site)
    with site.session() as session:
        accounts.add_person(session, "vera", "Vera", "system")
        accounts.grant(session, "vera", Role.VIEWER, "system")
    viewer = site.person("vera")
    viewer.goto(f"{site.address}/runs/{run_id}")
    expect(viewer.get_by_role("heading", name="Bobo")).to_be_visible()
    expect(viewer.get_by_role("button", name="Cancel it")).to_have_count(0)
    viewer.goto(f"{site.address}/sheets")
    expect(viewer.get_by_role("button", name="Make the sheet")).to_have_count(0)
    stranger = site.person("sam")
    assert stranger.goto(f"{site.address}/runs/{run_id}").status == 404  # type: ignore[union-attr]
