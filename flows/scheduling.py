"""Campaigns by the calendar: kept, looked at when it is time, started or skipped by the schedule's own rules. Loads no engine."""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import BriefInvalid, OnmodelError, Problem, RunOver
from asset_store.people.accounts import principal_of
from asset_store.people.passes import of_key
from asset_store.people.permissions import Action
from asset_store.repositories import runs, schedules
from asset_store.repositories.runs import Spent
from asset_store.repositories.schedules import TRIGGER, Planned
from asset_store.tables import ApiKey, CampaignSchedule, Person, Run
from flows.budget import BEGINNING, Budget
from flows.settings import QuotaSettings
from flows.starting import BriefText, OfSchedule, campaign_of, known, request_of_campaign, start_campaign
from flows.timetable import Schedule
from flows.wiring import Store

log = logging.getLogger("onmodel.scheduling")
GRACE = timedelta(minutes=15)  # so much later it was missed: nothing ran when it was time
PUT_OFF = timedelta(minutes=5)
MOST_MADE_UP = 100  # times, the newest, of `missed: all`
BY_ITSELF = "schedule"  # who cancels a run that another one takes the place of


def rhythm_of(row: CampaignSchedule) -> Schedule:
    return Schedule.model_validate(row.rhythm)


def budget_of(row: CampaignSchedule) -> Budget | None:
    return None if row.budget is None else Budget.model_validate(row.budget)


def schedule_campaign(
    session: Session, brief: BriefText, now: datetime, *, by: str, person_id: uuid.UUID | None = None, key_id: uuid.UUID | None = None,
    reason: str = "",
) -> CampaignSchedule:  # fmt: skip
    """Keep a brief that has a schedule, to run by itself from now on; in the place of the one that has its name. BriefInvalid; NotFound;
    ScheduleRefused.

    person_id, key_id: who must have the right to ask for it each time it runs; None for who sits at the terminal.
    """
    asked = brief.parsed
    if asked.schedule is None:
        raise BriefInvalid([Problem(brief.file, 1, "schedule", "This brief does not say when it runs.")])
    next_at = asked.schedule.next_after(now)
    if next_at is None:
        raise BriefInvalid([Problem(brief.file, 1, "schedule", "All of its times are over.")])
    brand = known(session, campaign_of(request_of_campaign(brief, next_at), asked), brief)
    planned = Planned(
        name=asked.campaign, brief=brief.text, brief_name=brief.file, folder=brief.folder, rhythm=asked.schedule.model_dump(mode="json"),
        budget=None if asked.budget is None else asked.budget.model_dump(mode="json"), by=by, person_id=person_id, key_id=key_id,
        reason=reason.strip(),
    )  # fmt: skip
    return schedules.keep(session, brand, planned, now, asked.schedule.next_after)


def resume(session: Session, row: CampaignSchedule, by: str, now: datetime) -> None:
    """What was due while it was paused was not missed."""
    schedules.resume(session, row, by, now, rhythm_of(row).next_after)


