"""Campaigns by the API: started once from a brief, scheduled, paused, ended, by who may."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from asset_store.people import accounts
from asset_store.people.permissions import Action
from asset_store.repositories import runs
from asset_store.tables import AuditRow, Role, Run, RunState
from flows.scheduling import act, look
from flows.settings import QuotaSettings
from tests.stories import a_campaign, a_character
from tests.studio.api.conftest import Door

FREE = QuotaSettings(brand=None, asker=None)
BRIEF = """\
campaign: spring
brand: bobo
variables: {product: [lamp, desk]}
shots:
  - {name: a, character: Bobo, prompt: "a mascot with a {product}", variants: 2}
"""
WEEKLY = BRIEF + "schedule: {cron: 0 9 * * mon, time_zone: Europe/Berlin}\nbudget: {pictures: 40, per: month}\n"


@pytest.fixture
def bobo(door: Door) -> Door:
    with door.session() as session:
        a_character(session)
    return door


def ask(client: TestClient, brief: str = BRIEF, key: str | None = None, where: str = "campaigns") -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer: httpx.Response = client.post(f"/v1/{where}", json={"brief": brief, "reason": "spring"}, headers=headers)
    return answer


def test_a_program_starts_a_campaign_and_gets_a_run(bobo: Door) -> None:
    bobo.person("olga", Role.PRODUCER)
    key = bobo.key("calendar", "olga", Action.VIEW, Action.PRODUCE)
    answer = ask(key)
    told = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/v1/runs/{told['id']}")
    assert (told["kind"], told["state"], told["pictures"], told["trigger"]) == ("campaign", "queued", 4, "api")
    assert (told["requested_by"], told["reason"], told["report"]) == ("key:calendar of olga", "spring", None)
    assert key.get(answer.headers["Location"]).json() == told


def test_the_same_request_twice_starts_one_campaign_and_another_under_its_key_is_refused(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    first, again = ask(olga, key="one").json(), ask(olga, key="one")
    assert again.json() == first
    assert ask(olga, BRIEF.replace("variants: 2", "variants: 3"), key="one").status_code == 422
    with bobo.session() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 1


def test_a_brief_with_mistakes_is_refused_with_each_by_its_line(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    answer = ask(olga, BRIEF.replace("{product}", "{produkt}").replace("variants: 2", "variants: 0"))
    assert answer.status_code == 422
    told = [(p["line"], p["where"]) for p in answer.json()["problems"]]
    assert told == [(5, "shots[0].variants"), (5, "shots[0].prompt")]
    assert ask(olga, "- nonsense").status_code == 422
    assert ask(olga, BRIEF.replace("Bobo", "Nobody")).status_code == 404
    with bobo.session() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 0


def test_of_a_brand_that_they_may_not_see_it_is_as_if_there_were_none(bobo: Door) -> None:
    stranger, viewer = bobo.person("sam", Role.PRODUCER, brand="bobo"), bobo.person("vera", Role.VIEWER)
    hidden = BRIEF.replace("brand: bobo", "brand: other")
    with bobo.session() as session:
        a_character(session, brand="other")
    assert ask(stranger, hidden).json()["title"] == ask(stranger, hidden.replace("other", "none")).json()["title"].replace("none", "other")  # fmt: skip
    assert (ask(viewer).status_code, ask(viewer, WEEKLY, where="schedules").status_code) == (403, 403)


def test_more_than_the_days_quota_is_refused_until_when(bobo: Door) -> None:
    object.__setattr__(bobo.store.settings, "quota", QuotaSettings(brand=3, asker=None))
    answer = ask(bobo.person("olga", Role.PRODUCER))
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (429, True)


def test_a_campaign_tells_its_runs_and_what_they_used(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    told = ask(olga).json()
    with bobo.session() as session:
        campaign = a_campaign(session)
        assert runs.beat(session, told["id"], campaign_id=campaign.id, made_pictures=3, gpu_s=1.5)
        campaign_id = campaign.id
    page = olga.get(f"/v1/campaigns/{campaign_id}").json()
    assert (page["made_pictures"], page["gpu_s"], [r["id"] for r in page["runs"]]) == (3, 1.5, [told["id"]])


# ---------------------------------------------------------------------------- by the calendar


def scheduled(client: TestClient, brief: str = WEEKLY) -> dict[str, Any]:
    answer = ask(client, brief, where="schedules")
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_brief_is_scheduled_seen_paused_resumed_and_ended(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    told = scheduled(olga)
    assert told["when"] == "at 09:00 on Monday, Europe/Berlin"
    assert datetime.fromisoformat(told["next_at"]) > datetime.now(UTC)
    assert (told["budget"], told["used_pictures"]) == ("40 pictures a month", 0)
    address = f"/v1/schedules/{told['id']}"
    assert [s["id"] for s in olga.get("/v1/schedules").json()["schedules"]] == [told["id"]]
    assert olga.post(f"{address}/pause").json()["is_paused"]
    assert not olga.post(f"{address}/resumption").json()["is_paused"]
    assert olga.delete(address).json()["has_ended"]
    assert olga.get("/v1/schedules").json()["schedules"] == []
    with bobo.session() as session:
        said = session.scalars(select(AuditRow.action).where(AuditRow.subject == f"schedule {told['id']}")).all()
    assert sorted(said) == ["end schedule", "pause schedule", "resume schedule", "schedule campaign"]


def test_what_a_program_scheduled_stops_when_its_owner_may_no_more(bobo: Door) -> None:
    bobo.person("olga", Role.PRODUCER)
    told = scheduled(bobo.key("calendar", "olga", Action.VIEW, Action.PRODUCE))
    due_at = datetime.fromisoformat(told["next_at"])
    with bobo.session() as session:
        accounts.revoke(session, "olga", Role.PRODUCER, "system")
    assert act(bobo.store, uuid.UUID(told["id"]), due_at) == []
    month = due_at.strftime("%Y-%m")
    days = bobo.person("vera", Role.VIEWER).get(f"/v1/schedules/{told['id']}/calendar?month={month}").json()["days"]
    was = next(d for d in days if d["runs"])["runs"][0]
    assert (was["state"], was["problem"]) == ("skipped", "key:calendar of olga may ask for campaigns of bobo no longer")


def test_an_agent_changes_its_own_schedules_alone(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    hers = scheduled(olga)
    agent = bobo.key("planner", "olga", Action.VIEW, Action.PRODUCE, agent=True)
    address = f"/v1/schedules/{hers['id']}"
    refused = [agent.post(f"{address}/pause"), agent.post(f"{address}/resumption"), agent.delete(address),
               ask(agent, WEEKLY, where="schedules")]  # fmt: skip
    assert {answer.status_code for answer in refused} == {403}
    own = scheduled(agent, WEEKLY.replace("campaign: spring", "campaign: own"))
    assert own["requested_by"] == "agent:planner of olga"
    assert agent.delete(f"/v1/schedules/{own['id']}").json()["has_ended"]


def test_the_calendar_has_the_times_to_come_of_a_month(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    told = scheduled(olga, WEEKLY.replace("0 9 * * mon", "0 9 1 * *"))
    month = (datetime.now(UTC) + timedelta(days=62)).strftime("%Y-%m")
    days = olga.get(f"/v1/schedules/{told['id']}/calendar?month={month}").json()["days"]
    assert [(d["day"], len(d["to_come"])) for d in days] == [(f"{month}-01", 1)]
    assert olga.get(f"/v1/schedules/{told['id']}/calendar?month=2026-13").status_code == 422


def test_a_skipped_run_is_over(bobo: Door) -> None:
    olga = bobo.person("olga", Role.PRODUCER)
    told = scheduled(olga, WEEKLY.replace("}\nbudget", ", missed: none}\nbudget"))
    with bobo.session() as session:
        look(session, uuid.UUID(told["id"]), datetime.fromisoformat(told["next_at"]) + timedelta(days=1), FREE)
        run = session.scalars(select(Run)).one()
        assert run.state is RunState.SKIPPED
        run_id = run.id
    assert olga.post(f"/v1/runs/{run_id}/cancellation").status_code == 409
