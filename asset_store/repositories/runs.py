"""Runs: begun once by whoever asks, carried by a flow that may die and be started again, cancelled by those who may."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Float, Integer, cast, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from asset_store import audit
from asset_store.errors import NotFound, QuotaSpent, RunOver
from asset_store.keyset import mark_of, newest
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, Job, JobState, Run, RunKind, RunState

OPEN = (RunState.QUEUED, RunState.RUNNING)
DAY = timedelta(days=1)
LOST_AFTER = timedelta(seconds=120)  # without a sign of life a flow is given up for lost, and another is started
BEGINS_WITHIN = timedelta(hours=1)
MOST_SENT = 5
BY_BRAND, BY_ASKER = 0x6F6D0003, 0x6F6D0004  # advisory locks under which quotas are looked at, one asker at a time


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a run is to make. by: who asks, `key:NAME of OWNER` for a program, `agent:…` for an agent; trigger: the door it came through.

    pictures: that it asks for; drawn: with all candidates, which quotas count. due_at: the time of the schedule that it is of; waits: until
    the schedule's runs before it have ended.
    """

    kind: RunKind
    brand: Brand
    request: dict[str, Any]
    pictures: int
    by: str
    reason: str
    trigger: str
    schedule_id: uuid.UUID | None = None
    due_at: datetime | None = None
    waits: bool = False
    drawn: int | None = None

    @property
    def counted(self) -> int:
        return self.pictures if self.drawn is None else self.drawn


