"""The job table is the queue: submit, claim, heartbeat, complete, fail, reap.

A worker holds a session advisory lock on its own number for as long as its connection lives, and a lease
on each job it claimed. A worker that died frees its lock at once; one cut off by a partition loses its lease.
Completing is fenced by the attempt number, so a worker that was given up for lost cannot finish twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, any_, cast, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from asset_store.tables import Asset, AssetVersion, Job, JobState

CHANNEL = "onmodel_jobs"
LOCK_SPACE = 0x0A0DE1  # advisory locks of workers live in this space of (int4, int4) keys
MAX_ATTEMPTS = 4
BACKOFF_S = (1, 5, 30)
MAX_LOST = 8  # lost workers after which a job is set aside
ROWS_A_STATEMENT = 1000
LOST = "the worker that made it was lost"
WAITS = "given back, as"  # how the evidence begins of a job that waits for a worker that can make it


@dataclass(frozen=True)
class NewJob:
    key: str
    batch_key: str
    recipe: dict[str, Any]


@dataclass(frozen=True)
class ClaimedJob:
    """A job in a worker's hands; `attempt` is the fence that completing it must show."""

    key: str
    batch_key: str
    attempt: int
    recipe: dict[str, Any]


@dataclass(frozen=True)
class MadePicture:
    """What completing a job records of the picture; its blob is stored before."""

    sha256: str
    pixel_sha256: str
    perceptual_hash: str
    width_px: int
    height_px: int
    run: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


def submit(session: Session, jobs: Sequence[NewJob]) -> int:
    """Queue the jobs that do not exist yet and return how many; a set-aside or cancelled one is queued again, and so is one whose
    picture was removed.

    One that is queued again takes the new recipe: what the old one named of this database, such as the row of a
    reference that was renamed since, may be why it was cancelled.
    """
    if not jobs:
        return 0
    queued = 0
    rows = [{"key": j.key, "batch_key": j.batch_key, "recipe": j.recipe, "state": JobState.QUEUED} for j in jobs]
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        some = rows[start : start + ROWS_A_STATEMENT]
        queued += len(session.scalars(insert(Job).values(some).on_conflict_do_nothing().returning(Job.key)).all())
    lost = or_(Job.state.in_([JobState.FAILED, JobState.CANCELLED]), has_lost_its_picture())
    set_aside = select(Job).where(_among([j.key for j in jobs]), lost)
    asked = {j.key: j for j in jobs}
    for job in session.scalars(set_aside.order_by(Job.key).with_for_update()):
        _queue_again(session, job)
        job.recipe, job.batch_key = asked[job.key].recipe, asked[job.key].batch_key
        queued += 1
    session.flush()
    session.execute(text(f"NOTIFY {CHANNEL}"))
    return queued


def make_anew(session: Session) -> int:
    """Queue jobs again that an asset waits for and whose picture was removed while it began to; how many."""
    waits = exists().where(
        Asset.job_key == Job.key, ~exists().where(AssetVersion.asset_id == Asset.id, AssetVersion.job_key == Job.key)
    )
    jobs = session.scalars(select(Job).where(has_lost_its_picture(), waits).order_by(Job.key).with_for_update()).all()
    for job in jobs:
        _queue_again(session, job)
    return len(jobs)


def has_lost_its_picture() -> ColumnElement[bool]:
    """Whether a job is done and its picture was removed: who asks for it again has it made anew."""
    return and_(Job.state == JobState.SUCCEEDED, Job.picture_sha256.is_(None))


def _queue_again(session: Session, job: Job) -> None:
    job.state, job.finished_at, job.evidence = JobState.QUEUED, None, []  # its attempts go on: they are the fence
    job.not_before = session.scalars(select(func.now())).one()


def _among(keys: Sequence[str]) -> ColumnElement[bool]:
    """Keys as one array: a list would bind a value each, and a statement has at most 65,535."""
    return Job.key == any_(cast(list(keys), ARRAY(Text)))


