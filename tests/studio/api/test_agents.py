"""Agents at the API: they ask, and whatever decides is refused to them by every route that there is."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update

from asset_store.database import Database
from asset_store.people.permissions import BY_AGENT, Action
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import ApiKey, Asset, AuditRow, Decision, Role
from tests.stories import a_campaign, a_character, an_approved_asset, an_asset_in_review, picture_of
from tests.studio.api.conftest import Door
from tests.studio.api.test_matrix import CALLS, PEOPLE_ONLY, places, refused, send  # noqa: F401  (a fixture)
from tests.studio.api.test_runs import ask
from tests.studio_home import Home

ITS_OWN_ALONE = ("/cancellation", "/pause", "/resumption", "/schedules/{schedule_id}")


@pytest.fixture
def agent(door: Door) -> TestClient:
    """olga's, who may everything; somebody wrote all scopes there are into the database."""
    door.person("olga", *Role)
    client = door.key("planner", "olga", agent=True)
    with door.session() as session:
        session.execute(update(ApiKey).values(scopes=[action.value for action in Action]))
    return client


def test_every_route_that_decides_is_refused_to_an_agent(
    door: Door,
    agent: TestClient,
    places: dict[str, str],  # noqa: F811
) -> None:
    tried = 0
    for (method, path), call in CALLS.items():
        if path.endswith(ITS_OWN_ALONE) and method != "GET":
            continue  # of what it asked for itself alone: below, and in test_campaigns.py
        if isinstance(call.needs, Action) or call.needs == PEOPLE_ONLY:
            told = refused(send(agent, method, path, call, places))
            never = call.needs == PEOPLE_ONLY or call.needs not in BY_AGENT
            assert (told == "Forbidden") == never, (method, path)
            tried += never
    assert tried > 25
    with door.session() as session:
        did = set(session.scalars(select(AuditRow.action).where(AuditRow.actor == "agent:planner of olga")))
    assert did <= {"assign", "start run", "cancel run", "comment", "schedule campaign"}, did


def test_an_agent_that_tries_to_approve_waive_release_and_take_back_changes_nothing(
    door: Door, agent: TestClient
) -> None:
    with door.session() as session:
        waiting, approved = an_asset_in_review(session, a_campaign(session)), an_approved_asset(session)
        ids, sha256, version = (waiting.id, approved.id), picture_of(waiting), waiting.row_version
    decision = {"verdict": "approve", "sha256": sha256}
    attacks: list[tuple[str, dict[str, Any]]] = [
        (f"/v1/assets/{ids[0]}/decisions", decision),
        (f"/v1/assets/{ids[0]}/decisions", {**decision, "stage": "brand"}),
        (f"/v1/assets/{ids[0]}/waivers", {"reason": "looks right"}),
        (f"/v1/assets/{ids[0]}/take-backs", {}),
        (f"/v1/assets/{ids[1]}/reopenings", {"reason": "again"}),
        (f"/v1/assets/{ids[1]}/releases", {"place": "web"}),
        (f"/v1/assets/{ids[1]}/suspensions", {"reason": "mine"}),
        (f"/v1/assets/{ids[1]}/proposals", {"event": "withdraw", "reason": "mine"}),
        ("/v1/shares", {"assets": [str(ids[0])], "title": "for everybody"}),
        ("/v1/people", {"handle": "mallory"}),
        ("/v1/people/olga/links", {}),
        ("/v1/people/olga/roles", {"role": "admin"}),
        ("/v1/keys", {"name": "more", "owner": "olga", "scopes": ["release"]}),
        ("/v1/subscriptions", {"name": "leak", "target": "https://example.test/", "format": "json"}),
    ]
    for path, body in attacks:
        for headers in ({"If-Match": f'"{version}"'}, {"If-Match": '"1"', "Idempotency-Key": uuid.uuid4().hex}):
            assert agent.post(path, json=body, headers=headers).status_code == 403, path
    bulk = {"items": [{**decision, "asset_id": str(ids[0]), "row_version": version}]}
    (item,) = agent.post("/v1/decisions", json=bulk).json()["results"]
    assert (item["asset"], item["problem"]["type"]) == (None, "urn:onmodel:problem:Forbidden")
    with door.session() as session:
        told = [(session.get_one(Asset, id_).review, session.get_one(Asset, id_).availability) for id_ in ids]
        by_agent = session.scalars(select(Decision.by).where(Decision.by.startswith("agent:"))).all()
    assert told == [(ReviewState.IN_REVIEW, Availability.UNRELEASED), (ReviewState.APPROVED, Availability.UNRELEASED)]
    assert by_agent == []


