"""The settings page: people, roles, keys and links, as an admin and as anybody."""

from __future__ import annotations

import re

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from asset_store.people import accounts, passes, saved
from asset_store.tables import Role
from tests.studio.pages.conftest import Site
from tests.studio.pages.test_pages import HOSTILE, quiet


def test_an_admin_lets_somebody_in_and_out(site: Site) -> None:
    page = site.person("olga", Role.ADMIN)
    page.goto(f"{site.address}/settings")
    page.get_by_text("Add somebody").click()
    page.get_by_label("E-mail address or name").fill("kim@example.com")
    page.get_by_label("Called", exact=True).fill(HOSTILE[:60])
    page.get_by_role("button", name="Add", exact=True).click()
    row = page.locator("li", has_text="kim@example.com")
    expect(row).to_contain_text(HOSTILE[:60])
    page.get_by_text("Give a role").click()
    page.get_by_role("combobox", name="Who").fill("kim@example.com")
    page.get_by_label("Role").select_option("reviewer")
    page.get_by_label("Stage, of a reviewer").fill("legal")
    page.get_by_role("button", name="Give", exact=True).click()
    expect(row).to_contain_text("reviewer of legal · all brands")
    row.get_by_role("button", name="Sign-in link").click()
    expect(page.get_by_label("Copy it")).to_have_value(re.compile("/sign-in#"))
    link = page.get_by_label("Copy it").input_value()
    kim = site.browser.new_context().new_page()
    kim.goto(link)
    expect(kim.get_by_role("heading", name="My queue")).to_be_visible()
    page.get_by_role("button", name="Done").click()
    row.get_by_role("button", name="Take reviewer from kim@example.com").click()
    expect(row).not_to_contain_text("reviewer of legal")
    row.get_by_role("button", name="Let in no more").click()
    page.get_by_role("button", name="Yes").click()
    expect(row).to_contain_text("may sign in no more")
    kim.goto(f"{site.address}/")
    assert kim.url.endswith("/sign-in")
    quiet(page)


def test_a_key_is_made_shown_once_and_revoked(site: Site) -> None:
    page = site.person("olga", Role.ADMIN, Role.VIEWER)
    page.goto(f"{site.address}/settings")
    page.get_by_text("Make a key").click()
    page.get_by_label("Name", exact=True).first.fill("calendar sync")
    page.get_by_role("combobox", name="Owner").fill("olga")
    page.get_by_label("comment").check()
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_label("Copy it")).to_have_value(re.compile("^onm_"))
    secret = page.get_by_label("Copy it").input_value()
    me = page.request.get(f"{site.address}/v1/me", headers={"Authorization": f"Bearer {secret}"})
    assert me.json()["actor"] == "key:calendar sync of olga"
    page.get_by_role("button", name="Done").click()
    row = page.locator("li", has_text="calendar sync")
    expect(row).to_contain_text(re.compile("may comment, view"))
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Yes").click()
    expect(row).to_have_count(0)
    assert page.request.get(f"{site.address}/v1/me", headers={"Authorization": f"Bearer {secret}"}).status == 401
    quiet(page)


def test_an_agent_s_key_is_made_and_named_so(site: Site) -> None:
    page = site.person("olga", Role.ADMIN, Role.VIEWER)
    page.goto(f"{site.address}/settings")
    page.get_by_text("Make a key").click()
    page.get_by_label("Name", exact=True).first.fill("planner")
    page.get_by_role("combobox", name="Owner").fill("olga")
    page.get_by_label("It is an AI agent's").check()
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_label("Copy it")).to_have_value(re.compile("^onm_"))
    page.get_by_role("button", name="Done").click()
    expect(page.locator("li", has_text="planner").locator(".chip")).to_have_text("agent")
    quiet(page)


def test_others_see_their_own_and_sign_out_elsewhere(site: Site) -> None:
    page, elsewhere = site.person("vera", Role.VIEWER), site.person("vera")
    with site.session() as session:
        saved.keep(session, accounts.get_person(session, "vera").id, "to do", {"review": "in review"})
    page.goto(f"{site.address}/settings")
    expect(page.get_by_role("link", name="to do")).to_be_visible()
    for heading in ("People", "Who is told"):
        expect(page.get_by_role("heading", name=heading, exact=True)).to_have_count(0)
    with page.expect_response("**/v1/sessions"):
        page.get_by_role("button", name="Sign out in all other browsers").click()
    page.wait_for_load_state("networkidle")
    elsewhere.goto(f"{site.address}/")
    assert elsewhere.url.endswith("/sign-in")
    page.reload()
    expect(page.get_by_role("heading", name="Settings")).to_be_visible()
    quiet(page)


def test_axe_finds_nothing_serious_in_either_colour(site: Site) -> None:
    for scheme in ("light", "dark"):
        page = site.person("olga", *Role, color_scheme=scheme)
        with site.session() as session:
            if not passes.keys(session):
                from datetime import timedelta

                from asset_store.people.permissions import Action

                passes.make_key(session, "olga", "sync", {Action.VIEW}, timedelta(days=1), "system")
        page.goto(f"{site.address}/settings")
        for summary in page.locator("summary").all():
            summary.click()
        found = Axe().run(page).response["violations"]
        serious = [
            (v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme
