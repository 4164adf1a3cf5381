"""`/v1`: character sheets, and following and cancelling what was asked for."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from asset_store.errors import Forbidden, NotFound, NotSignedIn
from asset_store.people.permissions import Action, Principal
from asset_store.repositories import runs
from asset_store.tables import Brand, Run, RunKind
from flows.settings import Settings, prefect_ui
from flows.sheet_request import SheetRequest
from flows.starting import start_sheet
from flows.wiring import Store
from studio.api.answers import Answer
from studio.api.assets import Line
from studio.api.callers import Idempotency, StoreDep, Who, caller, need
from studio.api.once import answered

router = APIRouter(tags=["runs"])
LOOKED_AT_EVERY_S, KEPT_ALIVE_EVERY_S, FOLLOWED_FOR_S = 0.5, 15.0, 3600.0
KNOWN_FOR_S = 10.0  # then whoever follows is asked again who they are
MOST_FOLLOWED = 20  # runs at once by each person or key, in each process
TYPES = {"png": "image/png", "pdf": "application/pdf", "json": "application/json"}


class CellOut(Answer):
    """A picture of a sheet. `tries`: versions that were made of it; `likeness`: its mean similarity to the other cells, 0 to 1."""

    section: str
    label: str
    prompt: str
    asset: uuid.UUID | None
    version: int | None
    sha256: str | None
    tries: int
    review: str | None
    identity: dict[str, Any] | None
    failed: list[str]
    on_model: bool
    likeness: float | None


class SheetOut(Answer):
    """`consistency`: the mean similarity of all pairs of cells; `files`: where the sheet is."""

    brand: str
    character: str
    consistency: float | None
    palette: list[str]
    cells: list[CellOut]
    files: dict[str, str]


class ReportOut(Answer):
    """What came of a campaign's run; `review`: how many of its assets are in each state."""

    campaign: str
    campaign_id: str
    pictures: int
    made: int
    reused: int
    review: dict[str, int]
    problems: list[str]


class RunOut(Answer):
    """`done` of `total` pictures are made; `events` is where its progress is told as it comes; `flow_run` is its page in Prefect's UI.

    made_pictures, gpu_s: what it used; due_at: the time of the schedule that it is of.
    """

    id: uuid.UUID
    kind: str
    brand: str
    state: str = Field(description="queued, running, succeeded, failed, cancelled or skipped")
    phase: str
    done: int
    total: int
    pictures: int
    requested_by: str
    reason: str
    trigger: str
    problem: str | None
    campaign_id: uuid.UUID | None
    made_at: datetime
    finished_at: datetime | None
    schedule_id: uuid.UUID | None
    due_at: datetime | None
    made_pictures: int
    gpu_s: float
    events: str
    flow_run: str | None = None
    sheet: SheetOut | None = None
    report: ReportOut | None = None

    @classmethod
    def of(cls, run: Run, settings: Settings | None = None) -> RunOut:
        """settings: those that say where Prefect's UI is."""
        return cls(
            id=run.id, kind=run.kind.value, brand=run.brand.name, state=run.state.value, phase=run.phase, done=run.done,
            total=run.total, pictures=run.pictures, requested_by=run.requested_by, reason=run.reason, trigger=run.trigger,
            problem=run.problem, campaign_id=run.campaign_id, made_at=run.made_at, finished_at=run.finished_at,
            schedule_id=run.schedule_id, due_at=run.due_at, made_pictures=run.made_pictures, gpu_s=round(run.gpu_s, 3),
            events=f"/v1/runs/{run.id}/events", sheet=_sheet(run), report=_report(run),
            flow_run=None if settings is None else _in_prefect(run, settings),
        )  # fmt: skip


class RunsOut(Answer):
    runs: list[RunOut]
    next_after: str | None


def _in_prefect(run: Run, settings: Settings) -> str | None:
    ui = prefect_ui(settings)
    return None if ui is None or run.flow_run_id is None else f"{ui}/runs/flow-run/{run.flow_run_id}"


def _sheet(run: Run) -> SheetOut | None:
    if run.kind is not RunKind.SHEET or run.result is None:
        return None
    files = {kind: f"/v1/character-sheets/{run.id}/sheet.{kind}" for kind in run.result["files"]}
    return SheetOut.model_validate({**run.result, "files": files})


def _report(run: Run) -> ReportOut | None:
    return ReportOut.model_validate(run.result) if run.kind is RunKind.CAMPAIGN and run.result is not None else None


@router.post("/character-sheets", status_code=202)
def make_sheet(
    body: SheetRequest, who: Who, store: StoreDep, response: Response, idempotency_key: Idempotency = None
) -> RunOut:
    """Ask for a model sheet of a character: follow the run, and find the sheet in it. 429 where the day's pictures are spent."""

    def act(session: Session) -> RunOut:
        producing(session, body.brand, who)
        return RunOut.of(start_sheet(session, body, store.settings.quota, by=who.actor, trigger=trigger_of(who)))

    told = answered(store, who, idempotency_key, {"sheet": body.model_dump(mode="json")}, act, RunOut, response)
    response.headers["Location"] = f"/v1/runs/{told.id}"
    return told


