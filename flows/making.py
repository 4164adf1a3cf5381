"""Having jobs made: waited for, and made by workers inside this process where it asks for any."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from asset_store.repositories import jobs as job_table
from asset_store.tables import Job, JobState
from flows.accelerator import where_it_is_made_here
from flows.progress import report
from flows.wiring import Store, engine, open_store
from flows.worker import Worker

POLL_S = 0.25
GROUP = 64  # pictures a Prefect task waits for
OUTAGE_S = 120.0  # how long a worker of this process waits for a database that went away


@where_it_is_made_here
async def make_all(keys: list[str], workers: int) -> float:
    """Have every job made, by `workers` in this process or, with 0, by those elsewhere; the engine's seconds here.

    Raises what ended the workers if all of them ended with an error.
    """
    report("pictures", 0, len(keys))
    crew = [_Hand(keys) for _ in range(workers)]
    for hand in crew:
        hand.start()
    try:
        await _unless_all_die(crew, _await_all(keys))
    finally:
        for hand in crew:
            await asyncio.to_thread(hand.finish)
    return round(sum(h.engine_s for h in crew), 2)


@task(
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    task_run_name="pictures {offset}+",
)
async def await_pictures(keys: list[str], offset: int, total: int) -> dict[str, int]:
    """Wait until every job has ended: made, set aside or cancelled."""

    def ended() -> dict[JobState, int]:
        with open_store() as store, store.database.transaction() as session:
            return job_table.states(session, keys)

    while True:
        counts = await asyncio.to_thread(ended)
        done = sum(n for s, n in counts.items() if s not in (JobState.QUEUED, JobState.RUNNING))
        report("pictures", offset + done, total)
        if done == len(keys):
            return {s.value: n for s, n in counts.items()}
        await asyncio.sleep(POLL_S)


async def _await_all(keys: list[str]) -> None:
    for start in range(0, len(keys), GROUP):
        await await_pictures(keys[start : start + GROUP], start, len(keys))


async def _unless_all_die(crew: list[_Hand], work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; when every worker of this process ended with an error, raise that instead of waiting for ever."""
    waiting = asyncio.ensure_future(work)
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=POLL_S)
        if crew and not any(h.is_alive() for h in crew) and not waiting.done():
            error = next((h.error for h in crew if h.error is not None), None)
            if error is not None:
                waiting.cancel()
                raise error
    await waiting


class _Hand(threading.Thread):
    """A worker inside the flow's own process: the embedded mode needs nothing else running."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(name="worker", daemon=True)
        self.keys, self.engine_s = keys, 0.0
        self.error: BaseException | None = None
        self._worker: Worker | None = None
        self._told_to_finish = False

    def run(self) -> None:
        down_since: float | None = None
        while True:
            try:
                with open_store() as store:
                    for name, keys in _by_engine(store, self.keys).items():
                        self._work(store, name, keys)
                self.error = None
                return
            except OperationalError as error:  # the database is away: try again for a while, the jobs are safe
                self.error = error
                down_since = down_since or time.monotonic()
                if time.monotonic() - down_since > OUTAGE_S:
                    return
                time.sleep(1.0)
            except Exception as error:  # anything else ends the flow with this error
                self.error = error
                return

    def _work(self, store: Store, name: str, keys: list[str]) -> None:
        """Have the jobs of one engine made. A hand that was told to finish begins no other."""
        if self._told_to_finish:
            return
        self._worker = Worker(store, engine(store.settings, name), engine_name=name)
        if self._told_to_finish:
            return
        self.engine_s += self._worker.run(until=lambda: _nothing_left(store, keys)).engine_s

    def finish(self) -> None:
        self._told_to_finish = True
        if self._worker is not None:
            self._worker.stop()
        self.join(timeout=120)


def _by_engine(store: Store, keys: list[str]) -> dict[str, list[str]]:
    """The jobs that are not made yet, of each engine by its name in the settings; the one without a name first."""
    named: dict[str, list[str]] = {}
    unmade = Job.state.in_([JobState.QUEUED, JobState.RUNNING])
    with store.database.transaction() as session:
        jobs = session.execute(select(Job.key, Job.recipe["engine"].as_string()).where(Job.key.in_(keys), unmade)).all()
    for key, name in jobs:
        named.setdefault(name or "", []).append(key)
    return dict(sorted(named.items()))


def _nothing_left(store: Store, keys: list[str]) -> bool:
    with store.database.transaction() as session:
        counts = job_table.states(session, keys)
    return not counts.get(JobState.QUEUED) and not counts.get(JobState.RUNNING)
