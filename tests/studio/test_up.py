"""`onmodel up` as a user starts it: an address, a link that signs in once, and nothing left when it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.studio_home import Home


def started(home: Home, *options: str) -> tuple[subprocess.Popen[str], str, str]:
    """The process, its address and the sign-in token."""
    process = home.start_fresh("up", "--port", "0", *options)
    assert process.stdout is not None
    told = ""
    give_up_at = time.monotonic() + 150
    while "#" not in told and time.monotonic() < give_up_at:
        line = process.stdout.readline()
        if not line:
            break
        told += line
    found = re.search(r"(http://127\.0\.0\.1:\d+)/sign-in#(\S+)", told)
    assert found, (told, process.stderr and process.stderr.read())
    return process, found[1], found[2]


def end(process: subprocess.Popen[str], sign: signal.Signals = signal.SIGTERM) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sign)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_one_command_starts_everything_and_its_link_signs_in(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)  # else the server that it names is used
    process, address, token = started(home)
    try:
        with httpx.Client(base_url=address) as browser:
            me = browser.post("/v1/sessions", json={"link": token}).json()
            assert {"decide", "release", "administer"} <= set(me["actions"]["*"])
            assert browser.get("/v1/assets").json()["assets"] == []
            assert browser.post("/v1/sessions", json={"link": token}).status_code == 401
        beside = [" ".join(p.cmdline()) for p in psutil.Process(process.pid).children()]
        for part in ("prefect server", "flows.deployments", "worker"):
            assert any(part in line for line in beside), (part, beside)
    finally:
        end(process)


def test_a_second_start_signs_the_same_person_in_and_adds_nobody(home: Home) -> None:
    for _ in range(2):
        process, address, token = started(home, "--no-prefect", "--no-worker")
        try:
            assert httpx.post(f"{address}/v1/sessions", json={"link": token}).status_code == 201
        finally:
            end(process, signal.SIGINT)
    assert len(json.loads(home.onmodel("people", "list", "--json").out)) == 1


def test_a_port_that_is_taken_is_told(home: Home) -> None:
    process, address, _ = started(home, "--no-prefect", "--no-worker")
    try:
        answer = home.onmodel("up", "--no-prefect", "--no-worker", "--port", address.rpartition(":")[2])
        assert answer.code != 0
        assert "--port" in answer.err
    finally:
        end(process)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_it_listens_on_loopback_alone(home: Home) -> None:
    process, _, _ = started(home, "--no-prefect", "--no-worker")
    try:
        listening = [c for c in psutil.Process(process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    finally:
        end(process)
