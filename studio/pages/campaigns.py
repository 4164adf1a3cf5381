"""Campaigns: those there are and those that run by the calendar, starting one from a brief, one with its runs, one with its calendar."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from asset_store.people.permissions import Action
from asset_store.repositories import runs, schedules
from asset_store.reviewing.states import ReviewState
from asset_store.tables import RunKind
from studio.api.callers import StoreDep
from studio.api.campaigns import campaign_page, get_campaigns
from studio.api.runs import RunOut
from studio.api.schedules import CalendarOut, DayOut, ScheduleOut, calendar_of, seen_schedule
from studio.pages import lists
from studio.pages.rendering import page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
STATES = [state.value for state in ReviewState]
UNDER_WAY = 20
EXAMPLE = """\
campaign: spring
brand: {brand}
variables:
  product: [desk lamp, floor lamp]
shots:
  - name: pip-lamp
    character: Pip
    prompt: a mascot with a {{product}}, happy, front view
    variants: 4
# Leave these out to run it once, now.
schedule: {{cron: 0 9 * * mon, time_zone: Europe/Berlin}}
budget: {{pictures: 40, per: month}}
"""


@router.get("/campaigns")
def campaigns_page(request: Request, store: StoreDep) -> Response:
    """What runs by the calendar, what is under way, and the newest campaigns with where their assets stand."""
    who = lists.visitor(request, store)
    within, producing = who.brands(Action.VIEW), who.brands(Action.PRODUCE)
    brands, now = None if within is None else list(within), datetime.now(UTC)
    told = get_campaigns(who, store, limit=100)
    with store.database.reading() as session:
        scheduled = [ScheduleOut.of(session, row, now) for row in schedules.schedules(session, brands)]
        going = runs.page(session, brands, None, UNDER_WAY, kind=RunKind.CAMPAIGN, only_open=True).runs
        mine = lists.names(session, who)["brand"]
        return page(
            request, "campaigns.html", who, campaigns=told.campaigns, states=STATES, schedules=scheduled,
            going=[(RunOut.of(run), _name_of(run.request)) for run in going], example=EXAMPLE.format(brand=mine[0] if mine else "lumen"),
            may_start=producing is None or len(producing) > 0,
        )  # fmt: skip


@router.get("/campaigns/{campaign_id}")
def one_campaign_page(campaign_id: uuid.UUID, request: Request, store: StoreDep) -> Response:
    """Where its assets stand, what it used, and the runs that made it."""
    who = lists.visitor(request, store)
    with store.database.reading() as session:
        return page(request, "campaign.html", who, campaign=campaign_page(session, campaign_id, who), states=STATES)


@router.get("/schedules/{schedule_id}")
def schedule_page(
    schedule_id: uuid.UUID, request: Request, store: StoreDep,
    month: Annotated[str | None, Query(pattern=r"^20\d\d-(0[1-9]|1[0-2])$")] = None,
) -> Response:  # fmt: skip
    """A month of its calendar, what it used of its budget, pausing and ending it."""
    who = lists.visitor(request, store)
    now = datetime.now(UTC)
    with store.database.reading() as session:
        row = seen_schedule(session, schedule_id, who)
        told = ScheduleOut.of(session, row, now)
        shown = month or now.astimezone(ZoneInfo(told.time_zone)).strftime("%Y-%m")
        days = calendar_of(session, row, shown)
        first = date.fromisoformat(f"{shown}-01")
        return page(
            request, "schedule.html", who, schedule=told, month=first, weeks=weeks_of(first, days),
            before=(first - timedelta(days=1)).strftime("%Y-%m"), after=(first + timedelta(days=32)).strftime("%Y-%m"),
            may_change=who.may(Action.PRODUCE, row.brand_id), today=now.astimezone(ZoneInfo(told.time_zone)).date(),
        )  # fmt: skip


def weeks_of(first: date, told: CalendarOut) -> list[list[tuple[date, DayOut | None]]]:
    """A month's weeks from Monday, each day with what it has; days of the months beside it have nothing."""
    by_day = {day.day: day for day in told.days}
    start = first - timedelta(days=first.weekday())
    weeks: list[list[tuple[date, DayOut | None]]] = []
    while not weeks or start.month == first.month:
        weeks.append([(day, by_day.get(day)) for day in (start + timedelta(days=n) for n in range(7))])
        start += timedelta(days=7)
    return weeks


def _name_of(request: dict[str, object]) -> str:
    return str(request.get("campaign") or request.get("file", ""))