@dataclass(frozen=True, slots=True)
class Quota:
    """Pictures within a day, None for as many as they like."""

    of_brand: int | None = None
    of_asker: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What runs used: pictures made anew, and seconds of the engine."""

    pictures: int
    gpu_s: float


@dataclass(frozen=True, slots=True)
class RunPage:
    runs: tuple[Run, ...]
    next_after: str | None


def begin(session: Session, wanted: Wanted, quota: Quota, *, sent: bool = False) -> Run:
    """Write the run down for a flow to take up; sent: the caller starts that itself. QuotaSpent."""
    _spend(session, wanted, quota)
    run = Run(
        kind=wanted.kind, brand_id=wanted.brand.id, request=wanted.request, pictures=wanted.counted, requested_by=wanted.by,
        reason=wanted.reason, trigger=wanted.trigger, total=wanted.pictures, schedule_id=wanted.schedule_id, due_at=wanted.due_at,
        waits=wanted.waits,
    )  # fmt: skip
    if sent:
        run.sent, run.sent_at = 1, session.scalars(select(func.now())).one()
        run.first_sent_at = run.sent_at
    session.add(run)
    session.flush()
    told = {"kind": wanted.kind.value, "brand": wanted.brand.name, "pictures": wanted.pictures, "reason": wanted.reason,
            "trigger": wanted.trigger}  # fmt: skip
    audit.record(session, wanted.by, "start run", f"run {run.id}", told)
    return run


def get(session: Session, run_id: uuid.UUID) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound("run", str(run_id))
    return run


def page(
    session: Session, within: Sequence[uuid.UUID] | None, after: str | None = None, limit: int = 50, *,
    kind: RunKind | None = None, only_open: bool = False,
) -> RunPage:  # fmt: skip
    """The newest runs of these brands, None for all; of one kind, or those alone that have not ended."""
    question = newest(select(Run), Run.made_at, Run.id, after, limit, "runs")
    if kind is not None:
        question = question.where(Run.kind == kind)
    if only_open:
        question = question.where(Run.state.in_(OPEN))
    if within is not None:
        question = question.where(Run.brand_id.in_(within))
    found = session.scalars(question).all()
    shown = found[:limit]
    return RunPage(tuple(shown), mark_of(shown[-1].made_at, shown[-1].id) if len(found) > limit else None)


# ---------------------------------------------------------------------------- carried by a flow


def take(session: Session) -> tuple[Run, int] | None:
    """An open run that no flow carries, to start one for, and how often that was done before: it was never sent, or what carried it has
    given no sign of life.

    Sent again under the same number it is the same flow run at Prefect, where it may wait for its turn; the number goes up when what had
    begun was lost, or nothing began within an hour since it was sent. After MOST_SENT times it is given up; then, too, None is answered.
    """
    lost = func.coalesce(Run.beat_at, Run.sent_at) < func.now() - LOST_AFTER
    before_it = aliased(Run)
    held = exists().where(
        before_it.schedule_id == Run.schedule_id, before_it.due_at < Run.due_at, before_it.state.in_(OPEN), Run.waits
    )
    run = session.scalar(
        select(Run)
        .where(Run.state.in_(OPEN), or_(Run.sent_at.is_(None), lost), ~held)
        .order_by(Run.made_at)
        .limit(1)
        .with_for_update(of=Run, skip_locked=True)
    )
    if run is None:
        return None
    before, now = run.sent, session.scalars(select(func.now())).one()
    waited = run.first_sent_at is not None and now - run.first_sent_at > run.sent * BEGINS_WITHIN
    if run.sent == 0 or run.beat_at is not None or waited:
        if run.sent >= MOST_SENT:
            end(session, run.id, RunState.FAILED, problem=f"its flow was lost {run.sent} times")
            return None  # the audit is held from here on: whatever else is locked is locked before it
        run.sent, run.first_sent_at = run.sent + 1, run.first_sent_at or now
    run.sent_at, run.beat_at = now, None
    return run, before


def unsend(session: Session, run_id: uuid.UUID, before: int) -> None:
    """No flow could be started: it is tried again when LOST_AFTER is over, and that does not count."""
    session.execute(update(Run).where(Run.id == run_id, Run.state.in_(OPEN)).values(sent=before))


def beat(session: Session, run_id: uuid.UUID, **facts: Any) -> bool:
    """A sign of life with how far it is (phase, done, total, campaign_id, flow_run_id); False where it was ended meanwhile."""
    told = update(Run).where(Run.id == run_id, Run.state.in_(OPEN))
    values = {"state": RunState.RUNNING, "beat_at": func.now(), **facts}
    return session.scalar(told.values(values).returning(Run.id)) is not None


def end(
    session: Session, run_id: uuid.UUID, state: RunState, *, result: dict[str, Any] | None = None, problem: str | None = None
) -> bool:  # fmt: skip
    """The end of an open run; False where it was ended before, which then stands."""
    ended = update(Run).where(Run.id == run_id, Run.state.in_(OPEN))
    values = {"state": state, "result": result, "problem": problem, "phase": state.value, "finished_at": func.now()}
    row = session.execute(ended.values(values).returning(Run.campaign_id)).first()
    if row is None:
        return False
    count_used(session, run_id)
    if state is RunState.FAILED and row.campaign_id is not None:
        block(session, row.campaign_id, "its run failed")
    audit.record(session, "system", f"run {state.value}", f"run {run_id}", {"problem": problem} if problem else {})
    return True


# ---------------------------------------------------------------------------- cancelled


def cancel(session: Session, run_id: uuid.UUID, by: str) -> Run:
    """End an open run; its jobs that nobody else waits for are not made. RunOver where it has ended."""
    run = session.scalar(
        select(Run).where(Run.id == run_id).with_for_update(of=Run).execution_options(populate_existing=True)
    )
    if run is None:
        raise NotFound("run", str(run_id))
    if run.state is RunState.CANCELLED:
        return run
    if run.state not in OPEN:
        raise RunOver(run.state)
    run.state, run.phase, run.finished_at = (
        RunState.CANCELLED,
        RunState.CANCELLED.value,
        session.scalars(select(func.now())).one(),
    )
    session.flush()
    blocked = block(session, run.campaign_id, f"{by} cancelled the run") if run.campaign_id is not None else 0
    count_used(session, run_id)
    audit.record(session, by, "cancel run", f"run {run_id}", {"jobs": blocked})
    return run


def cancel_of_flow(session: Session, flow_run_id: str, by: str) -> Run | None:
    """End the open run that a flow run carries; None where it carries none."""
    run_id = session.scalar(select(Run.id).where(Run.flow_run_id == flow_run_id, Run.state.in_(OPEN)))
    return None if run_id is None else cancel(session, run_id, by)


def block(session: Session, campaign_id: uuid.UUID, why: str) -> int:
    """Cancel the jobs that assets of this campaign alone wait for, also those that a worker is at; how many. None while another open run
    makes the same campaign: the same brief, asked for twice, is one."""
    session.execute(select(Campaign.id).where(Campaign.id == campaign_id).with_for_update(key_share=True))
    others = exists().where(Run.campaign_id == campaign_id, Run.state.in_(OPEN))
    if session.scalar(select(others)):
        return 0
    ours = select(Asset.job_key).where(Asset.campaign_id == campaign_id)
    running = Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    held = session.scalars(
        select(Job).where(Job.key.in_(ours), running).order_by(Job.key).with_for_update(of=Job)
    ).all()
    # Asked once they are held: who has begun to wait for one of them is seen by now.
    made = select(AssetVersion.id).where(AssetVersion.asset_id == Asset.id, AssetVersion.job_key == Asset.job_key)
    keys = [job.key for job in held]
    elsewhere = select(Asset.job_key).where(Asset.job_key.in_(keys), Asset.campaign_id != campaign_id, ~made.exists())
    wanted = set(session.scalars(elsewhere))
    jobs = [job for job in held if job.key not in wanted]
    for job in jobs:
        job.state, job.claimed_by, job.lease_until = JobState.CANCELLED, None, None
        job.evidence = [*job.evidence, {"attempt": job.attempt, "message": why}]
    return len(jobs)


def used(session: Session, run: Run) -> Spent:
    """What a run's pictures took: those made since it began, also where another run or campaign asked for them, too."""
    candidates = func.coalesce(cast(Job.recipe["best_of"]["candidates"].astext, Integer), 1)
    took = cast(Job.picture["run"]["engine_s"].astext, Float) * candidates
    its = select(AssetVersion.job_key).join(Asset, Asset.id == AssetVersion.asset_id)
    made = select(func.count(), func.coalesce(func.sum(took), 0.0)).where(
        Job.key.in_(its.where(Asset.campaign_id == run.campaign_id)), Job.finished_at >= run.made_at
    )
    row = session.execute(made).one()
    return Spent(int(row[0]), round(float(row[1]), 4))


