"""Campaigns by the calendar: kept, looked at when it is time, started or skipped by the schedule's own rules. Loads no engine."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError
from sqlalchemy.orm import Session

from asset_store.errors import BriefInvalid, OnmodelError, Problem, RunOver
from asset_store.people.accounts import principal_of
from asset_store.people.permissions import Action
from asset_store.repositories import libraries, runs, schedules
from asset_store.repositories.schedules import Planned, Spent
from asset_store.tables import CampaignSchedule, Person, Run, RunKind
from flows import variables
from flows.brief import parse_brief
from flows.budget import BEGINNING, Budget
from flows.settings import QuotaSettings
from flows.starting import BriefText, OfSchedule, start_campaign
from flows.timetable import Schedule
from flows.wiring import Store

log = logging.getLogger("onmodel.scheduling")
TRIGGER = "schedule"
GRACE = timedelta(minutes=15)  # so much later it was missed: nothing ran when it was time
PUT_OFF = timedelta(minutes=5)
MOST_MISSED = 100  # times that are written down one by one, the newest of them


def rhythm_of(row: CampaignSchedule) -> Schedule:
    return Schedule.model_validate(row.rhythm)


def budget_of(row: CampaignSchedule) -> Budget | None:
    return None if row.budget is None else Budget.model_validate(row.budget)


def schedule_campaign(
    session: Session, brief: BriefText, now: datetime, *, by: str, person_id: uuid.UUID | None = None, reason: str = ""
) -> CampaignSchedule:
    """Keep a brief that has a schedule, to run by itself from now on; in the place of the one that has its name. BriefInvalid; NotFound.

    person_id: who must have the right to ask for it each time it runs; None for who sits at the terminal.
    """
    asked = parse_brief(brief.text, file=brief.file)
    if asked.schedule is None:
        raise BriefInvalid([Problem(brief.file, 1, "schedule", "This brief does not say when it runs.")])
    next_at = asked.schedule.next_after(now)
    if next_at is None:
        raise BriefInvalid([Problem(brief.file, 1, "schedule", "All of its times are over.")])
    brand = libraries.get_brand(session, asked.brand)
    campaign = variables.filled(asked, next_at, as_campaign=f"{asked.campaign}-{asked.schedule.name_of(next_at)}")
    for name in sorted({shot.character for shot in campaign.shots}):
        libraries.get_character(session, brand, name)
    planned = Planned(
        name=asked.campaign, brief=brief.text, brief_name=brief.file, folder=brief.folder, rhythm=asked.schedule.model_dump(mode="json"),
        budget=None if asked.budget is None else asked.budget.model_dump(mode="json"), by=by, person_id=person_id, reason=reason.strip(),
    )  # fmt: skip
    return schedules.keep(session, brand, planned, now, next_at)


def resume(session: Session, row: CampaignSchedule, by: str, now: datetime) -> None:
    """What was due while it was paused was not missed."""
    schedules.resume(session, row, by, now, rhythm_of(row).next_after(now))


# ---------------------------------------------------------------------------- when it is time


def act_on_one(store: Store, now: datetime) -> bool:
    """Act on one schedule that it is time for; whether there was one. One that cannot be acted on is put off, and keeps nobody up."""
    schedule_id = None
    try:
        with store.database.transaction() as session:
            schedule_id = schedules.due(session, now)
            if schedule_id is not None:
                act(session, schedule_id, now, store.settings.quota)
    except (OnmodelError, ValidationError):
        if schedule_id is None:
            raise
        log.exception("schedule %s could not be acted on", schedule_id)
        with store.database.transaction() as session:
            schedules.get(session, schedule_id, lock=True).next_at = now + PUT_OFF
    return schedule_id is not None


def act(session: Session, schedule_id: uuid.UUID, now: datetime, quota: QuotaSettings) -> list[Run]:
    """Start, or skip and say why, what a schedule's rules say for every time of it that came since it was looked at last; each is acted
    on once, however often this is asked for. Returns the runs that were started."""
    row = schedules.get(session, schedule_id, lock=True)
    if row.ended_at is not None or row.paused_at is not None:
        return []
    rhythm = rhythm_of(row)
    times, more = _times(rhythm, row.looked_until, now)
    if not times:
        return []
    if more:
        log.warning("schedule %s: %d times were missed, the newest %d are written down", row.name, more, len(times))
    started = [run for due_at in times if (run := _at(session, row, rhythm, due_at, times[-1], now, quota)) is not None]
    row.looked_until, row.next_at = now, rhythm.next_after(now)
    session.flush()
    return started


def _times(rhythm: Schedule, since: datetime, now: datetime) -> tuple[list[datetime], int]:
    """The newest times in (since, now], in order, and how many there are before them."""
    found: list[datetime] = []
    count = 0
    for moment in rhythm.after(since):
        if moment > now:
            break
        count += 1
        found = [*found[-(MOST_MISSED - 1) :], moment]
    return found, count - len(found)


def _at(
    session: Session, row: CampaignSchedule, rhythm: Schedule, due_at: datetime, latest: datetime, now: datetime, quota: QuotaSettings
) -> Run | None:  # fmt: skip
    """What one time of it comes to: a run, or a row that says why there is none."""
    missed = now - due_at > GRACE
    why = None
    if missed and rhythm.missed == "none":
        why = "nothing ran when it was time"
    elif due_at != latest and rhythm.missed != "all":
        why = "nothing ran when it was time, and it was time again since"
    why = why or _forbidden(session, row) or _over_budget(session, row, rhythm, due_at)
    going = schedules.going(session, row.id) if why is None else []
    catching_up = (rhythm.missed == "all" and due_at != latest) or any(r.waits for r in going)
    waits = bool(going) and (rhythm.if_running == "wait" or catching_up)
    if going and not waits and rhythm.if_running == "skip":
        why = "the run before was still going"
    if why is not None:
        _skip(session, row, due_at, why)
        return None
    if going and not waits:
        _cancel(session, going, row)
    brief = BriefText(row.brief, row.brief_name, row.folder)
    try:
        with session.begin_nested():
            return start_campaign(
                session, brief, quota, by=row.requested_by, trigger=TRIGGER, reason=row.reason,
                of=OfSchedule(row.id, due_at, waits),
            )  # fmt: skip
    except OnmodelError as error:  # as where its quota is spent, or a character has left the library
        _skip(session, row, due_at, f"{error.message}. {error.next_step}")
        return None


def _skip(session: Session, row: CampaignSchedule, due_at: datetime, why: str) -> None:
    request = {"brief": row.brief, "file": row.brief_name, "folder": row.folder, "at": due_at.isoformat()}
    schedules.skip(session, row, due_at, request, RunKind.CAMPAIGN, why)


def _cancel(session: Session, going: Sequence[Run], row: CampaignSchedule) -> None:
    for run in going:
        try:
            runs.cancel(session, run.id, f"schedule {row.name}")
        except RunOver:
            continue  # it ended just now


def _forbidden(session: Session, row: CampaignSchedule) -> str | None:
    """Who scheduled it must still be somebody who may ask for it."""
    if row.person_id is None:
        return None
    person = session.get_one(Person, row.person_id)
    if person.disabled_at is None and principal_of(person).may(Action.PRODUCE, row.brand_id):
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