_CLAIM = text(
    """
    WITH first AS (
        SELECT batch_key FROM jobs
        WHERE state = 'queued' AND not_before <= clock_timestamp() AND starts_with(batch_key, :models)
            AND key <> ALL(CAST(:without AS text[]))
        ORDER BY (batch_key = :warm) DESC, seq LIMIT 1
    ), free AS (
        SELECT key, seq, coalesce(CAST(recipe #>> '{best_of,candidates}' AS integer), 1) AS pictures FROM jobs
        WHERE state = 'queued' AND not_before <= clock_timestamp() AND batch_key = (SELECT batch_key FROM first)
            AND key <> ALL(CAST(:without AS text[]))
        ORDER BY seq LIMIT :size FOR UPDATE SKIP LOCKED
    ), chosen AS (
        SELECT key FROM (
            SELECT key, sum(pictures) OVER (ORDER BY seq) AS total, row_number() OVER (ORDER BY seq) AS place FROM free
        ) AS counted WHERE total <= :size OR place = 1
    )
    UPDATE jobs SET state = 'running', attempt = attempt + 1, claimed_by = :worker,
                    lease_until = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE key IN (SELECT key FROM chosen)
    RETURNING key, batch_key, attempt, recipe, seq
    """
)


def claim(
    session: Session, *, worker: int, size: int, warm: str = "", models: str = "", without: Sequence[str] = (),
    lease_s: float = 60.0,
) -> list[ClaimedJob]:  # fmt: skip
    """Take queued jobs of one batch key, the warm one first, for up to `size` pictures; at least one job, and none only
    when there is no work. A job with candidates counts as that many pictures.

    `models`: how the batch keys begin that this worker can make; the others are left to workers that can.
    `without`: keys that it found it cannot make.
    """
    asked = {"warm": warm, "size": size, "models": models, "without": list(without), "worker": worker}
    rows = session.execute(_CLAIM, {**asked, "lease_s": lease_s}).all()
    return [ClaimedJob(r.key, r.batch_key, r.attempt, r.recipe) for r in sorted(rows, key=lambda r: r.seq)]


def extend_lease(session: Session, *, worker: int, lease_s: float = 60.0) -> None:
    """The heartbeat of a worker that is at work."""
    session.execute(
        update(Job)
        .where(Job.claimed_by == worker, Job.state == JobState.RUNNING)
        .values(lease_until=func.clock_timestamp() + timedelta(seconds=lease_s))
    )


def complete(session: Session, job: ClaimedJob, picture: MadePicture) -> bool:
    """Finish a job; False when another worker has taken it since, whose picture then counts."""
    done = session.execute(
        update(Job)
        .where(Job.key == job.key, Job.attempt == job.attempt, Job.state == JobState.RUNNING)
        .values(
            state=JobState.SUCCEEDED,
            picture_sha256=picture.sha256,
            picture=picture.as_json(),
            finished_at=func.now(),
            claimed_by=None,
            lease_until=None,
        )
        .returning(Job.key)
    ).all()
    return bool(done)


def fail(session: Session, job: ClaimedJob, message: str, *, final: bool = False) -> JobState:
    """Record a failed attempt: the job backs off, or is set aside after the last attempt."""
    row = session.get(Job, job.key, with_for_update=True)
    if row is None or row.attempt != job.attempt or row.state is not JobState.RUNNING:
        return row.state if row is not None else JobState.CANCELLED
    row.evidence = [*row.evidence, {"attempt": job.attempt, "message": message[:2000]}]
    row.claimed_by = row.lease_until = None
    failures = sum(e.get("message") != LOST and "since" not in e for e in row.evidence)
    if final or failures >= MAX_ATTEMPTS:
        row.state, row.finished_at = JobState.FAILED, session.scalar(select(func.now()))
    else:
        row.state = JobState.QUEUED
        row.not_before = _now(session) + timedelta(seconds=BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])
    session.flush()
    return row.state


