"""deploy/automations.yaml on a real Prefect server: who is told of what failed, and what was lost begins again."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running
from pydantic import SecretStr

from flows.automations import apply, read
from flows.deployments import deployments
from flows.settings import PrefectSettings, Settings, TellingSettings, load_settings
from tests.prefect_server import PrefectServer


class Chat:
    """An HTTP server that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                chat.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def forgotten(prefect: PrefectServer) -> Iterator[None]:
    """No automation outlives its test: it would act on the runs of others."""
    yield

    async def forget() -> None:
        async with get_client() as client:
            for automation in await client.read_automations():
                await client.delete_automation(automation.id)

    asyncio.run(forget())


def settings(chat: Chat | None = None) -> Settings:
    alerts = None if chat is None else SecretStr(chat.url)
    return Settings(prefect=PrefectSettings(alerts_url=alerts), telling=TellingSettings(allow_private=True))


def applied(chat: Chat | None = None, **within: float) -> dict[str, list[str]]:
    automations = copy.deepcopy(read())
    for automation in automations:
        automation["trigger"]["within"] = within.get(
            automation["name"].replace("-", "_"), automation["trigger"]["within"]
        )
    return asyncio.run(apply(settings(chat), automations))


def eventually(seen: Callable[[], bool], within_s: float = 60) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if seen():
            return True
        time.sleep(0.25)
    return False


def state_of(prefect: PrefectServer, run_id: uuid.UUID) -> tuple[str, str]:
    (run,) = prefect.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [str(run_id)]}}})
    return run["state"]["type"], run["state"]["name"]


def test_they_are_made_once_and_changed_from_then_on(prefect: PrefectServer, chat: Chat) -> None:
    names = ["onmodel-lost", "onmodel-again"]
    assert applied() == {"made": names, "changed": [], "left out": ["onmodel-alert"]}
    assert applied(chat) == {"made": ["onmodel-alert"], "changed": names, "left out": []}
    assert sorted(a["name"] for a in prefect.ask("automations/filter")) == sorted(["onmodel-alert", *names])


def test_a_run_that_failed_is_told_of_and_one_that_is_not_ours_is_not(prefect: PrefectServer, chat: Chat) -> None:
    applied(chat)

    @flow(name="fails", flow_run_name="the ninth")
    def fails() -> None:
        raise ValueError('the "disk" is full')

    with pytest.raises(ValueError, match="disk"):
        fails()
    with tags("onmodel"), pytest.raises(ValueError, match="disk"):
        fails()
    # The server may still be telling of what failed in other tests of this process before.
    assert eventually(lambda: any("the ninth" in told["text"] for told in chat.told))
    time.sleep(2)
    (told,) = (told for told in chat.told if "the ninth" in told["text"])
    assert told["text"].startswith("fails / the ninth: Failed. ")
    assert 'the "disk" is full' in told["text"]


def test_a_run_whose_heartbeats_stopped_is_lost_told_of_and_begun_again(prefect: PrefectServer, chat: Chat) -> None:
    applied(chat, onmodel_lost=10)

    served = next(d for d in deployments(load_settings()) if d.flow_name == "sweep")
    id_ = served.apply()

    async def begun() -> uuid.UUID:
        """A run of the deployment, taken up by a worker that says no more."""
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(id_, tags=["onmodel"])
            await client.set_flow_run_state(run.id, Running(), force=True)
            return run.id

    run_id = asyncio.run(begun())
    emit_event(
        "prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
        related=[{"prefect.resource.id": "prefect.tag.onmodel", "prefect.resource.role": "tag"}],
    )  # fmt: skip
    assert state_of(prefect, run_id) == ("RUNNING", "Running")
    assert eventually(lambda: state_of(prefect, run_id) == ("SCHEDULED", "AwaitingRetry"), 120), state_of(
        prefect, run_id
    )
    assert eventually(lambda: any("Lost" in t["text"] for t in chat.told))
