"""Runs that use a GPU take turns, over all processes that Prefect's server knows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client

from flows.accelerator import GPU, accelerator, limit_to, where_it_is_made_here
from flows.library import ingest_library
from tests.prefect_server import PrefectServer
from tests.studio_home import Home

HOLDS = """
import asyncio, sys, time
from prefect import flow
from flows.accelerator import accelerator
@flow
async def trains():
    async with accelerator():
        print("from", time.time(), flush=True)
        await asyncio.sleep(1.5)
        print("to", time.time(), flush=True)
asyncio.run(trains())
"""


def at_once(runs: int) -> int:
    """How many of so many runs, each a process, hold a GPU at the same time at most."""
    root = str(Path(__file__).resolve().parents[2])
    started = [
        subprocess.Popen([sys.executable, "-c", HOLDS], env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, text=True)
        for _ in range(runs)
    ]  # fmt: skip
    moments: list[tuple[float, int]] = []
    for process in started:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        moments += [(float(w[1]), 1 if w[0] == "from" else -1) for line in out.splitlines() if (w := line.split())]
    assert len(moments) == 2 * runs
    held, most = 0, 0
    for _, change in sorted(moments):
        held += change
        most = max(most, held)
    return most


def test_two_runs_do_not_hold_one_gpu_at_once(prefect: PrefectServer) -> None:
    asyncio.run(limit_to(1))
    assert at_once(2) == 1


def test_the_limit_follows_the_setting(prefect: PrefectServer) -> None:
    async def limit() -> int:
        async with get_client() as client:
            found = await client.read_global_concurrency_limit_by_name(GPU)
            assert found.active
            return found.limit

    for gpus in (1, 3, 1):
        asyncio.run(limit_to(gpus))
        assert asyncio.run(limit()) == gpus


def test_an_ingest_waits_for_the_gpu_that_a_training_holds(home: Home, prefect: PrefectServer) -> None:
    asyncio.run(limit_to(1))

    async def both() -> tuple[bool, float]:
        async with accelerator():
            waiting = asyncio.ensure_future(ingest_library(str(home.library), "pat"))
            done, _ = await asyncio.wait({waiting}, timeout=15)
            released = time.monotonic()
        await waiting
        return bool(done), time.monotonic() - released

    done, took_s = asyncio.run(both())
    assert not done
    assert took_s < 120


def test_pictures_that_workers_elsewhere_make_hold_none_here(prefect: PrefectServer) -> None:
    asyncio.run(limit_to(1))

    async def made(keys: list[str], workers: int) -> float:
        return float(workers)

    async def held() -> float:
        async with accelerator():
            return await asyncio.wait_for(where_it_is_made_here(made)(["key"], 0), 60)

    assert asyncio.run(held()) == 0.0


def test_where_the_server_has_no_such_limit_nothing_waits(prefect: PrefectServer) -> None:
    async def both() -> None:
        async with get_client() as client:
            await client.delete_global_concurrency_limit_by_name(GPU)

        @flow
        async def runs() -> None:
            async with accelerator(), accelerator():
                pass

        await asyncio.wait_for(runs(), 120)

    asyncio.run(limit_to(1))
    asyncio.run(both())
