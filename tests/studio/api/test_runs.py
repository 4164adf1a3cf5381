"""Character sheets by the API: asked for once, followed, cancelled, within quotas, by who may."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from asset_store.people import accounts
from asset_store.people.permissions import Action
from asset_store.repositories import runs
from asset_store.tables import AuditRow, Role, Run, RunState
from flows.settings import QuotaSettings
from tests.stories import a_character
from tests.studio.api.conftest import Door
from tests.studio.served import served

ASKED: dict[str, Any] = {
    "brand": "bobo",
    "character": "Bobo",
    "views": ["front", "side"],
    "reason": "for the style book",
}


@pytest.fixture
def bobo(door: Door) -> Door:
    with door.session() as session:
        a_character(session)
    return door


def ask(client: TestClient, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer: httpx.Response = client.post("/v1/character-sheets", json={**ASKED, **fields}, headers=headers)
    return answer


def ended(door: Door, run_id: str, **facts: Any) -> None:
    with door.session() as session:
        assert runs.end(session, uuid.UUID(run_id), RunState.SUCCEEDED, **facts)


def test_a_program_asks_for_a_sheet_and_gets_a_run(bobo: Door) -> None:
    bobo.person("olga", Role.PRODUCER)
    key = bobo.key("calendar", "olga", Action.VIEW, Action.PRODUCE)
    answer = ask(key)
    told = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/v1/runs/{told['id']}")
    assert (told["kind"], told["state"], told["pictures"], told["trigger"]) == ("character sheet", "queued", 2, "api")
    assert (told["requested_by"], told["reason"]) == ("key:calendar of olga", "for the style book")
    assert key.get(answer.headers["Location"]).json() == told
    assert [run["id"] for run in key.get("/v1/runs").json()["runs"]] == [told["id"]]


def test_the_same_request_twice_makes_one_sheet_and_another_body_is_refused(bobo: Door) -> None:
    client = bobo.person("olga", Role.PRODUCER)
    first, again = ask(client, "a"), ask(client, "a")
    assert (first.json(), again.headers["Idempotent-Replayed"]) == (again.json(), "true")
    changed = ask(client, "a", seed=9)
    assert (changed.status_code, changed.json()["type"]) == (422, "urn:onmodel:problem:KeyReused")
    assert ask(client, "b").json()["id"] != first.json()["id"]
    with bobo.session() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 2


def test_many_at_once_under_one_key_make_one_sheet(bobo: Door) -> None:
    client = bobo.person("olga", Role.PRODUCER)
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(client, "once"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_days_pictures_are_spent_by_brand_and_by_key(bobo: Door) -> None:
    settings = bobo.store.settings.model_copy(update={"quota": QuotaSettings(brand=5, asker=4)})
    object.__setattr__(bobo.store, "settings", settings)
    bobo.person("olga", Role.PRODUCER)
    one, two = (bobo.key(name, "olga", Action.VIEW, Action.PRODUCE) for name in ("one", "two"))
    assert [ask(one).status_code for _ in range(2)] == [202, 202]
    spent = ask(one, views=["front"])
    assert (spent.status_code, spent.json()["type"]) == (429, "urn:onmodel:problem:QuotaSpent")
    assert 86_000 < int(spent.headers["Retry-After"]) <= 86_400
    assert "key:one of olga" in spent.json()["title"]
    assert "brand bobo" in ask(two).json()["title"]
    assert ask(two, views=["front"]).status_code == 202


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"views": []}, 422), ({"character": "Nobody"}, 404), ({"brand": "none"}, 404), ({"format": "huge"}, 422), ({"more": 1}, 422)],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_leaves_nothing(bobo: Door, fields: dict[str, Any], status: int) -> None:
    answer = ask(bobo.person("olga", Role.PRODUCER), "k", **fields)
    assert answer.status_code == status, answer.text
    with bobo.session() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 0


def test_brands_that_there_are_and_that_one_may_not_see_are_told_alike(bobo: Door) -> None:
    with bobo.session() as session:
        a_character(session, "Zoe", "secret")
    client = bobo.person("olga", Role.PRODUCER, brand="bobo")
    hidden, none = (ask(client, brand=name) for name in ("secret", "nonesuch"))
    assert (hidden.status_code, none.status_code) == (404, 404)
    assert hidden.text.replace("secret", "nonesuch") == none.text
    assert "bobo" not in none.text


def test_who_is_let_in_no_more_follows_no_further(bobo: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.api.runs.KNOWN_FOR_S", 0.0)
    client = bobo.person("olga", Role.PRODUCER)
    bobo.person("ada", Role.ADMIN)
    run = ask(client).json()
    with served(bobo.app) as address, httpx.Client(base_url=address, cookies=dict(client.cookies), timeout=30) as far:
        with far.stream("GET", run["events"]) as answer:
            told = events(answer.iter_lines())
            assert next(told)["data"]["state"] == "queued"
            with bobo.session() as session:
                accounts.disable(session, "olga", "ada")
            assert list(told) == []
        assert bobo.app.state.following["olga"] == 0


def test_so_many_runs_are_followed_at_once_and_no_more(bobo: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.api.runs.MOST_FOLLOWED", 0)
    client = bobo.person("olga", Role.PRODUCER)
    answer = client.get(ask(client).json()["events"])
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "15")


def test_a_run_says_where_prefect_shows_it(bobo: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    pat = bobo.person("pat", Role.PRODUCER)
    run_id = ask(pat).json()["id"]
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert pat.get(f"/v1/runs/{run_id}").json()["flow_run"] is None  # no flow carries it yet
    with bobo.session() as session:
        assert runs.beat(session, uuid.UUID(run_id), flow_run_id="4f2a")
    assert pat.get(f"/v1/runs/{run_id}").json()["flow_run"] == "http://prefect:4200/runs/flow-run/4f2a"
    assert 'href="http://prefect:4200/runs/flow-run/4f2a"' in pat.get(f"/runs/{run_id}").text
    monkeypatch.delenv("PREFECT_API_URL")
    assert "in Prefect" not in pat.get(f"/runs/{run_id}").text


def test_cancelling_is_on_record_and_may_be_said_again(bobo: Door) -> None:
    client = bobo.person("olga", Role.PRODUCER)
    run = ask(client).json()
    address = f"/v1/runs/{run['id']}/cancellation"
    assert [client.post(address).json()["state"] for _ in range(2)] == ["cancelled", "cancelled"]
    with bobo.session() as session:
        assert session.scalars(select(AuditRow.actor).where(AuditRow.action == "cancel run")).all() == ["olga"]
    other = ask(client).json()
    ended(bobo, other["id"], result={**RESULT})
    over = client.post(f"/v1/runs/{other['id']}/cancellation")
    assert (over.status_code, over.json()["type"]) == (409, "urn:onmodel:problem:RunOver")


CELL = {"section": "views", "label": "front", "prompt": "a mascot", "asset": None, "version": None, "sha256": None, "tries": 2,
        "review": None, "identity": None, "failed": ["identity"], "on_model": False, "likeness": None}  # fmt: skip
RESULT: dict[str, Any] = {
    "brand": "bobo",
    "character": "Bobo",
    "consistency": 0.8,
    "palette": ["#ff0000"],
    "cells": [CELL],
    "files": {},
}


def test_the_sheet_is_in_its_run_and_its_files_are_got(bobo: Door) -> None:
    client = bobo.person("olga", Role.PRODUCER)
    run = ask(client).json()
    sha256 = bobo.store.blobs.put(b"%PDF-1.7", "application/pdf")
    ended(bobo, run["id"], result={**RESULT, "files": {"pdf": sha256}}, problem="off model or not made: front")
    told = client.get(f"/v1/runs/{run['id']}").json()
    assert (told["state"], told["problem"], told["sheet"]["consistency"]) == (
        "succeeded",
        "off model or not made: front",
        0.8,
    )
    (cell,) = told["sheet"]["cells"]
    assert (cell["tries"], cell["failed"]) == (2, ["identity"])
    pdf = client.get(told["sheet"]["files"]["pdf"])
    assert (pdf.content, pdf.headers["content-type"], pdf.headers["etag"]) == (
        b"%PDF-1.7",
        "application/pdf",
        f'"{sha256}"',
    )
    for kind in ("png", "exe"):
        assert client.get(f"/v1/character-sheets/{run['id']}/sheet.{kind}").status_code == 404


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    told: dict[str, Any] = {}
    for line in lines:
        if not line:
            if told:
                yield told
            told = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            told[name] = json.loads(value) if name == "data" else value


def test_progress_is_told_as_it_comes_and_goes_on_after_a_break(bobo: Door) -> None:
    client = bobo.person("olga", Role.PRODUCER)
    run = ask(client).json()
    with served(bobo.app) as address, httpx.Client(base_url=address, cookies=dict(client.cookies), timeout=30) as far:
        with far.stream("GET", run["events"]) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            told = events(answer.iter_lines())
            assert next(told)["data"]["state"] == "queued"
            with bobo.session() as session:
                assert runs.beat(session, uuid.UUID(run["id"]), phase="making", done=1, total=2)
            second = next(told)
            assert (second["event"], second["data"]["done"]) == ("progress", 1)
        began = time.monotonic()
        threading.Timer(0.3, lambda: ended(bobo, run["id"], result=RESULT)).start()
        with far.stream("GET", run["events"], headers={"Last-Event-ID": second["id"]}) as answer:
            rest = list(events(answer.iter_lines()))
        assert time.monotonic() - began > 0.25
        assert [(e["event"], e["data"]["state"]) for e in rest] == [("end", "succeeded")]
        with far.stream("GET", run["events"]) as answer:  # of one that is over
            assert [e["event"] for e in events(answer.iter_lines())] == ["end"]