def count_used(session: Session, run_id: uuid.UUID) -> None:
    """Write down how many pictures there are and what a run used, also after its end: a batch may have been under way then."""
    run = session.get_one(Run, run_id, with_for_update={"of": Run}, populate_existing=True)
    if run.campaign_id is not None:
        spent, run.done = used(session, run), made_of(session, run.campaign_id)
        run.made_pictures, run.gpu_s, run.total = spent.pictures, spent.gpu_s, max(run.done, run.total)
        session.flush()


def made_of(session: Session, campaign_id: uuid.UUID) -> int:
    """How many versions the assets of a campaign have."""
    its = select(func.count()).select_from(AssetVersion).join(Asset, Asset.id == AssetVersion.asset_id)
    return session.scalar(its.where(Asset.campaign_id == campaign_id)) or 0


# ---------------------------------------------------------------------------- quotas


def _spend(session: Session, wanted: Wanted, quota: Quota) -> None:
    """QuotaSpent where these pictures would be more than the brand, or who asks, may have within a day."""
    for whose, most, space, name, mine in (
        (f"brand {wanted.brand.name}", quota.of_brand, BY_BRAND, str(wanted.brand.id), Run.brand_id == wanted.brand.id),
        (wanted.by, quota.of_asker, BY_ASKER, wanted.by, Run.requested_by == wanted.by),
    ):
        if most is None:
            continue
        session.execute(select(func.pg_advisory_xact_lock(space, func.hashtext(name))))
        now: datetime = session.scalars(select(func.now())).one()
        rows = session.execute(
            select(Run.made_at, Run.pictures).where(mine, Run.made_at > now - DAY).order_by(Run.made_at)
        ).all()
        left = most - sum(row.pictures for row in rows)
        if wanted.counted <= left:
            continue
        freed, until = left, now
        for row in rows:
            freed, until = freed + row.pictures, row.made_at + DAY
            if freed >= wanted.counted:
                break
        else:
            until = now + DAY
        raise QuotaSpent(whose, wanted.counted, max(0, left), most, max(1, math.ceil((until - now).total_seconds())))
