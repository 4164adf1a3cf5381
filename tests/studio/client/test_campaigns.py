"""Campaigns by the client and by an agent, on the API's own route."""

from __future__ import annotations

import pytest
from mcp import Client
from sqlalchemy import select

from asset_store.tables import Run
from studio.agents.doors import http_app
from studio.client import Refused
from tests.stories import a_reference
from tests.studio.agents.talking import by_http, call, refused
from tests.studio.client.conftest import Far
from tests.studio.served import served

BRIEF = {
    "campaign": "small", "brand": "bobo",
    "shots": [{"name": "one", "character": "Bobo", "prompt": "a mascot, waving", "variants": 2}],
}  # fmt: skip


def test_a_brief_is_started_once_and_its_mistakes_are_told(far: Far) -> None:
    with far.door.session() as session:
        a_reference(session)
    client = far.client()
    first, again = (client.start_campaign(BRIEF, reason="spring", idempotency_key="one") for _ in range(2))
    assert (first.id, first.kind, first.pictures, first.reason) == (again.id, "campaign", 2, "spring")
    with pytest.raises(Refused, match="shots"):
        client.start_campaign({**BRIEF, "shots": []})


def test_an_agent_starts_one_and_it_says_so(far: Far) -> None:
    async def talk(client: Client) -> str:
        brief = "campaign: small\nbrand: bobo\nshots: [{name: one, character: Bobo, prompt: a mascot}]\n"
        assert "shots" in await refused(client, "start_campaign", brief="campaign: small\nbrand: bobo\n", reason="why")
        return str((await call(client, "start_campaign", brief=brief, reason="why"))["id"])

    with served(http_app(far.address)) as address:  # type: ignore[arg-type]
        run_id = by_http(f"{address}/mcp", far.door.secret("planner", "olga", agent=True), talk)
    with far.door.session() as session:
        (run,) = session.scalars(select(Run)).all()
        assert (str(run.id), run.requested_by, run.trigger) == (run_id, "agent:planner of olga", "agent")
