"""Schedules: briefs that run by themselves, written down, paused and ended; what their runs used. When they run is `flows.scheduling`'s."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound
from asset_store.repositories.runs import OPEN
from asset_store.tables import Brand, CampaignSchedule, Run, RunState


@dataclass(frozen=True, slots=True)
class Planned:
    """A brief with its schedule, as it is to be kept. person_id: whose right to ask for it is looked at each time it runs."""

    name: str
    brief: str
    brief_name: str
    folder: str | None
    rhythm: dict[str, Any]
    budget: dict[str, Any] | None
    by: str
    person_id: uuid.UUID | None
    reason: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What runs used: pictures made anew, and seconds of the engine."""

    pictures: int
    gpu_s: float


def keep(session: Session, brand: Brand, planned: Planned, now: datetime, next_at: datetime | None) -> CampaignSchedule:
    """Schedule a campaign of a brand, in the place of the schedule that has its name. Nothing is made up for that was due before."""
    row = find(session, brand, planned.name, lock=True)
    kept = {
        "brief": planned.brief, "brief_name": planned.brief_name, "folder": planned.folder, "rhythm": planned.rhythm,
        "budget": planned.budget, "requested_by": planned.by, "person_id": planned.person_id, "reason": planned.reason,
        "looked_until": now, "next_at": next_at,
    }  # fmt: skip
    action = "schedule campaign"
    if row is None:
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


def find(session: Session, brand: Brand, name: str, *, lock: bool = False) -> CampaignSchedule | None:
    question = select(CampaignSchedule).where(
        CampaignSchedule.brand_id == brand.id, CampaignSchedule.name == name, CampaignSchedule.ended_at.is_(None)
    )
    return session.scalar(question.with_for_update(of=CampaignSchedule) if lock else question)


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


def resume(session: Session, row: CampaignSchedule, by: str, now: datetime, next_at: datetime | None) -> None:
    """It runs again from now on: what was due while it was paused was not missed."""
    if row.paused_at is not None:
        row.paused_at, row.looked_until, row.next_at = None, now, next_at
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
    """Those whose time lies in [since, until), in order."""
    mine = select(Run).where(Run.schedule_id == schedule_id, Run.due_at >= since, Run.due_at < until)
    return session.scalars(mine.order_by(Run.due_at)).all()


def spent(session: Session, schedule_id: uuid.UUID, since: datetime, but: uuid.UUID | None = None) -> Spent:
    """What its runs whose time lies at or after `since` used, without the run `but`."""
    mine = select(func.coalesce(func.sum(Run.made_pictures), 0), func.coalesce(func.sum(Run.gpu_s), 0.0))
    mine = mine.where(Run.schedule_id == schedule_id, Run.due_at >= since)
    row = session.execute(mine if but is None else mine.where(Run.id != but)).one()
    return Spent(int(row[0]), float(row[1]))


def skip(
    session: Session, row: CampaignSchedule, due_at: datetime, request: dict[str, Any], kind: Any, why: str
) -> Run:
    """Write down that it was time and nothing was started, and why."""
    run = Run(
        kind=kind, brand_id=row.brand_id, request=request, pictures=0, requested_by=row.requested_by, reason=row.reason,
        trigger="schedule", state=RunState.SKIPPED, phase=RunState.SKIPPED.value, problem=why, schedule_id=row.id, due_at=due_at,
        finished_at=session.scalars(select(func.now())).one(),
    )  # fmt: skip
    session.add(run)
    session.flush()
    audit.record(
        session, "system", "skip run", f"run {run.id}", {"schedule": row.name, "due_at": due_at.isoformat(), "why": why}
    )
    return run
