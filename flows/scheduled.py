"""What Prefect's calendar runs: a look at one schedule. Loads no engine, so that it takes a moment."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

from prefect import flow

from flows.scheduling import act
from flows.starting import start_one
from flows.wiring import open_store


@flow(name="act-on-schedule", flow_run_name="{campaign}")
async def act_on_schedule(schedule_id: UUID, campaign: str = "") -> list[str]:
    """Start what a schedule's rules say for its times that have come; the ids of the runs. Early, late or twice, each time is acted on once.

    Args:
        schedule_id: The schedule, as `onmodel campaign list --json` names it.
        campaign: What Prefect shows of it.
    """

    def work() -> list[str]:
        with open_store() as store:
            started = [str(run_id) for run_id in act(store, schedule_id, datetime.now(UTC))]
            while start_one(store):  # not left to `onmodel up`, which need not run
                pass
            return started

    return await asyncio.to_thread(work)
