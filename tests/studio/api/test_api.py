"""What programs and pages ask: deciding, bulk, sending twice, paging, comments, errors that say what to do."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from asset_store import errors
from asset_store.errors import OnmodelError, StoreError
from asset_store.reviewing import decide as rules
from asset_store.tables import Asset, AuditRow, Decision, Job, Role
from studio.api.app import create_app
from studio.api.callers import COOKIE, CSRF_HEADER
from studio.api.limits import Limiter, Rate
from studio.api.problems import STATUS, status_of
from tests.stories import a_campaign, a_reference, a_released_asset, a_sha256, a_version, an_asset_in_review
from tests.studio.api.conftest import Door


def some_assets(door: Door, count: int = 1, **campaign: Any) -> list[Asset]:
    with door.session() as session:
        run = a_campaign(session, **campaign)
        return [an_asset_in_review(session, run) for _ in range(count)]


@pytest.fixture
def grace(door: Door) -> TestClient:
    return door.person("grace", Role.REVIEWER)


def say(client: TestClient, asset: dict[str, Any], verdict: str = "approve", **more: Any) -> Any:
    body = {"verdict": verdict, "sha256": asset["current"]["sha256"], "reason": "why", **more}
    headers = {"If-Match": f'"{asset["row_version"]}"'}
    return client.post(f"/v1/assets/{asset['id']}/decisions", json=body, headers=headers)


def get(client: TestClient, asset: Asset) -> dict[str, Any]:
    answer = client.get(f"/v1/assets/{asset.id}")
    assert answer.headers["etag"] == f'"{answer.json()["row_version"]}"'
    body: dict[str, Any] = answer.json()
    return body


def test_a_decision_is_made_on_what_was_seen(door: Door, grace: TestClient) -> None:
    (asset,) = some_assets(door)
    seen = get(grace, asset)
    answer = say(grace, seen)
    assert (answer.status_code, answer.json()["review"]) == (201, "approved")
    assert answer.headers["etag"] == f'"{answer.json()["row_version"]}"'
    again = say(grace, seen, "reject")
    assert (again.status_code, again.json()["type"]) == (412, "urn:onmodel:problem:StaleVersion")
    assert "look" in again.json()["next_step"].casefold()
    with door.session() as session:
        assert session.scalars(select(Decision.by)).all() == ["grace"]


def test_a_picture_that_was_replaced_meanwhile_is_not_decided_on(door: Door, grace: TestClient) -> None:
    (asset,) = some_assets(door)
    seen = get(grace, asset)
    with door.session() as session:
        a_version(session, session.get_one(Asset, asset.id))
    assert say(grace, seen).status_code == 412
    assert say(grace, {**seen, "current": {"sha256": a_sha256("another")}}).status_code == 412


@pytest.mark.parametrize(("tag", "status"), [(None, 428), ('"3x"', 412), ('"999"', 412), ('W/"x"', 412), ('"-1"', 412), ('"²"', 412)])  # fmt: skip
def test_a_change_names_the_version_that_was_seen(door: Door, grace: TestClient, tag: str | None, status: int) -> None:
    (asset,) = some_assets(door)
    body = {"verdict": "approve", "sha256": get(grace, asset)["current"]["sha256"]}
    headers = {} if tag is None else {"If-Match": tag.encode("latin-1")}
    assert grace.post(f"/v1/assets/{asset.id}/decisions", json=body, headers=headers).status_code == status


def test_two_who_decide_at_once_on_the_same_are_told_apart(door: Door) -> None:
    (asset,) = some_assets(door, stages=["brand"])
    people = [door.person(f"person-{i}", Role.REVIEWER) for i in range(4)]
    seen = get(people[0], asset)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda c=c: answers.append(say(c, seen).status_code)) for c in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201, 412, 412, 412]
    with door.session() as session:
        assert session.scalars(select(func.count()).select_from(Decision)).one() == 1


def test_sent_again_with_its_key_it_is_answered_the_same_and_done_once(door: Door, grace: TestClient) -> None:
    (asset,) = some_assets(door, stages=[{"name": "brand", "quorum": 2}])
    seen = get(grace, asset)
    key = {"Idempotency-Key": "one", "If-Match": f'"{seen["row_version"]}"'}
    body = {"verdict": "approve", "sha256": seen["current"]["sha256"]}
    first, second = (grace.post(f"/v1/assets/{asset.id}/decisions", json=body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert first.headers["etag"] == second.headers["etag"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    other = grace.post(f"/v1/assets/{asset.id}/decisions", json={**body, "reason": "other"}, headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "urn:onmodel:problem:KeyReused")
    hedy = door.person("hedy", Role.REVIEWER)  # the same key of somebody else is another
    key["If-Match"] = f'"{get(hedy, asset)["row_version"]}"'
    assert hedy.post(f"/v1/assets/{asset.id}/decisions", json=body, headers=key).json()["review"] == "approved"


def test_many_are_decided_at_once_and_each_stands_alone(door: Door, grace: TestClient) -> None:
    good, stale, own = some_assets(door), some_assets(door), some_assets(door, requested_by="grace")
    hidden = some_assets(door, brand="other")
    limited = door.person("lena", Role.REVIEWER, brand="bobo")
    with door.session() as session:
        everything = [session.get_one(Asset, a[0].id) for a in (good, stale, own, hidden)]
        items = [
            {"asset_id": str(a.id), "row_version": a.row_version, "verdict": "approve", "sha256": a.current.sha256}
            for a in everything
            if a.current is not None
        ]
    items[1]["row_version"] = 77
    asked = {"items": [*items, {**items[0], "asset_id": str(uuid.uuid4())}]}
    told = [
        r["problem"] and r["problem"]["type"].rpartition(":")[2]
        for r in limited.post("/v1/decisions", json=asked).json()["results"]
    ]
    assert told == [None, "StaleVersion", None, "NotFound", "NotFound"]
    answers = grace.post("/v1/decisions", json=asked).json()["results"]
    assert [r["problem"] and r["problem"]["type"].rpartition(":")[2] for r in answers] == [
        "StaleVersion", "StaleVersion", "StaleVersion", None, "NotFound",
    ]  # fmt: skip
    with door.session() as session:
        assert session.scalars(select(func.count()).select_from(Decision)).one() == 3


def test_a_refused_item_leaves_no_trace_of_itself(door: Door) -> None:
    (asset,) = some_assets(door, requested_by="grace")
    grace = door.person("grace", Role.REVIEWER)
    seen = get(grace, asset)
    item = {
        "asset_id": seen["id"],
        "row_version": seen["row_version"],
        "verdict": "approve",
        "sha256": seen["current"]["sha256"],
    }
    with door.session() as session:
        before = session.scalars(select(func.count()).select_from(AuditRow)).one()
    assert grace.post("/v1/decisions", json={"items": [item]}).json()["results"][0]["problem"]["status"] == 403
    with door.session() as session:
        assert session.scalars(select(func.count()).select_from(AuditRow)).one() == before


def test_a_reviewer_of_a_stage_decides_there_without_naming_it(door: Door) -> None:
    (asset,) = some_assets(door, stages=[["legal", "regional"]])
    lea = door.person("lea", Role.REVIEWER, stage="legal")
    rob = door.person("rob", Role.REVIEWER, stage="regional")
    assert say(lea, get(lea, asset), stage="regional").status_code == 403
    assert say(lea, get(lea, asset)).json()["waits_at"] == ["regional"]
    assert say(rob, get(rob, asset)).json()["review"] == "approved"


def test_pages_follow_one_another_without_gap_or_double(door: Door, grace: TestClient) -> None:
    made = some_assets(door, 7)
    found: list[str] = []
    after: str | None = None
    while True:
        answer = grace.get("/v1/assets", params={"limit": 3, **({"after": after} if after else {})}).json()
        found += [a["id"] for a in answer["assets"]]
        after = answer["next_after"]
        if after is None:
            break
    assert sorted(found) == sorted(str(a.id) for a in made)
    assert answer["counts"] is None
    assert grace.get("/v1/assets?counts=true").json()["counts"] == {"by_state": {"in review": 7}, "more": False}
    for never in ("x", "2026-01-01|x", f"2026-01-01|{uuid.uuid4()}"):
        assert grace.get("/v1/assets", params={"after": never}).status_code == 404


@pytest.mark.parametrize(
    ("query", "shots"),
    [
        ({}, 3), ({"brand": "bobo"}, 2), ({"campaign": "autumn"}, 1), ({"stage": "legal"}, 1), ({"stage": "brand"}, 2),
        ({"review": "in review"}, 3), ({"review": "approved"}, 0), ({"availability": "unreleased"}, 3),
        ({"check": "not blank", "outcome": "pass"}, 3), ({"outcome": "fail"}, 0), ({"text": "AUTUMN"}, 1),
        ({"text": "bobo on the beach"}, 3), ({"text": "%"}, 0), ({"person": "hedy"}, 1), ({"person": "me"}, 0),
        ({"since": "2020-01-01T00:00:00Z"}, 3), ({"until": "2020-01-01T00:00:00Z"}, 0), ({"brand": "none"}, 0),
    ],
)  # fmt: skip
def test_filters_narrow_what_is_found(door: Door, grace: TestClient, query: dict[str, str], shots: int) -> None:
    (asked,) = some_assets(door, name="spring")
    some_assets(door, name="autumn", stages=["legal"])
    some_assets(door, name="winter", brand="other")
    with door.session() as session:
        from asset_store.people import accounts
        from asset_store.reviewing import assigning

        accounts.add_person(session, "hedy", "Hedy", "system")
        assigning.assign(session, asked.id, "brand", "hedy", "system")
    assert len(grace.get("/v1/assets", params=query).json()["assets"]) == shots


def test_pins_are_written_once_corrected_and_taken_back(door: Door, grace: TestClient) -> None:
    (asset,) = some_assets(door)
    address = f"/v1/assets/{asset.id}/comments"
    pin = {"id": str(uuid.uuid4()), "version_id": get(grace, asset)["current"]["id"], "text": "<b>three</b> ears",
           "region": {"kind": "pin", "x": 0.25, "y": 0.5}}  # fmt: skip
    assert [grace.post(address, json=pin).status_code for _ in range(2)] == [201, 201]
    hedy = door.person("hedy", Role.REVIEWER)
    (told,) = hedy.get(address).json()["comments"]
    assert (told["text"], told["region"], told["by"]) == (pin["text"], pin["region"], "grace")
    assert hedy.put(f"/v1/comments/{pin['id']}", json={"id": str(uuid.uuid4()), "text": "fine"}).status_code == 422
    assert grace.put(f"/v1/comments/{pin['id']}", json={"id": str(uuid.uuid4()), "text": "two"}).json()["edited"]
    assert grace.delete(f"/v1/comments/{pin['id']}").json()["comments"] == []
    assert grace.post(address, json={**pin, "id": str(uuid.uuid4()), "region": {"kind": "pin", "x": 2, "y": 0}}).status_code == 422  # fmt: skip
    other = some_assets(door)[0]
    assert grace.post(f"/v1/assets/{other.id}/comments", json={**pin, "id": str(uuid.uuid4())}).status_code == 404


def test_two_people_withdraw_what_was_suspended(door: Door) -> None:
    rita, omar = (door.person(who, Role.RIGHTS_MANAGER) for who in ("rita", "omar"))
    with door.session() as session:
        asset = a_released_asset(session, [a_reference(session)])
    headers = {"If-Match": f'"{get(rita, asset)["row_version"]}"'}
    suspended = rita.post(f"/v1/assets/{asset.id}/suspensions", json={"reason": "a claim"}, headers=headers)
    assert suspended.json()["availability"] == "suspended"
    headers = {"If-Match": suspended.headers["etag"]}
    asked = rita.post(
        f"/v1/assets/{asset.id}/proposals", json={"event": "withdraw", "reason": "it holds"}, headers=headers
    )
    assert asked.json()["impact"]["deliveries"]
    confirm = f"/v1/proposals/{asked.json()['id']}/confirmation"
    assert rita.post(confirm).status_code == 403
    assert omar.post(confirm).json()["availability"] == "withdrawn"
    assert omar.post(confirm).status_code == 409


def test_a_producer_sees_what_a_retake_changes_and_queues_it(door: Door, grace: TestClient) -> None:
    (asset,) = some_assets(door)
    pat = door.person("pat", Role.PRODUCER)
    sent_back = say(grace, get(grace, asset), "request changes", reason="closer to the water").json()
    plan = pat.get(f"/v1/assets/{asset.id}/retake").json()
    changes = {c["name"]: c["after"] for c in plan["changes"]}
    assert changes["prompt"] == "bobo on the beach, closer to the water"
    assert (plan["number"], plan["most"]) == (1, 3)
    address, headers = f"/v1/assets/{asset.id}/retake", {"If-Match": f'"{sent_back["row_version"]}"'}
    body = {"sha256": sent_back["current"]["sha256"], "wishes": {"prompt": "a beach", "seed": 9}}
    assert grace.post(address, json=body, headers=headers).status_code == 403
    assert pat.post(address, json={**body, "sha256": a_sha256("another")}, headers=headers).status_code == 412
    assert pat.post(address, json={**body, "wishes": {"scale": 99}}, headers=headers).status_code == 422
    assert pat.post(address, json={**body, "wishes": {"window": [0.9, 0.1]}}, headers=headers).status_code == 422
    queued = pat.post(address, json=body, headers=headers)
    assert (queued.status_code, queued.json()["review"]) == (201, "draft")
    with door.session() as session:
        job = session.get_one(Job, session.get_one(Asset, asset.id).job_key)
        assert (job.state, job.recipe["prompt"], job.recipe["seed"]) == ("queued", "a beach", 9)
    assert pat.post(address, json=body, headers={"If-Match": queued.headers["etag"]}).status_code == 409


# ---------------------------------------------------------------------------- signing in, and what guards it


def test_a_link_signs_a_browser_in_once_and_out_again(door: Door) -> None:
    from asset_store.people import passes

    door.person("grace", Role.REVIEWER)
    with door.session() as session:
        link = passes.make_link(session, "grace", "system")
    browser = door.nobody()
    told = browser.post("/v1/sessions", json={"link": link})
    assert told.json()["actor"] == "grace"
    cookie = told.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert browser.get("/v1/me").json()["csrf"] == told.json()["csrf"]
    assert door.nobody().post("/v1/sessions", json={"link": link}).status_code == 401
    assert browser.delete("/v1/sessions/current").status_code == 403
    assert browser.delete("/v1/sessions/current", headers={CSRF_HEADER: told.json()["csrf"]}).status_code == 204
    assert browser.get("/v1/me").status_code == 401


def test_another_site_s_form_changes_nothing(door: Door, grace: TestClient) -> None:
    """It has the cookie, and not the token that the page has."""
    (asset,) = some_assets(door)
    seen = get(grace, asset)
    for token in ("", "wrong", "é"):
        headers = {CSRF_HEADER: token.encode("latin-1"), "If-Match": b'"1"'}
        assert grace.post(f"/v1/assets/{asset.id}/reopenings", json={"reason": "x"}, headers=headers).status_code == 403
    assert get(grace, asset) == seen


def test_a_cookie_is_not_a_key_and_a_key_no_cookie(door: Door, grace: TestClient) -> None:
    cookie = grace.cookies[COOKIE]
    assert door.nobody(headers={"Authorization": f"Bearer {cookie}"}).get("/v1/me").status_code == 401
    key = door.key("ci", "grace")
    secret = key.headers["Authorization"].removeprefix("Bearer ")
    assert door.nobody(cookies={COOKIE: secret}).get("/v1/me").status_code == 401
    me = key.get("/v1/me").json()
    assert (me["actor"], me["is_person"], me["csrf"]) == ("key:ci of grace", False, None)


def test_every_answer_carries_its_guards(door: Door, grace: TestClient) -> None:
    for answer in (grace.get("/v1/me"), door.nobody().get("/v1/me"), grace.get("/v1/nowhere"), grace.post("/v1/me")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert {"type", "title", "status"} <= answer.json().keys()


def test_who_asks_too_often_waits(door: Door) -> None:
    door.person("grace", Role.VIEWER)
    app = create_app(door.store, calls=Rate(2, 0.001), sign_ins=Rate(1, 0.001))
    key = door.key("ci", "grace")
    busy = TestClient(app, headers=dict(key.headers))
    answers = [busy.get("/v1/me") for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert int(answers[-1].headers["retry-after"]) > 0
    guesses = [TestClient(app).post("/v1/sessions", json={"link": "guess"}).status_code for _ in range(2)]
    assert guesses == [401, 429]


def test_a_bucket_fills_again_with_time() -> None:
    now = [0.0]
    limiter = Limiter(Rate(burst=2, per_s=0.5), clock=lambda: now[0])
    assert [limiter.wait_s("a") for _ in range(3)] == [0, 0, 2]
    assert limiter.wait_s("b") == 0
    now[0] = 2.0
    assert limiter.wait_s("a") == 0
    assert limiter.wait_s("a") == 2
    now[0] = 100.0
    assert [limiter.wait_s("a") for _ in range(3)] == [0, 0, 2]


def test_a_body_that_is_too_large_is_not_read(door: Door, grace: TestClient) -> None:
    assert grace.post("/v1/decisions", content=b"x" * 1_000_001).status_code == 413
    assert grace.post("/v1/decisions", content=iter([b"x"])).status_code == 413


def every(kind: type[OnmodelError]) -> set[type[OnmodelError]]:
    below = {k for k in kind.__subclasses__() if k.__module__ == errors.__name__}
    return below.union(*(every(k) for k in below))


def test_every_error_of_the_store_has_its_status() -> None:
    lacking = {k.__name__ for k in every(OnmodelError) - {StoreError} if not any(m in STATUS for m in k.__mro__)}
    assert lacking == set()
    assert status_of(rules.StaleVersion("picture", "a", "b")) == 412


def test_the_api_and_its_rules_load_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, studio.api.app; print([m for m in ('torch', 'diffusers', 'prefect') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
