"""Signing in with the company's provider: what a provider that lies tries, and what guests try with one that does not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from sqlalchemy import select, text, update

from asset_store.tables import BrowserSession, SignInAttempt
from studio.api.limits import Rate
from studio.api.serving import LOOPBACK, listening
from tests.oidc_provider import GRACE, SECRET, Hostile
from tests.studio.served import Open, is_signed_in, refused, signed_in


def test_what_is_asked_of_the_provider_and_kept_of_it(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    here = house(hostile.issuer)
    here.person()
    with here.browser() as browser:
        begun = browser.get("/sign-in/company", follow_redirects=False)
        asks = {k: v[0] for k, v in parse_qs(urlsplit(begun.headers["location"]).query).items()}
        assert asks["code_challenge_method"] == "S256"
        assert asks["scope"] == "openid email profile"
        assert asks["redirect_uri"] == f"{here.address}/sign-in/company/callback"
        cookie = begun.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=lax", "Max-Age=600", "Path=/sign-in/company"} <= set(cookie.split("; "))
        secret = cookie.partition(";")[0].partition("=")[2]
        with here.store.database.transaction() as session:
            kept = str(session.execute(text("SELECT * FROM sign_in_attempts")).all())
        for said in (asks["state"], asks["nonce"], asks["code_challenge"], secret):
            assert len(said) >= 43
            assert said not in kept
        assert browser.get(begun.headers["location"]).url.path == "/"
        assert is_signed_in(browser)


def test_behind_tls_the_named_address_is_come_back_to_and_cookies_are_secure(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    here = house(hostile.issuer, address="https://onmodel.lumen.example/")
    begun = here.browser().get("/sign-in/company", follow_redirects=False)
    asks = parse_qs(urlsplit(begun.headers["location"]).query)
    assert asks["redirect_uri"] == ["https://onmodel.lumen.example/sign-in/company/callback"]
    assert "Secure" in begun.headers["set-cookie"].split("; ")


LONG_AGO = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
LIES: tuple[tuple[str, dict[str, Any]], ...] = (  # what the log says of an id_token that is so
    ("Algorithm of 'none' is not allowed", {"sign": "not at all"}),
    ("Algorithm of 'HS256' is not allowed", {"sign": "by the public key"}),
    ("bad_signature", {"sign": "by another key"}),
    ("bad_signature", {"sign": "and changed"}),
    ("No key for kid: 'third'", {"header": {"kid": "third"}}),
    ("expired", {"claims": {"exp": LONG_AGO}}),
    ("Missing claim: 'exp'", {"claims": {"exp": None}}),
    ("Missing claim: 'iat'", {"claims": {"iat": None}}),
    ("issued in the future", {"claims": {"iat": 4_000_000_000, "exp": 4_000_000_300}}),
    ("'exp' must be a NumericDate", {"claims": {"exp": "tomorrow"}}),
    ("Invalid claim: 'nonce'", {"claims": {"nonce": "another"}}),
    ("Missing claim: 'nonce'", {"claims": {"nonce": None}}),
    ("Invalid claim: 'aud'", {"claims": {"aud": "another"}}),
    ("Invalid claim: 'azp'", {"claims": {"aud": ["onmodel", "another"], "azp": "another"}}),
    ("Missing claim: 'azp'", {"claims": {"aud": ["onmodel", "another"]}}),
    ("Missing claim: 'aud'", {"claims": {"aud": None}}),
    ("Invalid claim: 'iss'", {"claims": {"iss": "https://evil.example"}}),
    ("Missing claim: 'sub'", {"claims": {"sub": None}}),
    ("Claim 'sub' must be", {"claims": {"sub": 1}}),
    ("Invalid claim: 'at_hash'", {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}}),
)


def test_an_id_token_that_does_not_hold_lets_nobody_in(
    house: Open, hostile: Hostile, caplog: pytest.LogCaptureFixture
) -> None:
    here = house(hostile.issuer)
    here.person()
    here.person("admin@lumen.example")
    for why, lie in LIES:
        hostile.lies(**lie)
        caplog.clear()
        with here.browser() as browser:
            refused(browser.get("/sign-in/company"), 401, "signed does not hold")
            assert not is_signed_in(browser), lie
        assert why in caplog.text, lie
    assert here.audited("link person", "sign in") == []
    hostile.lies()
    assert is_signed_in(signed_in(here))  # that is all that was wrong


def test_a_key_that_was_made_since_is_fetched_and_known_ones_are_not_again(house: Open, hostile: Hostile) -> None:
    here = house(hostile.issuer)
    here.person()
    hostile.lies()
    for _ in range(2):
        assert is_signed_in(signed_in(here))
    fetched = [a["path"] for a in hostile.asked()]
    assert (fetched.count("/jwks"), fetched.count("/.well-known/openid-configuration")) == (1, 1)
    hostile.lies(sign="by a new key", raw={})
    httpx.get(f"{hostile.issuer}/jwks")  # the next time that it is asked, it has the new one
    assert is_signed_in(signed_in(here))
    assert [a["path"] for a in hostile.asked()].count("/jwks") == 2


DISCOVERY = "/.well-known/openid-configuration"
NONSENSE: tuple[dict[str, Any], ...] = (
    {"about": {"issuer": "https://evil.example"}},
    {"about": {"issuer": "/"}},
    {"about": {"token_endpoint": None}},
    {"about": {"jwks_uri": "http://192.0.2.1/jwks"}},
    {"about": {"jwks_uri": "file:///etc/passwd"}},
    {"about": {"authorization_endpoint": 7}},
    {"raw": {DISCOVERY: [200, "<h1>Welcome</h1>"]}},
    {"raw": {DISCOVERY: [200, "[]"]}},
    {"raw": {DISCOVERY: [302, ""]}},
    {"raw": {DISCOVERY: [500, "oh"]}},
    {"raw": {"/token": [502, "<h1>Bad gateway</h1>"]}},
    {"raw": {"/token": [200, "<h1>Welcome</h1>"]}},
    {"raw": {"/token": [200, "[1]"]}},
    {"raw": {"/token": [200, '{"access_token": "a", "token_type": "Bearer"}']}},
    {"raw": {"/token": [200, '{"access_token": "a", "id_token": "a.b.c"}']}},
    {"raw": {"/token": [200, '{"access_token": "a", "id_token": []}']}},
    {"raw": {"/token": [400, '{"error": 5, "error_description": ["\u2603"]}']}},
    {"raw": {"/jwks": [200, "<h1>Welcome</h1>"]}},
    {"raw": {"/jwks": [200, '{"keys": [{"kty": "RSA", "n": "!", "e": 3}]}']}},
    {"raw": {"/jwks": [200, '{"keys": 7}']}},
    {"raw": {"/jwks": [200, '{"keys": []}']}},
    {"claims": {"email": None}, "raw": {"/userinfo": [200, "<h1>Welcome</h1>"]}},
    {"claims": {"email": None}, "userinfo": {"sub": "2", **GRACE}},
)


def test_nonsense_of_the_provider_is_told_calmly(house: Open, hostile: Hostile) -> None:
    here = house(hostile.issuer)
    here.person()
    for nonsense in NONSENSE:
        hostile.lies(**nonsense)
        here.forget()
        with here.browser() as browser:
            answer = browser.get("/sign-in/company")
            assert answer.status_code in (401, 503), (nonsense, answer.text)
            refused(answer, answer.status_code, "company's sign-in")
            assert not is_signed_in(browser), nonsense
    assert here.audited("link person", "sign in") == []
    hostile.lies()
    here.forget()
    assert is_signed_in(signed_in(here))


def test_a_provider_that_is_away_is_told_calmly_and_links_still_sign_in(house: Open) -> None:
    with listening(LOOPBACK, 0) as free:
        nobody = f"http://{LOOPBACK}:{free.getsockname()[1]}"
    with house(nobody).browser() as browser:
        refused(browser.get("/sign-in/company"), 503, "cannot be used now")
        assert "the link that" in browser.get("/sign-in").text


def test_a_secret_goes_in_the_body_where_the_provider_takes_it_so_alone(house: Open, hostile: Hostile) -> None:
    hostile.lies(about={"token_endpoint_auth_methods_supported": ["client_secret_post"]})
    here = house(hostile.issuer)
    here.person()
    assert is_signed_in(signed_in(here))
    (asked,) = [a for a in hostile.asked() if a["path"] == "/token"]
    assert (asked["given"]["client_secret"], asked["authorization"]) == (SECRET, "")
    assert len(asked["given"]["code_verifier"]) >= 43


# ---------------------------------------------------------------------------- what others try


def begun(browser: httpx.Client) -> str:
    """Begin, and stop before the browser comes back: the address that it would come back to."""
    there = browser.get("/sign-in/company", follow_redirects=False).headers["location"]
    return str(browser.get(there, follow_redirects=False).headers["location"])


def test_an_attempt_is_finished_once(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    here = house(hostile.issuer)
    here.person()
    with here.browser() as browser:
        back = begun(browser)
        cookies = dict(browser.cookies)
        assert browser.get(back).status_code == 200
        browser.cookies.update(cookies)  # as if they had not been taken away
        refused(browser.get(back), 401, "was used or is over")
    with here.store.database.transaction() as session:
        assert len(session.scalars(select(BrowserSession)).all()) == 1


def test_an_attempt_is_over_after_ten_minutes(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    here = house(hostile.issuer)
    with here.browser() as browser:
        back = begun(browser)
        with here.store.database.transaction() as session:
            session.execute(update(SignInAttempt).values(expires_at=datetime.now(UTC)))
        refused(browser.get(back), 401, "was used or is over")
        begun(browser)  # which forgets it
        with here.store.database.transaction() as session:
            assert len(session.scalars(select(SignInAttempt)).all()) == 1


def test_another_browser_does_not_finish_it_nor_keep_its_own_from_it(house: Open, hostile: Hostile) -> None:
    """Login CSRF: who is sent the address that an attacker would come back to is not signed in as the attacker."""
    hostile.lies()
    here = house(hostile.issuer)
    here.person()
    with here.browser() as attacker, here.browser() as victim:
        back = begun(attacker)
        begun(victim)
        refused(victim.get(back), 401, "in another browser")
        assert not is_signed_in(victim)
        assert [a["path"] for a in hostile.asked()].count("/token") == 0
        assert attacker.get(back).url.path == "/"


def test_a_state_that_nobody_was_given_is_refused(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    with house(hostile.issuer).browser() as browser:
        begun(browser)
        for state in ("", "wrong", "x" * 200, "%00", "%F0%9F%92%A9", "a&state=b"):
            refused(browser.get(f"/sign-in/company/callback?code=a&state={state}"), 401, "was used or is over")
        assert browser.get(f"/sign-in/company/callback?code=a&state={'x' * 201}").status_code == 422


def test_an_answer_of_another_or_of_none_is_refused(house: Open, hostile: Hostile) -> None:
    here = house(hostile.issuer)
    here.person()
    for answer in ({"iss": "https://evil.example"}, {"iss": None}, {"code": None}, {"error": "<b>access_denied"}):
        hostile.lies(answer=answer)
        with here.browser() as browser:
            seen = browser.get("/sign-in/company")
            refused(seen, 401, "Sign in again")
            assert "<b>" not in seen.text
            assert not is_signed_in(browser)
        assert [a["path"] for a in hostile.asked()].count("/token") == 0


ENDS = {
    "//evil.example": "/", "/\\evil.example": "/", "https://evil.example/": "/", "evil.example": "/", "/%09/evil.example": "/",
    "javascript:alert(1)": "/", "/sign-in/company": "/", "/%0d%0aX: evil": "/", "/campaigns": "/campaigns",
    "/assets?text=//x": "/assets", "/" + "a" * 1000: "/",
}  # fmt: skip


def test_it_ends_nowhere_else_than_here(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    here = house(hostile.issuer)
    here.person()
    for asked, ends in ENDS.items():
        with here.browser() as browser:
            seen = browser.get(f"/sign-in/company?next={asked}")
            assert (seen.url.netloc.decode(), seen.url.path) == (urlsplit(here.address).netloc, ends)
            assert "evil" not in browser.get(f"/sign-in?next={asked}").text


def test_who_tries_often_waits(house: Open, hostile: Hostile) -> None:
    hostile.lies()
    with house(hostile.issuer, sign_ins=Rate(burst=3, per_s=0.01)).browser() as browser:
        for path in ("/sign-in/company", "/sign-in/company/callback"):
            seen = [browser.get(path, follow_redirects=False) for _ in range(4)]
            assert [a.status_code == 429 for a in seen] == [False] * 3 + [True]
            assert int(seen[-1].headers["retry-after"]) > 0
