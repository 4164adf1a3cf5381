"""Who is let in at the agents' door, by pipe and by HTTP."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mcp import Client

from studio.agents.doors import http_app
from studio.api.app import create_app
from studio.api.limits import Rate
from tests.studio.agents.talking import COMMAND, by_http, call, environment
from tests.studio.client.conftest import Far
from tests.studio.served import UNLIMITED, served
from tests.studio_home import ROOT

HELLO = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
TAKES = {"Accept": "application/json, text/event-stream"}


def agents_key(far: Far, name: str = "planner", **options: Any) -> str:
    return far.door.secret(name, "olga", agent=True, **options)


def piped(address: str, key: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *COMMAND, *arguments], env=environment(address, key), capture_output=True, text=True,
        input="", timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip


def test_by_pipe_only_an_agent_s_key_is_taken_and_nothing_but_the_protocol_is_written(far: Far) -> None:
    ordinary = piped(far.address, far.door.secret("calendar", "olga"))
    assert (ordinary.returncode, ordinary.stdout) == (1, "")
    assert "key:calendar of olga is not an agent's" in ordinary.stderr
    assert "--agent" in ordinary.stderr
    missing = piped(far.address, None)
    assert (missing.returncode, missing.stdout, "ONMODEL_KEY" in missing.stderr) == (1, "", True)
    unknown = piped(far.address, "onm_unknown")
    assert (unknown.returncode, "onm_unknown" in unknown.stdout + unknown.stderr) == (1, False)
    good = piped(far.address, agents_key(far))
    assert (good.returncode, good.stdout) == (0, "")  # its input ended at once


def test_by_http_who_has_no_agent_s_key_is_told_so(far: Far) -> None:
    with served(http_app(far.address)) as address:  # type: ignore[arg-type]
        url = f"{address}/mcp"

        def ask(**headers: str) -> httpx.Response:
            return httpx.post(url, json=HELLO, headers={**TAKES, **headers}, timeout=30)

        for header in (
            {},
            {"Authorization": "Basic YTpi"},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer onm_x"},
        ):
            answer = ask(**header)
            assert (answer.status_code, answer.headers["WWW-Authenticate"].startswith("Bearer")) == (401, True), header
        ordinary = ask(Authorization=f"Bearer {far.door.secret('calendar', 'olga')}")
        assert (ordinary.status_code, "--agent" in ordinary.json()["next_step"]) == (403, True)
        good = {"Authorization": f"Bearer {agents_key(far)}"}
        assert {t["name"] for t in ask(**good).json()["result"]["tools"]} >= {"make_sheet", "ask_for_review"}
        assert ask(**good, Host="evil.example").status_code == 421
        assert ask(**good, Origin="http://evil.example").status_code == 403
        assert "mcp-session-id" not in ask(**good).headers
        large = {**HELLO, "params": {"x": "y" * 3_000_000}}
        assert httpx.post(url, json=large, headers={**TAKES, **good}, timeout=30).status_code == 413


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_each_caller_works_with_their_own_key_and_nothing_is_kept_between(far: Far, mode: str) -> None:
    keys = {name: agents_key(far, name) for name in ("one", "two")}

    async def talk(client: Client) -> str:
        return str((await call(client, "who_am_i"))["actor"])

    with served(http_app(far.address)) as address:  # type: ignore[arg-type]
        for name in ("one", "two", "one"):
            assert by_http(f"{address}/mcp", keys[name], talk, mode) == f"agent:{name} of olga"
        far.door.person("olga").delete("/v1/keys/one")
        answer = httpx.post(
            f"{address}/mcp", json=HELLO, headers={**TAKES, "Authorization": f"Bearer {keys['one']}"}, timeout=30
        )
        assert answer.status_code == 401


def test_an_agent_that_waits_for_much_at_once_holds_up_nobody_else(far: Far) -> None:
    busy, other = agents_key(far, "busy"), agents_key(far, "other")
    order = {"brand": "bobo", "character": "Bobo", "reason": "why"}

    def asks(tool: str, **arguments: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}

    async def talk(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=httpx.Limits(max_connections=None)) as http:

            async def ask(key: str, body: dict[str, Any]) -> httpx.Response:
                return await http.post("/mcp", json=body, headers={**TAKES, "Authorization": f"Bearer {key}"})

            run = (await ask(busy, asks("make_sheet", **order))).json()["result"]["structuredContent"]
            waits = [asyncio.create_task(ask(busy, asks("get_run", run_id=run["id"], wait_s=50))) for _ in range(60)]
            await asyncio.sleep(5)
            began = time.monotonic()
            told = (await ask(other, asks("who_am_i"))).json()["result"]
            assert told["structuredContent"]["actor"] == "agent:other of olga"
            assert (await ask("onm_unknown", HELLO)).status_code == 401
            assert time.monotonic() - began < 15
            assert not any(wait.done() for wait in waits)
            await ask(busy, asks("cancel_run", run_id=run["id"]))
            ended = [(await wait).json()["result"]["structuredContent"]["state"] for wait in waits]
            assert set(ended) == {"cancelled"}
            assert time.monotonic() - began < 40  # they noticed

    with served(http_app(far.address)) as address:  # type: ignore[arg-type]
        asyncio.run(talk(address))


def test_an_api_that_is_away_is_told(far: Far) -> None:
    with served(http_app("http://127.0.0.1:9")) as address:  # type: ignore[arg-type]
        headers = {**TAKES, "Authorization": "Bearer onm_x"}
        answer = httpx.post(f"{address}/mcp", json=HELLO, headers=headers, timeout=30)
        assert (answer.status_code, "onmodel up" in answer.json()["next_step"]) == (503, True)


def test_who_asks_too_often_is_told_when_to_come_again(far: Far) -> None:
    slow = create_app(far.door.store, calls=Rate(burst=2, per_s=0.05), sign_ins=UNLIMITED)
    with served(slow) as api, served(http_app(api)) as address:  # type: ignore[arg-type]
        headers = {**TAKES, "Authorization": f"Bearer {agents_key(far)}"}
        answers = [httpx.post(f"{address}/mcp", json=HELLO, headers=headers, timeout=30) for _ in range(3)]
        assert [a.status_code for a in answers] == [200, 200, 429]
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 20


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_the_command_listens_on_loopback_alone_and_ends_when_it_is_told(far: Far) -> None:
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--http", "--port", "0"], env=environment(far.address, None), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/mcp", process.stderr.readline())
        assert found is not None
        assert httpx.post(found[0], json=HELLO, headers=TAKES, timeout=30).status_code == 401
        listening = [c for c in psutil.Process(process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    refusal = piped(far.address, None, "--http", "--host", "0.0.0.0")  # noqa: S104
    assert (refusal.returncode, "--name" in refusal.stderr) == (2, True)


def test_without_the_package_the_command_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['mcp'] = None; from studio.cli.app import run; run()"
    answer = subprocess.run(
        [sys.executable, "-c", code, "mcp"], env=environment("", None), capture_output=True, text=True, timeout=120,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "pip install 'onmodel[agents]'" in answer.stderr