def producing(session: Session, name: str, who: Principal) -> Brand:
    """A brand that they may ask for pictures of. NotFound, in the same words, also for one that they may not see; Forbidden."""
    brand = session.scalar(select(Brand).where(Brand.name == name))
    need(who, Action.PRODUCE, None if brand is None else brand.id, "brand", name)
    assert brand is not None
    return brand


def trigger_of(who: Principal) -> str:
    """The door that they come through, as the lineage names it."""
    return "page" if who.is_person else "agent" if who.is_agent else "api"


@router.get("/runs")
def get_runs(who: Who, store: StoreDep, after: Line = None, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> RunsOut:
    """What was asked for of the brands that the caller may see, the newest first."""
    within = who.brands(Action.VIEW)
    with store.database.reading() as session:
        page = runs.page(session, None if within is None else list(within), after, limit)
        return RunsOut(runs=[RunOut.of(run, store.settings) for run in page.runs], next_after=page.next_after)


@router.get("/runs/{run_id}")
def get_run(run_id: uuid.UUID, who: Who, store: StoreDep) -> RunOut:
    """How far a run is, and what came of it."""
    return _told(store, run_id, who)


@router.get(
    "/runs/{run_id}/events", response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def follow(
    run_id: uuid.UUID, request: Request, who: Who, store: StoreDep,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=200)] = None,
) -> StreamingResponse:  # fmt: skip
    """Its progress as server-sent events: `progress` for each change, then `end`. Reconnecting goes on from Last-Event-ID."""
    await run_in_threadpool(_told, store, run_id, who)
    following: Counter[str] = request.app.state.following
    if following[who.actor] >= MOST_FOLLOWED:
        raise HTTPException(429, "too many runs are followed at once", {"Retry-After": "15"})
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = _events(store, run_id, who, request, last_event_id)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(
    store: Store, run_id: uuid.UUID, who: Principal, request: Request, seen: str | None
) -> AsyncIterator[str]:
    following: Counter[str] = request.app.state.following
    following[who.actor] += 1
    try:
        async for event in _changes(store, run_id, who, request, seen):
            yield event
    except (NotSignedIn, NotFound, HTTPException):
        return  # what they could see when they began they may not see any more
    finally:
        following[who.actor] -= 1


async def _changes(
    store: Store, run_id: uuid.UUID, who: Principal, request: Request, seen: str | None
) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    ends_at, alive_at, known_at = loop.time() + FOLLOWED_FOR_S, loop.time(), loop.time()
    while loop.time() < ends_at and not await request.is_disconnected():
        if loop.time() - known_at > KNOWN_FOR_S:
            who, known_at = await run_in_threadpool(caller, request, store), loop.time()
        told = await run_in_threadpool(_told, store, run_id, who)
        number = f"{told.state}/{told.phase}/{told.done}/{told.total}"
        over = told.finished_at is not None
        if number != seen or over:
            yield f"id: {number}\nevent: {'end' if over else 'progress'}\ndata: {told.model_dump_json()}\n\n"
            seen, alive_at = number, loop.time()
        if over:
            return
        if loop.time() - alive_at > KEPT_ALIVE_EVERY_S:
            yield ": it goes on\n\n"
            alive_at = loop.time()
        await asyncio.sleep(LOOKED_AT_EVERY_S)


def _told(store: Store, run_id: uuid.UUID, who: Principal) -> RunOut:
    with store.database.reading() as session:
        return RunOut.of(_seen(session, run_id, who), store.settings)


@router.post("/runs/{run_id}/cancellation")
def cancel(run_id: uuid.UUID, who: Who, store: StoreDep) -> RunOut:
    """End a run: what is not made yet is not made, and a worker that is at it stops. Again, it changes nothing. An agent ends what it
    asked for itself alone."""
    with store.database.transaction() as session:
        run = _seen(session, run_id, who, Action.PRODUCE)
        if who.is_agent and run.requested_by != who.actor:
            raise Forbidden(who.actor, "cancel what others asked for")
        return RunOut.of(runs.cancel(session, run_id, who.actor), store.settings)


@router.get(
    "/character-sheets/{run_id}/sheet.{kind}", response_class=Response,
    responses={200: {"content": {t: {"schema": {"type": "string", "format": "binary"}} for t in TYPES.values()}}},
)  # fmt: skip
def get_sheet_file(run_id: uuid.UUID, kind: str, who: Who, store: StoreDep) -> Response:
    """The sheet as png, as a pdf with layers, or as json."""
    with store.database.reading() as session:
        run = _seen(session, run_id, who)
        files = (run.result or {}).get("files", {})
    if kind not in files:
        raise NotFound("file of this sheet", kind[:40])
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": f'"{files[kind]}"'}
    return Response(store.blobs.get(files[kind]), media_type=TYPES[kind], headers=headers)


def _seen(session: Session, run_id: uuid.UUID, who: Principal, action: Action = Action.VIEW) -> Run:
    """The run, if they may. NotFound; Forbidden."""
    run = session.get(Run, run_id)
    need(who, action, None if run is None else run.brand_id, "run", run_id)
    assert run is not None
    return run
