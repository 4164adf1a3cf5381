"""What every flow that carries a run does: it says that it is alive and what it used, and how it ended. Loads no engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import OnmodelError
from asset_store.repositories import runs
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, Run, RunState
from flows.linking import link_to_page
from flows.wiring import open_store
from ipadapter_engine.errors import EngineError

PULSE_S = 1.0
Look = Callable[[Session, Run], None]


@asynccontextmanager
async def carried(run_id: uuid.UUID, look: Look | None = None) -> AsyncIterator[None]:
    """Within, the run says every second that it is carried, how many pictures are made and what that took; an error ends it as failed.

    look: is shown the run after each, and may end it.
    """
    try:
        async with _pulse(run_id, look):
            with suppress(Exception):  # a link that cannot be shown is no reason not to make pictures
                await link_to_page(run_id)
            yield
    except (OnmodelError, EngineError) as error:
        await asyncio.to_thread(_failed, run_id, f"{error.message}. {error.next_step}")
        raise
    except Exception as error:
        await asyncio.to_thread(_failed, run_id, f"{type(error).__name__}: {error}")
        raise
    finally:
        with suppress(Exception):  # what was made since the last sign of life
            await asyncio.to_thread(_count, run_id)


@asynccontextmanager
async def _pulse(run_id: uuid.UUID, look: Look | None) -> AsyncIterator[None]:
    async def beat() -> None:
        while True:
            with suppress(Exception):  # the database may be away for a moment: the work itself says so
                await asyncio.to_thread(_beat, run_id, look)
            await asyncio.sleep(PULSE_S)

    beating = asyncio.ensure_future(beat())
    try:
        yield
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating


def _beat(run_id: uuid.UUID, look: Look | None) -> None:
    with open_store() as store:
        with store.database.transaction() as session:
            run = runs.get(session, run_id)
            facts = {} if run.campaign_id is None else _progress(session, run, run.campaign_id)
            going = runs.beat(session, run_id, **facts)
        if going and facts and look is not None:
            with store.database.transaction() as session:  # of its own: what it finds costs no sign of life
                look(session, runs.get(session, run_id))


def _progress(session: Session, run: Run, campaign_id: uuid.UUID) -> dict[str, Any]:
    done = runs.made_of(session, campaign_id)
    waiting = select(func.count()).where(Asset.campaign_id == run.campaign_id, Asset.review == ReviewState.DRAFT)
    spent = runs.used(session, run)
    total = done + (session.scalar(waiting) or 0)
    return {"done": done, "total": total, "made_pictures": spent.pictures, "gpu_s": spent.gpu_s}


def _count(run_id: uuid.UUID) -> None:
    with open_store() as store, store.database.transaction() as session:
        runs.count_used(session, run_id)


def cancelled_at_prefect(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's `on_cancellation`: who cancels the flow run there means the run."""
    with open_store() as store, store.database.transaction() as session:
        runs.cancel_of_flow(session, str(flow_run.id), "prefect")


def _failed(run_id: uuid.UUID, problem: str) -> None:
    with open_store() as store, store.database.transaction() as session:
        runs.end(session, run_id, RunState.FAILED, problem=problem[:2000])


def state_of(run_id: uuid.UUID) -> dict[str, Any]:
    """A run as its flow returns it."""
    with open_store() as store, store.database.transaction() as session:
        run = runs.get(session, run_id)
        return {"run": str(run.id), "state": run.state.value, "problem": run.problem, "result": run.result}