def test_an_agent_s_run_says_so_and_another_s_is_not_its_to_cancel(door: Door, agent: TestClient) -> None:
    with door.session() as session:
        a_character(session)
    mine, others = ask(agent).json(), ask(door.person("olga", *Role)).json()
    assert (mine["requested_by"], mine["trigger"]) == ("agent:planner of olga", "agent")
    assert agent.post(f"/v1/runs/{others['id']}/cancellation").status_code == 403
    assert agent.post(f"/v1/runs/{mine['id']}/cancellation").json()["state"] == "cancelled"
    with door.session() as session:
        rows = session.execute(select(AuditRow.actor, AuditRow.action).where(AuditRow.subject == f"run {mine['id']}"))
        assert {tuple(row) for row in rows} == {
            ("agent:planner of olga", "start run"),
            ("agent:planner of olga", "cancel run"),
        }


def test_nobody_asks_an_agent_to_decide(door: Door, agent: TestClient) -> None:
    with door.session() as session:
        asset_id = an_asset_in_review(session, a_campaign(session)).id
    body = {"stage": "brand", "person": "agent:planner of olga"}
    assert agent.post(f"/v1/assets/{asset_id}/assignments", json=body).status_code in (403, 404)


@pytest.mark.parametrize("scope", sorted(set(Action) - BY_AGENT))
def test_no_agent_s_key_is_made_with_more(door: Door, scope: Action) -> None:
    admin = door.person("olga", *Role)
    asked = {"name": "planner", "owner": "olga", "scopes": ["view", scope.value], "agent": True}
    answer = admin.post("/v1/keys", json=asked)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:onmodel:problem:AccountRefused")
    made = admin.post("/v1/keys", json={**asked, "scopes": sorted(BY_AGENT)}).json()
    assert (made["agent"], admin.get("/v1/keys").json()["keys"][0]["agent"]) == (True, True)
    me = door.nobody(headers={"Authorization": f"Bearer {made['secret']}"}).get("/v1/me").json()
    assert (me["actor"], me["is_agent"], me["is_person"]) == ("agent:planner of olga", True, False)
    assert set(me["actions"]["*"]) == {a.value for a in BY_AGENT}


def test_the_terminal_makes_an_agent_s_key_and_refuses_more(home: Home) -> None:
    assert home.onmodel("people", "add", "pat").code == 0
    command_ = ("keys", "make", "planner", "--owner", "pat", "--agent", "--scope", "view")
    refusal = home.onmodel(*command_, "--scope", "release")
    assert (refusal.code, "no agent may release" in refusal.err) == (1, True)
    made = home.onmodel(*command_, "--scope", "produce", "--json").json
    assert (made["agent"], made["scopes"]) == (True, ["produce", "view"])


def test_an_agent_s_key_is_revoked_where_an_earlier_release_would_take_it_for_any_program_s(
    empty_database: Database,
) -> None:
    empty_database.migrate()
    with empty_database.direct() as connection:
        connection.execute(b"INSERT INTO people (id, handle, name) VALUES (gen_random_uuid(), 'pat', 'Pat')")
        for name, kind in ((b"planner", b"true"), (b"calendar", b"false")):
            connection.execute(
                b"INSERT INTO api_keys (id, name, sha256, owner_id, scopes, expires_at, agent) "
                b"SELECT gen_random_uuid(), '"
                + name
                + b"', '"
                + name
                + b"', id, '{view}', now(), "
                + kind
                + b" FROM people"
            )
    with empty_database._migrating() as config:
        command.downgrade(config, "0010")
    with empty_database.transaction() as session:
        revoked = session.scalars(text("SELECT name FROM api_keys WHERE revoked_at IS NOT NULL")).all()
    assert revoked == ["planner"]