def release(
    session: Session, job: ClaimedJob, pause_s: float, *, why: str = "", patience_s: float = float("inf")
) -> JobState:
    """Give a job back to the queue, to be claimed again after `pause_s`; no failure is counted.

    `why`: a sentence without its full stop on what the worker lacks. It is noted with its time, and a job that is given
    back for nothing but such reasons for longer than `patience_s` is set aside. The attempt number stays used, so
    that whoever gave the job back can no longer finish it.
    """
    row = session.get(Job, job.key, with_for_update=True)
    if row is None or row.attempt != job.attempt or row.state is not JobState.RUNNING:
        return row.state if row is not None else JobState.CANCELLED
    row.state, row.claimed_by, row.lease_until = JobState.QUEUED, None, None
    now = _now(session)
    row.not_before = now + timedelta(seconds=pause_s)
    if why:
        noted = row.evidence[-1] if row.evidence and "since" in row.evidence[-1] else None
        since = now if noted is None else datetime.fromisoformat(noted["since"])
        if noted is None:
            note = {"attempt": job.attempt, "message": f"{WAITS} {why}"[:2000], "since": now.isoformat()}
            row.evidence = [*row.evidence, note]
        if (waited_s := (now - since).total_seconds()) >= patience_s:
            told = f"no worker that can make it came within {waited_s:.0f} s: {why}"
            row.evidence = [*row.evidence, {"attempt": job.attempt, "message": told[:2000]}]
            row.state, row.finished_at = JobState.FAILED, now
    session.flush()
    return row.state


def _now(session: Session) -> datetime:
    now: datetime = session.scalars(select(func.clock_timestamp())).one()
    return now


def cancel(session: Session, job: ClaimedJob, message: str) -> None:
    """Block a job that may not be made (a right it needs is gone), with the reason."""
    row = session.get(Job, job.key, with_for_update=True)
    if row is not None and row.attempt == job.attempt and row.state is JobState.RUNNING:
        row.state, row.claimed_by, row.lease_until = JobState.CANCELLED, None, None
        row.evidence = [*row.evidence, {"attempt": job.attempt, "message": message}]
        session.flush()


_REAP = text(
    """
    WITH lost AS (
        SELECT key FROM jobs
        WHERE state = 'running' AND (
            lease_until < clock_timestamp()
            OR (claimed_by <> :me AND claimed_by NOT IN (
                SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid = :space
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            ))
        ) FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET
        state = CASE WHEN :max_lost <= 1 + (
            SELECT count(*) FROM jsonb_array_elements(evidence) AS e WHERE e ->> 'message' = CAST(:lost AS text)
        ) THEN 'failed' ELSE 'queued' END, claimed_by = NULL, lease_until = NULL,
        evidence = evidence || jsonb_build_object('attempt', attempt, 'message', CAST(:lost AS text))
    WHERE key IN (SELECT key FROM lost)
    RETURNING key
    """
)


def reap(session: Session, *, me: int = 0) -> int:
    """Queue the jobs of lost workers again and return how many: their lock is free or their lease is over.

    A job whose workers were lost MAX_LOST times is set aside: it may be what kills them. Attempts that failed or were
    given back do not count.
    """
    lost = session.execute(_REAP, {"me": me, "space": LOCK_SPACE, "max_lost": MAX_LOST, "lost": LOST}).all()
    if lost:
        session.execute(text(f"NOTIFY {CHANNEL}"))
    return len(lost)


def states(session: Session, keys: Sequence[str]) -> dict[JobState, int]:
    """How many of `keys` are in which state."""
    rows = session.execute(select(Job.state, func.count()).where(_among(keys)).group_by(Job.state)).all()
    return {row[0]: row[1] for row in rows}


def queued(session: Session) -> int:
    """The depth of the queue."""
    return session.scalars(select(func.count()).where(Job.state == JobState.QUEUED)).one()
