"""Pages: sign-in, my queue, the grid, the review room, campaigns, the library."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.staticfiles import StaticFiles

from asset_store.errors import NotSignedIn
from asset_store.keyset import mark_of
from asset_store.people.permissions import Action, Principal
from asset_store.repositories.catalogue import characters, look_through
from asset_store.reviewing import assigning, grid
from asset_store.reviewing.comments import remarks_of
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.queue import DOUBT, in_order, queue_of
from asset_store.reviewing.retaking import came_to_nothing
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, CheckOutcome, LineageRecord, ReferenceState
from studio.api.answers import AssetOut, CommentOut
from studio.api.callers import StoreDep, caller, own_stages
from studio.api.campaigns import get_campaigns
from studio.api.changing import seen_asset
from studio.api.references import ReferenceOut
from studio.pages import shared
from studio.pages.rendering import HERE, page
from studio.pages.versions import changed_settings

PAGE = 60
QUEUE, QUEUE_SHOWN = "queue", 200
FILTERS = (
    "brand",
    "campaign",
    "review",
    "availability",
    "stage",
    "person",
    "check",
    "outcome",
    "since",
    "until",
    "text",
)
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def install(app: FastAPI) -> None:
    """Serve the pages and their files beside the API."""
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(router)
    app.include_router(shared.router)
    app.state.problem_page = lambda request, problem: page(request, "problem.html", None, problem=problem)
    app.add_exception_handler(_ToSignIn, lambda request, error: RedirectResponse("/sign-in", 303))


class _ToSignIn(Exception):
    """Nobody is signed in: a page sends them to where that is done."""


def _who(request: Request, store: StoreDep) -> Principal:
    try:
        return caller(request, store)
    except NotSignedIn:
        raise _ToSignIn from None


@router.get("/sign-in")
def sign_in_page(request: Request) -> Response:
    """Its script takes the token from behind the #, which no server sees."""
    return page(request, "sign_in.html", None)


@router.get("/")
def queue_page(request: Request, store: StoreDep) -> Response:
    """What waits for the caller's own decision, the doubtful first."""
    who = _who(request, store)
    with store.database.transaction() as session:
        found, more = _queue(session, who)
        cards = [_card(a, QUEUE) for a in in_order(session, found)]
        return page(request, "queue.html", who, cards=cards, more=more)