# ---------------------------------------------------------------------------- when it is time


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at a schedule came to. cancel: runs that are ended first, then it is looked at again; more: it is time again."""

    started: Run | None = None
    cancel: tuple[uuid.UUID, ...] = ()
    more: bool = False


def act_on_one(store: Store, now: datetime) -> bool:
    """Act on one schedule that it is time for; whether there was one. One that cannot be acted on is put off, and keeps nobody up."""
    with store.database.transaction() as session:
        schedule_id = schedules.due(session, now)
    if schedule_id is None:
        return False
    try:
        act(store, schedule_id, now)
    except Exception:
        log.exception("schedule %s could not be acted on", schedule_id)
        with store.database.transaction() as session:
            schedules.get(session, schedule_id, lock=True).next_at = now + PUT_OFF
    return True


def act(store: Store, schedule_id: uuid.UUID, now: datetime) -> list[uuid.UUID]:
    """Start, or skip and say why, what a schedule's rules say for every time of it that came since it was looked at last: each in a
    transaction of its own, once, however often this is asked for. The ids of the runs that were started."""
    started: list[uuid.UUID] = []
    more = True
    while more:
        with store.database.transaction() as session:
            step = look(session, schedule_id, now, store.settings.quota)
            if step.started is not None:
                started.append(step.started.id)
        for run_id in step.cancel:
            with suppress(RunOver), store.database.transaction() as session:  # it may have ended just now
                runs.cancel(session, run_id, BY_ITSELF)
        more = step.more or bool(step.cancel)
    return started


def look(session: Session, schedule_id: uuid.UUID, now: datetime, quota: QuotaSettings) -> Step:
    """Act on the first time of a schedule that was not acted on yet. Times that were missed and are not made up for are one row."""
    row = schedules.get(session, schedule_id, lock=True)
    if row.ended_at is not None or row.paused_at is not None:
        return Step()
    rhythm = rhythm_of(row)
    times = list(takewhile(lambda moment: moment <= now, rhythm.after(row.looked_until)))
    left_out = _left_out(rhythm, times, now)
    due_at = times[left_out - 1] if left_out else next(iter(times), None)
    step = Step()
    if left_out:
        assert due_at is not None
        why = "nothing ran when it was time"
        why += f", {left_out} times from {times[0].isoformat(timespec='minutes')} on" if left_out > 1 else ""
        schedules.skip(session, row, due_at, why)
    elif due_at is not None:
        step = _at(session, row, rhythm, due_at, times[-1], quota)
        if step.cancel:
            return step
    row.looked_until = row.looked_until if due_at is None else due_at
    row.next_at = rhythm.next_after(row.looked_until if due_at is not None else now)
    session.flush()
    return replace(step, more=row.next_at is not None and row.next_at <= now)


def _left_out(rhythm: Schedule, times: list[datetime], now: datetime) -> int:
    """How many of the first of these times were missed and are not made up for."""
    missed = sum(now - moment > GRACE for moment in times)
    if rhythm.missed == "all":
        return max(0, len(times) - MOST_MADE_UP)
    return missed if rhythm.missed == "none" else max(0, min(missed, len(times) - 1))


def _at(
    session: Session, row: CampaignSchedule, rhythm: Schedule, due_at: datetime, latest: datetime, quota: QuotaSettings
) -> Step:
    """What one time of it comes to: a run, or a row that says why there is none; or the runs that are to be cancelled before."""
    brief = BriefText(row.brief, row.brief_name, row.folder)
    why = _forbidden(session, row) or _over_budget(session, row, rhythm, due_at)
    going = schedules.going(session, row.id) if why is None else []
    makes_up = due_at != latest or any(r.waits for r in going)
    waits = bool(going) and (rhythm.if_running == "wait" or makes_up)
    if going and not waits and rhythm.if_running == "skip":
        why = "the run before was still going"
    elif rhythm.if_running == "wait" and rhythm.missed != "all" and any(r.waits for r in going):
        why = "another run waits already"
    elif going and not waits:
        return Step(cancel=tuple(r.id for r in going))
    if why is None:
        try:
            with session.begin_nested():
                of = OfSchedule(row.id, due_at, waits)
                return Step(
                    start_campaign(
                        session, brief, quota, by=row.requested_by, trigger=TRIGGER, reason=row.reason, of=of
                    )
                )
        except OnmodelError as error:  # as where its quota is spent, or a character has left the library
            why = f"{error.message}. {error.next_step}"
    schedules.skip(session, row, due_at, why)
    return Step()


def _forbidden(session: Session, row: CampaignSchedule) -> str | None:
    """Who scheduled it must still be somebody who may ask for it, and the key that they did it with must still be theirs."""
    if row.person_id is None:
        return None
    person = session.get_one(Person, row.person_id)
    who = None if person.disabled_at is not None else principal_of(person)
    if row.key_id is not None:
        who = of_key(session.get_one(ApiKey, row.key_id), session.scalars(select(func.now())).one())
    if who is not None and who.may(Action.PRODUCE, row.brand_id):
        return None
    return f"{row.requested_by} may ask for campaigns of {row.brand.name} no longer"


def _over_budget(session: Session, row: CampaignSchedule, rhythm: Schedule, due_at: datetime) -> str | None:
    budget = budget_of(row)
    if budget is None or budget.per == "run":
        return None
    spent = schedules.spent(session, row.id, budget.since(due_at, rhythm.zone))
    pictures_gone = budget.pictures is not None and spent.pictures >= budget.pictures
    seconds_gone = budget.gpu_seconds is not None and spent.gpu_s >= budget.gpu_seconds
    return f"its budget of {budget.told} is spent" if pictures_gone or seconds_gone else None


def spent_now(session: Session, row: CampaignSchedule, now: datetime) -> Spent:
    """What its runs used within the period of its budget that is now; in all, where it has none or one a run."""
    budget = budget_of(row)
    whole = budget is None or budget.per == "run"
    since = BEGINNING if budget is None or whole else budget.since(now, rhythm_of(row).zone)
    return schedules.spent(session, row.id, since)


# ---------------------------------------------------------------------------- its calendar


@dataclass(frozen=True, slots=True)
class CalendarDay:
    """One day of a schedule, in its time zone: runs that were, and times that are to come."""

    day: str
    runs: tuple[Run, ...]
    to_come: tuple[datetime, ...]


def calendar(
    session: Session, row: CampaignSchedule, first: datetime, until: datetime, now: datetime, most: int = 500
) -> list[CalendarDay]:
    """Its days in [first, until) that have anything, in order."""
    rhythm = rhythm_of(row)
    days: dict[str, tuple[list[Run], list[datetime]]] = {}

    def day_of(moment: datetime) -> tuple[list[Run], list[datetime]]:
        return days.setdefault(moment.astimezone(rhythm.zone).date().isoformat(), ([], []))

    for run in schedules.runs_between(session, row.id, first, until):
        assert run.due_at is not None
        day_of(run.due_at)[0].append(run)
    if row.paused_at is None and row.ended_at is None:
        for count, moment in enumerate(rhythm.after(max(now, row.looked_until, first - timedelta(seconds=1)))):
            if moment >= until or count >= most:
                break
            day_of(moment)[1].append(moment)
    return [CalendarDay(day, tuple(was), tuple(to_come)) for day, (was, to_come) in sorted(days.items())]
