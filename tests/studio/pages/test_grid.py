"""The grid with many assets: endless with few nodes, filters as they are chosen and kept, pictures like one, deciding across blocks."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
from playwright.sync_api import expect
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from asset_store import retention
from asset_store.repositories import libraries
from asset_store.retention import Policy
from asset_store.reviewing import decide, similar
from asset_store.tables import Asset, BrowserSession, Role, Verdict
from tests.stories import a_sha256, picture_of
from tests.studio.pages.conftest import Site
from tests.studio.pages.test_pages import quiet, states

MANY, MOST_ALIVE = 330, 300


def test_it_is_endless_and_few_cards_are_alive(site: Site) -> None:
    site.assets(MANY)
    page = site.person("grace", Role.REVIEWER, viewport={"width": 1440, "height": 900})
    page.goto(f"{site.address}/assets")
    expect(page.locator(".counts")).to_have_text(f"{MANY} in review")
    page.locator("[data-pick]").nth(0).click()
    alive, shown = 0, set[str]()
    for _ in range(60):
        page.mouse.wheel(0, 1500)
        page.wait_for_timeout(120)
        cards = page.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.asset)")
        alive, shown = max(alive, len(cards)), shown | set(cards)
        if not page.locator("[data-more]").count() and page.evaluate(
            "innerHeight + scrollY >= document.body.scrollHeight - 4"
        ):
            break
    assert alive <= MOST_ALIVE
    assert len(shown) == MANY
    page.locator("[data-pick]").last.click(modifiers=["Shift"])  # from the first, which is far away
    expect(page.locator("[data-count]")).to_have_text(f"{MANY} selected")
    page.locator("[data-bulk] [data-decide=approve]").click()
    expect(page.locator("#said")).to_contain_text(f"{MANY} decided", timeout=60_000)
    assert states(site) == {"approved": MANY}
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator(".card").first.locator(".state")).to_have_text("approved")
    quiet(page)


def test_filters_apply_as_they_are_chosen_and_stand_in_the_address(site: Site) -> None:
    site.assets(2, "spring")
    site.assets(1, "autumn")
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets")
    page.evaluate("window.same = true")
    page.get_by_role("combobox", name="Campaign").select_option("autumn")
    expect(page.locator(".card")).to_have_count(1)
    assert page.url.endswith("/assets?campaign=autumn")
    page.get_by_role("combobox", name="Campaign").select_option("")
    page.get_by_role("searchbox").fill("spri")
    expect(page.locator(".card")).to_have_count(2)
    assert page.url.endswith("/assets?text=spri")
    page.get_by_role("searchbox").fill("nothing has this")
    expect(page.locator(".counts")).to_have_text("Nothing is found.")
    assert page.evaluate("window.same") is True
    quiet(page)


def test_filters_are_saved_and_forgotten(site: Site) -> None:
    site.assets(1, "spring")
    site.assets(2, "autumn")
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets")
    page.get_by_role("button", name="Save these filters").click()
    expect(page.locator("#said")).to_contain_text("choose some first")
    page.get_by_role("combobox", name="Campaign").select_option("spring")
    page.wait_for_url(re.compile("campaign=spring"))
    page.get_by_role("button", name="Save these filters").click()
    page.get_by_label("Name").fill("what's <b>new</b>")
    page.get_by_role("button", name="Save", exact=True).click()
    saved = page.get_by_role("link", name="what's <b>new</b>")
    expect(saved).to_be_visible()
    page.goto(f"{site.address}/assets")
    saved.click()
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_role("button", name="Forget the saved filters").click()
    expect(saved).to_have_count(0)
    page.reload()
    expect(saved).to_have_count(0)
    quiet(page)


def seen(session: Session, asset: Asset, *vector: float) -> None:
    libraries.save_encoder(session, a_sha256("clip"), "clip", 3, {})
    current = session.get_one(Asset, asset.id).current
    assert current is not None
    similar.remember(session, a_sha256("clip"), [(current.sha256, np.array(vector, dtype=np.float32))])


def three_alike(site: Site) -> tuple[Asset, Asset, Asset]:
    """An asset, one whose picture is near to its own, and one whose is far."""
    asset, far, near = site.assets(3)
    with site.session() as session:
        for one, vector in ((asset, (1, 0, 0)), (far, (0, 1, 0)), (near, (1, 1, 0))):
            seen(session, one, *vector)
    return asset, near, far


def test_pictures_like_one_are_found_from_its_room(site: Site) -> None:
    asset, near, far = three_alike(site)
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    page.get_by_role("link", name="Similar").click()
    expect(page.locator(".card")).to_have_count(2)
    assert page.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.asset)") == [str(near.id), str(far.id)]
    expect(page.get_by_role("link", name=re.compile("Remove the filter like shot-00"))).to_be_visible()
    with site.session() as session:
        assert len(session.scalars(select(Asset)).all()) == 3


def test_after_back_the_grid_still_decides(site: Site) -> None:
    site.assets(2, "spring")
    site.assets(1, "autumn")
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets")
    page.get_by_role("combobox", name="Campaign").select_option("autumn")
    expect(page.locator(".card")).to_have_count(1)
    page.go_back()
    expect(page.locator(".card")).to_have_count(3)
    page.locator("[data-pick]").first.click()
    expect(page.locator("[data-count]")).to_have_text("1 selected")
    quiet(page)


def test_undo_takes_all_back_whatever_is_shown_by_then(site: Site) -> None:
    site.assets(3, "spring")
    site.assets(1, "autumn")
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets")
    page.locator("[data-pick]").first.click()
    page.locator("[data-pick]").last.click(modifiers=["Shift"])
    page.locator("[data-bulk] [data-decide=approve]").click()
    expect(page.locator("#said")).to_contain_text("4 decided")
    page.get_by_role("combobox", name="Campaign").select_option("autumn")
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#said")).to_contain_text("4 taken back")
    assert states(site) == {"in review": 4}
    quiet(page)


def test_a_session_that_ended_leads_to_sign_in_and_not_to_an_empty_grid(site: Site) -> None:
    site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets")
    expect(page.locator(".counts")).to_have_text("1 in review")
    with site.session() as session:
        session.execute(update(BrowserSession).values(ended_at=func.now()))
    page.get_by_role("combobox", name="Review").select_option("approved")
    page.wait_for_url("**/sign-in")


def test_filters_show_what_they_are_whatever_is_offered(site: Site) -> None:
    site.assets(1)
    page = site.person("vera", Role.VIEWER)
    today = datetime.now(UTC).date().isoformat()
    page.goto(f"{site.address}/assets?person=bob&since={today}&until={today}")
    expect(page.get_by_role("combobox", name="Asked to decide")).to_have_value("bob")
    page.goto(f"{site.address}/assets?since={today}&until={today}")
    expect(page.locator(".card")).to_have_count(1)  # a day is meant to its end


def test_the_likest_are_gone_through_in_their_order(site: Site) -> None:
    asset, near, far = three_alike(site)
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets?like={asset.id}")
    page.locator(".frame").first.click()
    page.wait_for_selector("[data-deep]")
    expect(page.locator("[data-room]")).to_have_attribute("data-asset", str(near.id))
    page.keyboard.press("j")
    expect(page.locator("[data-room]")).to_have_attribute("data-asset", str(far.id))
    page.keyboard.press("j")
    expect(page.locator("#said")).to_contain_text("no other")
    quiet(page)


def test_a_picture_that_was_removed_is_a_quiet_tile_and_a_room_without_it(site: Site) -> None:
    gone, _ = site.assets(2)
    later = datetime.now(UTC) + timedelta(days=31)
    with site.session() as session:
        sha256 = picture_of(session.get_one(Asset, gone.id))
        decide.decide(session, gone.id, Verdict.REJECT, "hedy", "three ears", sha256)
        assert retention.remove(session, [sha256], Policy(30), "flow:sweep", later) == 1
    page = site.person("lena", Role.BRAND_LEAD, Role.REVIEWER)
    failed: list[int] = []
    page.on("response", lambda answer: failed.append(answer.status) if answer.status >= 400 else None)
    page.goto(f"{site.address}/assets")
    told = f"removed on {later.date().isoformat()} by the retention policy"
    tile = page.locator(f'[data-asset="{gone.id}"]')
    expect(tile).to_contain_text(told)
    expect(tile.locator("img")).to_have_count(0)
    tile.get_by_role("link").click()
    expect(page.locator("[data-view]")).to_contain_text(told.capitalize())
    expect(page.get_by_text("Reopen")).to_have_count(0)
    expect(page.get_by_text("three ears")).to_be_visible()
    assert failed == []
    quiet(page)
