"""Character sheets: those that were asked for, asking for one, and one as it comes and as it is."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from asset_store.people.permissions import Action
from asset_store.repositories import runs
from asset_store.tables import Brand, Character, Run, RunKind
from flows.sheet_request import MOST_ATTEMPTS, MOST_CELLS, SECTIONS, SheetRequest
from studio.api.callers import StoreDep, need
from studio.api.runs import RunOut
from studio.pages import lists
from studio.pages.rendering import page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
SHOWN = 50
USUAL = SheetRequest(brand="any", character="any")


@router.get("/sheets")
def sheets_page(request: Request, store: StoreDep, after: str | None = None) -> Response:
    """The newest sheets that the caller may see, and a form for another."""
    who = lists.visitor(request, store)
    within, producing = who.brands(Action.VIEW), who.brands(Action.PRODUCE)
    with store.database.reading() as session:
        found = runs.page(session, None if within is None else list(within), after, SHOWN, kind=RunKind.SHEET)
        offered = select(Brand.name, Character.name).join(Character, Character.brand_id == Brand.id)
        if producing is not None:
            offered = offered.where(Brand.id.in_(producing))
        characters = session.execute(offered.order_by(Brand.name, Character.name)).all()
        return page(
            request, "sheets.html", who, runs=[RunOut.of(run) for run in found.runs], characters=characters,
            rows=[(name, ", ".join(getattr(USUAL, name))) for name in SECTIONS], most=MOST_CELLS, attempts=MOST_ATTEMPTS,
            asked={run.id: run.request.get("character", "") for run in found.runs}, next_after=found.next_after,
        )  # fmt: skip


@router.get("/runs/{run_id}")
def run_page(run_id: uuid.UUID, request: Request, store: StoreDep) -> Response:
    """How far it is, told as it comes; then what came of it: the sheet with its cells, or the campaign."""
    who = lists.visitor(request, store)
    with store.database.reading() as session:
        run = session.get(Run, run_id)
        need(who, Action.VIEW, None if run is None else run.brand_id, "run", run_id)
        assert run is not None
        told, may_cancel = RunOut.of(run, store.settings), who.may(Action.PRODUCE, run.brand_id)
        if run.kind is RunKind.CAMPAIGN:
            return page(
                request, "campaign_run.html", who, run=told, brief=run.request.get("brief", ""), may_cancel=may_cancel
            )
        asked = SheetRequest.model_validate(run.request)
        return page(request, "run.html", who, run=told, asked=asked, may_cancel=may_cancel)
