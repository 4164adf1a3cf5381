"""`/v1/schedules`: campaigns that run by the calendar."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from asset_store.errors import Forbidden, NotFound
from asset_store.people.permissions import Action, Principal
from asset_store.repositories import schedules
from asset_store.tables import CampaignSchedule
from flows import scheduling
from flows.scheduling import schedule_campaign
from studio.api.answers import Answer
from studio.api.callers import Idempotency, StoreDep, Who, need
from studio.api.campaigns import BriefIn
from studio.api.once import answered
from studio.api.runs import RunOut, producing

router = APIRouter(prefix="/schedules", tags=["schedules"])
ScheduleId = Annotated[uuid.UUID, Path()]


class ScheduleOut(Answer):
    """`when`: its rhythm in words; `used_pictures`, `used_gpu_s`: of its budget's period that is now, or in all."""

    id: uuid.UUID
    name: str
    brand: str
    when: str
    time_zone: str
    schedule: dict[str, Any]
    next_at: datetime | None
    is_paused: bool
    has_ended: bool
    budget: str | None
    used_pictures: int
    used_gpu_s: float
    requested_by: str
    reason: str
    brief: str

    @classmethod
    def of(cls, session: Session, row: CampaignSchedule, now: datetime) -> ScheduleOut:
        rhythm, budget = scheduling.rhythm_of(row), scheduling.budget_of(row)
        spent = scheduling.spent_now(session, row, now)
        return cls(
            id=row.id, name=row.name, brand=row.brand.name, when=rhythm.told, time_zone=rhythm.time_zone, schedule=row.rhythm,
            next_at=None if row.next_at is None else row.next_at.astimezone(rhythm.zone), is_paused=row.paused_at is not None,
            has_ended=row.ended_at is not None, budget=None if budget is None else budget.told, used_pictures=spent.pictures,
            used_gpu_s=round(spent.gpu_s, 3), requested_by=row.requested_by, reason=row.reason, brief=row.brief,
        )  # fmt: skip


class SchedulesOut(Answer):
    schedules: list[ScheduleOut]


class DayOut(Answer):
    """A day in the schedule's time zone: the runs that were, and the times that are to come."""

    day: date
    runs: list[RunOut]
    to_come: list[datetime]


class CalendarOut(Answer):
    days: list[DayOut]


@router.get("")
def get_schedules(who: Who, store: StoreDep) -> SchedulesOut:
    """Those of the brands that the caller may see that have not ended."""
    within, now = who.brands(Action.VIEW), datetime.now(UTC)
    with store.database.reading() as session:
        found = schedules.schedules(session, None if within is None else list(within))
        return SchedulesOut(schedules=[ScheduleOut.of(session, row, now) for row in found])


@router.post("", status_code=201)
def keep_schedule(body: BriefIn, who: Who, store: StoreDep, idempotency_key: Idempotency = None) -> ScheduleOut:
    """Have a brief run by itself when its `schedule` says so, in the place of the one that is scheduled under its name. Each time it runs,
    who asked for it must still be allowed to."""
    now, brief = datetime.now(UTC), body.read()

    def act(session: Session) -> ScheduleOut:
        brand = producing(session, brief.parsed.brand, who)
        before = schedules.hold(session, brand, brief.parsed.campaign)
        if before is not None:
            _check_its_own(who, before)
        row = schedule_campaign(
            session, brief, now, by=who.actor, person_id=who.person_id, key_id=who.key_id, reason=body.reason
        )
        return ScheduleOut.of(session, row, now)

    return answered(store, who, idempotency_key, {"schedule": body.model_dump()}, act, ScheduleOut)


@router.get("/{schedule_id}")
def get_schedule(schedule_id: ScheduleId, who: Who, store: StoreDep) -> ScheduleOut:
    """When it runs, and what it used of its budget."""
    with store.database.reading() as session:
        return ScheduleOut.of(session, seen_schedule(session, schedule_id, who), datetime.now(UTC))


@router.get("/{schedule_id}/calendar")
def get_calendar(
    schedule_id: ScheduleId, who: Who, store: StoreDep, month: Annotated[str, Query(pattern=r"^20\d\d-(0[1-9]|1[0-2])$", examples=["2026-12"])]
) -> CalendarOut:  # fmt: skip
    """A month of it: what ran, what was skipped and why, and what is to come."""
    with store.database.reading() as session:
        return calendar_of(session, seen_schedule(session, schedule_id, who), month)


@router.post("/{schedule_id}/pause")
def pause(schedule_id: ScheduleId, who: Who, store: StoreDep) -> ScheduleOut:
    """Let it run no more until it is resumed; what runs goes on. Again, it changes nothing."""
    return _changed(schedule_id, who, store, "pause")


@router.post("/{schedule_id}/resumption")
def resume(schedule_id: ScheduleId, who: Who, store: StoreDep) -> ScheduleOut:
    """Let it run again from now on; what was due while it was paused is not made up for."""
    return _changed(schedule_id, who, store, "resume")


@router.delete("/{schedule_id}")
def end(schedule_id: ScheduleId, who: Who, store: StoreDep) -> ScheduleOut:
    """Let it run never again; what it made stays."""
    return _changed(schedule_id, who, store, "end")


def seen_schedule(
    session: Session, schedule_id: uuid.UUID, who: Principal, action: Action = Action.VIEW, *, lock: bool = False
) -> CampaignSchedule:
    """The schedule, if they may. NotFound; Forbidden."""
    try:
        row = schedules.get(session, schedule_id, lock=lock)
    except NotFound:
        row = None
    need(who, action, None if row is None else row.brand_id, "schedule", schedule_id)
    assert row is not None
    return row


def calendar_of(session: Session, row: CampaignSchedule, month: str) -> CalendarOut:
    """month: as `2026-12`, in the schedule's time zone."""
    zone = scheduling.rhythm_of(row).zone
    first = datetime.fromisoformat(f"{month}-01").replace(tzinfo=zone)
    until = (first + timedelta(days=32)).replace(day=1)
    days = scheduling.calendar(session, row, first.astimezone(UTC), until.astimezone(UTC), datetime.now(UTC))
    return CalendarOut(
        days=[
            DayOut(day=date.fromisoformat(d.day), runs=[RunOut.of(r) for r in d.runs], to_come=list(d.to_come))
            for d in days
        ]
    )


def _check_its_own(who: Principal, row: CampaignSchedule) -> None:
    """Forbidden for an agent that would change what others scheduled."""
    if who.is_agent and row.requested_by != who.actor:
        raise Forbidden(who.actor, "change what others scheduled")


def _changed(schedule_id: uuid.UUID, who: Principal, store: StoreDep, what: str) -> ScheduleOut:
    now = datetime.now(UTC)
    with store.database.transaction() as session:
        row = seen_schedule(session, schedule_id, who, Action.PRODUCE, lock=True)
        _check_its_own(who, row)
        if what == "pause":
            schedules.pause(session, row, who.actor, now)
        elif what == "resume":
            scheduling.resume(session, row, who.actor, now)
        else:
            schedules.end(session, row, who.actor, now)
        return ScheduleOut.of(session, row, now)