@router.get("/assets")
def grid_page(
    request: Request, store: StoreDep, after: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """Everything that the caller may see, narrowed by what stands in the address."""
    who = _who(request, store)
    given = {k: v for k in FILTERS if (v := request.query_params.get(k, "").strip())}
    with store.database.transaction() as session:
        filters, told = _filters(given, who)
        found = grid.page(session, filters, after, PAGE)
        counts = grid.counts(session, filters)
        names = _names(session, who)
        address = urlencode(given)
        return page(
            request, "grid.html", who, cards=[_card(a, address) for a in found.assets], given=given, told=told, counts=counts,
            names=names, states=[s.value for s in ReviewState], availabilities=[a.value for a in Availability],
            outcomes=[o.value for o in CheckOutcome], can_decide=_able(who, Action.DECIDE), can_share=_able(who, Action.SHARE),
            next_page=f"/assets?{urlencode({**given, 'after': found.next_after})}" if found.next_after else None,
            without=lambda name: "/assets?" + urlencode({k: v for k, v in given.items() if k != name}),
        )  # fmt: skip


@router.get("/assets/{asset_id}")
def room_page(asset_id: uuid.UUID, request: Request, store: StoreDep) -> Response:
    """One picture beside its references, with all that a decision needs."""
    who = _who(request, store)
    within = dict(request.query_params)
    with store.database.transaction() as session:
        asset = seen_asset(session, asset_id, who)
        record = {r.version_id: r.record for r in _records(session, asset)}
        shown = record.get(asset.current.id, {}) if asset.current else {}
        return page(
            request, "room.html", who, asset=AssetOut.of(asset).model_dump(mode="json"), card=_card(asset, ""),
            checks=sorted(asset.current.checks if asset.current else [], key=lambda c: (DOUBT[c.outcome], c.seq)),
            references=[r for r in shown.get("references", []) if r.get("sha256")], settings=shown.get("settings", {}),
            models=shown.get("models", []), versions=_versions(asset, record),
            comments=[CommentOut.of(r).model_dump(mode="json") for r in remarks_of(session, asset.id)],
            asked=assigning.assignments_of(session, asset.id), stages=policy_of(asset.campaign).rounds,
            decisions=[d for v in reversed(asset.versions) for d in reversed(v.decisions)],
            lost=asset.review is ReviewState.DRAFT and asset.current is not None and came_to_nothing(session, asset),
            mine=own_stages(asset, who), may={a.value: who.may(a, asset.campaign.brand_id) for a in Action},
            around=_around(session, asset, within, who),
        )  # fmt: skip


@router.get("/campaigns")
def campaigns_page(request: Request, store: StoreDep) -> Response:
    """The newest campaigns, and where their assets stand."""
    who = _who(request, store)
    told = get_campaigns(who, store, limit=100)
    return page(request, "campaigns.html", who, campaigns=told.campaigns, states=[s.value for s in ReviewState])


@router.get("/library")
def library_page(
    request: Request, store: StoreDep, after: Annotated[str | None, Query(max_length=1200)] = None
) -> Response:
    """The references, with their licences and what came of them."""
    who = _who(request, store)
    given = {k: v for k in ("brand", "character", "state", "ending") if (v := request.query_params.get(k, "").strip())}
    state = given.get("state")
    with store.database.transaction() as session:
        found = look_through(
            session, who.brands(Action.VIEW), datetime.now(UTC).date(), brand=given.get("brand"),
            character=given.get("character"), state=ReferenceState(state) if state in set(ReferenceState) else None,
            ending="ending" in given, after=after, limit=PAGE,
        )  # fmt: skip
        names = _names(session, who)
        recallable = {n for i, n in session.execute(select(Brand.id, Brand.name)) if who.may(Action.RECALL, i)}
        return page(
            request, "library.html", who, references=[ReferenceOut.of(e) for e in found.entries], given=given, names=names,
            characters=characters(session, who.brands(Action.VIEW)), states=[s.value for s in ReferenceState],
            recallable=recallable,
            next_page=f"/library?{urlencode({**given, 'after': found.next_after})}" if found.next_after else None,
        )  # fmt: skip


# ---------------------------------------------------------------------------- what pages are made of


def _queue(session: Session, who: Principal) -> tuple[Sequence[uuid.UUID], bool]:
    """Ids of the first of the caller's queue, the doubtful and then the due first, and whether there are more."""
    deciding = who.brands(Action.DECIDE)
    brands = session.scalars(select(Brand.id)).all() if deciding is None else deciding
    found = queue_of(session, who.actor, {b: who.stages(b) for b in brands}, QUEUE_SHOWN + 1)
    return found[:QUEUE_SHOWN], len(found) > QUEUE_SHOWN


def _filters(given: Mapping[str, str], who: Principal) -> tuple[grid.Filters, list[str]]:
    """The filters of an address, and a sentence for each that cannot be read and is left out."""
    told: list[str] = []
    read: dict[str, Any] = {}
    kinds: dict[str, Any] = {"review": ReviewState, "availability": Availability, "outcome": CheckOutcome,
                             "since": _moment, "until": _moment}  # fmt: skip
    for name, value in given.items():
        try:
            read[name] = kinds[name](value) if name in kinds else value
        except ValueError:
            told.append(f"{name}: {value[:40]} is none that there is")
    if read.get("person") == "me":
        read["person"] = who.actor
    return grid.Filters(within=who.brands(Action.VIEW), **read), told


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _around(session: Session, asset: Asset, within: Mapping[str, str], who: Principal) -> dict[str, Any]:
    """The assets before and after this one in the list that it was opened from."""
    if within.get("from") == QUEUE:
        queue = _queue(session, who)[0]
        here = queue.index(asset.id) if asset.id in queue else -1
        later = in_order(session, queue[here + 1 : here + 4])
        before = in_order(session, queue[here - 1 : here] if here > 0 else [])
    else:
        filters, _ = _filters({k: v for k, v in within.items() if k in FILTERS and v}, who)
        place = mark_of(asset.made_at, asset.id)
        later = list(grid.page(session, filters, place, 3).assets)
        before = list(grid.page(session, filters, place, 1, backwards=True).assets)
    address = urlencode(within)
    return {
        "next": f"/assets/{later[0].id}?{address}" if later else None,
        "previous": f"/assets/{before[0].id}?{address}" if before else None,
        "prefetch": [_picture(a.current) for a in later if a.current is not None],
    }


def _card(asset: Asset, address: str) -> dict[str, Any]:
    version, checks = asset.current, asset.current.checks if asset.current else []
    bad = [c.name for c in checks if c.outcome is not CheckOutcome.PASS]
    where = f"from={QUEUE}" if address == QUEUE else address
    return {
        "id": str(asset.id), "href": f"/assets/{asset.id}" + (f"?{where}" if where else ""), "shot": asset.shot,
        "variant": asset.variant + 1, "campaign": asset.campaign.name, "brand": asset.campaign.brand.name,
        "review": asset.review.value, "availability": asset.availability.value, "waits_at": list(asset.waits_at),
        "due": asset.due_at.isoformat(timespec="minutes") if asset.due_at else "", "row_version": asset.row_version,
        "late": asset.due_at is not None and asset.due_at < datetime.now(UTC), "bad": bad,
        "sha256": version.sha256 if version else "", "number": version.number if version else 0,
        "thumbnail": f"/v1/assets/{asset.id}/thumbnails/{version.sha256}" if version else "",
    }  # fmt: skip


def _picture(version: AssetVersion) -> str:
    return f"/v1/assets/{version.asset_id}/pictures/{version.sha256}"


def _versions(asset: Asset, record: Mapping[uuid.UUID, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stack, the newest first, each with what changed since the one before."""
    told: list[dict[str, Any]] = []
    before: Mapping[str, Any] | None = None
    for version in asset.versions:
        settings = record.get(version.id, {}).get("settings", {})
        changes = [] if before is None else changed_settings(before, settings)
        told.append(
            {"number": version.number, "picture": _picture(version), "made_at": version.made_at, "changes": changes}
        )
        before = settings
    return told[::-1]


def _records(session: Session, asset: Asset) -> Collection[LineageRecord]:
    ids = [v.id for v in asset.versions]
    return session.scalars(select(LineageRecord).where(LineageRecord.version_id.in_(ids))).all()


def _able(who: Principal, action: Action) -> bool:
    """Whether there is a brand that they may do this for."""
    brands = who.brands(action)
    return brands is None or len(brands) > 0


def _names(session: Session, who: Principal) -> dict[str, list[str]]:
    """What filters offer: the brands and campaigns that the caller may see."""
    within = who.brands(Action.VIEW)
    brands = select(Brand.name).order_by(Brand.name)
    campaigns = select(Campaign.name).distinct().order_by(Campaign.name).limit(200)
    if within is not None:
        brands, campaigns = brands.where(Brand.id.in_(within)), campaigns.where(Campaign.brand_id.in_(within))
    return {"brand": list(session.scalars(brands)), "campaign": list(session.scalars(campaigns))}
