"""Schedules: briefs that run by themselves, written down, paused and ended; what their runs used. When they run is `flows.scheduling`'s."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, defer

from asset_store import audit
from asset_store.errors import NotFound, ScheduleRefused
from asset_store.repositories.runs import OPEN, Spent
from asset_store.tables import Brand, CampaignSchedule, Run, RunKind, RunState

NAMES = 0x6F6D0005  # advisory locks under which a schedule is given its name
MOST_OF_A_BRAND = 100
MOST_SHOWN = 3000  # as many as a month has quarters of an hour, and no more
TRIGGER = "schedule"


@dataclass(frozen=True, slots=True)
class Planned:
    """A brief with its schedule, as it is to be kept. person_id, key_id: whose right to ask for it is looked at each time it
    runs."""

    name: str
    brief: str
    brief_name: str
    folder: str | None
    rhythm: dict[str, Any]
    budget: dict[str, Any] | None
    by: str
    person_id: uuid.UUID | None
    key_id: uuid.UUID | None
    reason: str


def hold(session: Session, brand: Brand, name: str) -> CampaignSchedule | None:
    """The schedule that has a name, which nobody else gives, takes or changes until the transaction is over; None where it is free."""
    session.execute(select(func.pg_advisory_xact_lock(NAMES, func.hashtext(f"{brand.id}/{name}"))))
    return session.scalar(
        _named(brand, name).with_for_update(of=CampaignSchedule).execution_options(populate_existing=True)
    )


def keep(
    session: Session, brand: Brand, planned: Planned, now: datetime, next_after: Callable[[datetime], datetime | None]
) -> CampaignSchedule:
    """Schedule a campaign of a brand, in the place of the schedule that has its name. Nothing is made up for that was due before, and
    nothing that was acted on is due again. ScheduleRefused where a brand has too many."""
    row = hold(session, brand, planned.name)
    since = now if row is None else max(now, row.looked_until)
    kept = {
        "brief": planned.brief, "brief_name": planned.brief_name, "folder": planned.folder, "rhythm": planned.rhythm,
        "budget": planned.budget, "requested_by": planned.by, "person_id": planned.person_id, "key_id": planned.key_id,
        "reason": planned.reason, "looked_until": since, "next_at": next_after(since),
    }  # fmt: skip
    action = "schedule campaign"
    if row is None:
        going = select(func.count()).where(CampaignSchedule.brand_id == brand.id, CampaignSchedule.ended_at.is_(None))
        if (session.scalar(going) or 0) >= MOST_OF_A_BRAND:
            raise ScheduleRefused(f"{brand.name} has {MOST_OF_A_BRAND} schedules already", "End one of them first.")
        row = CampaignSchedule(name=planned.name, brand_id=brand.id, brand=brand, **kept)
        session.add(row)
    else:
        action = "change schedule"
        for name, value in kept.items():
            setattr(row, name, value)
    session.flush()
    told = {
        "name": planned.name,
        "brand": brand.name,
        "schedule": planned.rhythm,
        "budget": planned.budget,
        "reason": planned.reason,
    }
    audit.record(session, planned.by, action, f"schedule {row.id}", told)
    return row


def _named(brand: Brand, name: str) -> Select[CampaignSchedule]:
    return select(CampaignSchedule).where(
        CampaignSchedule.brand_id == brand.id, CampaignSchedule.name == name, CampaignSchedule.ended_at.is_(None)
    )


def get(session: Session, schedule_id: uuid.UUID, *, lock: bool = False) -> CampaignSchedule:
    question = select(CampaignSchedule).where(CampaignSchedule.id == schedule_id)
    if lock:
        question = question.with_for_update(of=CampaignSchedule).execution_options(populate_existing=True)
    row = session.scalar(question)
    if row is None:
        raise NotFound("schedule", str(schedule_id), "`onmodel campaign list` names those there are.")
    return row


def named(session: Session, name: str, brand: str | None = None) -> CampaignSchedule:
    """By name, of a brand where several have it. NotFound."""
    question = select(CampaignSchedule).join(Brand, Brand.id == CampaignSchedule.brand_id)
    question = question.where(CampaignSchedule.name == name, CampaignSchedule.ended_at.is_(None))
    found = session.scalars(question if brand is None else question.where(Brand.name == brand)).all()
    if len(found) != 1:
        step = "`onmodel campaign list` names those there are."
        raise NotFound("schedule", name, step if not found else "Several brands have it: give --brand.")
    return get(session, found[0].id, lock=True)


def schedules(session: Session, within: Sequence[uuid.UUID] | None = None) -> Sequence[CampaignSchedule]:
    """Those that have not ended, by brand and name; within: of these brands, None for all."""
    question = select(CampaignSchedule).join(Brand).where(CampaignSchedule.ended_at.is_(None))
    if within is not None:
        question = question.where(CampaignSchedule.brand_id.in_(within))
    return session.scalars(question.order_by(Brand.name, CampaignSchedule.name)).all()


def due(session: Session, now: datetime) -> uuid.UUID | None:
    """One that it is time for, that nobody else is at."""
    waiting = select(CampaignSchedule.id).where(
        CampaignSchedule.ended_at.is_(None), CampaignSchedule.paused_at.is_(None), CampaignSchedule.next_at <= now
    )
    return session.scalar(waiting.order_by(CampaignSchedule.next_at).limit(1).with_for_update(skip_locked=True))


def pause(session: Session, row: CampaignSchedule, by: str, now: datetime) -> None:
    """It runs no more until it is resumed; what runs goes on. Again, it changes nothing."""
    if row.paused_at is None:
        row.paused_at = now
        session.flush()
        audit.record(session, by, "pause schedule", f"schedule {row.id}", {"name": row.name})


def resume(
    session: Session, row: CampaignSchedule, by: str, now: datetime, next_after: Callable[[datetime], datetime | None]
) -> None:
    """It runs again from now on: what was due while it was paused was not missed."""
    if row.paused_at is not None:
        row.paused_at, row.looked_until = None, max(now, row.looked_until)
        row.next_at = next_after(row.looked_until)
        session.flush()
        audit.record(session, by, "resume schedule", f"schedule {row.id}", {"name": row.name})


def end(session: Session, row: CampaignSchedule, by: str, now: datetime) -> None:
    """It runs never again; its name is free. What it made stays."""
    if row.ended_at is None:
        row.ended_at, row.next_at = now, None
        session.flush()
        audit.record(session, by, "end schedule", f"schedule {row.id}", {"name": row.name})


# ---------------------------------------------------------------------------- its runs


def going(session: Session, schedule_id: uuid.UUID) -> Sequence[Run]:
    """Its runs that have not ended, the oldest first."""
    mine = select(Run).where(Run.schedule_id == schedule_id, Run.state.in_(OPEN))
    return session.scalars(mine.order_by(Run.due_at)).all()


def runs_between(session: Session, schedule_id: uuid.UUID, since: datetime, until: datetime) -> Sequence[Run]:
    """Those whose time lies in [since, until), in order, without what they ask for."""
    mine = select(Run).where(Run.schedule_id == schedule_id, Run.due_at >= since, Run.due_at < until)
    return session.scalars(mine.order_by(Run.due_at).limit(MOST_SHOWN).options(defer(Run.request))).all()


def spent(session: Session, schedule_id: uuid.UUID, since: datetime, but: uuid.UUID | None = None) -> Spent:
    """What its runs whose time lies at or after `since` used, without the run `but`."""
    mine = select(func.coalesce(func.sum(Run.made_pictures), 0), func.coalesce(func.sum(Run.gpu_s), 0.0))
    mine = mine.where(Run.schedule_id == schedule_id, Run.due_at >= since)
    row = session.execute(mine if but is None else mine.where(Run.id != but)).one()
    return Spent(int(row[0]), float(row[1]))


def skip(session: Session, row: CampaignSchedule, due_at: datetime, why: str) -> Run:
    """Write down that it was time and nothing was started, and why. The brief is not kept again: the schedule has it."""
    run = Run(
        kind=RunKind.CAMPAIGN, brand_id=row.brand_id, request={"at": due_at.isoformat()}, pictures=0, requested_by=row.requested_by,
        reason=row.reason, trigger=TRIGGER, state=RunState.SKIPPED, phase=RunState.SKIPPED.value, problem=why[:2000], schedule_id=row.id,
        due_at=due_at, finished_at=session.scalars(select(func.now())).one(),
    )  # fmt: skip
    session.add(run)
    session.flush()
    audit.record(
        session,
        "system",
        "skip run",
        f"run {run.id}",
        {"schedule": row.name, "due_at": due_at.isoformat(), "why": why[:2000]},
    )
    return run
