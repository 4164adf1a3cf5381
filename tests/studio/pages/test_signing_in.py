"""Signing in with the company's provider, in a browser."""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.oidc_provider import GRACE, Certified
from tests.studio.served import Open


def test_a_button_a_login_and_the_queue(house: Open, certified: Certified, browser: Browser) -> None:
    certified.knows(g1=GRACE)
    here = house(certified.issuer, name="Lumen")
    here.person()
    page = browser.new_page()
    page.goto(here.address)
    page.get_by_role("link", name="Sign in with Lumen").click()
    page.get_by_placeholder("Enter any login").fill("g1")
    page.get_by_placeholder("and password").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="My queue")).to_be_visible()
    expect(page.locator(".who")).to_have_text("Grace H.")
    page.context.close()


def test_who_is_not_known_reads_what_to_do(house: Open, certified: Certified, browser: Browser) -> None:
    certified.knows(n1={**GRACE, "email": "nobody@lumen.example"})
    here = house(certified.issuer)
    page = browser.new_page()
    page.goto(f"{here.address}/campaigns")
    page.get_by_role("link", name="Sign in with your company").click()
    page.get_by_placeholder("Enter any login").fill("n1")
    page.get_by_placeholder("and password").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("onmodel people add nobody@lumen.example")
    expect(page.get_by_role("link", name="Sign in with your company")).to_be_visible()
    page.context.close()
