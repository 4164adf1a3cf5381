"""Role × endpoint × brand: every endpoint there is, called by everybody."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from asset_store.people import accounts, shares
from asset_store.people.permissions import ALLOWED, NEVER_BY_KEY, Action
from asset_store.repositories import runs
from asset_store.repositories.runs import Quota, Wanted
from asset_store.reviewing import comments
from asset_store.tables import Asset, Role, RunKind, RunState
from flows.scheduling import schedule_campaign
from flows.starting import BriefText
from tests.stories import a_brand, a_campaign, a_character, a_reference, a_released_asset, an_asset_in_review
from tests.studio.api.conftest import Door

OPEN, SIGNED_IN, PEOPLE_ONLY = "open to all", "signed in", "people, and no key"
ZERO = "0" * 64
REASON: dict[str, Any] = {"reason": "why"}


@dataclass(frozen=True)
class Call:
    """How an endpoint is called, what it takes, and whether that is of a brand (else of all)."""

    needs: Action | str
    body: dict[str, Any] | None = None
    query: str = ""
    of_brand: bool = True


BRIEF = "campaign: one\nbrand: bobo\nshots:\n  - {name: a, character: Bobo, prompt: a mascot}\n"
CALLS: dict[tuple[str, str], Call] = {
    ("GET", "/v1/assets"): Call(SIGNED_IN),
    ("GET", "/v1/assets/{asset_id}"): Call(Action.VIEW),
    ("GET", "/v1/assets/{asset_id}/lineage"): Call(Action.VIEW),
    ("GET", "/v1/assets/{asset_id}/similar"): Call(Action.VIEW),
    ("GET", "/v1/references/{reference_id}/similar"): Call(Action.VIEW),
    ("GET", "/v1/filters"): Call(SIGNED_IN),
    ("PUT", "/v1/filters/{name}"): Call(PEOPLE_ONLY, {"filters": {"review": "in review"}}),
    ("DELETE", "/v1/filters/{name}"): Call(PEOPLE_ONLY),
    ("GET", "/v1/assets/{asset_id}/pictures/{sha256}"): Call(Action.VIEW),
    ("GET", "/v1/assets/{asset_id}/thumbnails/{sha256}"): Call(Action.VIEW),
    ("GET", "/v1/characters"): Call(SIGNED_IN),
    ("GET", "/v1/references"): Call(SIGNED_IN),
    ("GET", "/v1/references/search"): Call(SIGNED_IN, query="?text=waving"),
    ("POST", "/v1/references/search"): Call(SIGNED_IN),
    ("GET", "/v1/references/{reference_id}/picture"): Call(Action.VIEW),
    ("GET", "/v1/references/{reference_id}/thumbnail"): Call(Action.VIEW),
    ("POST", "/v1/assets/{asset_id}/decisions"): Call(Action.DECIDE, {"verdict": "approve", "sha256": ZERO}),
    ("POST", "/v1/decisions"): Call(SIGNED_IN, {"items": [{"asset_id": str(uuid.uuid4()), "row_version": 1, "verdict": "approve", "sha256": ZERO}]}),
    ("POST", "/v1/assets/{asset_id}/waivers"): Call(Action.WAIVE, REASON),
    ("POST", "/v1/assets/{asset_id}/take-backs"): Call(Action.DECIDE),
    ("POST", "/v1/assets/{asset_id}/reopenings"): Call(Action.REOPEN, REASON),
    ("GET", "/v1/assets/{asset_id}/comments"): Call(Action.VIEW),
    ("POST", "/v1/assets/{asset_id}/comments"): Call(Action.COMMENT, {"id": str(uuid.uuid4()), "version_id": str(uuid.uuid4()), "text": "hm"}),
    ("PUT", "/v1/comments/{comment_id}"): Call(Action.COMMENT, {"id": str(uuid.uuid4()), "text": "hm"}),
    ("DELETE", "/v1/comments/{comment_id}"): Call(Action.COMMENT),
    ("GET", "/v1/assets/{asset_id}/assignments"): Call(Action.VIEW),
    ("POST", "/v1/assets/{asset_id}/assignments"): Call(Action.ASSIGN, {"stage": "brand", "person": "target"}),
    ("DELETE", "/v1/assets/{asset_id}/assignments"): Call(Action.ASSIGN, query="?stage=brand&person=nobody"),
    ("GET", "/v1/assets/{asset_id}/retake"): Call(Action.PRODUCE),
    ("POST", "/v1/assets/{asset_id}/retake"): Call(Action.PRODUCE, {"sha256": ZERO}),
    ("GET", "/v1/places"): Call(SIGNED_IN),
    ("POST", "/v1/assets/{asset_id}/releases"): Call(Action.RELEASE, {"place": "web"}),
    ("POST", "/v1/assets/{asset_id}/suspensions"): Call(Action.SUSPEND, REASON),
    ("POST", "/v1/assets/{asset_id}/proposals"): Call(Action.REINSTATE, {"event": "withdraw", **REASON}),
    ("POST", "/v1/proposals/{proposal_id}/confirmation"): Call(Action.REINSTATE),
    ("POST", "/v1/proposals/{proposal_id}/refusal"): Call(Action.REINSTATE),
    ("POST", "/v1/references/{reference_id}/recall"): Call(Action.RECALL, {"reason": " "}),
    ("GET", "/v1/shares"): Call(SIGNED_IN),
    ("POST", "/v1/shares"): Call(Action.SHARE, {"assets": ["{asset_id}"], "title": "for the agency"}),
    ("DELETE", "/v1/shares/{share_id}"): Call(Action.SHARE),
    ("GET", "/v1/campaigns"): Call(SIGNED_IN),
    ("POST", "/v1/campaigns"): Call(Action.PRODUCE, {"brief": BRIEF}),
    ("GET", "/v1/campaigns/{campaign_id}"): Call(Action.VIEW),
    ("GET", "/v1/schedules"): Call(SIGNED_IN),
    ("POST", "/v1/schedules"): Call(Action.PRODUCE, {"brief": BRIEF + "schedule: {cron: 0 9 * * mon}\n"}),
    ("GET", "/v1/schedules/{schedule_id}"): Call(Action.VIEW),
    ("GET", "/v1/schedules/{schedule_id}/calendar"): Call(Action.VIEW, query="?month=2026-12"),
    ("POST", "/v1/schedules/{schedule_id}/pause"): Call(Action.PRODUCE),
    ("POST", "/v1/schedules/{schedule_id}/resumption"): Call(Action.PRODUCE),
    ("DELETE", "/v1/schedules/{schedule_id}"): Call(Action.PRODUCE),
    ("POST", "/v1/character-sheets"): Call(Action.PRODUCE, {"brand": "bobo", "character": "Bobo"}),
    ("GET", "/v1/character-sheets/{run_id}/sheet.{kind}"): Call(Action.VIEW),
    ("GET", "/v1/runs"): Call(SIGNED_IN),
    ("GET", "/v1/runs/{run_id}"): Call(Action.VIEW),
    ("GET", "/v1/runs/{run_id}/events"): Call(Action.VIEW),
    ("POST", "/v1/runs/{run_id}/cancellation"): Call(Action.PRODUCE),
    ("POST", "/v1/sessions"): Call(OPEN, {"link": "none"}),
    ("DELETE", "/v1/sessions/current"): Call(SIGNED_IN),
    ("DELETE", "/v1/sessions"): Call(PEOPLE_ONLY),
    ("GET", "/v1/me"): Call(SIGNED_IN),
    ("GET", "/v1/people"): Call(Action.ADMINISTER, of_brand=False),
    ("POST", "/v1/people"): Call(Action.ADMINISTER, {"handle": "somebody"}, of_brand=False),
    ("POST", "/v1/people/{handle}/roles"): Call(Action.ADMINISTER, {"role": "viewer"}, of_brand=False),
    ("DELETE", "/v1/people/{handle}/roles"): Call(Action.ADMINISTER, query="?role=producer", of_brand=False),
    ("POST", "/v1/people/{handle}/links"): Call(Action.ADMINISTER, of_brand=False),
    ("PUT", "/v1/people/{handle}/disabled"): Call(Action.ADMINISTER, of_brand=False),
    ("DELETE", "/v1/people/{handle}/disabled"): Call(Action.ADMINISTER, of_brand=False),
    ("GET", "/v1/keys"): Call(SIGNED_IN),
    ("POST", "/v1/keys"): Call(Action.ADMINISTER, {"name": "n", "owner": "target", "scopes": ["view"]}, of_brand=False),
    ("DELETE", "/v1/keys/{name}"): Call(Action.ADMINISTER, of_brand=False),
    ("GET", "/v1/subscriptions"): Call(Action.ADMINISTER, of_brand=False),
    ("POST", "/v1/subscriptions"): Call(Action.ADMINISTER, {"name": "n", "target": "https://a.example/"}, of_brand=False),
    ("DELETE", "/v1/subscriptions/{name}"): Call(Action.ADMINISTER, of_brand=False),
    ("GET", "/v1/audit"): Call(Action.AUDIT, of_brand=False),
}  # fmt: skip
PEOPLE = [(role, brand) for role in Role for brand in ("bobo", "other", None)]


@pytest.fixture
def places(door: Door) -> dict[str, str]:
    """Ids of what there is of the brand bobo."""
    from asset_store.reviewing.states import AvailabilityEvent
    from asset_store.rights import availability

    with door.session() as session:
        a_brand(session, "other")
        asset: Asset = an_asset_in_review(session, a_campaign(session))
        assert asset.current is not None
        said = comments.comment(session, asset.current.id, "somebody else", "three ears")
        reference = a_reference(session)
        released = a_released_asset(session, [reference])
        availability.suspend(session, released.id, "system", "a claim")
        asked = availability.propose(session, released.id, AvailabilityEvent.WITHDRAW, "somebody else", "a claim")
        link, _ = shares.share(session, [asset.id], "for the agency", timedelta(days=1), "somebody else")
        accounts.add_person(session, "target", "Target", "system")
        accounts.add_person(session, "ada", "Ada", "system")
        accounts.grant(session, "ada", Role.ADMIN, "system")
        a_character(session)
        run = runs.begin(session, Wanted(RunKind.SHEET, a_brand(session), {}, 1, "ada", "", "api"), Quota())
        sheet = {
            "brand": "bobo",
            "character": "Bobo",
            "consistency": None,
            "palette": [],
            "cells": [],
            "files": {"png": ZERO},
        }
        runs.end(session, run.id, RunState.SUCCEEDED, result=sheet)
        weekly = BriefText(BRIEF.replace("one", "weekly") + "schedule: {cron: 0 9 * * mon}\n")
        schedule = schedule_campaign(session, weekly, datetime.now(UTC), by="ada")
        return {
            "schedule_id": str(schedule.id), "campaign_id": str(asset.campaign_id),
            "run_id": str(run.id), "kind": "png", "asset_id": str(asset.id), "sha256": asset.current.sha256, "comment_id": str(said.id),
            "proposal_id": str(asked.id), "reference_id": str(reference.id), "handle": "target", "name": "none", "share_id": str(link.id),
        }  # fmt: skip


def routes(door: Door) -> set[tuple[str, str]]:
    """What the OpenAPI document has, which is all that there is."""
    return {(m.upper(), path) for path, methods in door.app.openapi()["paths"].items() for m in methods}


def send(client: TestClient, method: str, path: str, call: Call, places: dict[str, str]) -> Any:
    headers = {"If-Match": '"0"'}
    body = call.body
    if body is not None and "assets" in body:
        body = {**body, "assets": [places["asset_id"]]}
    return client.request(method, path.format(**places) + call.query, json=body, headers=headers)


def refused(answer: Any) -> str | None:
    """Which refusal of who asks it is, not of what they ask."""
    kind = answer.json().get("type", "").rpartition(":")[2] if answer.content and answer.status_code >= 400 else ""
    return kind if kind in ("NotSignedIn", "Forbidden") else "hidden" if answer.status_code == 404 else None


def test_the_matrix_has_every_endpoint(door: Door) -> None:
    assert routes(door) == set(CALLS)
    listed = {
        r.path.replace(":path", "") for r in door.app.routes if isinstance(r, APIRoute) and r.path.startswith("/v1")
    }
    assert listed <= {path for _, path in CALLS}


@pytest.mark.parametrize(("role", "brand"), PEOPLE)
def test_everybody_may_what_their_role_says_for_their_brand(
    door: Door, places: dict[str, str], role: Role, brand: str | None
) -> None:
    own, client = brand in ("bobo", None), door.person("grace", role, brand=brand)
    for (method, path), call in CALLS.items():
        if path.startswith("/v1/sessions"):
            continue  # tested where signing in and out is
        answer = send(client, method, path, call, places)
        assert answer.status_code < 500 or answer.json()["type"].endswith("BlobMissing"), (method, path, answer.text)
        if not isinstance(call.needs, Action):
            assert refused(answer) is None, (method, path, answer.text)
            continue
        may = call.needs in ALLOWED[role] and (own if call.of_brand else brand is None)
        told = refused(answer)
        if may:
            assert told != "Forbidden", (method, path, answer.text)
            if call.of_brand and "nobody" not in call.query and "version_id" not in (call.body or {}):
                assert told is None, (method, path, answer.text)
        elif call.of_brand and not own:
            assert told == "hidden", (method, path, answer.text)
        else:
            assert told == "Forbidden", (method, path, answer.text)


def test_nobody_and_strangers_get_no_further_than_the_door(door: Door, places: dict[str, str]) -> None:
    door.person("stranger")
    for (method, path), call in CALLS.items():
        if call.needs == OPEN:
            continue
        assert send(door.nobody(), method, path, call, places).status_code == 401, (method, path)
        for wrong in ("Bearer onm_wrong", "Basic YTpi", "Bearer", "nonsense"):
            client = door.nobody(headers={"Authorization": wrong})
            assert send(client, method, path, call, places).status_code == 401, (method, path, wrong)
        if isinstance(call.needs, Action):
            told = refused(send(door.person("stranger"), method, path, call, places))
            assert told == ("hidden" if call.of_brand else "Forbidden"), (method, path)


def test_a_key_never_does_what_only_people_do(door: Door, places: dict[str, str]) -> None:
    door.person("olga", *Role)
    key = door.key("everything", "olga")
    for (method, path), call in CALLS.items():
        if isinstance(call.needs, Action) or call.needs == PEOPLE_ONLY:
            told = refused(send(key, method, path, call, places))
            never = call.needs == PEOPLE_ONLY or call.needs in NEVER_BY_KEY
            assert (told == "Forbidden") == never, (method, path)


def test_a_key_of_another_brand_sees_nothing(door: Door, places: dict[str, str]) -> None:
    door.person("olga", *Role)
    key = door.key("other", "olga", brand="other")
    for (method, path), call in CALLS.items():
        if isinstance(call.needs, Action) and call.of_brand:
            assert refused(send(key, method, path, call, places)) == "hidden", (method, path)
    assert key.get("/v1/assets").json()["assets"] == []
    assert key.get("/v1/campaigns").json()["campaigns"] == []
