"""Signing in with the company's provider, the whole way, against a certified one."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.people import accounts
from flows.settings import Settings
from flows.wiring import Store
from studio.api.app import create_app
from studio.api.callers import COOKIE
from tests.oidc_provider import GRACE, SECRET, Certified
from tests.studio.served import Open, at_provider, is_signed_in, refused, served


@pytest.mark.parametrize(("client_id", "secret"), [("onmodel", SECRET), ("public", None)])
def test_a_known_person_signs_in_and_is_linked(
    house: Open, certified: Certified, client_id: str, secret: str | None
) -> None:
    certified.knows(g1=GRACE)
    here = house(certified.issuer, client_id, secret)
    here.person()
    with here.browser() as browser:
        seen = at_provider(browser, "g1")
        assert (seen.status_code, seen.url.path) == (200, "/")
        assert "My queue" in seen.text
        assert browser.get("/v1/me").json()["actor"] == "grace@lumen.example"
        assert [c.name for c in browser.cookies.jar if "onmodel" in c.name] == [COOKIE]
    person = here.person_of("grace@lumen.example")
    assert person is not None
    assert (person.subject, person.name) == (f"{certified.issuer} g1", "Grace H.")
    by = {"issuer": certified.issuer, "subject": "g1"}
    assert here.audited("link person", "sign in") == [
        ("grace@lumen.example", "link person", {"handle": "grace@lumen.example", **by}),
        ("grace@lumen.example", "sign in", by),
    ]


def test_an_account_stays_the_person_it_was_whatever_its_address(house: Open, certified: Certified) -> None:
    here = house(certified.issuer)
    here.person()
    here.person("hedy@lumen.example")
    certified.knows(g1=GRACE)
    at_provider(here.browser(), "g1")
    certified.knows(g1={**GRACE, "email": "hedy@lumen.example"}, g2=GRACE)
    moved, usurper = here.browser(), here.browser()
    assert at_provider(moved, "g1").status_code == 200
    assert moved.get("/v1/me").json()["actor"] == "grace@lumen.example"
    refused(at_provider(usurper, "g2"), 403, "another account")
    assert not is_signed_in(usurper)
    with here.store.database.transaction() as session:
        accounts.unlink(session, "grace@lumen.example", "ada")
    assert at_provider(usurper, "g2").status_code == 200
    assert is_signed_in(usurper)
    assert here.audited("unlink person")[0][0] == "ada"


STRANGERS: tuple[tuple[dict[str, Any], str], ...] = (
    (GRACE, "nobody here is known as grace@lumen.example"),
    ({**GRACE, "email": "ada@lumen.example.evil.example"}, "nobody here is known"),
    ({**GRACE, "email": "ada@lumen.example", "email_verified": False}, "no e-mail address that it verified"),
    ({**GRACE, "email": "ada@lumen.example", "email_verified": 1}, "no e-mail address that it verified"),
    ({"email": "ada@lumen.example"}, "no e-mail address that it verified"),
    ({"name": "Ada"}, "no e-mail address that it verified"),
    ({**GRACE, "email": ["ada@lumen.example"]}, "no e-mail address that it verified"),
    ({**GRACE, "email": "root"}, "cannot be used here"),
    ({**GRACE, "email": "ada@lumen.example@evil.example"}, "cannot be used here"),
    ({**GRACE, "email": "\u212aim@lumen.example"}, "cannot be used here"),  # a Kelvin sign, a k in lower case
)


def test_who_is_not_known_by_a_verified_address_stays_out(house: Open, certified: Certified) -> None:
    here = house(certified.issuer)
    for handle in ("root", "ada@lumen.example", "kim@lumen.example"):
        here.person(handle)
    for claims, told in STRANGERS:
        certified.knows(x=claims)
        with here.browser() as browser:
            refused(at_provider(browser, "x"), 403, told)
            assert not is_signed_in(browser), claims
    assert here.audited("link person", "sign in") == []


def test_a_domain_that_is_admitted_brings_people_without_roles(house: Open, certified: Certified) -> None:
    long = "<b>Grace</b>\u202e " + "x" * 300
    certified.knows(
        g1={**GRACE, "email": "Grace@Lumen.Example", "name": long}, e1={**GRACE, "email": "eve@evil.example"}
    )
    here = house(certified.issuer, admit="studio.example, lumen.example")
    with here.browser() as browser:
        assert at_provider(browser, "g1").url.path == "/"
        told = browser.get("/v1/me").json()
        assert (told["actor"], told["actions"]) == ("grace@lumen.example", {"*": []})
    person = here.person_of("grace@lumen.example")
    assert person is not None
    assert (person.name[:12], len(person.name)) == ("<b>Grace</b>", 200)
    assert [(actor, action) for actor, action, _ in here.audited("add person", "link person", "sign in")] == [
        ("system", "add person"), ("grace@lumen.example", "link person"), ("grace@lumen.example", "sign in"),
    ]  # fmt: skip
    with here.browser() as stranger:
        refused(at_provider(stranger, "e1"), 403, "nobody here is known as eve@evil.example")
    assert here.person_of("eve@evil.example") is None


@pytest.mark.parametrize("is_linked", [True, False])
def test_who_is_disabled_stays_out(house: Open, certified: Certified, is_linked: bool) -> None:
    certified.knows(g1=GRACE)
    here = house(certified.issuer, admit="lumen.example")
    here.person(subject=f"{certified.issuer} g1" if is_linked else None)
    with here.store.database.transaction() as session:
        accounts.disable(session, "grace@lumen.example", "ada")
    with here.browser() as browser:
        refused(at_provider(browser, "g1"), 401, "may sign in no more")
        assert not is_signed_in(browser)
    assert here.audited("link person", "sign in") == []


def test_who_turns_back_at_the_provider_is_told_so(house: Open, certified: Certified) -> None:
    certified.knows(g1=GRACE)
    with house(certified.issuer).browser() as browser:
        cancel = re.search(r'href="([^"]+/abort)"', browser.get("/sign-in/company").text)
        assert cancel
        refused(browser.get(html.unescape(cancel[1])), 401, "was not finished")


def test_a_wrong_secret_is_a_refusal_that_says_to_ask(house: Open, certified: Certified) -> None:
    certified.knows(g1=GRACE)
    here = house(certified.issuer, secret="wrong")
    here.person()
    with here.browser() as browser:
        refused(at_provider(browser, "g1"), 401, "did not accept this")
        assert not is_signed_in(browser)


def test_the_page_that_was_asked_for_is_where_it_ends(house: Open, certified: Certified) -> None:
    certified.knows(g1=GRACE)
    here = house(certified.issuer, name="Lumen & Co")
    here.person()
    with here.browser() as browser:
        page = browser.get("/assets?brand=lumen&text=a%26b")
        assert page.url.path == "/sign-in"
        link = re.search(r'<a class="button" href="([^"]+)">Sign in with Lumen &amp; Co</a>', page.text)
        assert link
        assert (
            str(at_provider(browser, "g1", html.unescape(link[1])).url)
            == f"{here.address}/assets?brand=lumen&text=a%26b"
        )


def test_without_a_provider_links_alone_sign_in(house: Open, own_database: Database, tmp_path: Path) -> None:
    store = Store(own_database, open_blobs(str(tmp_path / "blobs")), Settings(home=tmp_path))
    with served(create_app(store)) as address, httpx.Client(base_url=address) as browser:
        assert "Sign in with" not in browser.get("/sign-in").text
        assert browser.get("/").headers["location"] == "/sign-in"
        for path in ("/sign-in/company", "/sign-in/company/callback?state=a&code=b"):
            assert browser.get(path).status_code == 404
