"""Pages: my queue, the grid, the library; the others have files of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select

from asset_store import checks
from asset_store.people import saved
from asset_store.people.company import local_path
from asset_store.people.permissions import Action
from asset_store.repositories.catalogue import characters, look_through
from asset_store.reviewing import grid
from asset_store.reviewing.queue import queue_of
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Brand, CheckOutcome, ReferenceState
from studio.api.callers import StoreDep
from studio.api.references import ReferenceOut
from studio.pages import campaigns, lists, room, settings, shared, sheets, signing_in
from studio.pages.rendering import HERE, STATIC, StaticFilesForEver, page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def install(app: FastAPI) -> None:
    """Serve the pages and their files beside the API."""
    app.mount(STATIC, StaticFilesForEver(directory=HERE / "static"), name="static")
    for part in (
        router,
        campaigns.router,
        room.router,
        settings.router,
        shared.router,
        sheets.router,
        signing_in.router,
    ):
        app.include_router(part)
    app.state.problem_page = lambda request, problem: page(request, "problem.html", None, problem=problem)
    app.add_exception_handler(lists.ToSignIn, _to_sign_in)


def _to_sign_in(request: Request, error: Exception) -> Response:
    """The company's sign-in goes on to the page that was asked for."""
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    where = "/sign-in" if request.app.state.provider is None else f"/sign-in?{urlencode({'next': local_path(asked)})}"
    return RedirectResponse(where, 303)


@router.get("/")
def queue_page(request: Request, store: StoreDep) -> Response:
    """What waits for the caller's own decision, the doubtful first."""
    who = lists.visitor(request, store)
    with store.database.reading() as session:
        found = queue_of(session, who.actor, lists.stages_of(who, session), lists.PAGE + 1)
        tiles = grid.tiles_of(session, found[: lists.PAGE])
        cards = [lists.card(tile, f"from={lists.QUEUE}") for tile in tiles]
        return page(request, "queue.html", who, cards=cards, more=len(found) > lists.PAGE)


@router.get("/assets")
def grid_page(
    request: Request, store: StoreDep, after: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """Everything that the caller may see, narrowed by what stands in the address: the newest first, or the likest to a picture."""
    who = lists.visitor(request, store)
    given = {k: v for k in saved.KNOWN if (v := request.query_params.get(k, "").strip())}
    with store.database.reading() as session:
        filters, told = lists.read_filters(given, who)
        next_after = None
        liked = lists.likest(session, who, filters, given)
        told_of = {} if liked is None else liked[1]
        if liked is not None:
            tiles = liked[0]
        else:
            found = grid.tiles(session, filters, after, lists.PAGE)
            tiles, next_after = found.tiles, found.next_after
        address = urlencode(given)
        shown = {
            "cards": [lists.card(t, address) for t in tiles], "given": given, "told": told, "told_of": told_of, "address": address, "like": bool(told_of),
            "can_decide": lists.able(who, Action.DECIDE), "can_share": lists.able(who, Action.SHARE),
            "next_page": f"/assets?{urlencode({**given, 'after': next_after})}" if next_after else None,
            "without": lambda name: "/assets?" + urlencode({k: v for k, v in given.items() if k != name}),
        }  # fmt: skip
        if "HX-Request" in request.headers and "HX-History-Restore-Request" not in request.headers:
            return page(request, "found.html", who, **shown)  # the page is there already
        return page(
            request, "grid.html", who, **shown, more=bool(lists.MORE & given.keys()), names=lists.names(session, who),
            states=[s.value for s in ReviewState], availabilities=[a.value for a in Availability],
            outcomes=[o.value for o in CheckOutcome], checks=checks.NAMES, saved=saved.kept(session, who.person_id),
        )  # fmt: skip


@router.get("/assets/counts")
def grid_counts(request: Request, store: StoreDep) -> Response:
    """The line above the grid that says how many there are; it comes after the grid, which does not wait for it."""
    who = lists.visitor(request, store)
    with store.database.reading() as session:
        filters, _ = lists.read_filters(request.query_params, who)
        counted = grid.counts(session, filters)
    return page(request, "counts.html", who, counts=counted, most=grid.COUNTED)


@router.get("/library")
def library_page(
    request: Request, store: StoreDep, after: Annotated[str | None, Query(max_length=1200)] = None
) -> Response:
    """The references, with their licences and what came of them."""
    who = lists.visitor(request, store)
    given = {k: v for k in ("brand", "character", "state", "ending") if (v := request.query_params.get(k, "").strip())}
    state = given.get("state")
    with store.database.reading() as session:
        found = look_through(
            session, who.brands(Action.VIEW), datetime.now(UTC).date(), brand=given.get("brand"),
            character=given.get("character"), state=ReferenceState(state) if state in set(ReferenceState) else None,
            ending="ending" in given, after=after, limit=lists.PAGE,
        )  # fmt: skip
        recallable = {n for i, n in session.execute(select(Brand.id, Brand.name)) if who.may(Action.RECALL, i)}
        return page(
            request, "library.html", who, references=[ReferenceOut.of(e) for e in found.entries], given=given,
            names=lists.names(session, who), characters=characters(session, who.brands(Action.VIEW)),
            states=[s.value for s in ReferenceState], recallable=recallable,
            next_page=f"/library?{urlencode({**given, 'after': found.next_after})}" if found.next_after else None,
        )  # fmt: skip
